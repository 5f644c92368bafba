package deploy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
)

// Plan says what to do now, and when to look again though nothing happens; zero means never.
func Plan(o Observation) (steps []Step, next time.Time) {
	p := &planner{o: o}
	for _, m := range o.Machines {
		if m.Command {
			p.commands = append(p.commands, m)
		} else {
			p.ms = append(p.ms, m)
		}
	}
	slices.SortFunc(p.ms, func(a, b Machine) int { return cmp.Compare(a.ID, b.ID) })
	run, ok := p.oldest(volant.ReleaseRunning)
	switch {
	case ok && run.Version == o.Current:
		p.run = run
		p.forward()
	case ok:
		p.run = run
		p.prepare()
	case p.revive():
	default:
		if r, ok := p.oldest(volant.ReleasePending); ok {
			p.add(Step{Kind: Begin, Release: r.Version, Rule: "next", Text: fmt.Sprintf("release %d is next", r.Version)})
		}
	}
	p.retire(run.Version)
	p.retireCommands()
	return p.steps, p.next
}

type planner struct {
	o        Observation
	run      Release
	ms       []Machine // sorted by ID; without those of release commands
	commands []Machine
	steps    []Step
	next     time.Time
}

func (p *planner) oldest(s volant.ReleaseStatus) (Release, bool) {
	var best Release
	for _, r := range p.o.Releases {
		if r.Status == s && (best.Version == 0 || r.Version < best.Version) {
			best = r
		}
	}
	return best, best.Version != 0
}

func (p *planner) release(version uint64) (Release, bool) {
	for _, r := range p.o.Releases {
		if r.Version == version {
			return r, true
		}
	}
	return Release{}, false
}

func (p *planner) add(s Step) { p.steps = append(p.steps, s) }

// wakeAt makes the loop look again at t, if nothing happens before.
func (p *planner) wakeAt(t time.Time) {
	if t.After(p.o.Now) && (p.next.IsZero() || t.Before(p.next)) {
		p.next = t
	}
}

// ofRelease says whether m belongs to a release at all; machines made by hand do not.
func ofRelease(m Machine) bool { return m.Release != 0 || m.Managed }

// awake says whether m serves or is about to.
func awake(m Machine) bool { return m.State == volant.StateStarted || m.State == volant.StateStarting }

// routed machines take connections, now or when they are ready.
func routed(m Machine) bool { return awake(m) && !m.Cordoned && !m.Draining }

// unrouted machines of the running release were made by the deploy and wait to be routed.
func (p *planner) unrouted(m Machine) bool {
	return m.Release == p.run.Version && m.Cordoned && m.Run == volant.RunOn
}

// old are the machines of a group that serve and are to be replaced.
func (p *planner) old(g Group) []Machine {
	return p.machines(g, func(m Machine) bool {
		return ofRelease(m) && m.Release != p.run.Version && routed(m)
	})
}

func (p *planner) machines(g Group, keep func(Machine) bool) []Machine {
	var out []Machine
	for _, m := range p.ms {
		if m.Group == g.Name && keep(m) {
			out = append(out, m)
		}
	}
	return out
}

// atOnce says that all machines of a group are made before the switch: for bluegreen, where the machines of
// the release before could not serve what the new one does, and for the first release.
func (p *planner) atOnce(g Group) bool {
	return p.run.Strategy == volant.StrategyBlueGreen || g.Whole || p.o.Current == 0
}

// prepare boots the first new machines of each group, and switches when they are ready. One that fails fails
// the release.
func (p *planner) prepare() {
	if p.command() {
		return
	}
	if p.run.Strategy == volant.StrategyImmediate {
		p.switchTo("the strategy waits for no machine")
		return
	}
	var missing []Step
	ready, booting := 0, 0
	for _, g := range p.run.Groups {
		fresh := p.machines(g, p.unrouted)
		for _, m := range fresh {
			switch why := p.failed(g, m); {
			case why != "":
				p.add(Step{Kind: Fail, Release: p.run.Version, Machine: m.ID, Rule: "machine_failed", Text: fmt.Sprintf("machine %s %s", m.ID, why)})
				return
			case p.proven(g, m):
				ready++
			default:
				booting++
				p.wakeAt(m.Created.Add(p.run.WaitTimeout))
			}
		}
		more := p.missing(g)
		if !p.atOnce(g) {
			more = more[:min(len(more), max(0, 1-len(fresh)))]
		}
		missing = append(missing, more...)
	}
	p.prepared(missing, ready, booting)
}

// prepared switches when enough new machines serve, and makes those that are missing.
func (p *planner) prepared(missing []Step, ready, booting int) {
	switch {
	case len(missing)+booting+ready == 0:
		p.switchTo("nothing serves that it replaces: the first connection starts a machine")
	case len(missing)+booting == 0:
		p.switchTo(fmt.Sprintf("all %d new machines serve", ready))
	case len(missing) > 0 && p.o.Full == "":
		p.steps = append(p.steps, missing...)
	case len(missing) > 0 && booting == 0 && ready > 0:
		p.switchTo(fmt.Sprintf("%d new machines serve, and for %d more there is no room before old ones go", ready, len(missing)))
	case len(missing) > 0 && booting == 0:
		p.noRoom()
	}
}

// noRoom fails the release when not even one machine could be made in time.
func (p *planner) noRoom() {
	due := p.run.Began.Add(p.run.WaitTimeout)
	p.wakeAt(due)
	if !due.After(p.o.Now) {
		p.add(Step{
			Kind: Fail, Release: p.run.Version, Rule: "no_room",
			Text: fmt.Sprintf("no new machine could be created within %s: %s", p.run.WaitTimeout, p.o.Full),
		})
	}
}

func (p *planner) switchTo(text string) {
	p.add(Step{Kind: Switch, Release: p.run.Version, Rule: "ready", Text: text})
}

// missing are the steps that create the machines of a group which are still to be made: one for each old one
// that serves, as many as min keeps awake, and at least one to prove the release, but for the first.
func (p *planner) missing(g Group) []Step {
	var out []Step
	free, old := 0, p.old(g)
	for _, m := range p.machines(g, p.unrouted) {
		if !slices.ContainsFunc(old, func(o Machine) bool { return o.ID == m.Replaces }) {
			free++ // replaces none that still serves
		}
	}
	for _, m := range old {
		if !p.replaced(m, p.unrouted) {
			out = append(out, p.create(g, m))
		}
	}
	least := g.Min
	if p.o.Current != 0 && !g.Worker {
		least = max(1, least)
	}
	for _, q := range p.regions(g, least-len(old)-free) {
		out = append(out, Step{
			Kind: Create, Release: p.run.Version, Group: g.Name, Region: q, Rule: "least",
			Text: fmt.Sprintf("at least %d machines prove the release", least),
		})
	}
	return out
}

// regions are where n more machines of a group go: where min of a region is not met yet, else where the app is at home.
func (p *planner) regions(g Group, n int) []volant.Region {
	var out []volant.Region
	for _, q := range slices.Sorted(maps.Keys(g.RegionMin)) {
		there := 0
		for _, m := range p.machines(g, func(m Machine) bool { return m.Region == q }) {
			if p.unrouted(m) || ofRelease(m) && m.Release != p.run.Version && routed(m) {
				there++
			}
		}
		for range min(g.RegionMin[q]-there, n-len(out)) {
			out = append(out, q)
		}
	}
	for len(out) < n {
		out = append(out, p.o.Primary)
	}
	return out
}

func (p *planner) create(g Group, old Machine) Step {
	return Step{
		Kind: Create, Release: p.run.Version, Group: g.Name, Region: old.Region, Replaces: old.ID, Rule: "replace",
		Text: fmt.Sprintf("it replaces machine %s of release %d, which serves", old.ID, old.Release),
	}
}

// replaced says whether there is a machine in place of old which ok is true for.
func (p *planner) replaced(old Machine, ok func(Machine) bool) bool {
	return slices.ContainsFunc(p.ms, func(m Machine) bool {
		return m.Replaces == old.ID && m.Release == p.run.Version && ok(m)
	})
}

const (
	// settleFor is how long a machine must have run that nothing checks, or whose program has ended before.
	settleFor = 5 * time.Second
	// canaryFor is how long a canary must serve well before other machines are replaced.
	canaryFor  = 10 * time.Second
	mostExits  = 3 // of the program of a new machine
	mostFailed = 3 // boots of a new machine
)

// proven says whether a new machine serves.
func (p *planner) proven(g Group, m Machine) bool {
	if g.Worker && m.Ended != "" && m.EndedWell {
		return true // it has done its work
	}
	if !m.Ready {
		return false
	}
	if g.Worker || m.Exits > 0 {
		due := m.Since.Add(settleFor)
		p.wakeAt(due)
		return !due.After(p.o.Now)
	}
	return true
}

// failed says why a new machine will not come to serve, or "".
func (p *planner) failed(g Group, m Machine) string {
	switch {
	case m.State == volant.StateFailed || m.Failures >= mostFailed || m.Exits >= mostExits:
		return p.broken(m)
	case p.proven(g, m):
		return ""
	case m.Ended != "" && m.State == volant.StateStopped:
		return "does not serve: " + m.Ended
	case p.o.Now.Sub(m.Created) >= p.run.WaitTimeout:
		return fmt.Sprintf("did not come to serve within %s: %s", p.run.WaitTimeout, cmp.Or(m.Reason, "it listens to no connection"))
	}
	return ""
}

// broken says why a machine is given up, or "". It is asked of those that take connections as well.
func (p *planner) broken(m Machine) string {
	switch {
	case m.Exits >= mostExits:
		return fmt.Sprintf("does not stay up: its program ended %d times, %s", m.Exits, cmp.Or(m.LastExit, m.Reason))
	case m.Failures > 1 && (m.State == volant.StateFailed || m.Failures >= mostFailed):
		return fmt.Sprintf("did not come to serve %d times in a row: %s", m.Failures, cmp.Or(m.Reason, "its host gives no reason"))
	case m.State == volant.StateFailed:
		return "did not come to serve: " + cmp.Or(m.Reason, "its host gives no reason")
	}
	return ""
}

// retire takes away machines of releases that are neither current nor running: the unrouted ones of a
// failed release at once, others when they sleep. All are cordoned first, and what is asleep is destroyed
// only when its host knows that: so that no connection wakes it in between. Those that a running release
// may yet be taken back to stay, asleep.
func (p *planner) retire(running uint64) {
	for _, m := range p.ms {
		if !ofRelease(m) || m.Release == p.o.Current || m.Release == running {
			continue
		}
		failed := p.status(m.Release) == volant.ReleaseFailed
		switch {
		case m.Cordoned && m.Run == volant.RunOn && failed && !m.Draining:
			p.destroy(m, "release_failed", "it was never routed, and its release failed")
		case m.State.Asleep() || m.State == volant.StateFailed:
			if !m.Cordoned {
				p.drain(m, "old_asleep", "it sleeps, its release is not the current one, and it is not to wake again")
			} else if m.Acted && !p.spare(m) {
				p.destroy(m, "old_asleep", "it sleeps, and its release is not the current one")
			}
		case awake(m) && !m.Draining && failed && !m.Cordoned && !p.cameBack(m.Replaces):
			// It serves until the one it replaced does again.
		case awake(m) && !m.Draining && (m.Cordoned || running != p.o.Current):
			p.drain(m, "old", "its release is not the current one")
		}
	}
}

func (p *planner) status(version uint64) volant.ReleaseStatus {
	r, _ := p.release(version)
	return r.Status
}

func (p *planner) drain(m Machine, rule, text string) {
	p.add(Step{Kind: Drain, Release: m.Release, Machine: m.ID, Region: m.Region, Rule: rule, Text: text})
}

func (p *planner) destroy(m Machine, rule, text string) {
	p.add(Step{Kind: Destroy, Release: m.Release, Machine: m.ID, Region: m.Region, Rule: rule, Text: text})
}
