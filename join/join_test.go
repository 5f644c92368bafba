package join_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/join"
)

// gate lets everybody in, and remembers who asked.
type gate struct {
	mu    sync.Mutex
	asked []join.Request
	err   error
}

func (g *gate) Admit(_ context.Context, r join.Request, _ netip.Addr) (join.Answer, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, r)
	if g.err != nil {
		return join.Answer{}, g.err
	}
	n := volant.Node{Name: r.Name}
	n.ID = string(r.Node)
	return join.Answer{Nodes: []volant.Node{n}, Secrets: make([]byte, 32), Stores: []string{"http://[fd76::1]:4285"}}, nil
}

func (g *gate) Removed(node volant.NodeID) bool { return node == "deadbeef" }

func (g *gate) requests() []join.Request {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked
}

func key(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

func fingerprint(t testing.TB, k ed25519.PrivateKey) join.Fingerprint {
	t.Helper()
	f, err := join.FingerprintOf(k)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func request() join.Request {
	return join.Request{
		Version: 1, Secret: make([]byte, 24), Node: "0a0b0c0d", Name: "ams-1", Region: "ams", Roles: []string{"edge", "host"},
		Key: base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32)), Endpoint: netip.MustParseAddrPort("0.0.0.0:4281"),
		API: strings.Repeat("0", 64),
	}
}

func TestTokenIsReadAsItWasWritten(t *testing.T) {
	want := join.NewToken(fingerprint(t, key(1)))
	got, err := join.ParseToken("  " + want.String() + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if got != want || got.ID() != want.Hash()[:join.IDLen] {
		t.Errorf("got %+v of ID %s, want %+v", got, got.ID(), want)
	}
}

func TestEveryChangedTokenIsRefused(t *testing.T) {
	text := join.NewToken(fingerprint(t, key(1))).String()
	for i := range len(text) {
		b := []byte(text)
		b[i] ^= 1
		if _, err := join.ParseToken(string(b)); !errors.Is(err, volant.ErrInvalid) {
			t.Fatalf("character %d changed: %v", i, err)
		}
		if _, err := join.ParseToken(text[:i]); !errors.Is(err, volant.ErrInvalid) {
			t.Fatalf("cut off after %d: %v", i, err)
		}
	}
}

func serve(t *testing.T, g *gate, k ed25519.PrivateKey) string {
	t.Helper()
	s, err := join.NewServer(k, g, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestAskAndAnswer(t *testing.T) {
	g := &gate{}
	addr := serve(t, g, key(1))
	tok := join.NewToken(fingerprint(t, key(1)))
	a, err := (join.Asker{}).Ask(t.Context(), addr, tok, request())
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Nodes) != 1 || a.Nodes[0].ID != "0a0b0c0d" {
		t.Errorf("answer %+v", a)
	}
	want := request()
	want.Secret = tok.Secret[:]
	want.Endpoint = netip.MustParseAddrPort("127.0.0.1:4281") // the address that was seen
	if diff := cmp.Diff([]join.Request{want}, g.requests(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	for node, want := range map[volant.NodeID]bool{"deadbeef": true, "0a0b0c0d": false} {
		if got, err := (join.Asker{}).Removed(t.Context(), addr, tok.Cluster, node); err != nil || got != want {
			t.Errorf("node %s removed: %v, %v", node, got, err)
		}
	}
}

func TestRefusalComesAsItIs(t *testing.T) {
	g := &gate{err: volant.Errorf(volant.ErrUnauthorized, "the join token expired").WithRemedy("make another")}
	_, err := (join.Asker{}).Ask(t.Context(), serve(t, g, key(1)), join.NewToken(fingerprint(t, key(1))), request())
	var e *volant.Error
	if !errors.As(err, &e) || !errors.Is(err, volant.ErrUnauthorized) || e.Text != "the join token expired" || e.Remedy != "make another" {
		t.Errorf("got %v", err)
	}
	g.err = errors.New("open /var/lib/secret: no such file")
	if _, err := (join.Asker{}).Ask(t.Context(), serve(t, g, key(1)), join.NewToken(fingerprint(t, key(1))), request()); err == nil || strings.Contains(err.Error(), "secret:") {
		t.Errorf("got %v, which should not tell what went wrong inside", err)
	}
}

func TestNothingIsToldToAStranger(t *testing.T) {
	g := &gate{}
	addr := serve(t, g, key(2))
	_, err := (join.Asker{}).Ask(t.Context(), addr, join.NewToken(fingerprint(t, key(1))), request())
	if !errors.Is(err, volant.ErrUnauthorized) || len(g.requests()) != 0 {
		t.Errorf("got %v, and %d requests arrived", err, len(g.requests()))
	}
}

func TestOneSourceIsLimitedInRate(t *testing.T) {
	s, err := join.NewServer(key(1), &gate{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(from string) int {
		r := httptest.NewRequest(http.MethodGet, "/v1/removed/0a0b0c0d", nil)
		r.RemoteAddr = from
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w.Code
	}
	codes := map[int]int{}
	for range 100 {
		codes[ask("[2001:db8::1]:1")]++
		codes[ask("[2001:db8::2]:1")]++ // the same network
	}
	if codes[http.StatusOK] < 20 || codes[http.StatusOK] > 25 {
		t.Errorf("of 200 requests of one network: %v", codes)
	}
}

// Connections that say nothing take no more room than the share of their source, and give it back.
func TestOneSourceHasAShareOfTheConnections(t *testing.T) {
	k := key(1)
	addr := serve(t, &gate{}, k)
	var held []net.Conn
	for i := range 20 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i < 8 {
			held = append(held, c)
			continue
		}
		if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("connection %d of one source is not closed: %v", i+1, err)
		}
	}
	for _, c := range held {
		c.Close()
	}
	var err error
	for range 1000 {
		if _, err = (join.Asker{}).Removed(t.Context(), addr, fingerprint(t, k), "0a0b0c0d"); err == nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("after they ended: %v", err)
}

func TestBadRequests(t *testing.T) {
	good := request()
	for name, change := range map[string]func(*join.Request){
		"version":       func(r *join.Request) { r.Version = 2 },
		"no secret":     func(r *join.Request) { r.Secret = nil },
		"node":          func(r *join.Request) { r.Node = "../../x" },
		"no name":       func(r *join.Request) { r.Name = "" },
		"name":          func(r *join.Request) { r.Name = "a\nb" },
		"region":        func(r *join.Request) { r.Region = "AMS" },
		"no roles":      func(r *join.Request) { r.Roles = nil },
		"role":          func(r *join.Request) { r.Roles = []string{"root"} },
		"role twice":    func(r *join.Request) { r.Roles = []string{"edge", "edge"} },
		"key":           func(r *join.Request) { r.Key = "AAAA" },
		"key of zeroes": func(r *join.Request) { r.Key = base64.StdEncoding.EncodeToString(make([]byte, 32)) },
		"no endpoint":   func(r *join.Request) { r.Endpoint = netip.AddrPort{} },
		"port 0":        func(r *join.Request) { r.Endpoint = netip.MustParseAddrPort("10.0.0.1:0") },
		"hash":          func(r *join.Request) { r.API = "x" },
	} {
		r := good
		change(&r)
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := join.DecodeRequest(b); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzDecodeRequest(f *testing.F) {
	b, err := json.Marshal(request())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"roles":[null],"endpoint":"[::%25eth0]:1"}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := join.DecodeRequest(b)
		if err != nil {
			return
		}
		if r.Region == "" || len(r.Secret) != 24 || !volant.MeshAddr(r.Node).IsValid() || r.Endpoint.Port() == 0 || join.CheckRoles(r.Roles) != nil {
			t.Errorf("took %+v", r)
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := join.DecodeRequest(again); err != nil {
			t.Errorf("what was taken is refused when it is written again: %v", err)
		}
	})
}

func FuzzParseToken(f *testing.F) {
	f.Add(join.NewToken(join.Fingerprint{}).String())
	f.Add("vj1_")
	f.Fuzz(func(t *testing.T, text string) {
		if tok, err := join.ParseToken(text); err == nil && tok.String() != strings.TrimSpace(text) {
			t.Errorf("%q became %q", text, tok)
		}
	})
}
