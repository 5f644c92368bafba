package scale

import (
	volant "github.com/volant-edge/volant"
)

// evacuate takes machines off nodes that are to be emptied: those that sleep are destroyed, and those that serve
// drain as soon as others serve in their place. No connection is ended.
func (p *planner) evacuate() {
	for i := range p.ms {
		m := &p.ms[i]
		if !m.Evacuate || m.Blocked || !p.mine(*m) {
			continue
		}
		switch {
		case resting(*m) && m.Managed:
			m.Cordoned, m.Retiring, m.Acted = true, true, false
			p.add(Step{
				Kind: Retire, Machine: m.ID, Region: m.Region, Rule: "node_drains", Text: "it sleeps, and its node is to be emptied",
			})
		case m.State == Serving && !m.Draining && p.relieved():
			m.Draining = true
			p.add(Step{
				Kind: Drain, Machine: m.ID, Region: m.Region, Then: p.then(), Rule: "node_drains",
				Text: "its node is to be emptied, and what is needed serves elsewhere",
			})
		}
	}
}

// relieved says whether enough machines serve on nodes that are to stay.
func (p *planner) relieved() bool {
	all, in := 0, map[volant.Region]int{}
	for _, m := range p.ms {
		if !m.Evacuate && p.routable(m) {
			all++
			in[m.Region]++
		}
	}
	for q, least := range p.scale.RegionMin {
		if in[q] < least {
			return false
		}
	}
	return all >= p.wanted(p.load())
}

// evacuateWorkers ends machines without services on such nodes once others work in their place.
func (p *planner) evacuateWorkers() {
	work, workIn := 0, map[volant.Region]int{}
	for _, m := range p.ms {
		if p.works(m) && m.State == Serving && !m.Silent {
			work++
			workIn[m.Region]++
		}
	}
	for q, least := range p.scale.RegionMin {
		if workIn[q] < least {
			return
		}
	}
	if work < p.scale.Least() {
		return
	}
	for i := range p.ms {
		m := &p.ms[i]
		if !m.Evacuate || m.Blocked || m.Silent || !m.Managed || m.Run != volant.RunOn || p.foreign(*m) || m.State == Leaving {
			continue
		}
		m.State, m.Run = Leaving, volant.RunDestroyed
		p.add(Step{
			Kind: Destroy, Machine: m.ID, Region: m.Region, Rule: "node_drains",
			Text: "its node is to be emptied, and others work in its place",
		})
	}
}
