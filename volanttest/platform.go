// Package volanttest is a platform in one test process: the real rooms, joined as a server joins them, on a
// store, a network and an engine in memory. It runs inside a testing/synctest bubble, so that minutes of
// scaling take milliseconds.
//
// # Not here
//
// A real server as a process: package volanttest/live. What a test needs of its machine: volanttest/need.
package volanttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/client"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/internal/contract"
	"github.com/volant-edge/volant/microvm/fake"
	"github.com/volant-edge/volant/node"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/registry"
	"github.com/volant-edge/volant/secret"
	"github.com/volant-edge/volant/store/storetest"
	"github.com/volant-edge/volant/volanttest/memnet"
	"github.com/volant-edge/volant/why"
)

// Image is the digest of the image every deploy may name.
const Image volant.Digest = "sha256:" + "5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9"

// Broken is the digest of an image whose program ends with code 1.
const Broken volant.Digest = "sha256:" + "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"

// Crashing is the digest of an image whose program ends with code 1 after 3 seconds, before it listens.
const Crashing volant.Digest = "sha256:" + "d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35"

// Port is the internal port that the apps in machines listen on.
const Port = 8080

// Platform is one node in memory. Server restarts keep Store, Engine's world, network and proxy.
type Platform struct {
	ID     volant.NodeID
	Region volant.Region

	t     testing.TB
	spot  *spot // in a cluster; nil: it is alone
	Store *storetest.Memory
	Net   *memnet.Network
	World *fake.World
	Proxy *proxy.Proxy
	API   *client.Client
	Node  *node.Platform // of the server that runs now
	Why   *why.Ring
	Boot  int // of the server, for the next Start
	// Hook is asked for faults of the engine from the next Start on.
	Hook func(fake.Op) fake.Fault
	// Names are what the name server knows.
	Names map[string][]netip.Addr

	dir    string
	blobs  *image.Store
	box    *secret.Box
	epoch  uint64
	cancel context.CancelFunc
	done   chan error
	links  links
	kill   context.CancelFunc // of the proxy

	mu     sync.Mutex // guards the fields below
	guests map[string]*Guest
	left   int
	goods  map[string]bool
}

// New starts a platform. It must be called in a synctest bubble, and Close before the bubble ends.
func New(t testing.TB) *Platform {
	t.Helper()
	p := newPlatform(t, "0a0b0c0d", "local", storetest.New())
	p.startProxy()
	p.Start()
	return p
}

// newPlatform is a node of which nothing runs yet.
func newPlatform(t testing.TB, id volant.NodeID, region volant.Region, s *storetest.Memory) *Platform {
	t.Helper()
	p := &Platform{
		ID: id, Region: region,
		t: t, Store: s, Net: &memnet.Network{}, World: fake.NewWorld(), Why: why.NewRing(4096),
		dir: t.TempDir(), guests: map[string]*Guest{}, links: links{m: map[volant.MachineID]netip.Addr{}},
	}
	var err error
	if p.box, err = secret.Open(p.dir); err != nil {
		t.Fatal(err)
	}
	if p.blobs, err = image.Open(filepath.Join(p.dir, "images"), image.Config{}); err != nil {
		t.Fatal(err)
	}
	return p
}

// startProxy starts a proxy, which knows nothing.
func (p *Platform) startProxy() {
	p.t.Helper()
	var err error
	cfg := proxy.Config{Listen: p.Net.Listen, Dial: p.Net.Dial}
	if p.spot != nil {
		cfg = p.spot.proxyConfig()
	}
	if p.Proxy, err = proxy.New(cfg); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(p.t.Context())
	p.kill = cancel
	go func(px *proxy.Proxy) { _ = px.Run(ctx) }(p.Proxy) // Close has ended all connections
}

// KillProxy ends the proxy with its connections, as kill -9 does. The server finds a new one.
func (p *Platform) KillProxy() {
	p.t.Helper()
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	_ = p.Proxy.Watch(gone, proxy.Events{}) // the server's link breaks: it hears nothing of the end
	p.kill()
	synctest.Wait()
	p.startProxy()
}

const rootToken = "root-token-of-the-test-platform-0123456789"

// Token is the root token.
func (p *Platform) Token() string { return rootToken }

// Handler is the API of the server that runs now. What goes through it is checked against the API's
// document, and fails the test where it does not keep to it.
func (p *Platform) Handler() http.Handler {
	c, err := checker()
	if err != nil {
		p.t.Fatal(err)
	}
	checked := c.Handler(p.Node.API(), func(violation string) { p.t.Errorf("the API's document: %s", violation) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2" || strings.HasPrefix(r.URL.Path, "/v2/") {
			p.Node.API().ServeHTTP(w, r) // the registry, which has a specification of its own
			return
		}
		checked.ServeHTTP(w, r)
	})
}

// checker is one for all platforms of a process: schemas are compiled once.
var checker = sync.OnceValues(contract.Load)

// Transport leads a client's requests to the API of the server that runs now.
func (p *Platform) Transport() http.RoundTripper { return transport{p.Handler()} }

// Client is a client of the API by another token.
func (p *Platform) Client(token string) *client.Client {
	return client.NewTransport("http://test", token, p.Transport())
}

// Start runs a server on what there is.
func (p *Platform) Start() {
	p.t.Helper()
	p.epoch++
	im := images{p.blobs, p}
	parts := node.Parts{
		Node: p.ID, Region: p.Region, Name: "test", Epoch: p.epoch, Token: rootToken,
		Store: p.Store, Copy: p.Store, Reasons: ring{p.Why},
		Engine: fake.New(fake.Config{World: p.World, App: p.app, Hook: p.Hook, Latency: fake.Latency{
			Create: 50 * time.Millisecond, Boot: time.Second, Restore: 20 * time.Millisecond, Snapshot: 10 * time.Millisecond,
		}}),
		Host: host.Config{
			Dir: p.dir, MemoryMB: 64 << 10, DiskUsed: func(string) (float64, error) { return 0, nil }, HostBoot: fmt.Sprintf("boot-%d", p.Boot),
			Kernel: host.Kernel{Vmlinux: "vmlinux", Initrd: "initrd", Sum: "k1"},
		},
		Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return p.Net.Dial(ctx, netip.MustParseAddrPort(addr))
		},
		Images: im, Uploads: im, Blobs: im, Net: &p.links, Cgroups: cgroups{}, Addresses: pool{}, Secrets: p.box, Answers: filepath.Join(p.dir, "answers"), Resolve: p.resolve,
		Proxy: func(context.Context) (node.Link, func(), error) { return p.Proxy, func() {}, nil },
		JoinListen: func(ctx context.Context) (net.Listener, error) {
			return p.Net.Listen(ctx, netip.MustParseAddrPort("192.0.2.1:4281"))
		},
		Endpoint: netip.MustParseAddrPort("192.0.2.1:4281"),
	}
	if testing.Verbose() {
		parts.Log = slog.New(slog.NewTextHandler(writer{p.t}, nil))
	}
	if p.spot != nil {
		p.spot.join(&parts)
	} else if _, rev, err := p.Store.List(context.Background(), "none"); err == nil {
		parts.Known = rev
	}
	var err error
	if p.Node, err = node.NewPlatform(parts); err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel, p.done = cancel, make(chan error, 1)
	go func() { p.done <- p.Node.Run(ctx) }()
	if err := p.Node.Ready(ctx); err != nil {
		p.t.Fatal(err)
	}
	p.API = client.NewTransport("http://test", rootToken, p.Transport())
	synctest.Wait()
}

// Stop ends the server as it is: proxy and machines go on.
func (p *Platform) Stop() {
	p.t.Helper()
	p.cancel()
	if err := <-p.done; err != nil {
		p.t.Errorf("server: %v", err)
	}
	if p.spot != nil {
		p.spot.closeCopy()
	}
}

// Ended is the error with which the server ended by itself.
func (p *Platform) Ended() error {
	err := <-p.done
	p.done <- nil // for Stop
	return err
}

// Close ends everything.
func (p *Platform) Close() {
	p.t.Helper()
	p.Stop()
	p.World.Close()
}

// Deploy makes the app if it is missing, deploys to it and returns its address and the release once that
// is complete or failed.
func (p *Platform) Deploy(app string, image volant.Digest, change ...func(*api.CreateRelease)) (netip.AddrPort, api.Release) {
	p.t.Helper()
	ctx := context.Background()
	if _, err := p.API.App(ctx, app); errors.Is(err, volant.ErrNotFound) {
		if _, err := p.API.CreateApp(ctx, app, ""); err != nil {
			p.t.Fatal(err)
		}
	}
	req := api.CreateRelease{Image: string(image), Config: volant.MachineConfig{
		Services: []volant.Service{{Protocol: "tcp", InternalPort: Port, Ports: []volant.Port{{Port: 80}}}},
	}}
	for _, f := range change {
		f(&req)
	}
	r, err := p.API.CreateRelease(ctx, app, req)
	if err != nil {
		p.t.Fatal(err)
	}
	for r.Status == "pending" || r.Status == "running" {
		time.Sleep(100 * time.Millisecond)
		if r, err = p.API.Release(ctx, app, r.Version); err != nil {
			p.t.Fatal(err)
		}
	}
	if len(r.Addresses) == 0 {
		return netip.AddrPort{}, r
	}
	return netip.AddrPortFrom(netip.MustParseAddr(r.Addresses[0]), 80), r
}

// Connect opens a connection and sees it answered by a machine.
func (p *Platform) Connect(addr netip.AddrPort) (net.Conn, error) {
	c, err := p.Net.Dial(context.Background(), addr)
	if err != nil {
		return nil, err
	}
	if err := Echo(c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Echo sends a word over the connection and sees it come back.
func Echo(c net.Conn) error {
	if _, err := io.WriteString(c, "ping"); err != nil {
		return err
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != "ping" {
		return fmt.Errorf("echo of ping is %q", b)
	}
	return nil
}

// Machines are an app's machines.
func (p *Platform) Machines(app string) []api.Machine {
	p.t.Helper()
	ms, err := p.API.Machines(context.Background(), app)
	if err != nil {
		p.t.Fatal(err)
	}
	return ms
}

// States counts an app's machines by state.
func (p *Platform) States(app string) map[string]int {
	p.t.Helper()
	out := map[string]int{}
	for _, m := range p.Machines(app) {
		out[m.State]++
	}
	return out
}

// Draining counts an app's machines which take no new connections until they are empty.
func (p *Platform) Draining(app string) int {
	p.t.Helper()
	n := 0
	for _, m := range p.Machines(app) {
		if have, ok := p.Node.Catalog().Snapshot().Have(volant.MachineID(m.ID)); ok && have.Draining {
			n++
		}
	}
	return n
}

// Guests are all apps that ever ran, by machine.
func (p *Platform) Guests() map[string]*Guest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.guests)
}

// Guest is an app in a machine: it echoes, and keeps its own count of connections, which no limit of the
// platform knows of.
type Guest struct {
	mu               sync.Mutex // guards the fields
	print            func(source, text string)
	Open, Max, Total int
}

func (g *Guest) add(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.Open += n
	g.Max = max(g.Max, g.Open)
	if n > 0 {
		g.Total += n
	}
}

// Counts returns the connections that are open, the most at once, and all.
func (g *Guest) Counts() (open, most, total int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.Open, g.Max, g.Total
}

// Print makes the app print a line; source is stdout or stderr.
func (g *Guest) Print(source, text string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.print(source, text)
}

// app is the program in every guest.
func (p *Platform) app(ctx context.Context, fg *fake.Guest) guest.Exit {
	if fg.Config().Args[0] == "broken" {
		return guest.Exit{Code: 1}
	}
	if args := fg.Config().Args; len(args) > 2 && args[1] == "exit" {
		return p.leave(ctx, fg, args[2])
	}
	if !p.good(fg) {
		return guest.Exit{Code: 9}
	}
	if fg.Config().Args[0] == "crashing" {
		select {
		case <-ctx.Done():
		case <-time.After(3 * time.Second):
		}
		return guest.Exit{Code: 1}
	}
	p.mu.Lock()
	g := p.guests[fg.VM()]
	if g == nil {
		g = &Guest{}
		p.guests[fg.VM()] = g
	}
	g.mu.Lock()
	g.print = fg.Log
	g.mu.Unlock()
	p.mu.Unlock()
	l, err := p.Net.Listen(ctx, netip.AddrPortFrom(fg.Config().Net.Addr.Addr(), Port))
	if err != nil {
		fg.Log("stderr", err.Error())
		return guest.Exit{Code: 2}
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			return guest.Exit{Signal: fg.Signalled()}
		}
		g.add(1)
		go func() {
			_, _ = io.Copy(c, c) // ends with the connection
			g.add(-1)
			_ = c.Close()
		}()
	}
}

// leave is a program that ends after a second with the code it is told. "never" does not end.
func (p *Platform) leave(ctx context.Context, fg *fake.Guest, code string) guest.Exit {
	if code == "never" {
		<-ctx.Done()
		return guest.Exit{Signal: 2}
	}
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
	n, err := strconv.Atoi(code)
	if err != nil {
		n = 99
	}
	fg.Log("stderr", "leaving with "+code)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left++
	return guest.Exit{Code: n}
}

// Left is how many programs ended as they were told.
func (p *Platform) Left() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left
}

// good says whether the machine is among the first that its environment's GOOD lets serve.
func (p *Platform) good(fg *fake.Guest) bool {
	most, err := strconv.Atoi(fg.Config().Env["GOOD"])
	if err != nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.goods == nil {
		p.goods = map[string]bool{}
	}
	if len(p.goods) < most {
		p.goods[fg.VM()] = true
	}
	return p.goods[fg.VM()]
}

type writer struct{ t testing.TB }

func (w writer) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// transport calls a handler in place of the network.
type transport struct{ h http.Handler }

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	if r.Body == nil {
		r.Body = http.NoBody
	}
	t.h.ServeHTTP(rec, r)
	return rec.Result(), nil
}

// ring is the memory ring as a platform asks for reasons.
type ring struct{ *why.Ring }

func (r ring) Query(q why.Query) ([]why.Record, error) { return r.Ring.Query(q), nil }

type images struct {
	*image.Store
	p *Platform
}

// ImageRef is a reference to Image in a registry.
const ImageRef = "registry.test/web:1"

// made are the images that are there from the start.
func made(d volant.Digest) bool { return d == Image || d == Broken || d == Crashing }

func (i images) Has(org volant.OrgID, d volant.Digest) bool { return made(d) || i.Owns(org, d) }

func (i images) Put(ctx context.Context, org volant.OrgID, d volant.Digest, r io.Reader) error {
	return i.PutFor(ctx, org, d, r)
}

func (i images) Begin(volant.OrgID) (*image.Upload, error) { return i.Store.Begin() }

func (i images) Grant(org volant.OrgID, d volant.Digest) error {
	if made(d) {
		return nil
	}
	return i.Store.Grant(org, d)
}

// Resolve knows one reference, and the platform's own registry.
func (i images) Resolve(_ context.Context, p control.Pull, _ func(string, int64, int64)) (volant.Digest, error) {
	ref, err := image.ParseRef(p.Ref)
	if err == nil && ref.Registry == "registry.volant" {
		org, repo := registry.Split(ref.Repository, p.Org)
		if t, ok := i.p.Node.Catalog().Snapshot().Image(org, repo, ref.Tag); ok {
			return i.ForPlatform(t.Digest)
		}
	}
	if p.Ref != ImageRef {
		return "", volant.Errorf(volant.ErrNotFound, "image %s is not there", p.Ref).WithRemedy("the one there is here is %s", ImageRef)
	}
	return Image, nil
}

func (images) Prepare(context.Context, volant.Digest, func(string, int64, int64)) error { return nil }

func (images) Rootfs(_ context.Context, d volant.Digest) (host.Rootfs, error) {
	arg := "serve"
	switch d {
	case Broken:
		arg = "broken"
	case Crashing:
		arg = "crashing"
	}
	return host.Rootfs{Path: "/dev/null", Type: "erofs", Entrypoint: []string{arg}}, nil
}

func (images) Scratch(_ context.Context, path string, _ int) error {
	return os.WriteFile(path, []byte("scratch"), 0o600)
}

// links gives each machine an address.
type links struct {
	mu sync.Mutex // guards m
	m  map[volant.MachineID]netip.Addr
	n  int
}

func (l *links) Attach(_ context.Context, id volant.MachineID, _ volant.OrgID) (host.Link, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ip, ok := l.m[id]
	if !ok {
		l.n++
		ip = netip.AddrFrom4([4]byte{172, 27, byte(l.n >> 8), byte(l.n)}) // on the node's own network
		l.m[id] = ip
	}
	return host.Link{Tap: "tap", MAC: net.HardwareAddr{0x52, 0x54, 0, 0x77, 1, 2}, Net: guest.Net{Addr: netip.PrefixFrom(ip, 32)}}, nil
}

func (l *links) Detach(context.Context, volant.MachineID) error { return nil }

func (l *links) Sweep(context.Context, func(volant.MachineID) bool) ([]string, error) {
	return nil, nil
}

type cgroups struct{}

func (cgroups) Add(context.Context, volant.MachineID, int) error           { return nil }
func (cgroups) Limit(context.Context, volant.MachineID, host.Limits) error { return nil }
func (cgroups) Pin(int, int) error                                         { return nil }
func (cgroups) Remove(context.Context, volant.MachineID) error             { return nil }
func (cgroups) Sweep(context.Context, func(volant.MachineID) bool) ([]string, error) {
	return nil, nil
}

// pool gives out addresses.
type pool struct{}

func (pool) Next(kind string, used []string) (string, error) {
	format := "127.77.0.%d"
	if kind == "v6" {
		format = "fd77::%d"
	}
	n := 1
	for slices.Contains(used, fmt.Sprintf(format, n)) {
		n++
	}
	return fmt.Sprintf(format, n), nil
}

func (p *Platform) resolve(_ context.Context, _, host string) ([]netip.Addr, error) {
	if found, ok := p.Names[host]; ok {
		return found, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// Dir is the data directory.
func (p *Platform) Dir() string { return p.dir }

// Box is the platform's box of secrets.
func (p *Platform) Box() *secret.Box { return p.box }
