package scale

import (
	"cmp"
	"fmt"

	volant "github.com/volant-edge/volant"
)

// in drains what has been too much for a whole idle timeout, region by region.
func (p *planner) in() {
	if p.scale.OnIdle == volant.OnIdleOff {
		return
	}
	idle := p.scale.IdleTimeout.D()
	if p.o.Watched < idle {
		p.wakeAt(p.o.Now.Add(idle - p.o.Watched))
		return
	}
	peak := 0
	for _, r := range p.regions {
		peak += r.Peak
	}
	spare := p.calm("") - p.wanted(max(peak, p.load()))
	for _, q := range p.order {
		r := p.regions[q]
		want := max(ceilDiv(r.Peak, p.o.Soft), p.scale.RegionMin[q])
		if top, bounded := p.scale.RegionMax[q]; bounded {
			want = min(want, max(top, p.scale.RegionMin[q]))
		}
		p.wakeAt(r.PeakFalls)
		spare -= p.drain(q, min(spare, p.calm(q)-want))
	}
}

// calm counts the machines of the current release which have taken connections for a whole idle
// timeout; all regions for "".
func (p *planner) calm(q volant.Region) int {
	n := 0
	for _, m := range p.ms {
		if (q == "" || m.Region == q) && p.routable(m) && !m.Evacuate && !p.foreign(m) {
			due := m.Since.Add(p.scale.IdleTimeout.D())
			p.wakeAt(due)
			if !due.After(p.o.Now) {
				n++
			}
		}
	}
	return n
}

// drain drains up to n machines of region q, and says how many: all that are empty at once, else the
// least loaded one, one per idle timeout.
func (p *planner) drain(q volant.Region, n int) int {
	if n <= 0 {
		return 0
	}
	idle := p.scale.IdleTimeout.D()
	ms := p.machines(func(m Machine) bool {
		return m.Region == q && p.mine(m) && p.routable(m) && !m.Evacuate && !m.Blocked && !m.Since.Add(idle).After(p.o.Now)
	}, func(a, b Machine) int { return cmp.Compare(a.Slots, b.Slots) })
	done := 0
	for _, m := range ms {
		if done == n || m.Slots > 0 || p.needed(m) {
			break
		}
		p.drainOne(m, fmt.Sprintf("no connection needed it for %s", short(idle)))
		done++
	}
	if done > 0 || len(ms) == 0 {
		return done
	}
	if p.needed(ms[0]) {
		return 0
	}
	if due := p.regions[q].LastDrain.Add(idle); due.After(p.o.Now) {
		p.wakeAt(due)
		return 0
	}
	p.drainOne(ms[0], fmt.Sprintf(
		"the most connections in %s within %s were %d, fewer machines hold these; this one has the fewest, %d",
		q, short(idle), p.regions[q].Peak, ms[0].Slots))
	return 1
}

// needed says that without the machine connections of its region that are served far away would ask for another: it is
// others' connections that make it look idle.
func (p *planner) needed(m *Machine) bool {
	return p.missing(m.Region)+max(0, p.o.Soft-m.Slots) > 0
}

func (p *planner) drainOne(m *Machine, text string) {
	m.Draining = true
	p.add(Step{Kind: Drain, Machine: m.ID, Region: m.Region, Then: p.then(), Rule: "idle", Text: text})
}
