package node

import (
	"slices"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/live"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/storetest"
)

// planet is a catalog with a node in each of the regions, whose IDs are the regions' codes, and places where given.
func planet(t *testing.T, places map[volant.Region][2]float64, regions ...volant.Region) *catalog.Catalog {
	t.Helper()
	s := storetest.New()
	create := func(rec volant.Record) {
		t.Helper()
		if _, err := store.Create(t.Context(), s, "test", rec); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range regions {
		n := &volant.Node{Region: r, Roles: []string{volant.RoleHost}}
		n.Meta = volant.Meta{Kind: volant.KindNode, ID: string(r)}
		create(n)
	}
	for r, at := range places {
		p := &volant.Place{Lat: at[0], Long: at[1]}
		p.Meta = volant.Meta{Kind: volant.KindPlace, ID: string(r)}
		create(p)
	}
	entries, rev, err := s.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	c := catalog.New(catalog.Config{})
	c.Apply(entries, rev)
	return c
}

func TestNearness(t *testing.T) {
	c := planet(t, map[volant.Region][2]float64{
		"ams": {52.4, 4.9}, "fra": {50.1, 8.7}, "dfw": {32.8, -96.8}, "ord": {41.9, -87.6}, "syd": {-33.9, 151.2},
	}, "ams", "dfw", "fra", "nil", "ord", "syd")
	k := newKnown("ams")
	near := func(of volant.Region, want ...volant.Region) {
		t.Helper()
		r := newRegions(c.Snapshot(), "ams", "ams", k)
		if got := r.near(of); !slices.Equal(got, want) {
			t.Errorf("near %s: got %v, want %v", of, got, want)
		}
	}
	near("ams", "fra", "ord", "dfw", "syd", "nil")
	near("dfw", "ord", "ams", "fra", "syd", "nil")
	near("nil", "ams", "dfw", "fra", "ord", "syd")
	// What is measured counts before the map: by this node, and by others of themselves.
	k.setPeer(live.PeerState{Node: "nil", RTT: 2 * time.Millisecond, Heard: time.Now()})
	k.setRoom(live.Fact{Node: "syd", Version: live.Version{Epoch: 1, Seq: 1}}, room{RTT: map[volant.Region]float64{"dfw": 5}})
	near("ams", "nil", "fra", "ord", "dfw", "syd")
	near("dfw", "syd", "ord", "ams", "fra", "nil")
	near("nil", "ams", "dfw", "fra", "ord", "syd")
}

func TestSilence(t *testing.T) {
	k := newKnown("a")
	now := time.Now()
	want := func(what string, heard, silent bool) {
		t.Helper()
		if k.heard("b") != heard || k.silent("b") != silent {
			t.Errorf("%s: heard %v, silent %v", what, k.heard("b"), k.silent("b"))
		}
	}
	want("before there is a proxy", false, false)
	k.linked()
	want("when the proxy has just begun", false, false)
	k.since = now.Add(-time.Minute)
	want("never heard", false, true)
	k.setPeer(live.PeerState{Node: "b", Epoch: 3, Heard: now})
	want("heard", true, false)
	k.setPeer(live.PeerState{Node: "b", Epoch: 3, Heard: now.Add(-time.Minute), Silent: true})
	want("not heard any more", false, true)
	if !k.heard("a") || k.silent("a") {
		t.Error("a node does not hear itself")
	}
}

func TestWhatAnEarlierProxyToldIsOver(t *testing.T) {
	k := newKnown("a")
	told := func(kind live.Kind, id string, epoch uint64) live.Fact {
		return live.Fact{Node: "b", Key: live.Key{Kind: kind, ID: id}, Version: live.Version{Epoch: epoch, Seq: 1}}
	}
	k.setPeer(live.PeerState{Node: "b", Epoch: 3, Heard: time.Now()})
	k.setSlots(told(live.Slots, "m1", 3), 5)
	k.setSlots(told(live.Slots, "m2", 4), 7)
	if fresh := k.setPeer(live.PeerState{Node: "b", Epoch: 4, Heard: time.Now()}); !fresh {
		t.Error("a new epoch is no news")
	}
	got := k.load("b", groupKey{"app", ""}, []volant.MachineID{"m1", "m2"}).Slots
	if len(got) != 1 || got["m2"] != 7 {
		t.Errorf("slots after a new epoch: %v", got)
	}
}

// A clock that is wrong does not make a machine older or younger than it is.
func TestClocksOfOthers(t *testing.T) {
	k := newKnown("a")
	now := time.Now()
	v := live.Version{Epoch: 1, Seq: 1}
	k.setRoom(live.Fact{Node: "b", Version: v}, room{Clock: now.Add(time.Hour).UnixMilli()})
	k.setRoom(live.Fact{Node: "b", Version: v}, room{Clock: now.Add(time.Hour - 20*time.Second).UnixMilli()}) // came late
	if got := k.here("b", now.Add(time.Hour)).Sub(now); got.Abs() > time.Second {
		t.Errorf("an hour fast: off by %s", got)
	}
	k.setRoom(live.Fact{Node: "c", Version: v}, room{Clock: now.Add(-time.Second).UnixMilli()})
	if got := k.here("c", now); !got.Equal(now) {
		t.Errorf("a second on the way was taken for the clock: %s", got.Sub(now))
	}
}
