package deploy

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
)

// Plan says what to do now, and when to look again though nothing happens; zero means never.
func Plan(o Observation) (steps []Step, next time.Time) {
	p := &planner{o: o, ms: slices.Clone(o.Machines)}
	slices.SortFunc(p.ms, func(a, b Machine) int { return cmp.Compare(a.ID, b.ID) })
	run, ok := p.oldest(volant.ReleaseRunning)
	if !ok {
		if r, ok := p.oldest(volant.ReleasePending); ok {
			p.add(Step{Kind: Begin, Release: r.Version, Rule: "next", Text: fmt.Sprintf("release %d is next", r.Version)})
		}
		p.retire(0)
		return p.steps, p.next
	}
	p.run = run
	if run.Version == o.Current {
		p.forward()
	} else {
		p.prepare()
	}
	p.retire(run.Version)
	return p.steps, p.next
}

type planner struct {
	o     Observation
	run   Release
	ms    []Machine // sorted by ID
	steps []Step
	next  time.Time
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

// old are the machines that serve and are to be replaced.
func (p *planner) old() []Machine {
	var out []Machine
	for _, m := range p.ms {
		if ofRelease(m) && m.Release != p.run.Version && routed(m) {
			out = append(out, m)
		}
	}
	return out
}

// prepare boots the new machines, and switches when all are ready. One that fails fails the release.
func (p *planner) prepare() {
	for _, m := range p.ms {
		if why := p.failed(m); why != "" && p.unrouted(m) {
			p.add(Step{Kind: Fail, Release: p.run.Version, Machine: m.ID, Rule: "machine_failed", Text: fmt.Sprintf("machine %s %s", m.ID, why)})
			return
		}
	}
	missing := p.missing()
	ready, booting := 0, 0
	for _, m := range p.ms {
		switch {
		case !p.unrouted(m):
		case m.Ready:
			ready++
		default:
			booting++
			p.wakeAt(m.Created.Add(p.run.WaitTimeout))
		}
	}
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
		due := p.run.Began.Add(p.run.WaitTimeout)
		p.wakeAt(due)
		if !due.After(p.o.Now) {
			p.add(Step{
				Kind: Fail, Release: p.run.Version, Rule: "no_room",
				Text: fmt.Sprintf("no new machine could be created within %s: %s", p.run.WaitTimeout, p.o.Full),
			})
		}
	}
}

func (p *planner) switchTo(text string) {
	p.add(Step{Kind: Switch, Release: p.run.Version, Rule: "ready", Text: text})
}

// missing are the steps that create the machines which are still to be made: one for each old one that
// serves, as many as min keeps awake, and at least one to prove the release, but for the first.
func (p *planner) missing() []Step {
	var out []Step
	free, old := 0, p.old()
	for _, m := range p.ms {
		if p.unrouted(m) && !slices.ContainsFunc(old, func(o Machine) bool { return o.ID == m.Replaces }) {
			free++ // replaces none that still serves
		}
	}
	for _, m := range old {
		if !p.replaced(m, p.unrouted) {
			out = append(out, p.create(m))
		}
	}
	least := p.o.Min
	if p.o.Current != 0 {
		least = max(1, least)
	}
	for range least - len(old) - free {
		out = append(out, Step{
			Kind: Create, Release: p.run.Version, Region: p.o.Primary, Rule: "least",
			Text: fmt.Sprintf("at least %d machines prove the release", least),
		})
	}
	return out
}

func (p *planner) create(old Machine) Step {
	return Step{
		Kind: Create, Release: p.run.Version, Region: old.Region, Replaces: old.ID, Rule: "replace",
		Text: fmt.Sprintf("it replaces machine %s of release %d, which serves", old.ID, old.Release),
	}
}

// replaced says whether there is a machine in place of old which ok is true for.
func (p *planner) replaced(old Machine, ok func(Machine) bool) bool {
	return slices.ContainsFunc(p.ms, func(m Machine) bool {
		return m.Replaces == old.ID && m.Release == p.run.Version && ok(m)
	})
}

// failed says why a new machine will not come to serve, or "".
func (p *planner) failed(m Machine) string {
	switch {
	case m.Ready:
		return ""
	case m.State == volant.StateFailed || m.Failures >= 3:
		return fmt.Sprintf("did not come to serve %d times in a row: %s", max(1, m.Failures), cmp.Or(m.Reason, "its host gives no reason"))
	case m.Ended != "" && m.State == volant.StateStopped:
		return "does not serve: " + m.Ended
	case p.o.Now.Sub(m.Created) >= p.run.WaitTimeout:
		return fmt.Sprintf("did not come to serve within %s: %s", p.run.WaitTimeout, cmp.Or(m.Reason, "it listens to no connection"))
	}
	return ""
}

// forward brings the release that is current to its end: its machines are routed, and the old ones drain.
func (p *planner) forward() {
	waits := false
	var given []volant.MachineID // old ones whose replacement is given up
	for _, m := range p.ms {
		if !p.unrouted(m) {
			continue
		}
		switch {
		case m.Ready:
			waits = true
			p.add(Step{Kind: Route, Release: m.Release, Machine: m.ID, Rule: "ready", Text: "it serves, and its checks pass"})
		case p.failed(m) != "":
			// Others have proven the release: scaling makes a machine again if connections ask for it.
			p.destroy(m, "machine_failed", "it "+p.failed(m))
			given = append(given, m.Replaces)
		default:
			waits = true
			p.wakeAt(m.Created.Add(p.run.WaitTimeout))
		}
	}
	inPlace := func(m Machine) bool { return !m.Cordoned && m.Acted }
	for _, m := range p.old() {
		waits = true
		switch {
		case slices.Contains(given, m.ID):
			p.drain(m, "given_up", "the machine in its place failed, and others serve the release")
		case p.replaced(m, inPlace):
			p.drain(m, "replaced", "the machine in its place is routed")
		case p.replaced(m, func(Machine) bool { return true }):
			// It boots, or its host has yet to hear that it is routed.
		case p.o.Full == "":
			p.add(p.create(m))
		}
	}
	if !waits {
		p.add(Step{
			Kind: Complete, Release: p.run.Version, Rule: "replaced",
			Text: "no machine of another release takes connections any more",
		})
	}
}

func (p *planner) drain(m Machine, rule, text string) {
	p.add(Step{Kind: Drain, Release: m.Release, Machine: m.ID, Region: m.Region, Rule: rule, Text: text})
}

// retire takes away machines of releases that are neither current nor running: the unrouted ones of a
// failed release at once, others when they sleep. All are cordoned first, and what is asleep is destroyed
// only when its host knows that: so that no connection wakes it in between.
func (p *planner) retire(running uint64) {
	for _, m := range p.ms {
		if !ofRelease(m) || m.Release == p.o.Current || m.Release == running {
			continue
		}
		switch {
		case m.Cordoned && m.Run == volant.RunOn && p.status(m.Release) == volant.ReleaseFailed:
			p.destroy(m, "release_failed", "it was never routed, and its release failed")
		case m.State.Asleep() || m.State == volant.StateFailed:
			if !m.Cordoned {
				p.drain(m, "old_asleep", "it sleeps, its release is not the current one, and it is not to wake again")
			} else if m.Acted {
				p.destroy(m, "old_asleep", "it sleeps, and its release is not the current one")
			}
		case awake(m) && !m.Draining && (m.Cordoned || running != p.o.Current):
			p.drain(m, "old", "its release is not the current one")
		}
	}
}

func (p *planner) status(version uint64) volant.ReleaseStatus {
	for _, r := range p.o.Releases {
		if r.Version == version {
			return r.Status
		}
	}
	return ""
}

func (p *planner) destroy(m Machine, rule, text string) {
	p.add(Step{Kind: Destroy, Release: m.Release, Machine: m.ID, Region: m.Region, Rule: rule, Text: text})
}
