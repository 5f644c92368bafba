package proxy

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
)

func TestFactsComeBack(t *testing.T) {
	m := Machine{ID: "0123456789abcd", Seq: 1 << 40, Phase: PhaseSuspended, Draining: true, AskLeave: true, Failing: []uint16{80, 65535}}
	f := routeFact(&m)
	s, err := decodeRoute(&f)
	want := RemoteState{Phase: PhaseSuspended, Seq: 1 << 40, Draining: true, AskLeave: true, Failing: []uint16{80, 65535}}
	if diff := cmp.Diff(want, s); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	for _, phase := range []Phase{PhaseGone, PhaseServing, PhaseBooting, PhaseSuspended, PhaseStopped} {
		f := routeFact(&Machine{ID: m.ID, Phase: phase})
		if s, err := decodeRoute(&f); err != nil || s.Phase != phase {
			t.Errorf("%s came back as %s, %v", phase, s.Phase, err)
		}
	}
	if s, err := decodeRoute(&live.Fact{Gone: true}); err != nil || s.Phase != PhaseGone {
		t.Errorf("one that is no more: %+v, %v", s, err)
	}

	slots := []RemoteSlots{
		{Port: 80, Held: 7, Version: live.Version{Epoch: 3, Seq: 9}},
		{Port: 8080, Held: 0, Version: live.Version{Epoch: 3, Seq: 4}},
	}
	id, got, err := DecodeSlots(slotsFact(m.ID, 3, slots))
	if diff := cmp.Diff(slots, got); err != nil || id != m.ID || diff != "" {
		t.Errorf("%s, %v %s", id, err, diff)
	}

	k := appKey{"app_0123456789abcdef", "web"}
	load := Load{
		App: k.id, Group: k.group, Waiting: map[volant.Region]int{"a": 1}, Entering: map[volant.Region]int{"b": 2},
		Spilled: map[volant.Region]int{"b": 1}, Peak: 4, Avoid: []volant.NodeID{"00000001"},
	}
	full := load
	full.Slots, full.Accepting = map[volant.MachineID]int{"m": 1}, []volant.MachineID{"m"}
	back, err := DecodeLoad(loadFact(k, full))
	if diff := cmp.Diff(load, back); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
}

func TestALoadOfManyRegionsFits(t *testing.T) {
	k := appKey{"app_0123456789abcdef", "web"}
	l := Load{App: k.id, Group: k.group, Waiting: map[volant.Region]int{}, Entering: map[volant.Region]int{"here": 1}}
	for i := range 500 {
		l.Waiting[volant.Region(fmt.Sprintf("r%d", i))] = i
	}
	f := loadFact(k, l)
	got, err := DecodeLoad(f)
	if err != nil || len(f.Body) > live.MaxBody || len(got.Waiting) < 30 || got.Waiting["r499"] != 499 || got.Entering["here"] != 1 {
		t.Errorf("%d bytes, %v, %d regions", len(f.Body), err, len(got.Waiting))
	}
}

// FuzzFacts reads facts as a node may tell them that is broken.
func FuzzFacts(f *testing.F) {
	r := routeFact(&Machine{ID: "m", Phase: PhaseServing, Failing: []uint16{1}})
	f.Add(byte(r.Key.Kind), r.Key.ID, r.Body)
	s := slotsFact("m", 3, []RemoteSlots{{Port: 80, Held: 7}})
	f.Add(byte(s.Key.Kind), s.Key.ID, s.Body)
	l := loadFact(appKey{"a", "g"}, Load{Peak: 3})
	f.Add(byte(l.Key.Kind), l.Key.ID, l.Body)
	f.Fuzz(func(t *testing.T, kind byte, id string, body []byte) {
		p, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		x := live.Fact{Node: "00000001", Key: live.Key{Kind: live.Kind(kind), ID: id}, Body: body}
		p.feed.heard(x)
		if _, ports, err := DecodeSlots(x); err == nil {
			for _, p := range ports {
				if p.Held < 0 || p.Held > slotsMost || p.Port == 0 {
					t.Errorf("out of bounds: %+v", p)
				}
			}
		}
		if l, err := DecodeLoad(x); err == nil && (len(l.Slots) > 0 || string(l.App)+"/"+l.Group != id) {
			t.Errorf("a load of another: %+v", l)
		}
	})
}
