package volanttest_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest"
)

// chaos is a cluster to which things happen.
type chaos struct {
	t    *testing.T
	c    *volanttest.Cluster
	r    *rand.Rand
	addr netip.AddrPort
	held []heldConn
	log  []string
	cuts int

	drained *volanttest.Platform
	surplus bool // machines of a node that drained count for max again
}

// heldConn is a connection, and whether anything happened since that may end it: which machine it goes to is not known.
type heldConn struct {
	net.Conn
	edge   *volanttest.Platform
	marred bool
}

const (
	chaosMax  = 6
	chaosMin  = 2
	hardLimit = 25
)

// Whatever happens to nodes and wires: no app has more connections than its hard limit, there are never more machines
// than max, a connection whose nodes and wires were whole all the time goes on, and when all is whole again min is
// kept, every node shows the same, and connections succeed everywhere.
func TestChaos(t *testing.T) {
	seeds := 4
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newChaos(t, uint64(seed)).run(60) })
		})
	}
}

func newChaos(t *testing.T, seed uint64) *chaos {
	c := volanttest.NewCluster(t, "ams", "dfw", "dfw", "ord", "syd")
	c.SetDelay("ams", "syd", 120*time.Millisecond)
	x := &chaos{t: t, c: c, r: rand.New(rand.NewPCG(seed, 7))}
	most, least := chaosMax, chaosMin
	x.addr, _ = c.In("ams").Deploy("web", volanttest.Image, scaled(func(s *api.ScalePatch) {
		idle := volant.Duration(20 * time.Second)
		s.Max, s.Min, s.IdleTimeout, s.RegionMin = &most, &least, &idle, map[volant.Region]int{"dfw": 1}
	}))
	return x
}

func (x *chaos) note(format string, args ...any) {
	x.log = append(x.log, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (x *chaos) run(steps int) {
	defer x.c.Close()
	defer func() {
		if x.t.Failed() {
			for _, l := range x.log {
				x.t.Log(l)
			}
		}
		for _, h := range x.held {
			h.Close()
		}
	}()
	for range steps {
		x.step()
		x.check()
		if x.t.Failed() {
			return
		}
	}
	x.quiet()
}

func (x *chaos) pick() *volanttest.Platform { return x.c.Nodes[x.r.IntN(len(x.c.Nodes))] }

func (x *chaos) down() int {
	n := 0
	for _, p := range x.c.Nodes {
		if !x.c.Up(p) {
			n++
		}
	}
	return n
}

func (x *chaos) step() {
	p := x.pick()
	switch k := x.r.IntN(26); {
	case k < 7:
		x.open(p, 1+x.r.IntN(30))
	case k < 10 && len(x.held) > 0:
		n := x.r.IntN(len(x.held)) + 1
		x.note("close %d", n)
		for range n {
			i := x.r.IntN(len(x.held))
			x.held[i].Close()
			x.held = append(x.held[:i], x.held[i+1:]...)
		}
	case k < 12 && x.cuts < 3:
		q := x.pick()
		if p == q {
			break
		}
		x.note("cut %s %s", p.ID, q.ID)
		x.cuts++
		x.c.Cut(p, q)
		x.mar(func(h heldConn) bool { return h.edge == p || h.edge == q })
	case k == 12 && x.c.Up(p):
		x.note("cut store of %s", p.ID)
		x.c.CutStore(p)
	case k < 15:
		x.note("heal")
		x.c.Heal()
		x.cuts = 0
	case k == 15 && x.c.Up(p):
		x.note("restart the server of %s", p.ID)
		p.Stop()
		p.Start()
	case k == 16 && x.c.Up(p):
		x.note("kill the proxy of %s", p.ID)
		x.mar(func(heldConn) bool { return true })
		p.KillProxy()
	case k == 17 && x.c.Up(p) && x.down() == 0:
		x.note("power off %s", p.ID)
		x.mar(func(heldConn) bool { return true })
		x.c.PowerOff(p)
	case k == 18 && x.c.Up(p) && x.down() == 0:
		x.note("kill %s", p.ID)
		x.mar(func(heldConn) bool { return true })
		x.c.Kill(p)
	case k < 21 && !x.c.Up(p):
		x.note("boot %s", p.ID)
		x.c.Boot(p)
	case k == 21:
		x.deploy(p)
	case k == 22 && x.drained == nil && p.Region != "dfw":
		if _, err := p.API.ChangeNode(context.Background(), string(p.ID), "drain"); err == nil {
			x.note("drain %s", p.ID)
			x.drained = p
		}
	case k == 23 && x.drained != nil:
		x.undrain()
	case k == 24:
		d := time.Duration(x.r.IntN(900)) * time.Millisecond
		x.note("the store takes %s", d)
		x.c.Store.SetSlow(d)
	case k == 25:
		x.note("the store is down")
		x.c.Store.SetDown(true)
		time.Sleep(time.Duration(x.r.IntN(int(20 * time.Second))))
		x.c.Store.SetDown(false)
	}
	time.Sleep(time.Duration(x.r.IntN(int(8 * time.Second))))
}

// deploy makes a release, which may fail where something is broken.
func (x *chaos) deploy(p *volanttest.Platform) {
	if !x.c.Up(p) {
		return
	}
	_, err := p.API.CreateRelease(context.Background(), "web", api.CreateRelease{
		Image: string(volanttest.Image), Config: volant.MachineConfig{
			Services: []volant.Service{{Protocol: "tcp", InternalPort: volanttest.Port, Ports: []volant.Port{{Port: 80}}}},
		},
	})
	x.note("deploy at %s: %v", p.ID, err)
}

func (x *chaos) undrain() {
	for _, p := range x.c.Nodes {
		if !x.c.Up(p) {
			continue
		}
		if _, err := p.API.ChangeNode(context.Background(), string(x.drained.ID), "undrain"); err == nil {
			x.note("undrain %s", x.drained.ID)
			x.drained, x.surplus = nil, true
			return
		}
	}
}

// mar notes which connections may end.
func (x *chaos) mar(is func(heldConn) bool) {
	for i := range x.held {
		x.held[i].marred = x.held[i].marred || is(x.held[i])
	}
}

// open opens connections, which may fail where something is broken.
func (x *chaos) open(p *volanttest.Platform, n int) {
	if !x.c.Up(p) {
		return
	}
	done := make(chan net.Conn, n)
	for range n {
		go func() {
			conn, err := p.Connect(x.addr)
			if err != nil {
				conn = nil
			}
			done <- conn
		}()
	}
	opened := 0
	for range n {
		if conn := <-done; conn != nil {
			opened++
			x.held = append(x.held, heldConn{Conn: conn, edge: p, marred: x.cuts > 0})
		}
	}
	x.note("open %d of %d at %s", opened, n, p.ID)
}

func (x *chaos) check() {
	for id, g := range x.c.Guests() {
		if _, most, _ := g.Counts(); most > hardLimit {
			x.t.Errorf("machine %s had %d connections at once", id, most)
		}
	}
	for _, p := range x.c.Nodes {
		if !x.c.Up(p) {
			continue
		}
		n := 0
		snap := p.Node.Catalog().Snapshot()
		a, ok := snap.AppByName("web")
		if !ok {
			continue
		}
		for _, m := range snap.Machines(a.App) {
			node, ok := snap.Node(m.Node)
			if !m.Tombstone && m.Run != volant.RunDestroyed && m.Lost.IsZero() && m.Release == a.Release && ok && !node.Draining {
				n++
			}
		}
		if n > chaosMax && !x.surplus {
			x.t.Errorf("%s knows of %d machines, and max is %d", p.ID, n, chaosMax)
		}
	}
	live := x.held[:0]
	for _, h := range x.held {
		if err := volanttest.Echo(h.Conn); err != nil {
			if !h.marred {
				x.t.Errorf("a connection at %s ended, though nothing happened to it: %v", h.edge.ID, err)
			}
			h.Close()
			continue
		}
		live = append(live, h)
	}
	x.held = live
}

// quiet wants that all is well some time after all is whole again.
func (x *chaos) quiet() {
	x.note("all is whole")
	x.c.Heal()
	x.c.Store.SetSlow(0)
	for _, p := range x.c.Nodes {
		if !x.c.Up(p) {
			x.c.Boot(p)
		}
	}
	time.Sleep(5 * time.Second)
	if x.drained != nil {
		x.undrain()
	}
	for len(x.held) > chaosMax*hardLimit/2 { // that there is room for more is no wonder
		x.held[0].Close()
		x.held = x.held[1:]
	}
	time.Sleep(time.Minute)
	x.check()
	for _, p := range x.c.Nodes {
		conn, err := p.Connect(x.addr)
		if err != nil {
			x.t.Errorf("a connection at %s after all is whole: %v", p.ID, err)
			if recs, err := p.API.Why(context.Background(), "web", nil, 10); err == nil {
				for _, r := range recs {
					x.note("%s: %s %s %s", r.Time.Format("15:04:05.000"), r.Machine, r.Rule, r.Text)
				}
			}
			continue
		}
		conn.Close()
	}
	for _, h := range x.held {
		h.Close()
	}
	x.held = nil
	time.Sleep(5 * time.Minute)
	agree(x.t, x.c, "web")
	got := places(x.c.Nodes[0], "web")
	started := 0
	for _, r := range []string{"ams", "dfw", "ord", "syd"} {
		started += got[r+" started"]
	}
	if started != chaosMin || got["dfw started"] < 1 {
		x.t.Errorf("at rest machines are %v, want %d started, one of them in dfw", got, chaosMin)
	}
	open := 0
	for _, g := range x.c.Guests() {
		n, _, _ := g.Counts()
		open += n
	}
	if open > 0 {
		x.t.Errorf("%d connections are left in machines", open)
	}
}
