package deploy

import (
	"fmt"
	"math"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
)

// forward brings the release that is current to its end, group by group: its machines are routed, and the old
// ones drain. A rolling one whose machine fails is taken back.
func (p *planner) forward() {
	if p.canRevert() {
		for _, g := range p.run.Groups {
			for _, m := range p.machines(g, func(m Machine) bool { return m.Release == p.run.Version }) {
				why := p.broken(m)
				if p.unrouted(m) {
					why = p.failed(g, m)
				}
				if why != "" && m.Managed {
					p.add(Step{
						Kind: Revert, Release: p.run.Version, Machine: m.ID, Rule: "machine_failed",
						Text: fmt.Sprintf("machine %s %s", m.ID, why),
					})
					return
				}
			}
		}
	}
	waits := false
	for _, g := range p.run.Groups {
		if p.forwardGroup(g) {
			waits = true
		}
	}
	for _, m := range p.ms { // of groups which the release does not have
		if ofRelease(m) && m.Release != p.run.Version && routed(m) && !p.has(m.Group) {
			waits = true
			p.drain(m, "group_gone", fmt.Sprintf("the release has no process group %s", m.Group))
		}
	}
	if !waits {
		p.add(Step{
			Kind: Complete, Release: p.run.Version, Rule: "replaced",
			Text: "no machine of another release takes connections any more",
		})
	}
}

func (p *planner) has(group string) bool {
	return slices.ContainsFunc(p.run.Groups, func(g Group) bool { return g.Name == group })
}

// forwardGroup does so for one group, and says whether something is still to happen.
func (p *planner) forwardGroup(g Group) (waits bool) {
	var given []volant.MachineID // old ones whose replacement is given up
	fresh := p.machines(g, p.unrouted)
	for _, m := range fresh {
		switch {
		case p.run.Strategy == volant.StrategyImmediate:
			waits = true
			p.add(Step{Kind: Route, Release: m.Release, Machine: m.ID, Rule: "immediate", Text: "the strategy does not wait until it serves"})
		case p.failed(g, m) != "":
			// Others have proven the release: scaling makes a machine again if connections ask for it.
			p.destroy(m, "machine_failed", "it "+p.failed(g, m))
			given = append(given, m.Replaces)
		case p.proven(g, m):
			waits = true
			p.add(Step{Kind: Route, Release: m.Release, Machine: m.ID, Rule: "ready", Text: "it serves, and its checks pass"})
		default:
			waits = true
			p.wakeAt(m.Created.Add(p.run.WaitTimeout))
		}
	}
	old := p.old(g)
	if p.watched(g) {
		return true
	}
	inPlace := func(m Machine) bool { return !m.Cordoned && m.Acted }
	free := p.pool(g, len(old))
	for _, m := range old {
		if p.replaced(m, func(Machine) bool { return true }) {
			free-- // on its way
		}
	}
	ours := p.machines(g, func(m Machine) bool { return m.Release == p.run.Version && m.Managed })
	made := len(ours)
	for _, m := range old {
		waits = true
		switch {
		case slices.Contains(given, m.ID):
			p.drain(m, "given_up", "the machine in its place failed, and others serve the release")
		case p.replaced(m, inPlace):
			p.drain(m, "replaced", "the machine in its place is routed")
		case p.replaced(m, func(Machine) bool { return true }):
			// It boots, or its host has yet to hear that it is routed.
		case g.Max > 0 && made >= g.Max:
			// Scaling has made machines beside the deploy: there is no place for one more.
			if !slices.ContainsFunc(ours, func(m Machine) bool { return !inPlace(m) }) {
				p.drain(m, "max", fmt.Sprintf("the release has %d machines, as many as max allows, and they are routed", made))
			}
		case p.o.Full == "" && free > 0:
			free--
			made++
			p.add(p.create(g, m))
		}
	}
	return waits
}

// pool is how many machines of a group are replaced at once.
func (p *planner) pool(g Group, old int) int {
	switch {
	case p.run.Strategy == volant.StrategyBlueGreen || p.run.Strategy == volant.StrategyImmediate || g.Whole:
		return math.MaxInt
	case p.run.MaxUnavailable >= 1:
		return int(p.run.MaxUnavailable)
	}
	share := p.run.MaxUnavailable
	if share <= 0 {
		share = defaultUnavailable
	}
	all := old + len(p.machines(g, func(m Machine) bool { return m.Release == p.run.Version && routed(m) }))
	return max(1, int(math.Ceil(float64(all)*share)))
}

const defaultUnavailable = 0.33

// watched says whether the first machine of a canary serves, and not for long enough yet: until then no other
// is replaced, and the one it replaces serves beside it.
func (p *planner) watched(g Group) bool {
	if p.run.Strategy != volant.StrategyCanary {
		return false
	}
	ours := p.machines(g, func(m Machine) bool { return m.Release == p.run.Version && m.Managed && !m.Cordoned })
	if len(ours) == 0 {
		return len(p.machines(g, p.unrouted)) > 0
	}
	first := ours[0].Changed
	for _, m := range ours {
		if m.Changed.Before(first) {
			first = m.Changed
		}
	}
	due := first.Add(canaryFor)
	p.wakeAt(due)
	return due.After(p.o.Now)
}

// canRevert says whether the running release can be taken back: its strategy replaces one after another, and
// there is a release before it.
func (p *planner) canRevert() bool {
	if p.run.Strategy == volant.StrategyBlueGreen || p.run.Strategy == volant.StrategyImmediate {
		return false
	}
	_, ok := p.release(p.run.Previous)
	return ok
}

// spare says whether m may be needed again: the running release can be taken back to its.
func (p *planner) spare(m Machine) bool {
	return p.run.Version != 0 && p.run.Version == p.o.Current && m.Release == p.run.Previous && p.canRevert()
}

// revive routes the machines of the current release again which a release that failed has replaced, and says
// whether there were any.
func (p *planner) revive() bool {
	found := false
	for _, m := range p.ms {
		if m.Release != p.o.Current || !m.ByDeploy || !ofRelease(m) || p.o.Current == 0 {
			continue
		}
		held := m.Run == volant.RunOn && !p.works(m) // it was restored, and is awake until it serves
		switch {
		case m.Cordoned || held && m.Draining:
			found = true
			p.add(Step{
				Kind: Restore, Release: m.Release, Machine: m.ID, Region: m.Region, Wake: awake(m) || p.inUse(m.ID), Rule: "reverted",
				Text: "its release is the current one again, since the one after it failed",
			})
		case held && m.Acted && (m.Ready || m.State == volant.StateFailed):
			p.add(Step{Kind: Route, Release: m.Release, Machine: m.ID, Rule: "reverted", Text: "it serves again"})
		}
	}
	if found {
		return true
	}
	// The next release begins when those that serve for now have been told to go.
	return slices.ContainsFunc(p.ms, func(m Machine) bool {
		return routed(m) && ofRelease(m) && m.Release != p.o.Current && p.status(m.Release) == volant.ReleaseFailed
	})
}

// reviveFor bounds how long the machines of a release that failed serve for those that they replaced.
const reviveFor = time.Minute

// works says whether m is of a group without services in the current release.
func (p *planner) works(m Machine) bool {
	r, _ := p.release(p.o.Current)
	return slices.ContainsFunc(r.Groups, func(g Group) bool { return g.Name == m.Group && g.Worker })
}

// inUse says whether a machine which replaced id takes connections.
func (p *planner) inUse(id volant.MachineID) bool {
	return slices.ContainsFunc(p.ms, func(m Machine) bool { return m.Replaces == id && routed(m) })
}

// cameBack says whether the machine takes connections again, or never will.
func (p *planner) cameBack(id volant.MachineID) bool {
	i := slices.IndexFunc(p.ms, func(m Machine) bool { return m.ID == id })
	if i < 0 {
		return true
	}
	m := p.ms[i]
	if m.Cordoned {
		return false
	}
	due := m.Changed.Add(reviveFor)
	p.wakeAt(due)
	return !m.Draining && m.Ready && m.Acted || m.State == volant.StateFailed || !due.After(p.o.Now)
}
