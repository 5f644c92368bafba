package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
)

// planet is a number of nodes on addresses of the loopback, and wires between them which can be cut.
type planet struct {
	t   *testing.T
	net byte // the second and third number of their addresses
	dir string

	mu    sync.Mutex
	cut   map[[2]netip.Addr]bool
	mute  map[netip.Addr]chan struct{} // open: the node's process hangs
	conns map[net.Conn][2]netip.Addr
	ports map[int]etcd.Addrs
	nodes map[int]*node
}

// node is a control node: its store, which is looked after.
type node struct {
	store *etcd.Store
	stop  func()
}

func newPlanet(t *testing.T) *planet {
	t.Helper()
	return &planet{
		t: t, net: byte(rand.IntN(200)), dir: t.TempDir(),
		cut: map[[2]netip.Addr]bool{}, mute: map[netip.Addr]chan struct{}{}, conns: map[net.Conn][2]netip.Addr{}, ports: map[int]etcd.Addrs{}, nodes: map[int]*node{},
	}
}

func (p *planet) host(n int) netip.Addr { return netip.AddrFrom4([4]byte{127, 42, p.net, byte(n)}) }

func (p *planet) name(n int) volant.NodeID { return volant.NodeID(fmt.Sprintf("%08x", n)) }

// at is where node n listens: the same for as long as the test runs.
func (p *planet) at(n int) etcd.Addrs {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a, ok := p.ports[n]; ok {
		return a
	}
	free := func() netip.AddrPort {
		l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", netip.AddrPortFrom(p.host(n), 0).String())
		if err != nil {
			p.t.Fatal(err)
		}
		defer l.Close() // only its port was wanted
		return l.Addr().(*net.TCPAddr).AddrPort()
	}
	p.ports[n] = etcd.Addrs{Peer: free(), Client: free()}
	return p.ports[n]
}

func (p *planet) endpoints(ns ...int) (urls []string) {
	for _, n := range ns {
		urls = append(urls, "http://"+p.at(n).Client.String())
	}
	return urls
}

// config is that of node n.
func (p *planet) config(n int) etcd.Config {
	return etcd.Config{
		Dir: filepath.Join(p.dir, fmt.Sprint(n)), Name: string(p.name(n)), Listen: p.at(n), Election: 300 * time.Millisecond,
		Open: p.listen, Log: slog.New(slog.NewTextHandler(testWriter{p.t}, &slog.HandlerOptions{Level: slog.LevelError})),
	}
}

// start starts node n and looks after it until the test ends.
func (p *planet) start(n int, change func(*etcd.Config)) *etcd.Store {
	p.t.Helper()
	cfg := p.config(n)
	if change != nil {
		change(&cfg)
	}
	s := etcd.New(cfg)
	err := s.Start(p.t.Context())
	if err != nil && !errors.Is(err, volant.ErrUnavailable) {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx) //nolint:errcheck // it returns nil
	}()
	nd := &node{store: s, stop: sync.OnceFunc(func() { cancel(); <-done })}
	p.mu.Lock()
	p.nodes[n] = nd
	p.mu.Unlock()
	p.t.Cleanup(func() {
		nd.stop()
		if err := s.Close(); err != nil {
			p.t.Error(err)
		}
	})
	return s
}

// stop ends node n, politely or not.
func (p *planet) stop(n int, politely bool) {
	p.t.Helper()
	p.mu.Lock()
	nd := p.nodes[n]
	delete(p.nodes, n)
	p.mu.Unlock()
	nd.stop()
	end := nd.store.Kill
	if politely {
		end = nd.store.Close
	}
	if err := end(); err != nil {
		p.t.Fatal(err)
	}
}

// join adds node n to the store which admin knows, and waits until it has a vote.
func (p *planet) join(admin etcd.Admin, n int) *etcd.Store {
	p.t.Helper()
	in, err := admin.AddMember(p.t.Context(), p.name(n), p.at(n))
	if err != nil {
		p.t.Fatal(err)
	}
	s := p.start(n, func(c *etcd.Config) { c.Join = &in })
	p.votes(admin, n)
	return s
}

func (p *planet) votes(admin etcd.Admin, n int) {
	p.t.Helper()
	within(p.t, fmt.Sprintf("node %d has a vote", n), func() bool {
		m, ok := p.member(admin, n)
		return ok && m.Healthy && !m.Learner
	})
}

func (p *planet) member(admin etcd.Admin, n int) (etcd.Member, bool) {
	ms, err := admin.Members(p.t.Context())
	if err != nil {
		return etcd.Member{}, false
	}
	for _, m := range ms {
		if m.Node == p.name(n) {
			return m, true
		}
	}
	return etcd.Member{}, false
}

// leader is the number of the node whose member leads.
func (p *planet) leader(admin etcd.Admin) (n int) {
	p.t.Helper()
	within(p.t, "there is a leader", func() bool {
		ms, err := admin.Members(p.t.Context())
		for _, m := range ms {
			if err == nil && m.Leader {
				_, err := fmt.Sscanf(string(m.Node), "%08x", &n)
				return err == nil
			}
		}
		return false
	})
	return n
}

// remote is a node without a member, at an address of its own.
func (p *planet) remote(n int, endpoints ...int) *etcd.Remote {
	p.t.Helper()
	r := etcd.NewRemote(etcd.RemoteConfig{Endpoints: p.endpoints(endpoints...), Dial: p.dialer(n)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx) //nolint:errcheck // it returns nil
	}()
	p.t.Cleanup(func() {
		cancel()
		<-done
		if err := r.Close(); err != nil {
			p.t.Error(err)
		}
	})
	if err := r.Start(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	return r
}

func (p *planet) dialer(n int) func(context.Context, string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.host(n), 0))}
	return func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
}

// listen makes a listener whose connections can be cut.
func (p *planet) listen(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", at.String())
	return &door{l, p}, err
}

type door struct {
	net.Listener
	planet *planet
}

func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		ends := pair(c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(), c.LocalAddr().(*net.TCPAddr).AddrPort().Addr())
		d.planet.mu.Lock()
		bad := d.planet.cut[ends]
		if !bad {
			d.planet.conns[c] = ends
		}
		d.planet.mu.Unlock()
		if !bad {
			return &muteConn{Conn: c, planet: d.planet, host: c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()}, nil
		}
		c.Close()
	}
}

// muteConn is silent while its node hangs, with the connection up.
type muteConn struct {
	net.Conn
	planet *planet
	host   netip.Addr
}

func (c *muteConn) wait() {
	c.planet.mu.Lock()
	hung := c.planet.mute[c.host]
	c.planet.mu.Unlock()
	if hung != nil {
		<-hung
	}
}

func (c *muteConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.wait()
	return n, err
}

func (c *muteConn) Write(b []byte) (int, error) {
	c.wait()
	return c.Conn.Write(b)
}

// hang makes a node's connections silent until the returned func is called.
func (p *planet) hang(n int) (awake func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ch := make(chan struct{})
	p.mute[p.host(n)] = ch
	awake = sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.mute, p.host(n))
		close(ch)
	})
	p.t.Cleanup(awake)
	return awake
}

func pair(a, b netip.Addr) [2]netip.Addr {
	a, b = a.Unmap(), b.Unmap()
	if b.Less(a) {
		a, b = b, a
	}
	return [2]netip.Addr{a, b}
}

// setCut cuts or mends the wires between two groups of nodes.
func (p *planet) setCut(cut bool, as, bs []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range as {
		for _, b := range bs {
			if a != b {
				p.cut[pair(p.host(a), p.host(b))] = cut
			}
		}
	}
	for c, ends := range p.conns {
		if p.cut[ends] {
			c.Close()
			delete(p.conns, c)
		}
	}
}

// writer writes records one after the other, each under a key of its own, until it is stopped, and keeps what was
// acknowledged.
type writer struct {
	acked  map[string]store.Revision
	maybe  int
	gap    time.Duration // longest time without an acknowledgement
	stopIt func()
}

func write1(t *testing.T, s store.Store, name string) *writer {
	t.Helper()
	w := &writer{acked: map[string]store.Revision{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		last := time.Now()
		defer func() { w.gap = max(w.gap, time.Since(last)) }()
		for i := 0; ctx.Err() == nil; i++ {
			key := fmt.Sprintf("w/%s/%d", name, i)
			rev, err := s.Commit(ctx, store.Op{Key: key, Value: []byte(key)})
			switch {
			case err == nil:
				w.acked[key] = rev
				w.gap = max(w.gap, time.Since(last))
				last = time.Now()
			case errors.Is(err, volant.ErrUnavailable):
				w.maybe++
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			case ctx.Err() == nil:
				t.Errorf("write %s: %v", key, err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	w.stopIt = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(w.stopIt)
	return w
}

// check looks whether everything acknowledged is in a store, once and as it was written.
func (w *writer) check(t *testing.T, s store.Reader) {
	t.Helper()
	w.stopIt()
	list, _, err := s.List(t.Context(), "w/")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]store.Revision{}
	for _, e := range list {
		if string(e.Value) != e.Key || e.Created != e.Mod {
			t.Errorf("%s is %q, created at %s and written at %s", e.Key, e.Value, e.Created, e.Mod)
		}
		have[e.Key] = e.Mod
	}
	for key, rev := range w.acked {
		if have[key] != rev {
			t.Errorf("%s was acknowledged at %s and is of %s", key, rev, have[key])
		}
	}
	if len(w.acked) == 0 {
		t.Error("nothing was acknowledged")
	}
}
