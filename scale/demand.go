package scale

import (
	"maps"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
)

// Load is what the proxy of one node tells of one group of an app. A newer one replaces it whole.
type Load struct {
	Group    string
	Waiting  map[volant.Region]int    // by the region they entered
	Entering map[volant.Region]int    // served ones, by the region they entered
	Spilled  map[volant.Region]int    // those of Entering that are served too far away
	Slots    map[volant.MachineID]int // held on this node, machines with none left out
	Peak     int                      // most held and waiting at once since the Load before
	Avoid    []volant.NodeID          // hosts that connections from here do not reach now
}

func (l *Load) avoids(node volant.NodeID) bool {
	return len(l.Waiting) > 0 && slices.Contains(l.Avoid, node)
}

// demand is what all proxies tell of one group of an app.
type demand struct {
	loads   map[volant.NodeID]Load
	windows map[volant.Region]*window
	drained map[volant.Region]time.Time // last drain by scaling
}

func newDemand() *demand {
	return &demand{
		loads: map[volant.NodeID]Load{}, windows: map[volant.Region]*window{}, drained: map[volant.Region]time.Time{},
	}
}

func (d *demand) set(now time.Time, node volant.NodeID, l Load) {
	d.loads[node] = l
	at := d.totals()
	most, sum := volant.Region(""), 0
	for _, counts := range []map[volant.Region]int{l.Waiting, l.Entering} {
		for r, n := range counts {
			sum += n
			d.window(r)
			if most == "" || at[r] > at[most] {
				most = r
			}
		}
	}
	// A peak between two loads is not told by region; it is put on the busiest one of the node.
	if most != "" && l.Peak > sum {
		d.window(most).bump(now, at[most]+l.Peak-sum)
	}
	for r, w := range d.windows {
		w.set(now, at[r])
	}
}

// forget drops what a node's proxy told.
func (d *demand) forget(now time.Time, node volant.NodeID) {
	if _, ok := d.loads[node]; ok {
		d.set(now, node, Load{})
		delete(d.loads, node)
	}
}

func (d *demand) window(r volant.Region) *window {
	w := d.windows[r]
	if w == nil {
		w = &window{}
		d.windows[r] = w
	}
	return w
}

func (d *demand) totals() map[volant.Region]int {
	at := map[volant.Region]int{}
	for _, l := range d.loads {
		for r, n := range l.Waiting {
			at[r] += n
		}
		for r, n := range l.Entering {
			at[r] += n
		}
	}
	return at
}

// fill writes what is known of demand into o.
func (d *demand) fill(o *Observation) {
	idle := o.Scale.WithDefaults().IdleTimeout.D()
	o.Regions = maps.Clone(o.Regions)
	if o.Regions == nil {
		o.Regions = map[volant.Region]Region{}
	}
	for q, w := range d.windows {
		r := o.Regions[q]
		r.Peak, r.PeakFalls = w.peak(o.Now, idle)
		for _, l := range d.loads {
			r.Waiting += l.Waiting[q]
			r.Entering += l.Entering[q]
			r.Spilled += l.Spilled[q]
		}
		o.Regions[q] = r
	}
	for q, at := range d.drained {
		r := o.Regions[q]
		r.LastDrain = at
		o.Regions[q] = r
	}
	for i := range o.Machines {
		m := &o.Machines[i]
		l, ok := d.loads[m.Node]
		m.Slots, m.Counted = l.Slots[m.ID], ok
		for _, l := range d.loads {
			m.Silent = m.Silent || l.avoids(m.Node)
		}
	}
}

// window is the sliding maximum of a number that holds until it is set anew.
type window struct {
	now  int
	past []sample // falling values, rising times
}

type sample struct {
	n     int
	until time.Time
}

func (w *window) set(at time.Time, n int) {
	if n != w.now {
		w.bump(at, w.now)
		w.now = n
	}
}

// bump notes that the number was n until at.
func (w *window) bump(at time.Time, n int) {
	for len(w.past) > 0 && w.past[len(w.past)-1].n <= n {
		w.past = w.past[:len(w.past)-1]
	}
	w.past = append(w.past, sample{n, at})
}

// peak is the most within the time d before at, and when it falls if nothing is set; zero: it does not.
func (w *window) peak(at time.Time, d time.Duration) (n int, falls time.Time) {
	for len(w.past) > 0 && !w.past[0].until.Add(d).After(at) {
		w.past = w.past[1:]
	}
	if len(w.past) == 0 || w.past[0].n <= w.now {
		return w.now, time.Time{}
	}
	return w.past[0].n, w.past[0].until.Add(d)
}
