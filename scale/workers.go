package scale

import (
	"cmp"
	"fmt"

	volant "github.com/volant-edge/volant"
)

// workers keeps as many machines of a group without services as min says. They are on, their restart policy
// says what follows an exit, and one too many is destroyed: its host asks its program to end first.
func (p *planner) workers() {
	for _, q := range p.order {
		least := p.scale.RegionMin[q]
		for p.employed(q) < least {
			if !p.hire(q, reason{rule: "region_min", text: fmt.Sprintf("min keeps %d in %s", least, q)}) {
				break
			}
		}
	}
	for p.employed("") < p.scale.Least() {
		why := reason{rule: "min", text: fmt.Sprintf("min keeps %d, and there are %d", p.scale.Least(), p.employed(""))}
		hired := false
		for _, q := range p.nearest(p.o.Primary) {
			if hired = p.hire(q, why); hired {
				break
			}
		}
		if !hired {
			p.explain(why)
			break
		}
	}
	p.evacuateWorkers()
	p.dismiss()
}

// employed counts the machines that work; all regions for "". Those of the release before count while the
// deploy has not taken them out.
func (p *planner) employed(q volant.Region) int {
	n := p.coming
	if q != "" {
		n = p.comingIn[q]
	}
	for _, m := range p.ms {
		if (q == "" || m.Region == q) && p.works(m) {
			n++
		}
	}
	return n
}

func (p *planner) works(m Machine) bool {
	if !m.Managed || m.Run != volant.RunOn || m.Evacuate {
		return false
	}
	return !p.foreign(m) || !m.Cordoned && (m.State == Serving || m.State == Booting)
}

func (p *planner) hire(q volant.Region, why reason) bool {
	if !p.mayCreate(q, why) {
		return false
	}
	p.start(q)
	p.count++
	p.countIn[q]++
	p.add(Step{Kind: Create, Region: q, Rule: why.rule, Text: why.text})
	return true
}

// dismiss destroys machines beyond min, of no region more than its own min allows: those that do not run
// first, then the youngest.
func (p *planner) dismiss() {
	ms := p.machines(func(m Machine) bool {
		return m.Managed && m.Run == volant.RunOn && !m.Evacuate && !p.foreign(m) && !m.Cordoned && !m.Blocked
	}, func(a, b Machine) int {
		return cmp.Or(first(resting(a), resting(b)), b.Since.Compare(a.Since), cmp.Compare(a.ID, b.ID))
	})
	own, ownIn := 0, map[volant.Region]int{}
	for _, m := range p.ms {
		if m.Blocked {
			return // one that is being made may be there twice: as it will be, and as it is already
		}
		if m.Managed && m.Run == volant.RunOn && !m.Evacuate && !p.foreign(m) {
			own++
			ownIn[m.Region]++
		}
	}
	for _, m := range ms {
		if own <= p.scale.Least() {
			return
		}
		if ownIn[m.Region] <= p.scale.RegionMin[m.Region] {
			continue
		}
		own--
		ownIn[m.Region]--
		m.State, m.Run = Leaving, volant.RunDestroyed
		p.add(Step{
			Kind: Destroy, Machine: m.ID, Region: m.Region, Rule: "min",
			Text: fmt.Sprintf("min keeps %d, and there is one more", p.scale.Least()),
		})
	}
}
