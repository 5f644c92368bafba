package scale_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/scale"
)

// globe is an app in several regions that are far from each other, as hosts and proxies treat it, and Plan alone acts
// on it. Nothing in it waits, so that very many can be played.
type globe struct {
	t       testing.TB
	now     time.Time
	set     volant.Scale
	regions []volant.Region
	room    map[volant.Region]int // machines awake at once
	ms      []*scale.Machine
	conns   []*globeConn
	fails   int                            // boots that are to fail
	history map[volant.Region][]peakSample // of the last idle timeout
	drained map[volant.Region]time.Time
	made    int
	plans   int
	log     []string
	last    string
}

type globeConn struct {
	region volant.Region
	on     *scale.Machine
}

type peakSample struct {
	at time.Time
	n  int
}

const (
	globeSoft  = 4
	globeHard  = 5
	globeBoot  = time.Second
	globeNodes = 2 // a region
)

// newGlobe reads an app's settings off the first bytes.
func newGlobe(t testing.TB, b func() int) *globe {
	g := &globe{
		t: t, now: time.Unix(1_000_000, 0), regions: []volant.Region{"ams", "iad", "nrt", "syd"}[:2+b()%3], room: map[volant.Region]int{},
		history: map[volant.Region][]peakSample{}, drained: map[volant.Region]time.Time{},
	}
	g.set = volant.Scale{
		Min: b() % 3, Max: 4 + b()%8, IdleTimeout: volant.Duration(time.Duration(2+b()%20) * time.Second), Keep: volant.Duration(time.Minute),
		OnIdle: []string{"suspend", "stop"}[b()%2], RegionMin: map[volant.Region]int{}, RegionMax: map[volant.Region]int{},
	}
	for _, r := range g.regions {
		g.room[r] = 20
		if x := b(); x%3 == 0 {
			g.set.RegionMin[r] = 1
		} else if x%3 == 1 {
			g.set.RegionMax[r] = 1 + x%4
		}
	}
	g.set = g.set.WithDefaults()
	return g
}

func (g *globe) failf(format string, args ...any) {
	g.t.Helper()
	for _, l := range g.log[max(0, len(g.log)-60):] {
		g.t.Log(l)
	}
	g.t.Fatalf(format, args...)
}

func (g *globe) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); text != g.last {
		g.log, g.last = append(g.log, g.now.Format("04:05 ")+text), text
	}
}

// possible is how many machines settings allow.
func (g *globe) possible() int {
	n := 0
	for _, r := range g.regions {
		if top, ok := g.set.RegionMax[r]; ok {
			n += top
		} else {
			n += g.set.Max
		}
	}
	return min(n, g.set.Max)
}

func (g *globe) slots(m *scale.Machine) int {
	n := 0
	for _, c := range g.conns {
		if c.on == m {
			n++
		}
	}
	return n
}

func routable(m *scale.Machine) bool {
	return m.State == scale.Serving && !m.Cordoned && !m.Draining && !m.Silent
}

// route gives those who wait the machines that proxies would: near and under the soft limit, far and under it, near
// and under the hard limit, far.
func (g *globe) route() {
	for _, c := range g.conns {
		if c.on != nil {
			continue
		}
		best := 4
		for _, m := range g.ms {
			if !routable(m) {
				continue
			}
			class := 0
			if m.Region != c.region {
				class = 1
			}
			switch n := g.slots(m); {
			case n >= globeHard:
				continue
			case n >= globeSoft:
				class += 2
			}
			if class < best {
				best, c.on = class, m
			}
		}
	}
	for _, r := range g.regions {
		n := 0
		for _, c := range g.conns {
			if c.region == r {
				n++
			}
		}
		h := append(g.history[r], peakSample{g.now, n})
		for len(h) > 1 && !h[1].at.Add(g.set.IdleTimeout.D()).After(g.now) {
			h = h[1:]
		}
		g.history[r] = h
	}
}

func (g *globe) awake(r volant.Region) int {
	n := 0
	for _, m := range g.ms {
		if m.Region == r && (m.State == scale.Serving || m.State == scale.Booting) {
			n++
		}
	}
	return n
}

func (g *globe) observe() scale.Observation {
	o := scale.Observation{
		Now: g.now, Scale: g.set, Soft: globeSoft, Primary: g.regions[0], Release: 1, Template: true, Watched: g.now.Sub(time.Unix(1_000_000, 0)),
		Regions: map[volant.Region]scale.Region{},
	}
	for _, r := range g.regions {
		x := scale.Region{Room: g.room[r] - g.awake(r), Near: g.regions, LastDrain: g.drained[r]}
		for _, c := range g.conns {
			switch {
			case c.region != r:
			case c.on == nil:
				x.Waiting++
			default:
				x.Entering++
				if c.on.Region != r {
					x.Spilled++
				}
			}
		}
		for i, s := range g.history[r] {
			x.Peak = max(x.Peak, s.n)
			if i+1 < len(g.history[r]) && s.n == x.Peak {
				x.PeakFalls = g.history[r][i+1].at.Add(g.set.IdleTimeout.D())
			}
		}
		o.Regions[r] = x
	}
	for _, m := range g.ms {
		c := *m
		c.Slots, c.Counted = g.slots(m), true
		o.Machines = append(o.Machines, c)
	}
	return o
}

// capacity counts machines that take connections or will soon; all regions for "".
func (g *globe) capacity(r volant.Region) int {
	n := 0
	for _, m := range g.ms {
		if (r == "" || m.Region == r) && !m.Evacuate && !m.Cordoned && !m.Draining && (m.State == scale.Serving || m.State == scale.Booting) {
			n++
		}
	}
	return n
}

// plan lets Plan act until it has nothing to do at this moment, and looks that its promises hold.
func (g *globe) plan() {
	for round := 0; ; round++ {
		g.route()
		o := g.observe()
		steps, _ := scale.Plan(o)
		if g.plans++; g.plans%16 == 0 {
			if diff := cmp.Diff(g.observe(), o); diff != "" {
				g.failf("Plan changed what it looks at: %s", diff)
			}
			if again, _ := scale.Plan(o); !cmp.Equal(again, steps) {
				g.failf("Plan of the same decides otherwise")
			}
		}
		caps := map[volant.Region]int{"": g.capacity("")}
		for _, r := range g.regions {
			caps[r] = g.capacity(r)
		}
		acted := false
		for _, s := range steps {
			g.note("%s %s %s %s: %s", s.Kind, s.Machine, s.Region, s.Rule, s.Text)
			acted = g.apply(s) || acted
		}
		g.bounds(caps)
		if !acted {
			return
		}
		if round == 50 {
			g.failf("Plan does not come to an end")
		}
	}
}

// bounds holds min and max against what a plan made of the machines; caps is the capacity before.
func (g *globe) bounds(caps map[volant.Region]int) {
	all := 0
	for _, r := range g.regions {
		n := 0
		for _, m := range g.ms {
			if m.Region == r && !m.Evacuate {
				n++
			}
		}
		all += n
		if top, ok := g.set.RegionMax[r]; ok && n > top {
			g.failf("%d machines in %s, and its max is %d", n, r, top)
		}
		if got := g.capacity(r); got < min(caps[r], g.set.RegionMin[r]) {
			g.failf("%d of %d machines of %s are left, and its min is %d", got, caps[r], r, g.set.RegionMin[r])
		}
		if g.awake(r) > 20 {
			g.failf("%d machines are awake in %s, and it has room for 20", g.awake(r), r)
		}
	}
	if all > g.set.Max {
		g.failf("%d machines, and max is %d", all, g.set.Max)
	}
	if got := g.capacity(""); got < min(caps[""], g.set.Least()) {
		g.failf("%d of %d machines are left, and min is %d", got, caps[""], g.set.Least())
	}
}

// apply does a step as a host does, and says whether it changed anything at once.
func (g *globe) apply(s scale.Step) bool {
	var m *scale.Machine
	if i := slices.IndexFunc(g.ms, func(m *scale.Machine) bool { return m.ID == s.Machine }); i >= 0 {
		m = g.ms[i]
	}
	switch {
	case s.Kind == scale.Hold:
		return false
	case s.Kind == scale.Create:
		return g.create(s)
	case m == nil:
		g.failf("%s of %s, which does not exist", s.Kind, s.Machine)
		return false
	case m.Silent:
		g.failf("%s of %s, whose host is silent", s.Kind, m.ID)
	}
	switch s.Kind {
	case scale.Wake:
		if g.awake(m.Region) >= 20 {
			m.Blocked = true // its host has no room
			return true
		}
		m.State, m.Since = scale.Booting, g.now
	case scale.Undrain:
		m.Draining, m.Emptied = false, time.Time{}
	case scale.Drain:
		if m.Draining {
			g.failf("%s drains already", m.ID)
		}
		m.Draining = true
		g.drained[m.Region] = g.now
	case scale.Sleep:
		g.ends(s, m)
		m.State, m.Since, m.Draining, m.Emptied = scale.Suspended, g.now, false, time.Time{}
	case scale.Retire:
		g.ends(s, m)
		m.Cordoned, m.Retiring, m.Acted = true, true, false
	case scale.Restore:
		m.Cordoned, m.Retiring = false, false
	case scale.Destroy:
		g.ends(s, m)
		if !m.Managed {
			g.failf("%s was not made by scaling, and is destroyed", m.ID)
		}
		g.ms = slices.DeleteFunc(g.ms, func(x *scale.Machine) bool { return x == m })
	case scale.Hold, scale.Create: // above
	}
	return true
}

func (g *globe) create(s scale.Step) bool {
	if g.awake(s.Region) >= g.room[s.Region] {
		g.note("its host has no room")
		return false // machines that were woken meanwhile took it
	}
	g.made++
	g.ms = append(g.ms, &scale.Machine{
		ID: volant.MachineID(fmt.Sprintf("m%04d", g.made)), Region: s.Region, Node: volant.NodeID(fmt.Sprintf("%s-%d", s.Region, g.made%globeNodes)),
		Release: 1, Run: volant.RunAuto, Managed: true, State: scale.Booting, Since: g.now, Acted: true,
	})
	return true
}

// ends looks that nobody is connected to a machine that a step puts to sleep or destroys.
func (g *globe) ends(s scale.Step, m *scale.Machine) {
	if n := g.slots(m); n > 0 {
		g.failf("%s of %s, which holds %d connections: %s", s.Kind, m.ID, n, s.Text)
	}
}

// pass lets time pass, second by second.
func (g *globe) pass(d time.Duration) {
	for end := g.now.Add(d); g.now.Before(end); {
		g.now = g.now.Add(time.Second)
		for _, m := range g.ms {
			m.Blocked = false
			if !m.Silent {
				m.Acted = true
			}
			switch {
			case m.Silent:
			case m.State == scale.Booting && !m.Since.Add(globeBoot).After(g.now):
				m.State, m.Since = scale.Serving, g.now
				if m.Failures = 0; g.fails > 0 {
					g.fails--
					m.State, m.Failures = scale.Stopped, 1
				}
			case m.State == scale.Serving && m.Draining && g.slots(m) == 0:
				if m.Emptied.IsZero() {
					m.Emptied = g.now
				} else if g.made%2 == 0 { // its host may be slow
					m.State, m.Since, m.Draining, m.Emptied = scale.Stopped, g.now, false, time.Time{}
				}
			default:
				m.Emptied = time.Time{}
			}
		}
		g.plan()
	}
}

func (g *globe) open(r volant.Region, n int) {
	for range n {
		g.conns = append(g.conns, &globeConn{region: r})
	}
}

// event is one thing that happens.
func (g *globe) event(b func() int) {
	r := g.regions[b()%len(g.regions)]
	switch what, n := b()%10, b(); what {
	case 0, 1, 2:
		g.note("%d connections come in %s", 1+n%12, r)
		g.open(r, 1+n%12)
	case 3, 4:
		n = min(n%20, len(g.conns))
		g.note("%d connections go", n)
		for range n {
			i := b() % len(g.conns)
			g.conns = slices.Delete(g.conns, i, i+1)
		}
	case 5:
		g.fails += n % 3
	case 6:
		g.silence(r, n%globeNodes, n%3 > 0)
	case 7:
		g.note("room of %s: %d", r, n%6)
		g.room[r] = n % 6
	case 8:
		if len(g.ms) > 0 && n%4 == 0 {
			g.evacuate(g.ms[b()%len(g.ms)].Node)
		}
	case 9:
		if len(g.ms) > 0 {
			m := g.ms[n%len(g.ms)]
			if !m.Retiring && !m.Silent {
				m.Cordoned = !m.Cordoned
				g.note("%s cordoned by hand: %v", m.ID, m.Cordoned)
			}
		}
	}
	g.plan()
	if n := b() % 8; n > 2 {
		g.pass(time.Duration(n-2) * time.Second)
	}
}

func (g *globe) silence(r volant.Region, node int, silent bool) {
	id := volant.NodeID(fmt.Sprintf("%s-%d", r, node))
	g.note("node %s silent: %v", id, silent)
	for _, m := range g.ms {
		if m.Node == id {
			m.Silent = silent
		}
	}
}

func (g *globe) evacuate(node volant.NodeID) {
	g.note("node %s is to be emptied", node)
	for _, m := range g.ms {
		if m.Node == node {
			m.Evacuate = true
		}
	}
}

// calm ends what is wrong, and sees that all is as it should be within a bounded time.
func (g *globe) calm() {
	g.note("calm")
	g.fails = 0
	for _, r := range g.regions {
		g.room[r] = 20
	}
	for _, m := range g.ms {
		m.Silent = false
		m.Cordoned = m.Cordoned && m.Retiring
	}
	g.pass(7 * time.Minute) // longer than the longest back-off of a release that failed to come up
	count, full := 0, true
	for _, m := range g.ms {
		if !m.Evacuate {
			count++
			full = full && g.slots(m) >= globeHard
		}
	}
	for _, r := range g.regions {
		waiting, far, serving := 0, 0, 0
		for _, c := range g.conns {
			switch {
			case c.region != r:
			case c.on == nil:
				waiting++
			case c.on.Region != r:
				far++
			}
		}
		for _, m := range g.ms {
			if m.Region == r && routable(m) {
				serving++
			}
		}
		top, bounded := g.set.RegionMax[r]
		switch {
		case waiting > 0 && (count < g.possible() || !full):
			g.failf("%d wait in %s, with %d of %d machines", waiting, r, count, g.possible())
		case serving < g.set.RegionMin[r]:
			g.failf("%d serve in %s, and its min is %d", serving, r, g.set.RegionMin[r])
		case far > 0 && serving == 0 && count < g.set.Max && (!bounded || top > 0):
			g.failf("%s has %d connections far away and no machine, with %d of %d machines", r, far, count, g.set.Max)
		}
	}
	if got := g.capacity(""); got < g.set.Least() {
		g.failf("%d serve, and min is %d", got, g.set.Least())
	}
	g.conns = nil
	g.pass(10 * time.Minute)
	if got := g.capacity(""); got != g.set.Least() {
		g.failf("%d serve nobody, and min is %d", got, g.set.Least())
	}
}

// playGlobe plays the events that bytes stand for.
func playGlobe(t testing.TB, bytes []byte) {
	t.Helper()
	b := func() int {
		if len(bytes) == 0 {
			return 0
		}
		x := bytes[0]
		bytes = bytes[1:]
		return int(x)
	}
	g := newGlobe(t, b)
	g.plan()
	for len(bytes) > 0 && len(g.conns) < 400 {
		g.event(b)
	}
	g.calm()
}

// For any sequence of events min and max hold, a machine with connections is never stopped, and demand in one region
// never starves another.
func TestPlanKeepsItsPromisesEverywhere(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 20
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 7})
			b := make([]byte, 40+seed%200)
			if _, err := r.Read(b); err != nil {
				t.Fatal(err)
			}
			playGlobe(t, b)
		})
	}
}

func FuzzPlan(f *testing.F) {
	for seed := range byte(8) {
		b := make([]byte, 80)
		if _, err := rand.NewChaCha8([32]byte{seed, 9}).Read(b); err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 400 {
			playGlobe(t, b)
		}
	})
}
