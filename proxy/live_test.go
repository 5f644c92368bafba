package proxy_test

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/volanttest/memnet"
)

// oneWay makes datagrams take so long.
func (m *mesh) oneWay(d time.Duration) {
	m.net.SetWeather(func(netip.AddrPort, netip.AddrPort, int) []time.Duration { return []time.Duration{d} })
}

// hostTable gives a node alone a new table, as when its server tells of its machines.
func (m *mesh) hostTable(i, soft, hard int) {
	m.t.Helper()
	m.seq++
	m.nodes[i].table(soft, hard)
}

func (n *meshNode) takeFacts(kind live.Kind) []live.Fact {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out, rest []live.Fact
	for _, f := range n.facts {
		if f.Key.Kind == kind {
			out = append(out, f)
		} else {
			rest = append(rest, f)
		}
	}
	n.facts = rest
	return out
}

func (n *meshNode) takePeers() []live.PeerState {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := n.peers
	n.peers = nil
	return out
}

func TestFeedTellsWhereConnectionsMayGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeshOf(t, 2, true)
		m.oneWay(10 * time.Millisecond)
		m.boot(10)
		m.phase[10] = proxy.PhaseGone
		m.set(2, 3)
		time.Sleep(3 * time.Second)
		edge := m.nodes[0]
		c := edge.connect()
		time.Sleep(time.Second)
		if rec := edge.lastLoad(); rec.Waiting["r0"] != 1 {
			t.Errorf("the edge tells %+v, want one that waits", rec)
		}
		m.phase[10] = proxy.PhaseServing
		begun := time.Now()
		m.hostTable(1, 2, 3)
		m.mustEcho(c)
		if took := time.Since(begun); took > 30*time.Millisecond {
			t.Errorf("served %v after its machine was there", took)
		}
	})
}

func slotsOf(t *testing.T, fs []live.Fact) (out []int) {
	t.Helper()
	for _, f := range fs {
		_, ports, err := proxy.DecodeSlots(f)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, p := range ports {
			n += p.Held
		}
		out = append(out, n)
	}
	return out
}

func TestFeedTellsSlotsWhenTheyMatter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeshOf(t, 2, true)
		m.boot(10)
		m.set(10, 40)
		time.Sleep(3 * time.Second)
		other, host := m.nodes[0], m.nodes[1]
		other.takeFacts(live.Slots)
		var tells []int
		for range 12 {
			m.mustEcho(host.connect())
			time.Sleep(100 * time.Millisecond)
		}
		tells = slotsOf(t, other.takeFacts(live.Slots))
		if diff := cmp.Diff([]int{1, 5, 9, 10}, tells[:min(len(tells), 4)]); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
		time.Sleep(3 * time.Second)
		if more := slotsOf(t, other.takeFacts(live.Slots)); len(more) != 1 || more[0] != 12 {
			t.Errorf("told %v later, want the exact count once", more)
		}
	})
}

func TestFeedTellsDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeshOf(t, 2, true)
		m.phase[10] = proxy.PhaseGone
		m.set(1, 1)
		time.Sleep(3 * time.Second)
		edge, other := m.nodes[0], m.nodes[1]
		other.takeFacts(live.Load)
		c := edge.connect()
		time.Sleep(20 * time.Millisecond)
		fs := other.takeFacts(live.Load)
		if len(fs) == 0 {
			t.Fatal("nothing was told at once of one that waits")
		}
		l, err := proxy.DecodeLoad(fs[len(fs)-1])
		if err != nil || l.App != meshApp || l.Group != "app" || l.Waiting["r0"] != 1 || l.Peak != 1 {
			t.Errorf("told %+v, %v; want one that waits in r0", l, err)
		}
		c.Close()
		time.Sleep(5 * time.Second)
		fs = other.takeFacts(live.Load)
		if len(fs) == 0 || !fs[len(fs)-1].Gone {
			t.Errorf("told %v, want an end of it", fs)
		}
		if l, err := proxy.DecodeLoad(fs[len(fs)-1]); err != nil || l.App != meshApp || l.Peak != 0 || len(l.Waiting) != 0 {
			t.Errorf("an end is %+v, %v", l, err)
		}
	})
}

func TestFeedPassesOnWhatServersTell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeshOf(t, 2, true)
		m.set(1, 1)
		time.Sleep(time.Second)
		a, b := m.nodes[0], m.nodes[1]
		have := live.EncodeHave(volant.Have{Machine: machineID(3), Node: a.id, Epoch: 4, Seq: 9, State: volant.StateStarted})
		if err := a.p.TellAll(t.Context(), live.KindsOf(live.Have), []live.Fact{have}); err != nil {
			t.Fatal(err)
		}
		if err := a.p.Tell(t.Context(), []live.Fact{{Key: live.Key{Kind: live.Route, ID: "x"}}}); err == nil {
			t.Error("a server told how connections are led")
		}
		time.Sleep(time.Second)
		fs := b.takeFacts(live.Have)
		if len(fs) != 1 {
			t.Fatalf("heard %v", fs)
		}
		if h, err := live.DecodeHave(fs[0]); err != nil || h.Node != a.id || h.Machine != machineID(3) || h.Seq != 9 {
			t.Errorf("heard %+v, %v", h, err)
		}
		// A new watcher hears all that is known.
		var again []live.Fact
		var peers []live.PeerState
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.p.Watch(ctx, proxy.Events{
			Fact: func(f live.Fact) { again = append(again, f) }, Peer: func(s live.PeerState) { peers = append(peers, s) },
		}); err != nil {
			t.Fatal(err)
		}
		if len(again) != 1 || again[0].Key != have.Key || len(peers) == 0 || peers[0].Node != a.id || peers[0].Epoch != 1 || peers[0].Silent {
			t.Errorf("a new watcher heard %v, %+v", again, peers)
		}
	})
}

func TestFeedSilentHostComesLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeshOf(t, 3, true)
		g1, g2 := m.boot(10), m.boot(20)
		m.net.SetWeather(func(from, to netip.AddrPort, _ int) []time.Duration {
			if from.Addr() == volant.MeshAddr(nodeID(1)) || to.Addr() == volant.MeshAddr(nodeID(1)) {
				return []time.Duration{time.Millisecond}
			}
			return []time.Duration{20 * time.Millisecond}
		})
		m.set(50, 100)
		time.Sleep(3 * time.Second)
		edge := m.nodes[0]
		m.mustEcho(edge.connect())
		if _, _, n := g1.counts(); n != 1 {
			t.Fatal("the nearer machine was not taken")
		}
		edge.takePeers()
		m.net.SetWeather(func(from, to netip.AddrPort, _ int) []time.Duration {
			if from.Addr() == volant.MeshAddr(nodeID(1)) {
				return nil
			}
			return []time.Duration{20 * time.Millisecond}
		})
		time.Sleep(8 * time.Second)
		if ps := edge.takePeers(); len(ps) == 0 || ps[0].Node != nodeID(1) || !ps[0].Silent {
			t.Errorf("heard of nodes: %+v", ps)
		}
		m.mustEcho(edge.connect())
		if _, _, n := g2.counts(); n != 1 {
			t.Error("a machine whose host is not heard was taken before one that is known")
		}
		m.phase[20] = proxy.PhaseGone
		m.hostTable(2, 50, 100)
		time.Sleep(time.Second)
		m.mustEcho(edge.connect())
		if _, _, n := g1.counts(); n != 2 {
			t.Error("a machine whose host is not heard was not tried where there is no other")
		}
	})
}

func TestFeedTellsHowFarNodesAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeshOf(t, 3, true)
		g1, g2 := m.boot(10), m.boot(20)
		m.net.SetWeather(func(from, to netip.AddrPort, _ int) []time.Duration {
			if from.Addr() == volant.MeshAddr(nodeID(1)) || to.Addr() == volant.MeshAddr(nodeID(1)) {
				return []time.Duration{50 * time.Millisecond}
			}
			return []time.Duration{10 * time.Millisecond}
		})
		m.set(50, 100)
		time.Sleep(3 * time.Second)
		for range 5 {
			m.mustEcho(m.nodes[0].connect())
		}
		_, _, far := g1.counts()
		_, _, near := g2.counts()
		if far != 0 || near != 5 {
			t.Errorf("%d went far, %d near, want all 5 near", far, near)
		}
	})
}

// TestFeedLimitHoldsWithAnOldPicture has three edges whose picture of the machines is a second old.
func TestFeedLimitHoldsWithAnOldPicture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeshOf(t, 4, true)
		m.oneWay(time.Second)
		const hard = 5
		g := []*guest{m.boot(30), m.boot(31), m.boot(32)}
		m.set(3, hard)
		time.Sleep(10 * time.Second)
		served := make(chan error, 600)
		for i := range 600 {
			edge := m.nodes[i%3]
			go func() {
				c, err := m.net.DialFrom(context.Background(), netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 100)}), edge.front())
				if err == nil {
					err = echoes(c)
					time.Sleep(300 * time.Millisecond)
					c.Close()
				}
				served <- err
			}()
			time.Sleep(7 * time.Millisecond)
		}
		failed := 0
		for range 600 {
			if err := <-served; err != nil {
				failed++
			}
		}
		time.Sleep(5 * time.Second)
		total := 0
		for i, x := range g {
			open, most, n := x.counts()
			total += n
			if most > hard || open != 0 {
				t.Errorf("machine %d counts %d at once, at most %d are allowed; %d are open", i, most, hard, open)
			}
		}
		if failed+total < 600 || total < 300 {
			t.Errorf("%d served, %d refused of 600", total, failed)
		}
	})
}

// TestFeedLostEdgeFreesItsSlots cuts an edge off that holds 20 slots of a machine with 25.
func TestFeedLostEdgeFreesItsSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeshOf(t, 3, true)
		g := m.boot(10)
		m.set(25, 25)
		time.Sleep(3 * time.Second)
		host, other := m.nodes[1], m.nodes[2]
		for range 20 {
			m.mustEcho(m.nodes[0].connect())
		}
		cut := time.Now()
		lost := volant.MeshAddr(nodeID(0))
		m.net.SetWeather(func(from, to netip.AddrPort, _ int) []time.Duration {
			if from.Addr() == lost || to.Addr() == lost {
				return nil
			}
			return []time.Duration{time.Millisecond}
		})
		m.net.SetWire(func(from, to netip.Addr) memnet.Wire { return memnet.Wire{Cut: from == lost || to == lost} })
		for range 25 {
			other.connect() // five are served, the others wait
		}
		time.Sleep(time.Second)
		if held := host.slots()[machineID(10)]; held != 25 {
			t.Errorf("%d slots are held a second after the cut, want 25", held)
		}
		for total := 0; total < 45; _, _, total = g.counts() {
			time.Sleep(100 * time.Millisecond)
			if took := time.Since(cut); took > 7*time.Second {
				t.Fatalf("the slots of the lost edge are not free after %v: %d connections were served", took, total)
			}
		}
		if _, most, _ := g.counts(); most > 25 {
			t.Errorf("the machine counts %d at once", most)
		}
	})
}

// TestFeedOfBusyMachinesIsBounded moves the slots of eight machines without pause, under the eyes of sixty nodes.
func TestFeedOfBusyMachinesIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMeshOf(t, 61, true)
		m.oneWay(10 * time.Millisecond)
		for k := range 8 {
			m.boot(k)
		}
		m.set(10, 10)
		time.Sleep(5 * time.Second)
		host := m.nodes[0]
		before, err := host.p.Numbers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		for time.Since(begun) < 4*time.Second {
			var open []net.Conn
			for range 64 {
				open = append(open, host.connect())
			}
			time.Sleep(20 * time.Millisecond)
			for _, c := range open {
				c.Close()
			}
			time.Sleep(20 * time.Millisecond)
		}
		after, err := host.p.Numbers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if rate := float64(after.Live.SentBytes-before.Live.SentBytes) / time.Since(begun).Seconds(); rate > 350_000 || rate < 20_000 {
			t.Errorf("%.0f bytes a second", rate)
		}
		time.Sleep(5 * time.Second)
		fs := m.nodes[60].takeFacts(live.Slots)
		last := map[string]live.Fact{}
		for _, f := range fs {
			last[f.Key.ID] = f
		}
		for id, f := range last {
			if n := slotsOf(t, []live.Fact{f}); n[0] != 0 {
				t.Errorf("machine %s: %d slots were told last, want 0", id, n[0])
			}
		}
	})
}
