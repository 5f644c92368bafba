package scale

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
)

// reason is why one more machine is wanted.
type reason struct {
	rule, text string
	demand     bool // connections ask for it; else min does
}

// out adds capacity: what min keeps in regions, what connections ask for and what min keeps at all, a machine at a
// time.
func (p *planner) out() {
	for _, r := range p.order {
		p.unmet = append(p.unmet, unmet{r, p.regions[r].Waiting, p.regions[r].Entering})
	}
	for _, q := range p.order {
		for p.capacity(q)+p.unheard(q) < p.scale.RegionMin[q] {
			text := fmt.Sprintf("min keeps %d awake in %s", p.scale.RegionMin[q], q)
			if !p.placeIn(q, reason{rule: "region_min", text: text}) {
				p.hold("no_room", "%s, and nothing there can be woken or created", text)
				p.wakeAt(p.o.Now.Add(roomAgain))
				break
			}
		}
	}
	for p.short() {
		if !p.placeNear(p.busiest(), p.why()) {
			break
		}
	}
	load, top := p.load(), max(p.scale.Max, p.scale.Least())
	if need := ceilDiv(load, p.o.Soft); need > top && p.capacity("") >= top {
		p.hold("max", "%d connections want %d machines of %d each, and max is %d", load, need, p.o.Soft, top)
	}
	p.spilled()
}

// short says whether there are fewer machines than connections ask for or min keeps.
func (p *planner) short() bool {
	have := p.capacity("")
	return have < min(ceilDiv(p.load(), p.o.Soft), max(p.scale.Max, p.scale.Least())) || have+p.unheard("") < p.scale.Least()
}

// why is the reason for the next machine.
func (p *planner) why() reason {
	load, have := p.load(), p.capacity("")
	if have >= ceilDiv(load, p.o.Soft) {
		return reason{rule: "min", text: fmt.Sprintf("min keeps %d awake, and there are %d", p.scale.Least(), have)}
	}
	waiting := 0
	for _, r := range p.regions {
		waiting += r.Waiting
	}
	return reason{rule: "demand", demand: true, text: fmt.Sprintf(
		"%d connections, %d of them waiting, want %d machines of %d each, and there are %d",
		load, waiting, ceilDiv(load, p.o.Soft), p.o.Soft, have)}
}

// spilled adds machines in regions whose connections are served too far away for want of room there.
func (p *planner) spilled() {
	for _, q := range p.order {
		for {
			missing := p.missing(q)
			text := fmt.Sprintf("%d connections of %s are served in other regions", p.regions[q].Spilled, q)
			if missing <= 0 || !p.placeIn(q, reason{rule: "spilled", text: text, demand: true}) {
				break
			}
		}
	}
}

// missing is how many connections of region q that are served far away would find no room in q, were they to come anew.
func (p *planner) missing(q volant.Region) int {
	n := p.regions[q].Spilled - p.comingIn[q]*p.o.Soft
	for _, m := range p.ms {
		if m.Region == q && !m.Evacuate && (p.routable(m) || p.booting(m)) {
			n -= max(0, p.o.Soft-m.Slots)
		}
	}
	return n
}

// unmet is what a region asks for beyond the machines planned so far.
type unmet struct {
	region            volant.Region
	waiting, entering int
}

// busiest is the region where most of the unserved, then of the served connections enter.
func (p *planner) busiest() volant.Region {
	if len(p.unmet) == 0 {
		return p.o.Primary
	}
	best := slices.MinFunc(p.unmet, func(a, b unmet) int {
		return cmp.Or(
			cmp.Compare(b.waiting, a.waiting), cmp.Compare(b.entering, a.entering),
			first(a.region == p.o.Primary, b.region == p.o.Primary), cmp.Compare(a.region, b.region))
	})
	return best.region
}

// placeNear adds a machine in region r or, where that cannot be, in the next nearest.
func (p *planner) placeNear(r volant.Region, why reason) bool {
	for _, q := range p.nearest(r) {
		if p.placeIn(q, why) {
			p.met(r)
			return true
		}
	}
	p.explain(why)
	return false
}

// met takes one machine's worth of connections from what region r asks for.
func (p *planner) met(r volant.Region) {
	for i := range p.unmet {
		if u := &p.unmet[i]; u.region == r {
			served := min(p.o.Soft, u.waiting)
			u.waiting -= served
			u.entering = max(0, u.entering-(p.o.Soft-served))
		}
	}
}

// nearest is r, then the regions it names as near, then all others.
func (p *planner) nearest(r volant.Region) []volant.Region {
	out := []volant.Region{r}
	for _, q := range append(slices.Clone(p.regions[r].Near), p.order...) {
		if !slices.Contains(out, q) {
			out = append(out, q)
		}
	}
	return out
}

// placeIn adds a machine in region q: it clears a drain, resumes, starts, creates, or makes room to create.
func (p *planner) placeIn(q volant.Region, why reason) bool {
	return p.undrain(q, why) || p.wake(q, why) || p.create(q, why) || p.evict(q, why)
}

func (p *planner) undrain(q volant.Region, why reason) bool {
	ms := p.machines(func(m Machine) bool {
		return m.Region == q && p.mine(m) && m.Draining && !m.Evacuate && !m.Blocked && (m.State == Serving || m.State == Booting)
	}, func(a, b Machine) int { return cmp.Compare(b.Slots, a.Slots) })
	if len(ms) == 0 {
		return false
	}
	ms[0].Draining, ms[0].Blocked = false, true
	p.add(Step{Kind: Undrain, Machine: ms[0].ID, Region: q, Rule: why.rule, Text: why.text})
	return true
}

func (p *planner) wake(q volant.Region, why reason) bool {
	if why.demand && p.scale.NoWake || !p.mayBoot() {
		return false
	}
	ms := p.machines(func(m Machine) bool {
		asleep := m.State == Suspended || m.State == Stopped || m.State == Failed && p.trouble.broken
		return m.Region == q && p.mine(m) && !m.Evacuate && !m.Blocked && asleep
	}, func(a, b Machine) int { // the proxy's order, so that both wake the same one
		return cmp.Or(cmp.Compare(a.Failures, b.Failures), first(a.State == Suspended, b.State == Suspended))
	})
	if len(ms) == 0 {
		return false
	}
	ms[0].State = Booting
	p.trouble.tried = true
	p.add(Step{Kind: Wake, Machine: ms[0].ID, Region: q, Rule: why.rule, Text: why.text})
	return true
}

func (p *planner) create(q volant.Region, why reason) bool {
	if !p.mayCreate(q, why) || p.count >= p.scale.Max {
		return false
	}
	p.start(q)
	p.count++
	p.countIn[q]++
	p.trouble.tried = true
	p.add(Step{Kind: Create, Region: q, Rule: why.rule, Text: why.text})
	return true
}

// start notes capacity that comes to region q and takes room there.
func (p *planner) start(q volant.Region) {
	p.coming++
	p.comingIn[q]++
	r := p.regions[q]
	r.Room--
	p.regions[q] = r
}

// mayCreate says whether a machine may be created in q, max aside.
func (p *planner) mayCreate(q volant.Region, why reason) bool {
	if why.demand && p.scale.NoWake || !p.o.Template || p.regions[q].Room <= 0 || !p.mayBoot() {
		return false
	}
	if len(p.scale.Regions) > 0 && !slices.Contains(p.scale.Regions, q) {
		return false
	}
	top, bounded := p.scale.RegionMax[q]
	return !bounded || p.countIn[q] < top
}

// evict makes room below max for a machine in q: the longest asleep one made by scaling elsewhere goes.
// The machine in q is created when the other's end is on record.
func (p *planner) evict(q volant.Region, why reason) bool {
	if !p.mayCreate(q, why) || p.count > p.scale.Max {
		return false
	}
	if p.freed > 0 {
		p.freed--
		p.start(q)
		return true
	}
	ms := p.machines(func(m Machine) bool {
		return m.Region != q && p.mine(m) && m.Managed && !m.Evacuate && !m.Blocked && (m.State == Suspended || m.State == Stopped)
	}, longestAsleep)
	if len(ms) == 0 {
		return false
	}
	p.start(q)
	p.retire(ms[0], "make_room", fmt.Sprintf("%s; max is %d and %s needs the place", why.text, p.scale.Max, q))
	return true
}

// roomAgain is when hosts are asked again that had no room.
const roomAgain = 5 * time.Second

// explain says why no machine could be added anywhere.
func (p *planner) explain(why reason) {
	switch {
	case !p.o.Template && !why.demand: // nothing was deployed yet
	case p.trouble.broken && p.trouble.deaf:
		p.hold("broken", "%s; its machines run and accept no connection: look at their logs, and at the port they listen on", why.text)
	case p.trouble.broken && !p.mayBoot():
		p.wakeAt(p.trouble.retry)
		p.hold("broken", "%s; its machines failed to come to serve %d times in a row: one is tried again at %s",
			why.text, p.trouble.failures, p.trouble.retry.UTC().Format(time.RFC3339))
	case why.demand && p.scale.NoWake:
		p.hold("no_wake", "%s; auto_start is off", why.text)
	case p.count >= p.scale.Max:
		p.hold("max", "%s; max is %d", why.text, p.scale.Max)
	case !p.o.Template:
		p.hold("no_template", "%s; there is neither a release nor a machine to create them from", why.text)
	default:
		p.wakeAt(p.o.Now.Add(roomAgain))
		p.hold("no_room", "%s; no host has room in a region the app may use", why.text)
	}
}

// trouble is what failed boots say of the current release.
type trouble struct {
	broken   bool
	failures int
	retry    time.Time // when one machine may be tried
	tried    bool      // one boots, or is planned
	deaf     bool      // one runs and accepts no connection: it is tried all the time
}

const (
	brokenAfter = 3 // failed boots in a row
	retryFirst  = 10 * time.Second
	retryMost   = 5 * time.Minute
)

// findTrouble says whether machines of the current release fail to come to serve: three times running
// while none serves.
func (p *planner) findTrouble() trouble {
	var t trouble
	var last time.Time
	serves := false
	for _, m := range p.ms {
		if p.foreign(m) {
			continue
		}
		serves = serves || m.State == Serving && m.Failures == 0
		t.deaf = t.deaf || m.State == Serving && m.Failures > 0
		t.tried = t.tried || m.State == Booting
		t.failures += m.Failures
		if m.Failures > 0 && m.State != Booting && m.Since.After(last) {
			last = m.Since
		}
	}
	t.broken = t.failures >= brokenAfter && !serves
	wait := retryMost
	if n := t.failures - brokenAfter; n >= 0 && n < 5 {
		wait = min(wait, retryFirst<<n)
	}
	t.retry = last.Add(wait)
	return t
}

// mayBoot says whether one more machine may boot: a broken release gets one at a time, with back-off.
func (p *planner) mayBoot() bool {
	return !p.trouble.broken || !p.trouble.deaf && !p.trouble.tried && !p.trouble.retry.After(p.o.Now)
}

// first orders true before false.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}
