package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/doctor"
	"github.com/volant-edge/volant/mesh"
	"github.com/volant-edge/volant/peer"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/storetest"
)

// device is a mesh that writes down what it was told.
type device struct {
	mu   sync.Mutex
	last mesh.Config
	told int
	err  error
}

func (d *device) Configure(_ context.Context, cfg mesh.Config) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return d.err
	}
	d.last, d.told = cfg, d.told+1
	return nil
}
func (d *device) Status(context.Context) (mesh.Status, error) { return mesh.Status{}, nil }
func (d *device) Run(ctx context.Context) error               { <-ctx.Done(); return nil }
func (d *device) Remove(context.Context) error                { return nil }

func meshOf(t *testing.T) (*meshNode, *device) {
	t.Helper()
	dir, err := datadir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dir.Close(); err != nil {
			t.Error(err)
		}
	})
	keys, err := mesh.OpenKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := &device{}
	return &meshNode{cfg: MeshConfig{Endpoint: "192.0.2.1:4281", Listen: 4281}, node: dir.Node(), log: slog.New(slog.DiscardHandler), dev: d, keys: keys}, d
}

func nodeWith(id, key string) volant.Node {
	return volant.Node{
		Meta: volant.Meta{Kind: volant.KindNode, ID: id}, Name: id, Region: "ams", Roles: []string{volant.RoleHost},
		Mesh: volant.Mesh{Key: key, Endpoint: netip.MustParseAddrPort("192.0.2.7:4281")},
	}
}

func public(t *testing.T) string {
	t.Helper()
	p, err := mesh.NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	return p.Public().String()
}

func TestPeersAreTheNodesWithAGoodKey(t *testing.T) {
	m, _ := meshOf(t)
	key := public(t)
	gone := nodeWith("00000002", public(t))
	gone.Tombstone = true
	nat := nodeWith("00000003", public(t))
	nat.Mesh.Endpoint = netip.MustParseAddrPort("0.0.0.0:4281")
	next := nodeWith("00000006", public(t))
	next.Mesh.NextKey = public(t)
	got := m.peers(slices.Values([]volant.Node{
		nat, nodeWith("00000001", key), gone, nodeWith(string(m.node), public(t)), nodeWith("00000004", "no key"),
		nodeWith("00000005", key), nodeWith("x", public(t)), nodeWith("00000007", m.keys.Use.Public().String()), next, nodeWith("00000008", ""),
	}))
	var ids []string
	for _, p := range got {
		ids = append(ids, string(p.Node))
	}
	if want := []string{"00000001", "00000003", "00000006"}; !slices.Equal(ids, want) {
		t.Fatalf("got %v, want %v", ids, want)
	}
	if got[0].Endpoint != netip.MustParseAddrPort("192.0.2.7:4281") || got[0].Addr != volant.MeshAddr("00000001") {
		t.Errorf("peer: %+v", got[0])
	}
	if got[1].Endpoint.IsValid() {
		t.Errorf("a node that says no address has the endpoint %v", got[1].Endpoint)
	}
	if got[2].Next.String() != next.Mesh.NextKey {
		t.Errorf("next key: %v", got[2].Next)
	}
}

// follow runs the mesh of a node on a store.
func follow(t *testing.T, m *meshNode) (*storetest.Memory, *catalog.Catalog) {
	t.Helper()
	st := storetest.New()
	cat := catalog.New(catalog.Config{})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = cat.Run(ctx, st) }) // it ends with the test
	t.Cleanup(func() { cancel(); wg.Wait() })
	return st, cat
}

func put(t *testing.T, st store.Store, cat *catalog.Catalog, n volant.Node) {
	t.Helper()
	rev, err := store.Create(t.Context(), st, "test", &n)
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.Wait(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
}

// A node that has just joined has no intent yet, and must not cut off those from whom it will get it.
func TestKnownPeersStayUntilTheIntentIsThere(t *testing.T) {
	m, d := meshOf(t)
	m.seed = []mesh.Peer{{Node: "00000001", Key: mesh.Key{1}, Addr: volant.MeshAddr("00000001")}}
	st, cat := follow(t, m)
	if err := m.step(t.Context(), cat.Snapshot(), st, nil); err != nil {
		t.Fatal(err)
	}
	if len(d.last.Peers) != 1 {
		t.Fatalf("peers before the intent: %+v", d.last.Peers)
	}
	put(t, st, cat, nodeWith("00000002", public(t)))
	put(t, st, cat, nodeWith(string(m.node), m.keys.Use.Public().String()))
	if err := m.step(t.Context(), cat.Snapshot(), st, nil); err != nil {
		t.Fatal(err)
	}
	if len(d.last.Peers) != 1 || d.last.Peers[0].Node != "00000002" {
		t.Errorf("peers by the intent: %+v", d.last.Peers)
	}
	told := d.told
	if err := m.step(t.Context(), cat.Snapshot(), st, nil); err != nil || d.told != told {
		t.Errorf("told again of what it knows: %v", err)
	}
	rev, err := store.Delete(t.Context(), st, "test", volant.RecordKey(volant.KindNode, "", "00000002"))
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.Wait(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	if err := m.step(t.Context(), cat.Snapshot(), st, nil); err != nil || len(d.last.Peers) != 0 {
		t.Errorf("a removed node is still a peer: %+v, %v", d.last.Peers, err)
	}
}

// A rotation that the operator asks for: published, then switched, then on record alone.
func TestRotation(t *testing.T) {
	m, d := meshOf(t)
	st, cat := follow(t, m)
	me := nodeWith(string(m.node), "")
	me.Mesh = volant.Mesh{}
	put(t, st, cat, me)
	old := m.keys.Use.Public().String()
	look := func() volant.Mesh {
		t.Helper()
		n, rev, err := store.LoadAny[volant.Node](t.Context(), st, me.Key())
		if err != nil {
			t.Fatal(err)
		}
		if err := cat.Wait(t.Context(), rev); err != nil {
			t.Fatal(err)
		}
		return n.Mesh
	}
	step := func() volant.Mesh {
		t.Helper()
		if err := m.step(t.Context(), cat.Snapshot(), st, nil); err != nil {
			t.Fatal(err)
		}
		return look()
	}
	if got := step(); got.Key != old || got.NextKey != "" || got.Endpoint != netip.MustParseAddrPort("192.0.2.1:4281") {
		t.Fatalf("record after the start: %+v", got)
	}
	if _, _, err := store.Update(t.Context(), st, "test", me.Key(), func(n *volant.Node) error { n.Mesh.Renew = true; return nil }); err != nil {
		t.Fatal(err)
	}
	look()
	pub := step()
	if pub.Key != old || pub.NextKey == "" || pub.NextKey == old || pub.Renew {
		t.Fatalf("record with the next key: %+v", pub)
	}
	if d.last.Private.Public().String() != old {
		t.Fatal("switched before anybody could know the next key")
	}
	done := step()
	if done.Key != pub.NextKey || done.NextKey != "" || done.Renew {
		t.Errorf("record after the switch: %+v", done)
	}
	if got := d.last.Private.Public().String(); got != pub.NextKey {
		t.Errorf("the device has the key %s, want %s", got, pub.NextKey)
	}
	if again := step(); again != done {
		t.Errorf("it goes on: %+v", again)
	}
}

// A node that is away must know the next key before it is used.
func TestRotationWaitsForNodesThatAreAway(t *testing.T) {
	m, d := meshOf(t)
	st, cat := follow(t, m)
	put(t, st, cat, nodeWith("00000001", public(t)))
	old := m.keys.Use.Public().String()
	if err := m.keys.Renew(); err != nil {
		t.Fatal(err)
	}
	me := nodeWith(string(m.node), old)
	me.Mesh.NextKey = m.keys.Next.Public().String()
	put(t, st, cat, me)
	away := peer.NewClient(func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("away") })
	for range 3 {
		if err := m.step(t.Context(), cat.Snapshot(), st, away); err != nil {
			t.Fatal(err)
		}
	}
	if d.last.Private.Public().String() != old {
		t.Error("switched to a key that a node does not know")
	}
}

func TestDeviceThatFailsIsToldAgain(t *testing.T) {
	m, d := meshOf(t)
	st, cat := follow(t, m)
	d.err = errors.New("no")
	if err := m.step(t.Context(), cat.Snapshot(), st, nil); !errors.Is(err, d.err) {
		t.Errorf("got %v", err)
	}
	d.err = nil
	if err := m.step(t.Context(), cat.Snapshot(), st, nil); err != nil || d.told != 1 {
		t.Errorf("told %d times, %v", d.told, err)
	}
}

func TestWhatTheDoctorSees(t *testing.T) {
	now := time.Unix(10000, 0)
	var m doctor.Mesh
	seen(&m, mesh.Status{Engine: "user", PID: 7, MTU: 1420, Peers: []mesh.PeerStatus{
		{Node: "a", Active: true, Handshake: now.Add(-time.Minute), MTU: 1420},
		{Node: "b", Active: true, MTU: 1328},
		{Node: "b", Handshake: now},
	}}, now)
	if !m.Running || m.Kernel == nil || m.Peers != 2 || !slices.Equal(m.Silent, []string{"b"}) || !slices.Equal(m.Narrow, []string{"b (1328)"}) {
		t.Errorf("got %+v", m)
	}
}

func TestMeshConfig(t *testing.T) {
	for _, c := range []struct {
		cfg  MeshConfig
		port uint16
	}{{MeshConfig{}, 4281}, {MeshConfig{Endpoint: "h:99"}, 99}, {MeshConfig{Endpoint: "h", Listen: 98}, 98}, {MeshConfig{Endpoint: "[2001:db8::1]:97"}, 97}} {
		if got := c.cfg.port(); got != c.port {
			t.Errorf("%+v: port %d, want %d", c.cfg, got, c.port)
		}
	}
	for _, c := range []MeshConfig{{Engine: "x"}, {Engine: "auto", MTU: 1000}, {Engine: "user", MTU: 100000}, {Engine: "kernel", RotateDays: -1}} {
		if c.check() == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}
