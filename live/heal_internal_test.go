package live

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/volanttest/memnet"
)

// TestADifferenceIsFoundByItsDigest damages what a reader knows: the datagrams alone would never mend it.
func TestADifferenceIsFoundByItsDigest(t *testing.T) {
	for name, damage := range map[string]func(h *heardFacts){
		"a fact is missing": func(h *heardFacts) {
			k := h.known[Key{Route, "m1"}]
			h.unlink(k)
			delete(h.known, k.Key)
		},
		"there is one too many": func(h *heardFacts) {
			in := wireFact{kind: Route, id: []byte("m9"), version: Version{1, 1}}
			h.take(&peer{Peer: Peer{Node: "a"}, epoch: 1}, &in, time.Now())
		},
		"an index was used again": func(h *heardFacts) { h.sum[1]++ },
	} {
		synctest.Test(t, func(t *testing.T) {
			var n memnet.Network
			w, r := pair(t, &n)
			if err := w.Set(Fact{Key: Key{Route, "m1"}}, Fact{Key: Key{Route, "m2"}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			r.mu.Lock()
			damage(&r.peers["a"].heardFacts)
			r.mu.Unlock()
			time.Sleep(2*digestEvery + time.Second)
			keys := map[string]bool{}
			for _, f := range r.Facts() {
				keys[f.Key.ID] = true
			}
			got := r.Numbers()
			if len(keys) != 2 || !keys["m1"] || !keys["m2"] || got.Mismatch != 1 || w.Numbers().Fulls != 2 {
				t.Errorf("%s: %v are known, %+v; %+v", name, keys, got, w.Numbers())
			}
		})
	}
}

// TestAnOldAcknowledgementIsOfTheOldFact acknowledges late what was sent of a fact whose index is another's now.
func TestAnOldAcknowledgementIsOfTheOldFact(t *testing.T) {
	f := New(Config{Node: "a", Epoch: 1})
	f.SetPeers([]Peer{{Node: "b", Addr: netip.MustParseAddrPort("[fd00::2]:1")}})
	p := f.peers["b"]
	now := time.Now()
	p.told.wants = KindsOf(Route)
	p.told.start(f, now)
	p.told.flights = []flight{{number: 7, refs: []ref{{index: 0, rev: 1}}}}
	f.rev = 5
	if err := f.Set(Fact{Key: Key{Route, "m2"}}); err != nil {
		t.Fatal(err)
	}
	p.told.acked(f, 7, now)
	if p.told.missing[Route] != 1 || p.told.behind != 1 {
		t.Errorf("%d facts are missing, %d behind, want 1", p.told.missing[Route], p.told.behind)
	}
}

// TestWhoStoppedBlamesNobody lets a node sleep for longer than silence takes.
func TestWhoStoppedBlamesNobody(t *testing.T) {
	f := New(Config{Node: "a", Epoch: 1})
	from := netip.MustParseAddrPort("[fd00::2]:1")
	f.SetPeers([]Peer{{Node: "b", Addr: from}})
	now := time.Now()
	f.round(now)
	f.receive((&head{epoch: 1, number: 1}).append(nil), from, now)
	for at := range 70 {
		f.round(now.Add(30*time.Second + time.Duration(at)*100*time.Millisecond))
		if silent := f.Peers()[0].Silent; silent != (at >= 60) {
			t.Fatalf("%d ms after it woke: silent is %v", at*100, silent)
		}
	}
}

func pair(t *testing.T, n *memnet.Network) (a, b *Feed) {
	t.Helper()
	addrs := map[volant.NodeID]netip.AddrPort{"a": netip.MustParseAddrPort("[fd00::1]:1"), "b": netip.MustParseAddrPort("[fd00::2]:1")}
	start := func(me, other volant.NodeID) *Feed {
		f := New(Config{Node: me, Epoch: 1})
		f.SetPeers([]Peer{{Node: other, Addr: addrs[other], Want: KindsOf(Route)}})
		conn, err := n.ListenPacket(t.Context(), addrs[me])
		if err != nil {
			t.Fatal(err)
		}
		go f.Run(t.Context(), conn, Events{}) //nolint:errcheck // what it does is looked at
		return f
	}
	return start("a", "b"), start("b", "a")
}
