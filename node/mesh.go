package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/mesh"
	"github.com/volant-edge/volant/peer"
	"github.com/volant-edge/volant/store"
)

// meshAgain is how long what could not be done about the mesh has until it is tried again.
const meshAgain = 5 * time.Second

// meshNode is this node's end of the mesh.
type meshNode struct {
	cfg  MeshConfig
	node volant.NodeID
	log  *slog.Logger
	dev  mesh.Device
	seed []mesh.Peer // who is a peer before the intent says so

	mu   sync.Mutex // guards the rest
	keys *mesh.Keys
	last mesh.Config    // what the device was told
	at   netip.AddrPort // the endpoint, as it was resolved last
	due  time.Time      // when it is resolved again
	told string         // why a rotation waits, as was said last
}

// openMesh brings the mesh up, before anything that goes over it. There is none on a server that is alone.
func (s *server) openMesh(ctx context.Context) error {
	if s.cfg.Mesh.Endpoint == "" && s.member == nil {
		return nil
	}
	keys, err := mesh.OpenKeys(s.dir)
	if err != nil {
		return err
	}
	m := &meshNode{cfg: s.cfg.Mesh, node: s.dir.Node(), log: s.cfg.Log, keys: keys}
	m.cfg.Listen = m.cfg.port()
	if m.dev, err = s.meshDevice(ctx); err != nil {
		return err
	}
	last, _, err := mesh.Last(s.dir)
	if err != nil {
		s.cfg.Log.Warn("the mesh starts without its last configuration", "err", err)
	}
	m.seed = last.Peers
	if len(m.seed) == 0 && s.member != nil {
		m.seed = m.peers(slices.Values(s.member.Nodes))
	}
	if err := m.tell(ctx, m.seed); err != nil {
		return err
	}
	s.mesh = m
	s.cfg.Log.Info("mesh is up", "addr", m.addr(), "port", m.cfg.Listen, "peers", len(m.seed))
	return nil
}

// meshDevice picks the engine: the kernel's where there is one.
func (s *server) meshDevice(ctx context.Context) (mesh.Device, error) {
	engine := s.cfg.Mesh.Engine
	if engine == "auto" {
		engine = "kernel"
		if err := mesh.KernelHas(s.dir.Node()); err != nil {
			engine = "user"
			s.cfg.Log.Info("WireGuard runs in a process of its own", "why", err)
		}
	}
	if engine == "kernel" {
		if _, err := mesh.End(ctx, s.dir); err != nil { // of an earlier choice
			return nil, err
		}
		return mesh.NewKernel(s.dir, s.cfg.Log)
	}
	groups, err := openCgroups(s.dir.Node(), s.cfg.Log)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return mesh.Ensure(ctx, mesh.Start{
		Data: s.dir, Args: []string{self, "mesh", "--data", s.dir.Root()}, Place: groups.placeMesh, Log: s.cfg.Log,
	})
}

// port is where WireGuard listens.
func (c *MeshConfig) port() uint16 {
	if c.Listen != 0 {
		return c.Listen
	}
	if _, port, err := hostPort(c.Endpoint); err == nil {
		return port
	}
	return volant.MeshPort
}

func (c *MeshConfig) check() error {
	switch {
	case c.Engine != "auto" && c.Engine != "kernel" && c.Engine != "user":
		return volant.Invalidf("mesh.engine %q: use auto, kernel or user", c.Engine)
	case c.MTU != 0 && c.MTU < mesh.MinMTU || c.MTU > 9000:
		return volant.Invalidf("mesh.mtu is %d: use %d or more, or 0 for what the links leave", c.MTU, mesh.MinMTU)
	case c.RotateDays < 0:
		return volant.Invalidf("mesh.rotate_days is %d: use 0 for never, or a number of days", c.RotateDays)
	}
	return nil
}

func (m *meshNode) addr() netip.Addr { return volant.MeshAddr(m.node) }

// join makes the node one of a cluster: it has an address in the mesh, and others can join at its endpoint.
func (m *meshNode) join(ctx context.Context, p *Parts) {
	if m == nil {
		return
	}
	p.Mesh, p.MeshStatus = m.addr(), m.dev.Status
	p.Endpoint = m.endpoint(ctx)
	p.JoinListen = listenTCP(cmp.Or(m.cfg.JoinListen, fmt.Sprintf(":%d", m.cfg.Listen)))
}

// tell tells the device who is there, if that is news.
func (m *meshNode) tell(ctx context.Context, peers []mesh.Peer) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	cfg := mesh.Config{
		Name: mesh.Interface(m.node), Private: m.keys.Use, Port: m.cfg.Listen, Addr: m.addr(), MTU: m.cfg.MTU, Peers: peers,
	}
	if cfg.Private == m.last.Private && slices.Equal(cfg.Peers, m.last.Peers) {
		return nil
	}
	if err := m.dev.Configure(ctx, cfg); err != nil {
		return fmt.Errorf("configure the mesh: %w", err)
	}
	m.last = cfg
	return nil
}

// peers are the other nodes that have a key, in order. One whose key cannot be read, or is another's too, is
// left out: it must not keep the others out.
func (m *meshNode) peers(nodes iter.Seq[volant.Node]) []mesh.Peer {
	var out []mesh.Peer
	for n := range nodes {
		id := volant.NodeID(n.ID)
		if id == m.node || n.Tombstone || n.Mesh.Key == "" {
			continue
		}
		p := mesh.Peer{Node: id, Endpoint: n.Mesh.Endpoint, Addr: volant.MeshAddr(id)}
		var err, nerr error
		p.Key, err = mesh.ParseKey(n.Mesh.Key)
		p.Next, nerr = mesh.ParseKey(n.Mesh.NextKey)
		if err := errors.Join(err, nerr); err != nil || !p.Addr.IsValid() {
			m.log.Error("a node's record has no good mesh key; the node is left out", "node", id, "err", err)
			continue
		}
		if p.Next == p.Key {
			p.Next = mesh.Key{}
		}
		if p.Endpoint.IsValid() && p.Endpoint.Addr().IsUnspecified() {
			p.Endpoint = netip.AddrPort{}
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b mesh.Peer) int { return strings.Compare(string(a.Node), string(b.Node)) })
	own := m.keys.Use.Public()
	seen := map[mesh.Key]volant.NodeID{own: m.node}
	return slices.DeleteFunc(out, func(p mesh.Peer) bool {
		for _, k := range []mesh.Key{p.Key, p.Next} {
			if other, taken := seen[k]; taken && !k.IsZero() {
				m.log.Error("two nodes have the same mesh key; one is left out", "node", p.Node, "other", other)
				return true
			}
			seen[k] = p.Node
		}
		return false
	})
}

// wanted are the peers that a picture of the intent asks for. Until it has this node itself, it is not the cluster's, and
// those known before stay: else a node that has just joined would cut itself off.
func (m *meshNode) wanted(snap *catalog.Snapshot) []mesh.Peer {
	if _, ok := snap.Node(m.node); !ok {
		return m.seed
	}
	return m.peers(func(yield func(volant.Node) bool) {
		for _, n := range snap.Nodes() {
			if !yield(*n) {
				return
			}
		}
	})
}

// run keeps peers, key and record of this node in step until ctx ends.
func (m *meshNode) run(ctx context.Context, p *Platform) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.dev.Run(ctx) })
	g.Go(func() error { return m.follow(ctx, p) })
	return g.Wait()
}

func (m *meshNode) follow(ctx context.Context, p *Platform) error {
	changed, end := p.cat.Subscribe()
	defer end()
	again := time.NewTicker(meshAgain)
	defer again.Stop()
	var seen store.Revision
	due := true
	for {
		if snap := p.cat.Snapshot(); due || snap.Rev != seen {
			seen, due = snap.Rev, false
			if err := m.step(ctx, snap, p.Store, p.calls); err != nil && ctx.Err() == nil {
				m.log.Warn("the mesh is not as it should be yet", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again.C:
			due = true
		}
	}
}

func (m *meshNode) step(ctx context.Context, snap *catalog.Snapshot, st store.Store, calls *peer.Client) error {
	if err := m.tell(ctx, m.wanted(snap)); err != nil {
		return err
	}
	me, ok := snap.Node(m.node)
	if !ok || me.Tombstone {
		return nil
	}
	if err := m.rotate(ctx, snap, me, calls); err != nil {
		return err
	}
	return m.record(ctx, me, st)
}

// record writes what others must know of this node's end.
func (m *meshNode) record(ctx context.Context, me *volant.Node, st store.Store) error {
	want := me.Mesh
	m.mu.Lock()
	want.Key, want.NextKey = m.keys.Use.Public().String(), ""
	if !m.keys.Next.IsZero() {
		want.NextKey, want.Renew = m.keys.Next.Public().String(), false
	}
	m.mu.Unlock()
	if at := m.endpoint(ctx); at.IsValid() {
		want.Endpoint = at
	}
	if want == me.Mesh {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, meshAgain)
	defer cancel()
	_, _, err := store.Update(ctx, st, "mesh", me.Key(), func(n *volant.Node) error {
		asked := n.Mesh.Renew
		n.Mesh = want
		n.Mesh.Renew = asked && want.NextKey == ""
		return nil
	})
	if err != nil {
		return fmt.Errorf("write this node's mesh key: %w", err)
	}
	m.log.Info("mesh key and endpoint are on record", "key", want.Key, "next_key", want.NextKey, "endpoint", want.Endpoint)
	return nil
}

// endpoint is where others reach this node, as its name says now; invalid if nobody says.
func (m *meshNode) endpoint(ctx context.Context) netip.AddrPort {
	if now := time.Now(); m.due.Before(now) {
		m.due = now.Add(time.Minute)
		at, err := m.cfg.endpoint(ctx)
		if err != nil {
			m.log.Warn("the mesh endpoint has no address", "endpoint", m.cfg.Endpoint, "err", err)
		} else if !at.Addr().IsUnspecified() {
			m.at = at
		}
	}
	return m.at
}

// rotate takes a rotation one step further, if one goes on: a next key is made, every other node says that it knows
// it, and it is used. A node that is away holds it up: it could never be reached again under a key that it does not
// know, if all others changed theirs meanwhile.
func (m *meshNode) rotate(ctx context.Context, snap *catalog.Snapshot, me *volant.Node, calls *peer.Client) error {
	m.mu.Lock()
	next := m.keys.Next
	m.mu.Unlock()
	switch {
	case next.IsZero() && (me.Mesh.Renew || m.old()):
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.keys.Renew()
	case next.IsZero() || me.Mesh.NextKey != next.Public().String():
		return nil
	}
	var missing []string
	for _, p := range m.wanted(snap) {
		if !knowsKey(ctx, calls, p.Node, next.Public()) {
			missing = append(missing, string(p.Node))
		}
	}
	if len(missing) > 0 {
		if text := strings.Join(missing, " "); text != m.told {
			m.told = text
			m.log.Warn("the next mesh key waits until all nodes know it", "missing", text)
		}
		return nil
	}
	m.mu.Lock()
	m.told = ""
	err := m.keys.Switch()
	m.mu.Unlock()
	if err != nil {
		return err
	}
	m.log.Info("mesh key switched", "key", next.Public().String())
	return m.tell(ctx, m.wanted(snap))
}

// old says whether the key is older than it shall get.
func (m *meshNode) old() bool {
	if m.cfg.RotateDays <= 0 {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	made, err := m.keys.Made()
	return err == nil && time.Since(made) > time.Duration(m.cfg.RotateDays)*24*time.Hour
}

const meshKeysCall = "POST /mesh/knows"

// meshQuestion asks whether a node's mesh takes the caller under a key.
type meshQuestion struct {
	Key string `json:"key"`
}

func knowsKey(ctx context.Context, calls *peer.Client, node volant.NodeID, key mesh.Key) bool {
	ctx, cancel := context.WithTimeout(ctx, meshAgain)
	defer cancel()
	var yes bool
	return calls.Call(ctx, node, meshKeysCall, meshQuestion{key.String()}, &yes) == nil && yes
}

// serveMesh answers other nodes' questions about the mesh.
func (p *Platform) serveMesh() {
	peer.Handle(p.peers, meshKeysCall, func(ctx context.Context, from volant.NodeID, q meshQuestion) (any, error) {
		if p.MeshStatus == nil {
			return false, nil
		}
		st, err := p.MeshStatus(ctx)
		if err != nil {
			return nil, err
		}
		return slices.ContainsFunc(st.Peers, func(s mesh.PeerStatus) bool { return s.Node == from && s.Key.String() == q.Key }), nil
	})
}

// endMesh ends the mesh process of a data directory.
func endMesh(ctx context.Context, dir *datadir.Dir) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	pid, err := mesh.End(ctx, dir)
	if err != nil || pid == 0 {
		return "", err
	}
	return fmt.Sprintf("ended the mesh, process %d", pid), nil
}
