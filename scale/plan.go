package scale

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
	p := newPlanner(o)
	if o.Worker {
		p.workers()
		return p.steps, p.next
	}
	p.out()
	p.evacuate()
	p.sleep()
	p.in()
	p.keep()
	p.finish()
	return p.steps, p.next
}

// planner is a working copy of an observation; each step it plans changes the copy.
type planner struct {
	o        Observation
	scale    volant.Scale
	ms       []Machine // sorted by ID
	regions  map[volant.Region]Region
	order    []volant.Region // sorted
	coming   int             // capacity planned which is no machine yet
	comingIn map[volant.Region]int
	count    int // machines which count towards max
	countIn  map[volant.Region]int
	going    int // those of them which are about to be destroyed
	goingIn  map[volant.Region]int
	freed    int // those of going whose place was not given to another yet
	unmet    []unmet
	trouble  trouble
	suspect  bool // ignore checks
	held     bool
	steps    []Step
	next     time.Time
}

func newPlanner(o Observation) *planner {
	o.Soft = max(1, o.Soft)
	p := &planner{
		o: o, scale: o.Scale.WithDefaults(), ms: slices.Clone(o.Machines), regions: maps.Clone(o.Regions),
		comingIn: map[volant.Region]int{}, countIn: map[volant.Region]int{}, goingIn: map[volant.Region]int{},
	}
	if p.regions == nil {
		p.regions = map[volant.Region]Region{}
	}
	slices.SortFunc(p.ms, func(a, b Machine) int { return cmp.Compare(a.ID, b.ID) })
	for _, m := range p.ms {
		if _, ok := p.regions[m.Region]; !ok {
			p.regions[m.Region] = Region{}
		}
		if p.foreign(m) || m.Evacuate {
			continue
		}
		p.count++
		p.countIn[m.Region]++
		if m.Retiring && resting(m) || m.State == Leaving && m.Run == volant.RunDestroyed {
			p.going++
			p.goingIn[m.Region]++
		}
	}
	p.freed = p.going
	p.order = slices.Sorted(maps.Keys(p.regions))
	p.trouble, p.suspect = p.findTrouble(), suspectChecks(p.ms)
	return p
}

// foreign machines belong to another release, and thereby to the deploy. Those made by hand never do.
func (p *planner) foreign(m Machine) bool {
	return m.Release != p.o.Release && (m.Release != 0 || m.Managed)
}

// mine are the machines scaling may act on.
func (p *planner) mine(m Machine) bool {
	return m.Run == volant.RunAuto && !m.Cordoned && !m.Silent && !p.foreign(m)
}

// routable machines take new connections.
func (p *planner) routable(m Machine) bool {
	return m.State == Serving && !m.Cordoned && !m.Draining && !m.Silent && (!m.Failing || p.suspect)
}

// unheard machines would be capacity if their hosts were heard: for what min keeps they are, until they are found lost.
func (p *planner) unheard(q volant.Region) int {
	n := 0
	for _, m := range p.ms {
		if (q == "" || m.Region == q) && m.Silent && !m.Evacuate && !m.Cordoned && !m.Draining && !p.foreign(m) && (m.State == Serving || m.State == Booting) {
			n++
		}
	}
	return n
}

// suspectChecks says that so many machines fail their checks that the checker is at fault, as the
// proxy also assumes.
func suspectChecks(ms []Machine) bool {
	serving, failing := 0, 0
	for _, m := range ms {
		if m.State == Serving {
			serving++
			if m.Failing {
				failing++
			}
		}
	}
	return failing*2 > serving
}

// capacity counts the machines which take connections or will soon; all regions for "".
func (p *planner) capacity(r volant.Region) int {
	n := p.coming
	if r != "" {
		n = p.comingIn[r]
	}
	for _, m := range p.ms {
		if (r == "" || m.Region == r) && !m.Evacuate && (p.routable(m) || p.booting(m)) {
			n++
		}
	}
	return n
}

// booting machines will take connections: also those of the current release which its deploy has yet to route.
func (p *planner) booting(m Machine) bool {
	if m.Silent {
		return false
	}
	unrouted := m.Cordoned && m.Run == volant.RunOn && m.Managed && m.Release == p.o.Release && m.Release != 0
	return m.State == Booting && !m.Cordoned && !m.Draining || unrouted && (m.State == Booting || m.State == Serving)
}

// load is what the machines that take connections hold and what waits.
func (p *planner) load() int {
	n := 0
	for _, m := range p.ms {
		if p.routable(m) {
			n += m.Slots
		}
	}
	for _, r := range p.regions {
		n += r.Waiting
	}
	return n
}

func (p *planner) add(s Step) { p.steps = append(p.steps, s) }

// hold explains once why nothing is done.
func (p *planner) hold(rule, format string, args ...any) {
	if !p.held {
		p.add(Step{Kind: Hold, Rule: rule, Text: fmt.Sprintf(format, args...)})
	}
	p.held = true
}

// wakeAt makes the loop look again at t, if nothing happens before.
func (p *planner) wakeAt(t time.Time) {
	if t.After(p.o.Now) && (p.next.IsZero() || t.Before(p.next)) {
		p.next = t
	}
}

// wanted is the number of machines that n connections need, within min and max.
func (p *planner) wanted(n int) int {
	return min(max(ceilDiv(n, p.o.Soft), p.scale.Least()), max(p.scale.Max, p.scale.Least()))
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }

// machines are m.ms which keep is true for, in order.
func (p *planner) machines(keep func(Machine) bool, order func(a, b Machine) int) []*Machine {
	var out []*Machine
	for i := range p.ms {
		if keep(p.ms[i]) {
			out = append(out, &p.ms[i])
		}
	}
	slices.SortStableFunc(out, func(a, b *Machine) int { return order(*a, *b) })
	return out
}

// sleepGrace is how long a host has to put a drained and empty machine to sleep by itself.
const sleepGrace = 3 * time.Second

// sleep puts to sleep what is drained and empty, where its host has not done so by itself.
func (p *planner) sleep() {
	for i := range p.ms {
		m := &p.ms[i]
		if !p.mine(*m) || !m.Draining || m.State != Serving || m.Slots > 0 || !p.counted(*m) || m.Blocked {
			continue
		}
		if due := m.Emptied.Add(sleepGrace); m.Emptied.IsZero() || due.After(p.o.Now) {
			p.wakeAt(due)
			continue
		}
		m.State = Leaving
		p.add(Step{
			Kind: Sleep, Machine: m.ID, Region: m.Region, Then: p.then(), Rule: "drained",
			Text: "drained, and its last connection has ended",
		})
	}
}

// counted says whether the machine's slots are known. A proxy that has told nothing for a whole idle
// timeout holds nothing.
func (p *planner) counted(m Machine) bool { return m.Counted || p.o.Watched >= p.scale.IdleTimeout.D() }

// then is how an idle machine sleeps.
func (p *planner) then() string {
	if p.scale.OnIdle == volant.OnIdleStop {
		return volant.OnIdleStop
	}
	return volant.OnIdleSuspend
}

// keep retires machines made by scaling which have slept for long.
func (p *planner) keep() {
	if p.o.Watched < p.scale.IdleTimeout.D() {
		return
	}
	old := p.machines(func(m Machine) bool {
		return p.mine(m) && m.Managed && !m.Blocked && resting(m)
	}, longestAsleep)
	for _, m := range old {
		due := m.Since.Add(p.scale.Keep.D())
		left, leftIn := p.count-p.going, p.countIn[m.Region]-p.goingIn[m.Region]
		switch {
		case due.After(p.o.Now):
			p.wakeAt(due)
		case left <= p.scale.Least() || leftIn <= p.scale.RegionMin[m.Region] || p.o.Release == 0 && left <= 1:
		default:
			p.retire(m, "keep", fmt.Sprintf("asleep for %s, as long as keep allows", short(p.scale.Keep.D())))
		}
	}
}

// resting machines sleep, or were given up by their host.
func resting(m Machine) bool { return m.State == Suspended || m.State == Stopped || m.State == Failed }

func (p *planner) retire(m *Machine, rule, text string) {
	m.Cordoned, m.Retiring, m.Acted = true, true, false
	p.going++
	p.goingIn[m.Region]++
	p.add(Step{Kind: Retire, Machine: m.ID, Region: m.Region, Rule: rule, Text: text})
}

// finish destroys what is retired once its host knows, so that nothing wakes it in between. One that woke
// before is restored.
func (p *planner) finish() {
	for i := range p.ms {
		m := &p.ms[i]
		if !m.Retiring || m.Blocked || p.foreign(*m) || m.Run != volant.RunAuto {
			continue
		}
		s := Step{Machine: m.ID, Region: m.Region}
		switch {
		case resting(*m) && m.Acted:
			s.Kind, s.Rule, s.Text = Destroy, "retired", "it sleeps, and nothing can wake it any more"
			m.State, m.Run = Leaving, volant.RunDestroyed
		case m.State == Serving || m.State == Booting:
			s.Kind, s.Rule, s.Text = Restore, "woke", "it woke before it could be destroyed"
			m.Cordoned, m.Retiring = false, false
		default:
			continue
		}
		p.add(s)
	}
}

func longestAsleep(a, b Machine) int {
	return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID))
}

// short writes a duration without zero units: 1h, not 1h0m0s.
func short(d time.Duration) string {
	s := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if len(s) > len(zero) && s[len(s)-len(zero):] == zero {
			s = s[:len(s)-len(zero)+1]
		}
	}
	return s
}
