package scale_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/perapp"
	"github.com/volant-edge/volant/scale"
	"github.com/volant-edge/volant/why"
)

// world is a fleet of one app: hosts which boot, drain and put machines to sleep, and proxies which hold
// connections to them. What the scaler observes lags behind.
type world struct {
	t      *testing.T
	rnd    *rand.Rand
	scaler *scale.Scaler
	set    volant.Scale
	room   map[volant.Region]int // machines awake at once
	boot   time.Duration
	lag    time.Duration
	breaks float64 // part of boots that fail
	lies   int     // room that is told and not there
	whys   *why.Ring

	mu       sync.Mutex // guards those below
	machines map[volant.MachineID]*scale.Machine
	conns    []*conn
	made     int
	observed []scale.Machine
	steps    []scale.Step
	changes  int
	seen     int // the change that observed shows
	over     int // most machines that there were above max
}

type conn struct {
	region volant.Region
	on     volant.MachineID // empty: waits
}

const (
	soft = 20
	hard = 25
)

func newWorld(t *testing.T, seed uint64, set volant.Scale) *world {
	w := &world{
		t: t, rnd: rand.New(rand.NewPCG(seed, 1)), set: set.WithDefaults(), boot: 900 * time.Millisecond, lag: 30 * time.Millisecond,
		room: map[volant.Region]int{"ams": 100}, machines: map[volant.MachineID]*scale.Machine{},
	}
	w.whys = why.NewRing(1000)
	w.scaler = scale.New(w, scale.Config{Why: w.whys})
	return w
}

type term struct{ lost chan struct{} }

func (term) Token() uint64           { return 1 }
func (term) Valid() bool             { return true }
func (t term) Lost() <-chan struct{} { return t.lost }
func (term) Release()                {}

type oneTerm struct{}

func (oneTerm) Acquire(context.Context, volant.AppID) (perapp.Term, error) {
	return term{make(chan struct{})}, nil
}

// run scales the world while f acts in it.
func (w *world) run(f func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	h := perapp.NewHolder(oneTerm{}, nil, w.scaler)
	h.SetApps([]volant.AppID{"app"})
	done := make(chan error)
	go func() { done <- h.Run(ctx) }()
	f()
	cancel()
	if err := <-done; err != nil {
		w.t.Error(err)
	}
	time.Sleep(time.Minute) // what the hosts began ends
}

// Observe is scale.Fleet's.
func (w *world) Observe(context.Context, volant.AppID) ([]scale.Observation, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := scale.Observation{
		Scale: w.set, Soft: soft, Primary: "ams", Release: 1, Template: true,
		Regions: map[volant.Region]scale.Region{}, Machines: slices.Clone(w.observed),
	}
	for r, n := range w.room {
		near := slices.Sorted(maps.Keys(w.room))
		o.Regions[r] = scale.Region{Room: n - w.awakeLocked(r) + w.lies, Near: near}
	}
	return []scale.Observation{o}, nil
}

func (w *world) awakeLocked(r volant.Region) int {
	n := 0
	for _, m := range w.machines {
		if m.Region == r && (m.State == scale.Serving || m.State == scale.Booting || m.State == scale.Leaving) {
			n++
		}
	}
	return n
}

// Apply is scale.Fleet's.
func (w *world) Apply(_ context.Context, _ volant.AppID, s scale.Step, _ uint64) (volant.MachineID, error) {
	w.mu.Lock()
	took := time.Duration(w.rnd.IntN(100)) * time.Millisecond
	w.mu.Unlock()
	time.Sleep(took)
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.changedLocked()
	w.steps = append(w.steps, s)
	if s.Kind == scale.Create {
		return w.createLocked(s)
	}
	m := w.machines[s.Machine]
	if m == nil {
		return "", volant.Errorf(volant.ErrPrecondition, "machine %s is gone", s.Machine)
	}
	late := volant.Errorf(volant.ErrPrecondition, "machine %s is %s", m.ID, m.State)
	asleep := m.State == scale.Suspended || m.State == scale.Stopped
	switch s.Kind {
	case scale.Undrain:
		if m.State != scale.Serving {
			return "", late
		}
		m.Draining = false
	case scale.Wake:
		if w.room[m.Region] <= w.awakeLocked(m.Region) {
			return "", volant.Errorf(volant.ErrNoCapacity, "no room")
		}
		if asleep || m.State == scale.Failed {
			w.bootLocked(m)
		}
	case scale.Drain:
		if m.State != scale.Serving {
			return "", late
		}
		m.Draining = true
	case scale.Sleep:
		if m.State != scale.Serving || !m.Draining || w.heldLocked(m.ID) > 0 {
			return "", late
		}
		w.sleepLocked(m)
	case scale.Retire, scale.Restore:
		m.Cordoned, m.Retiring, m.Acted = s.Kind == scale.Retire, s.Kind == scale.Retire, false
		time.AfterFunc(20*time.Millisecond, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			m.Acted = true
			w.changedLocked()
		})
	case scale.Destroy:
		if !asleep && m.State != scale.Failed {
			w.t.Errorf("machine %s, which is %s, is destroyed: %s", m.ID, m.State, s.Text)
		}
		delete(w.machines, m.ID)
	case scale.Create, scale.Hold:
	}
	return "", nil
}

func (w *world) createLocked(s scale.Step) (volant.MachineID, error) {
	if w.room[s.Region] <= w.awakeLocked(s.Region) {
		return "", volant.Errorf(volant.ErrNoCapacity, "no room in %s", s.Region)
	}
	w.made++
	m := &scale.Machine{
		ID: volant.MachineID(fmt.Sprintf("m%04d", w.made)), Node: volant.NodeID("n" + s.Region), Region: s.Region, Release: 1,
		Run: volant.RunAuto, Managed: true,
	}
	w.machines[m.ID] = m
	w.over = max(w.over, len(w.machines)-w.set.Max)
	w.bootLocked(m)
	return m.ID, nil
}

func (w *world) stateLocked(m *scale.Machine, s scale.State) { m.State, m.Since = s, time.Now() }

func (w *world) bootLocked(m *scale.Machine) {
	w.stateLocked(m, scale.Booting)
	time.AfterFunc(w.boot+time.Duration(w.rnd.IntN(300))*time.Millisecond, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.rnd.Float64() < w.breaks {
			m.Failures++
			w.stateLocked(m, scale.Stopped)
		} else {
			m.Failures = 0
			w.stateLocked(m, scale.Serving)
		}
		w.changedLocked()
	})
}

func (w *world) sleepLocked(m *scale.Machine) {
	m.Draining = false
	w.stateLocked(m, scale.Leaving)
	time.AfterFunc(300*time.Millisecond, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		s := scale.Suspended
		if w.set.OnIdle == volant.OnIdleStop {
			s = scale.Stopped
		}
		w.stateLocked(m, s)
		w.changedLocked()
	})
}

func (w *world) heldLocked(id volant.MachineID) int {
	n := 0
	for _, c := range w.conns {
		if c.on == id {
			n++
		}
	}
	return n
}

func (w *world) sortedLocked() []*scale.Machine {
	var ms []*scale.Machine
	for _, id := range slices.Sorted(maps.Keys(w.machines)) {
		ms = append(ms, w.machines[id])
	}
	return ms
}

// changedLocked lets the proxies assign what waits, the hosts put drained ones to sleep, and the scaler hear of it.
func (w *world) changedLocked() {
	held := map[volant.MachineID]int{}
	for _, c := range w.conns {
		if c.on != "" {
			held[c.on]++
			if m := w.machines[c.on]; m == nil || m.State != scale.Serving {
				w.t.Fatalf("a connection is on machine %s, which is %+v", c.on, m)
			}
		}
	}
	loads := map[volant.NodeID]scale.Load{}
	for r := range w.room {
		loads["n"+volant.NodeID(r)] = scale.Load{
			Waiting: map[volant.Region]int{}, Entering: map[volant.Region]int{}, Slots: map[volant.MachineID]int{},
		}
	}
	for _, c := range w.conns {
		l := loads["n"+volant.NodeID(c.region)]
		if c.on == "" {
			c.on = w.pickLocked(c.region, held)
			if c.on != "" {
				held[c.on]++
			}
		}
		if c.on == "" {
			l.Waiting[c.region]++
		} else {
			l.Entering[c.region]++
			loads[w.machines[c.on].Node].Slots[c.on]++
		}
	}
	for _, m := range w.sortedLocked() {
		if m.State == scale.Serving && m.Draining && held[m.ID] == 0 {
			w.sleepLocked(m)
		}
	}
	for n, l := range loads {
		w.scaler.Load(n, "app", l)
	}
	var now []scale.Machine
	for _, m := range w.sortedLocked() {
		now = append(now, *m)
	}
	w.changes++
	change := w.changes
	time.AfterFunc(w.lag, func() {
		w.mu.Lock()
		if change > w.seen { // facts have an order
			w.observed, w.seen = now, change
		}
		w.mu.Unlock()
		w.scaler.Poke("app")
	})
}

// pickLocked is the machine for a connection, as an edge picks; where nothing serves or boots it wakes one.
func (w *world) pickLocked(r volant.Region, held map[volant.MachineID]int) volant.MachineID {
	best, limit := volant.MachineID(""), soft
	coming := false
	for range 2 {
		for _, m := range w.sortedLocked() {
			coming = coming || m.State == scale.Booting || m.State == scale.Serving
			if m.State == scale.Serving && !m.Draining && !m.Cordoned && held[m.ID] < limit &&
				(best == "" || m.Region == r && w.machines[best].Region != r || held[m.ID] < held[best]) {
				best = m.ID
			}
		}
		if best != "" {
			return best
		}
		limit = hard
	}
	if coming {
		return ""
	}
	for _, s := range []scale.State{scale.Suspended, scale.Stopped} {
		for _, m := range w.sortedLocked() {
			if m.State == s && m.Failures == 0 && (!m.Cordoned || !m.Acted) && w.room[m.Region] > w.awakeLocked(m.Region) {
				w.bootLocked(m)
				return ""
			}
		}
	}
	return ""
}

// open opens n connections from r, leave ends n of those there are.
func (w *world) open(r volant.Region, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for range n {
		w.conns = append(w.conns, &conn{region: r})
	}
	w.changedLocked()
}

func (w *world) leave(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rnd.Shuffle(len(w.conns), func(i, j int) { w.conns[i], w.conns[j] = w.conns[j], w.conns[i] })
	w.conns = w.conns[:max(0, len(w.conns)-n)]
	w.changedLocked()
}

// count is how many machines are in one of the states, all for none; draining ones not.
func (w *world) count(states ...scale.State) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, m := range w.machines {
		if len(states) == 0 || slices.Contains(states, m.State) && !m.Draining {
			n++
		}
	}
	return n
}

func (w *world) waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.heldLocked("")
}

// routed counts the connections on machines that take more.
func (w *world) routed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, c := range w.conns {
		if c.on != "" && !w.machines[c.on].Draining {
			n++
		}
	}
	return n
}

func (w *world) takeSteps() []scale.Step {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.steps
	w.steps = nil
	return s
}

func TestScalerFollowsTheDemo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, volant.Scale{})
		w.run(func() {
			want := func(what string, serving, waiting int) {
				t.Helper()
				if s, q := w.count(scale.Serving), w.waiting(); s != serving || q != waiting {
					t.Fatalf("%s: %d serve and %d wait, want %d and %d", what, s, q, serving, waiting)
				}
			}
			w.open("ams", 1)
			time.Sleep(3 * time.Second)
			want("first connection", 1, 0)
			w.open("ams", 19)
			time.Sleep(3 * time.Second)
			want("20 connections", 1, 0)
			w.open("ams", 1)
			time.Sleep(3 * time.Second)
			want("the 21st", 2, 0)
			w.open("ams", 39)
			time.Sleep(3 * time.Second)
			want("60", 3, 0)
			w.leave(60)
			time.Sleep(58 * time.Second)
			want("all have left", 3, 0)
			time.Sleep(5 * time.Second)
			want("after the idle timeout", 0, 0)
			if n := w.count(scale.Suspended); n != 3 {
				t.Errorf("%d suspended, want 3", n)
			}
			w.takeSteps()
			w.open("ams", 1)
			time.Sleep(3 * time.Second)
			want("the next connection", 1, 0)
			w.leave(1)
			time.Sleep(2 * time.Hour)
			if n := w.count(); n != 0 {
				t.Errorf("%d are left after keep, want 0", n)
			}
		})
	})
}

func TestABurstMakesItsMachinesInOneGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, volant.Scale{})
		w.run(func() {
			began := time.Now()
			w.open("ams", 100)
			for w.waiting() > 0 {
				time.Sleep(10 * time.Millisecond)
			}
			if took := time.Since(began); took > w.boot+time.Second {
				t.Errorf("the last was served after %v", took)
			}
			if n := w.count(); n != 5 {
				t.Errorf("%d machines, want 5", n)
			}
		})
	})
}

func TestWhereAHostHasNoRoomAfterAllTheNextRegionIsTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, volant.Scale{})
		w.room["syd"], w.lies = 0, 5
		w.run(func() {
			w.open("syd", 1)
			time.Sleep(3 * time.Second)
			if n := w.waiting(); n > 0 {
				t.Errorf("%d wait", n)
			}
			recs := w.whys.Query(why.Query{App: "app", Kinds: []why.Kind{why.Scale}})
			if len(recs) != 2 || recs[0].Rule != "demand" || recs[0].Attrs["region"] != "ams" ||
				recs[1].Rule != "no_capacity" || recs[1].Attrs["region"] != "syd" {
				t.Errorf("reasons: %+v", recs)
			}
		})
	})
}

func TestABrokenReleaseIsNotMultiplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4, volant.Scale{})
		w.breaks = 1
		w.run(func() {
			w.open("ams", 100)
			time.Sleep(20 * time.Second)
			if n := w.count(); n > 5 {
				t.Errorf("%d machines", n)
			}
			w.takeSteps()
			time.Sleep(10 * time.Minute)
			if n := len(w.takeSteps()); n < 2 || n > 5 {
				t.Errorf("tried %d times in 10 minutes", n)
			}
			told := slices.ContainsFunc(w.whys.Query(why.Query{Limit: 10}), func(r why.Record) bool { return r.Rule == "broken" })
			if !told {
				t.Errorf("reasons: %+v", w.whys.Query(why.Query{Limit: 10}))
			}
			w.mu.Lock()
			w.breaks = 0
			w.mu.Unlock()
			time.Sleep(6 * time.Minute)
			if n := w.waiting(); n > 0 {
				t.Errorf("%d wait though it is mended", n)
			}
		})
	})
}

// TestRandomWorlds lets connections come and go at random, and holds the promises of scaling against it.
func TestRandomWorlds(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { randomWorld(t, seed) })
		})
	}
}

func randomWorld(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	set := volant.Scale{
		Min: rnd.IntN(3), Max: 4 + rnd.IntN(8), IdleTimeout: volant.Duration(time.Duration(2+rnd.IntN(30)) * time.Second),
		Keep: volant.Duration(10 * time.Minute), OnIdle: []string{"suspend", "stop"}[rnd.IntN(2)],
	}
	w := newWorld(t, seed, set)
	w.lag = time.Duration(rnd.IntN(200)) * time.Millisecond
	w.breaks = []float64{0, 0, 0.1, 0.3}[rnd.IntN(4)]
	regions := []volant.Region{"ams"}
	if rnd.IntN(2) == 0 {
		regions = append(regions, "syd", "iad")
		w.room["syd"], w.room["iad"] = rnd.IntN(4), 100
	}
	w.run(func() {
		for range 200 {
			r := regions[rnd.IntN(len(regions))]
			switch rnd.IntN(5) {
			case 0, 1:
				w.open(r, 1+rnd.IntN(8))
			case 2:
				w.leave(rnd.IntN(12))
			case 3:
				time.Sleep(time.Duration(rnd.IntN(3000)) * time.Millisecond)
			case 4:
				w.open(r, rnd.IntN(2)*rnd.IntN(40))
				w.leave(rnd.IntN(30))
				time.Sleep(time.Duration(rnd.IntN(90)) * time.Second)
			}
		}
		w.mu.Lock()
		w.breaks = 0
		w.mu.Unlock()
		calm := max(10*w.set.IdleTimeout.D(), 6*time.Minute) // longer than the longest back-off of a broken release
		time.Sleep(calm)
		conns := len(w.conns)
		if n := w.waiting(); n > max(0, conns-w.set.Max*hard) {
			t.Errorf("%d of %d wait for ever", n, conns)
		}
		need := min(max((w.routed()+hard-1)/hard, w.set.Min), w.set.Max)
		if got := w.count(scale.Serving); got < need || got > w.set.Max {
			t.Errorf("%d serve %d connections, want %d or more, and at most %d", got, conns, need, w.set.Max)
		}
		w.takeSteps()
		time.Sleep(5 * w.set.IdleTimeout.D())
		for _, s := range w.takeSteps() {
			if s.Kind != scale.Destroy && s.Kind != scale.Retire {
				t.Errorf("with a constant load: %s %s %s: %s", s.Kind, s.Machine, s.Rule, s.Text)
			}
		}
		w.leave(len(w.conns))
		time.Sleep(calm)
		if got := w.count(scale.Serving); got != w.set.Min {
			t.Errorf("%d serve nobody, want min %d", got, w.set.Min)
		}
		time.Sleep(20 * time.Minute)
		if got := w.count(); got != w.set.Min {
			t.Errorf("%d are left after keep, want %d", got, w.set.Min)
		}
	})
	if w.over > 0 {
		t.Errorf("there were %d machines more than max", w.over)
	}
}
