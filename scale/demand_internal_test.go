package scale

import (
	"math/rand/v2"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
)

// TestWindowIsTheSlidingMaximum compares with all values kept.
func TestWindowIsTheSlidingMaximum(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	const d = 10 * time.Second
	type held struct {
		n           int
		from, until time.Time
	}
	var w window
	var all []held
	at, value, from := start, 0, start
	for range 5000 {
		at = at.Add(time.Duration(rnd.IntN(3000)) * time.Millisecond)
		switch rnd.IntN(3) {
		case 0:
			all = append(all, held{value, from, at})
			value, from = rnd.IntN(50), at
			w.set(at, value)
		case 1:
			n := value + rnd.IntN(5)
			all = append(all, held{n, at, at})
			w.bump(at, n)
		}
		want, falls := value, time.Time{}
		for _, h := range all {
			if h.until.Add(d).After(at) && h.n >= want {
				if h.n > value {
					falls = h.until.Add(d)
				}
				want = h.n
			}
		}
		if got, next := w.peak(at, d); got != want || !next.Equal(falls) {
			t.Fatalf("at %v: got %d until %v, want %d until %v", at.Sub(start), got, next.Sub(start), want, falls.Sub(start))
		}
		if len(w.past) > 60 {
			t.Fatalf("%d samples are kept", len(w.past))
		}
	}
}

func TestDemandSumsOverNodes(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	d := newDemand()
	d.set(now, "n1", Load{
		Waiting: map[volant.Region]int{"ams": 2}, Entering: map[volant.Region]int{"ams": 3}, Slots: map[volant.MachineID]int{"a": 3}, Peak: 9,
	})
	d.set(now, "n2", Load{Entering: map[volant.Region]int{"ams": 4, "syd": 1}, Slots: map[volant.MachineID]int{"b": 5}, Peak: 5})
	fill := func(at time.Time) Observation {
		o := Observation{Now: at, Machines: []Machine{{ID: "a", Node: "n1"}, {ID: "b", Node: "n2"}, {ID: "c", Node: "n3"}}}
		d.fill(&o)
		return o
	}
	o := fill(now)
	if r := o.Regions["ams"]; r.Waiting != 2 || r.Entering != 7 || r.Peak != 9 || !r.PeakFalls.IsZero() {
		t.Errorf("ams: %+v", r)
	}
	if a, c := o.Machines[0], o.Machines[2]; a.Slots != 3 || !a.Counted || c.Slots != 0 || c.Counted {
		t.Errorf("machines: %+v", o.Machines)
	}
	d.forget(now.Add(time.Second), "n1")
	if r := fill(now.Add(time.Second)).Regions["ams"]; r.Entering != 4 || r.Peak != 9 || !r.PeakFalls.Equal(now.Add(61*time.Second)) {
		t.Errorf("ams after its node is gone: %+v", r)
	}
	if r := fill(now.Add(61 * time.Second)).Regions["ams"]; r.Peak != 4 {
		t.Errorf("ams an idle timeout later: %+v", r)
	}
}
