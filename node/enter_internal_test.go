package node

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cert"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/join"
	"github.com/volant-edge/volant/secret"
)

// host1 lets everybody in, as a control node does, and counts.
type host1 struct {
	t     *testing.T
	key   ed25519.PrivateKey
	box   *secret.Box
	ca    *cert.Authority
	addr  string
	token join.Token

	mu    sync.Mutex // guards the fields below
	asked []join.Request
	err   error
}

func newHost1(t *testing.T) *host1 {
	t.Helper()
	box, err := secret.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := &host1{t: t, box: box, key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))}
	if h.ca, _, err = cert.Open(t.TempDir(), "0a0b0c0d", "example.com", time.Now()); err != nil {
		t.Fatal(err)
	}
	s, err := join.NewServer(h.key, h, nil)
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
	h.addr = l.Addr().String()
	f, err := join.FingerprintOf(h.key)
	if err != nil {
		t.Fatal(err)
	}
	h.token = join.NewToken(f)
	return h
}

func (h *host1) Admit(_ context.Context, r join.Request, _ netip.Addr) (join.Answer, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.asked = append(h.asked, r)
	if h.err != nil {
		return join.Answer{}, h.err
	}
	n := volant.Node{Name: r.Name, Region: r.Region, Roles: r.Roles, Mesh: volant.Mesh{Key: r.Key, Endpoint: r.Endpoint}}
	n.ID = string(r.Node)
	crt, key, err := h.ca.Files()
	return join.Answer{
		Nodes: []volant.Node{n}, Secrets: h.box.Key(), CACert: crt, CAKey: key, Stores: []string{"http://[fd76::1]:4285"},
		Domain: "example.com", Pool4: netip.MustParsePrefix("198.51.100.0/24"),
	}, err
}

func (*host1) Removed(volant.NodeID) bool { return false }

func (h *host1) config() Config {
	return Config{
		Name: "ord-1", Region: "ord", Roles: []string{"host"}, Mesh: MeshConfig{Endpoint: "192.0.2.9:4281"},
		Join: JoinConfig{Server: h.addr, Token: h.token.String()},
	}
}

// start is the beginning of a server's start in a data directory, as far as it is a member then.
func start(t *testing.T, data string, given Config) (*server, error) {
	t.Helper()
	given.Data = data
	s := &server{cfg: given.withDefaults()}
	s.cfg.Log = slog.New(slog.DiscardHandler)
	var err error
	if s.dir, err = datadir.Open(data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.dir.Close() })
	return s, s.enter(t.Context(), given)
}

func again(t *testing.T, s *server) {
	t.Helper()
	if err := s.dir.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestServerJoinsOnce(t *testing.T) {
	h, data := newHost1(t), t.TempDir()
	s, err := start(t, data, h.config())
	if err != nil {
		t.Fatal(err)
	}
	id := s.dir.Node()
	again(t, s)
	// Later starts need neither the token nor the flags, and no control node.
	h.err = errors.New("asked a second time")
	s, err = start(t, data, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if s.member == nil || s.dir.Node() != id || s.cfg.Region != "ord" || s.cfg.Name != "ord-1" || len(s.cfg.Roles) != 1 || s.cfg.Roles[0] != "host" {
		t.Errorf("member %+v, region %s, name %s, roles %v", s.member, s.cfg.Region, s.cfg.Name, s.cfg.Roles)
	}
	if s.cfg.Domain != "example.com" || s.cfg.Edge.Pool4 != netip.MustParsePrefix("198.51.100.0/24") || s.cfg.Mesh.Endpoint != "192.0.2.9:4281" {
		t.Errorf("domain %s, pool %s, endpoint %s: want the cluster's", s.cfg.Domain, s.cfg.Edge.Pool4, s.cfg.Mesh.Endpoint)
	}
	if len(h.asked) != 1 {
		t.Errorf("asked %d times", len(h.asked))
	}
	box, err := secret.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := h.box.Seal("app/NAME", []byte("value"))
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := box.Open("app/NAME", sealed); err != nil || string(plain) != "value" {
		t.Errorf("what the cluster sealed is %q here, %v", plain, err)
	}
	ca, made, err := cert.Open(s.dir.Path("ca"), id, "example.com", time.Now())
	if err != nil || made || ca.Fingerprint() != h.ca.Fingerprint() {
		t.Errorf("the development CA is another one: made %v, %v", made, err)
	}
}

// A start that was cut off after the answer, with some of it put down, asks again as the same node with the same key.
func TestJoinGoesOnWhereItWasCutOff(t *testing.T) {
	h, data := newHost1(t), t.TempDir()
	s, err := start(t, data, h.config())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.dir.Path(memberFile)); err != nil {
		t.Fatal(err)
	}
	again(t, s)
	if s, err = start(t, data, h.config()); err != nil {
		t.Fatal(err)
	}
	if len(h.asked) != 2 || h.asked[0].Node != h.asked[1].Node || h.asked[0].Key != h.asked[1].Key || h.asked[0].API != h.asked[1].API {
		t.Errorf("asked as %+v", h.asked)
	}
	if s.member == nil {
		t.Error("it is no member")
	}
}

func TestWhatKeepsAServerFromJoining(t *testing.T) {
	for name, row := range map[string]struct {
		before func(t *testing.T, s *server)
		change func(h *host1, c *Config)
		want   error
	}{
		"an intent of its own": {
			before: func(t *testing.T, s *server) {
				if err := os.MkdirAll(s.dir.Path("etcd", "member"), 0o700); err != nil {
					t.Fatal(err)
				}
			},
			want: volant.ErrPrecondition,
		},
		"the key of another cluster": {
			before: func(t *testing.T, s *server) {
				if _, err := secret.Open(s.dir.Root()); err != nil {
					t.Fatal(err)
				}
			},
			want: volant.ErrPrecondition,
		},
		"no token":                {change: func(_ *host1, c *Config) { c.Join.Token = "" }, want: volant.ErrInvalid},
		"an API token":            {change: func(_ *host1, c *Config) { c.Join.Token = "vol_0123" }, want: volant.ErrInvalid},
		"a missing file":          {change: func(_ *host1, c *Config) { c.Join.Token, c.Join.TokenFile = "", "/nowhere" }, want: volant.ErrInvalid},
		"a refusal":               {change: func(h *host1, _ *Config) { h.err = volant.Errorf(volant.ErrForbidden, "no") }, want: volant.ErrForbidden},
		"a token of others":       {change: func(_ *host1, c *Config) { c.Join.Token = join.NewToken(join.Fingerprint{1}).String() }, want: volant.ErrUnauthorized},
		"a first without control": {change: func(_ *host1, c *Config) { c.Join = JoinConfig{} }, want: volant.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			h, data := newHost1(t), t.TempDir()
			if row.before != nil {
				d, err := datadir.Open(data)
				if err != nil {
					t.Fatal(err)
				}
				s := &server{dir: d}
				row.before(t, s)
				again(t, s)
			}
			cfg := h.config()
			if row.change != nil {
				row.change(h, &cfg)
			}
			s, err := start(t, data, cfg)
			if !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
			if _, err := os.Stat(s.dir.Path(memberFile)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("it is a member all the same: %v", err)
			}
		})
	}
}

// A server that was removed says so at each start, and asks nobody to be let in again.
func TestRemovedServerStaysSo(t *testing.T) {
	for _, first := range []bool{false, true} {
		h, data := newHost1(t), t.TempDir()
		cfg := h.config()
		if first {
			cfg.Join, cfg.Roles = JoinConfig{}, nil
		}
		s, err := start(t, data, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.leave(); !errors.Is(err, volant.ErrPrecondition) {
			t.Errorf("first %v: %v", first, err)
		}
		again(t, s)
		asked := len(h.asked)
		if _, err := start(t, data, cfg); !errors.Is(err, volant.ErrPrecondition) || len(h.asked) != asked {
			t.Errorf("first %v: at the next start %v, asked %d times", first, err, len(h.asked)-asked)
		}
	}
}

func TestEndpoints(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.1:99": "192.0.2.1:99", "192.0.2.1": "192.0.2.1:4281", "[2001:db8::1]:5": "[2001:db8::1]:5",
		"2001:db8::1": "[2001:db8::1]:4281", ":7": "[::]:7", "": "[::]:4281",
	} {
		c := MeshConfig{Endpoint: text}
		if got, err := c.endpoint(t.Context()); err != nil || got.String() != want {
			t.Errorf("%q is %v, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"a:b:c:d:0x", "host:0", "host:99999", "http://host/"} {
		if _, _, err := hostPort(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
