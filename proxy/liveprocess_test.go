package proxy_test

import (
	"context"
	"crypto/rand"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
	"github.com/volant-edge/volant/proxy"
)

// TestProcessesTellEachOther has two processes with real datagrams on the loopback; their servers speak through
// their control sockets.
func TestProcessesTellEachOther(t *testing.T) {
	var at [3]byte
	rand.Read(at[:])
	var mesh [2]netip.Addr
	for i := range mesh {
		mesh[i] = netip.AddrFrom4([4]byte{127, 64 + at[0]%64, at[1], 2*(at[2]/2) ^ byte(i)})
	}
	start := func(i int) *proxy.Client {
		c, _ := newProcess(t).ensure()
		o := 1 - i
		if err := c.SetTable(t.Context(), proxy.Table{
			Version: 1, Epoch: 1, Node: nodeID(i), Mesh: mesh[i],
			Peers: []proxy.Peer{{Node: nodeID(o), Addr: mesh[o], Want: live.KindsOf(live.Have, live.Slots)}},
		}); err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b := start(0), start(1)
	var want []live.Fact
	for i := range 300 {
		f := live.EncodeHave(volant.Have{Machine: machineID(i), Node: nodeID(0), Epoch: 1, Seq: uint64(i + 1), State: volant.StateStarted}) //nolint:gosec // an index
		want = append(want, f)
	}
	if err := a.TellAll(t.Context(), live.KindsOf(live.Have), want[:200]); err != nil {
		t.Fatal(err)
	}
	if err := a.Tell(t.Context(), want[200:]); err != nil {
		t.Fatal(err)
	}
	if err := a.Tell(t.Context(), []live.Fact{{Key: live.Key{Kind: live.Load, ID: "x/y"}}}); err == nil {
		t.Error("a server told a load")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got := map[live.Key]live.Fact{}
	heard := false
	enough := func() {
		if len(got) == len(want) && heard {
			cancel()
		}
	}
	if err := b.Watch(ctx, proxy.Events{
		Fact: func(f live.Fact) { got[f.Key] = f; enough() },
		Peer: func(s live.PeerState) {
			heard = heard || s.Node == nodeID(0) && s.Epoch > 0 && s.RTT > 0 && !s.Silent
			enough()
		},
	}); err != nil {
		t.Fatal(err)
	}
	for _, f := range want {
		if diff := cmp.Diff(f, got[f.Key]); diff != "" {
			t.Fatalf("heard (-want +got):\n%s", diff)
		}
	}
	n, err := b.Numbers(t.Context())
	if err != nil || n.Live.Facts != len(want) || n.Live.Peers != 1 || n.Live.Silent != 0 {
		t.Errorf("numbers %+v, %v", n.Live, err)
	}
}
