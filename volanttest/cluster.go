package volanttest

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/node"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/local"
	"github.com/volant-edge/volant/store/storetest"
	"github.com/volant-edge/volant/volanttest/memnet"
)

// Cluster is several nodes in memory: each a Platform with a network of its own for its clients and machines, and one
// mesh between them whose wires have delays and can be cut.
type Cluster struct {
	Nodes []*Platform
	Store *storetest.Memory // of them all
	Mesh  *memnet.Network

	t testing.TB

	mu     sync.Mutex // guards the fields below
	delays map[[2]volant.Region]time.Duration
	cuts   map[[2]volant.NodeID]bool
}

// Site is a node of a Cluster in the making.
type Site struct {
	Region volant.Region
	Roles  []string // all if empty
	// MemoryMB is the memory of its host; 64 GiB.
	MemoryMB int
}

// NewCluster starts a node with all roles in each of the regions; one that is named twice has two. Between regions a
// packet takes 10 ms. It must be called in a synctest bubble, and Close before the bubble ends.
func NewCluster(t testing.TB, regions ...volant.Region) *Cluster {
	t.Helper()
	sites := make([]Site, len(regions))
	for i, r := range regions {
		sites[i].Region = r
	}
	return NewClusterOf(t, sites...)
}

// NewClusterOf is NewCluster of nodes that differ.
func NewClusterOf(t testing.TB, sites ...Site) *Cluster {
	t.Helper()
	c := &Cluster{
		t: t, Store: storetest.New(), Mesh: &memnet.Network{},
		delays: map[[2]volant.Region]time.Duration{}, cuts: map[[2]volant.NodeID]bool{},
	}
	c.Mesh.SetWire(c.wire)
	for i, site := range sites {
		p := newPlatform(t, volant.NodeID(fmt.Sprintf("%08x", 0x0a0a0a01+i)), site.Region, c.Store)
		p.spot = &spot{c: c, p: p, site: site, store: newCutStore(c.Store)}
		c.Nodes = append(c.Nodes, p)
		p.box = c.Nodes[0].box // one cluster, one key
		rec := &volant.Node{Name: fmt.Sprintf("%s-%d", site.Region, i+1), Region: site.Region, Roles: p.spot.roles()}
		rec.Meta = volant.Meta{Kind: volant.KindNode, ID: string(p.ID)}
		rec.Mesh.Key = "key of " + rec.ID
		if _, err := store.Create(context.Background(), c.Store, "test", rec); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond) // so that the first is the oldest
	}
	for _, p := range c.Nodes {
		p.startProxy()
		p.Start()
	}
	time.Sleep(2 * time.Second) // they hear of each other
	return c
}

// Close ends everything.
func (c *Cluster) Close() {
	c.t.Helper()
	c.Heal()
	for _, p := range c.Nodes {
		if !p.spot.down {
			p.Stop()
		}
	}
	for _, p := range c.Nodes {
		p.World.Close()
		p.kill()
	}
	time.Sleep(time.Second) // what is on the wires arrives
}

// In is the first node in a region.
func (c *Cluster) In(r volant.Region) *Platform {
	c.t.Helper()
	for _, p := range c.Nodes {
		if p.Region == r {
			return p
		}
	}
	c.t.Fatalf("there is no node in %s", r)
	return nil
}

// SetDelay sets how long a packet takes between two regions.
func (c *Cluster) SetDelay(a, b volant.Region, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delays[[2]volant.Region{a, b}], c.delays[[2]volant.Region{b, a}] = d, d
}

// Cut cuts the wires between two nodes.
func (c *Cluster) Cut(a, b *Platform) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cuts[[2]volant.NodeID{a.ID, b.ID}], c.cuts[[2]volant.NodeID{b.ID, a.ID}] = true, true
}

// CutOff cuts a node off all others and the store.
func (c *Cluster) CutOff(a *Platform) {
	for _, b := range c.Nodes {
		if a != b {
			c.Cut(a, b)
		}
	}
	c.CutStore(a)
}

// CutStore cuts a node off the store.
func (c *Cluster) CutStore(a *Platform) { a.spot.store.set(true) }

// Heal mends all wires, and leads all nodes to the store again.
func (c *Cluster) Heal() {
	c.mu.Lock()
	clear(c.cuts)
	c.mu.Unlock()
	for _, p := range c.Nodes {
		p.spot.store.set(false)
	}
}

// Kill ends a node's server and proxy, as kill -9 does; its machines run on. After the loss of its power, PowerOff, they
// do not.
func (c *Cluster) Kill(p *Platform) {
	c.t.Helper()
	p.spot.down = true
	p.spot.store.set(true) // it gives nothing up
	p.Stop()
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	_ = p.Proxy.Watch(gone, proxy.Events{}) // nobody hears of its end
	p.kill()
	synctest.Wait()
}

// PowerOff is Kill of a node that is cut off at the same moment, with its machines.
func (c *Cluster) PowerOff(p *Platform) {
	c.t.Helper()
	c.CutOff(p)
	c.Kill(p)
	for _, id := range p.World.Running() {
		p.World.Die(id, microvm.VMExit{})
	}
	p.Boot++
}

// Boot starts a killed node again.
func (c *Cluster) Boot(p *Platform) {
	c.t.Helper()
	p.spot.down = false
	p.spot.store.set(false)
	c.mu.Lock()
	for pair := range c.cuts {
		if pair[0] == p.ID || pair[1] == p.ID {
			delete(c.cuts, pair)
		}
	}
	c.mu.Unlock()
	p.startProxy()
	p.Start()
}

func (c *Cluster) wire(from, to netip.Addr) memnet.Wire {
	a, _ := volant.NodeAt(from)
	b, _ := volant.NodeAt(to)
	c.mu.Lock()
	defer c.mu.Unlock()
	w := memnet.Wire{Cut: c.cuts[[2]volant.NodeID{a, b}]}
	ra, rb := c.regionLocked(a), c.regionLocked(b)
	if d, ok := c.delays[[2]volant.Region{ra, rb}]; ok {
		w.Delay = d
	} else if ra != rb {
		w.Delay = 10 * time.Millisecond
	} else if a != b {
		w.Delay = 100 * time.Microsecond
	}
	return w
}

func (c *Cluster) regionLocked(id volant.NodeID) volant.Region {
	for _, p := range c.Nodes {
		if p.ID == id {
			return p.Region
		}
	}
	return ""
}

// Guests are all apps that ever ran on any node, by machine.
func (c *Cluster) Guests() map[string]*Guest {
	out := map[string]*Guest{}
	for _, p := range c.Nodes {
		maps.Copy(out, p.Guests())
	}
	return out
}

// spot is a node's place in a cluster.
type spot struct {
	c     *Cluster
	p     *Platform
	site  Site
	store *cutStore
	down  bool
	epoch uint64 // of the proxy

	closeCopy func()
}

func (s *spot) roles() []string {
	if len(s.site.Roles) > 0 {
		return s.site.Roles
	}
	return []string{volant.RoleEdge, volant.RoleHost, volant.RoleControl}
}

// join makes what a server is made of that of one in the cluster.
func (s *spot) join(parts *node.Parts) {
	parts.Name = fmt.Sprintf("%s-%s", s.p.Region, s.p.ID)
	s.openCopy(parts)
	parts.Mesh = volant.MeshAddr(s.p.ID)
	parts.PeerListen = s.c.Mesh.Listen
	parts.PeerDial = func(ctx context.Context, _, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		return s.c.Mesh.DialFrom(ctx, volant.MeshAddr(s.p.ID), netip.MustParseAddrPort(addr))
	}
	if s.site.MemoryMB != 0 {
		parts.Host.MemoryMB = s.site.MemoryMB
	}
	if parts.Log != nil {
		parts.Log = parts.Log.With(slog.String("at", string(s.p.Region)), slog.String("node", string(s.p.ID)))
	}
	parts.Proxy = func(context.Context) (node.Link, func(), error) {
		if s.down {
			return nil, nil, volant.Errorf(volant.ErrUnavailable, "the node is down")
		}
		return s.p.Proxy, func() {}, nil
	}
}

// openCopy opens the node's copy of the intent, from which a server starts that does not reach the store.
func (s *spot) openCopy(parts *node.Parts) {
	t := s.c.t
	t.Helper()
	copied, err := local.Open(local.Config{Path: filepath.Join(s.p.dir, "copy.db")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.store.pass()
	parts.Store, parts.Copy, parts.Down, parts.Known = s.store, copied, err != nil, copied.Revision()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = copied.Run(ctx, s.store) // it ends with ctx
	}()
	s.closeCopy = func() {
		cancel()
		<-ended
		if err := copied.Close(); err != nil {
			t.Error(err)
		}
	}
}

// proxyConfig leads a proxy's connections: to other nodes over the mesh, all else on the node's own network.
func (s *spot) proxyConfig() proxy.Config {
	s.epoch++
	return proxy.Config{
		Epoch: s.epoch,
		Listen: func(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
			return s.network(addr.Addr()).Listen(ctx, addr)
		},
		Dial: func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			if volant.MeshPrefix.Contains(addr.Addr()) {
				return s.c.Mesh.DialFrom(ctx, volant.MeshAddr(s.p.ID), addr)
			}
			return s.p.Net.Dial(ctx, addr)
		},
		DialFrom: s.c.Mesh.DialFrom,
		Packet:   s.c.Mesh.ListenPacket,
	}
}

func (s *spot) network(addr netip.Addr) *memnet.Network {
	if volant.MeshPrefix.Contains(addr) {
		return s.c.Mesh
	}
	return s.p.Net
}

// cutStore is the store as one node reaches it.
type cutStore struct {
	store.Store

	mu   sync.Mutex // guards the fields below
	cut  bool
	gone chan struct{} // closed when it is cut
}

func newCutStore(s store.Store) *cutStore { return &cutStore{Store: s, gone: make(chan struct{})} }

func (s *cutStore) set(cut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if cut == s.cut {
		return
	}
	if s.cut = cut; cut {
		close(s.gone)
	} else {
		s.gone = make(chan struct{})
	}
}

var errCut = volant.Errorf(volant.ErrUnavailable, "the store is not reached")

func (s *cutStore) pass() (<-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut {
		return nil, errCut
	}
	return s.gone, nil
}

func (s *cutStore) Get(ctx context.Context, key string) (store.Entry, error) {
	if _, err := s.pass(); err != nil {
		return store.Entry{}, err
	}
	return s.Store.Get(ctx, key)
}

func (s *cutStore) List(ctx context.Context, prefix string) ([]store.Entry, store.Revision, error) {
	if _, err := s.pass(); err != nil {
		return nil, store.Revision{}, err
	}
	return s.Store.List(ctx, prefix)
}

func (s *cutStore) Watch(ctx context.Context, prefix string, after store.Revision, fn func(store.Batch) error) error {
	gone, err := s.pass()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-gone:
			cancel(errCut)
		case <-done:
		}
	}()
	err = s.Store.Watch(ctx, prefix, after, func(b store.Batch) error {
		if _, err := s.pass(); err != nil {
			return err
		}
		return fn(b)
	})
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func (s *cutStore) Commit(ctx context.Context, ops ...store.Op) (store.Revision, error) {
	if _, err := s.pass(); err != nil {
		return store.Revision{}, err
	}
	return s.Store.Commit(ctx, ops...)
}

func (s *cutStore) Grant(ctx context.Context, ttl time.Duration) (store.LeaseID, error) {
	if _, err := s.pass(); err != nil {
		return 0, err
	}
	return s.Store.Grant(ctx, ttl)
}

func (s *cutStore) Renew(ctx context.Context, id store.LeaseID) error {
	if _, err := s.pass(); err != nil {
		return err
	}
	return s.Store.Renew(ctx, id)
}

func (s *cutStore) Revoke(ctx context.Context, id store.LeaseID) error {
	if _, err := s.pass(); err != nil {
		return err
	}
	return s.Store.Revoke(ctx, id)
}

// Node is the node with an ID; nil: there is none.
func (c *Cluster) Node(id volant.NodeID) *Platform {
	for _, p := range c.Nodes {
		if p.ID == id {
			return p
		}
	}
	return nil
}

// Up says whether a node was not killed.
func (c *Cluster) Up(p *Platform) bool { return !p.spot.down }

// Holder is the node that acts for an app, by the store.
func (c *Cluster) Holder(app string) volant.NodeID {
	c.t.Helper()
	for _, p := range c.Nodes {
		a, ok := p.Node.Catalog().Snapshot().AppByName(app)
		if !ok || p.spot.down {
			continue
		}
		e, err := c.Store.Get(context.Background(), store.TermPrefix+"app/"+string(a.App))
		if err != nil {
			return ""
		}
		id, _, _ := strings.Cut(string(e.Value), " ")
		return volant.NodeID(id)
	}
	return ""
}
