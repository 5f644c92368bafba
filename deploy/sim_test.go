package deploy_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/deploy"
)

// world is one app with its records, its hosts and the connections to its machines. What a deployer
// observes of the hosts lags behind; records are read as they are.
type world struct {
	t    *testing.T
	d    *deploy.Deployer
	room int
	// good is how many machines of a release come to serve before others do not; all, where it names none.
	good   map[uint64]int
	groups map[string]int // and how many machines of each serve before the first deploy

	mu       sync.Mutex // guards those below
	rnd      *rand.Rand
	current  uint64
	releases []deploy.Release
	machines map[volant.MachineID]*machineState
	made     int
	crash    func() // ends the deployer after some steps
	steps    int
	routed   map[string]int // fewest routed machines of a group since the last look
	commands map[uint64]int // runs of a release's command
	badCmd   map[uint64]bool
}

type machineState struct {
	deploy.Machine
	conns int
	bad   bool
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		t: t, room: 100, good: map[uint64]int{}, groups: map[string]int{"app": 1}, routed: map[string]int{},
		commands: map[uint64]int{}, badCmd: map[uint64]bool{}, rnd: rand.New(rand.NewPCG(seed, 1)), machines: map[volant.MachineID]*machineState{},
	}
	w.d = deploy.New(w, deploy.Config{})
	return w
}

type term struct{ lost chan struct{} }

func (term) Token() uint64           { return 1 }
func (term) Valid() bool             { return true }
func (t term) Lost() <-chan struct{} { return t.lost }
func (term) Release()                {}

// run deploys while f acts; a deployer that crashes is followed by another.
func (w *world) run(f func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			one, crash := context.WithCancel(ctx)
			w.mu.Lock()
			w.crash = crash
			w.mu.Unlock()
			if err := w.d.Work(one, "app", term{make(chan struct{})}); err != nil {
				w.t.Error(err)
			}
			crash()
			time.Sleep(100 * time.Millisecond)
		}
	}()
	f()
	cancel()
	<-done
	time.Sleep(time.Minute)
}

// Observe is deploy.Fleet's.
func (w *world) Observe(context.Context, volant.AppID) (deploy.Observation, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o := deploy.Observation{Current: w.current, Primary: "ams", Releases: slices.Clone(w.releases)}
	for _, m := range w.machines {
		o.Machines = append(o.Machines, m.Machine)
	}
	return o, nil
}

// Apply is deploy.Fleet's. It may end the deployer before or after a step.
func (w *world) Apply(ctx context.Context, _ volant.AppID, s deploy.Step, _ uint64) (volant.MachineID, error) {
	w.mu.Lock()
	took := time.Duration(w.rnd.IntN(100)) * time.Millisecond
	crashes := w.rnd.IntN(8) == 0
	before := w.rnd.IntN(2) == 0
	w.mu.Unlock()
	time.Sleep(took)
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.d.Poke("app")
	if crashes && before || ctx.Err() != nil {
		w.crash()
		return "", context.Canceled
	}
	if crashes {
		defer w.crash()
	}
	w.steps++
	return w.applyLocked(s)
}

func (w *world) applyLocked(s deploy.Step) (volant.MachineID, error) {
	i := slices.IndexFunc(w.releases, func(r deploy.Release) bool { return r.Version == s.Release })
	m := w.machines[s.Machine]
	late := volant.Errorf(volant.ErrPrecondition, "machine %s is gone", s.Machine)
	switch s.Kind {
	case deploy.Begin:
		w.releases[i].Status, w.releases[i].Began = volant.ReleaseRunning, time.Now()
	case deploy.Commanded:
		c := *w.releases[i].Command
		c.Done = true
		w.releases[i].Command = &c
	case deploy.Switch:
		if n, bad := w.good[s.Release]; bad && n == 0 {
			w.t.Errorf("release %d, which does not serve, was made current", s.Release)
		}
		if w.badCmd[s.Release] {
			w.t.Errorf("release %d, whose command failed, was made current", s.Release)
		}
		if w.current != s.Release {
			w.releases[i].Previous = w.current
		}
		w.current = s.Release
	case deploy.Revert:
		w.releases[i].Status, w.current = volant.ReleaseFailed, w.releases[i].Previous
	case deploy.Complete:
		w.releases[i].Status = volant.ReleaseComplete
	case deploy.Fail:
		if s.Release == w.current {
			w.t.Errorf("the current release %d failed: %s", s.Release, s.Text)
		}
		w.releases[i].Status = volant.ReleaseFailed
	case deploy.Create:
		awake := 0
		for _, m := range w.machines {
			if !m.State.Asleep() {
				awake++
			}
		}
		if awake >= w.room {
			return "", volant.Errorf(volant.ErrNoCapacity, "no room")
		}
		if w.badCmd[s.Release] {
			w.t.Errorf("a machine of release %d was made, whose command failed", s.Release)
		}
		return w.createLocked(s.Release, s.Group, s.Replaces, s.Region, volant.RunOn, true), nil
	case deploy.Command:
		return w.commandLocked(s.Release), nil
	case deploy.Route:
		if m == nil {
			return "", late
		}
		w.editLocked(m, false, w.ownRun(m))
	case deploy.Restore:
		if m == nil {
			return "", late
		}
		run := w.ownRun(m)
		if s.Wake {
			run = volant.RunOn
		}
		w.editLocked(m, false, run)
		if w.rnd.IntN(4) == 0 {
			if s.Wake && m.State == volant.StateStopped { // it hears of the wish all the same
				w.bootLocked(m)
			}
			return "", volant.Errorf(volant.ErrUnavailable, "the host does not answer")
		}
		m.Draining = false
		if s.Wake && m.State == volant.StateStopped {
			w.bootLocked(m)
		}
	case deploy.Drain:
		if m == nil {
			return "", late
		}
		w.editLocked(m, true, volant.RunAuto)
		if m.State == volant.StateStarted || m.State == volant.StateStarting {
			m.Draining = true
		}
	case deploy.Destroy:
		if m == nil {
			return "", late
		}
		if m.conns > 0 {
			w.t.Errorf("machine %s is destroyed with %d connections: %s", m.ID, m.conns, s.Text)
		}
		delete(w.machines, s.Machine)
	}
	w.settleLocked()
	return "", nil
}

// editLocked changes a machine's record; its host acts on it a moment later.
func (w *world) editLocked(m *machineState, cordoned bool, run volant.Run) {
	m.Cordoned, m.Run, m.Acted, m.ByDeploy, m.Changed = cordoned, run, false, true, time.Now()
	time.AfterFunc(50*time.Millisecond, func() { w.change(func() { m.Acted = true }) })
}

func worker(group string) bool { return group == "worker" }

func (w *world) ownRun(m *machineState) volant.Run {
	if worker(m.Group) {
		return volant.RunOn
	}
	return volant.RunAuto
}

// commandLocked makes a machine that runs the release's command.
func (w *world) commandLocked(v uint64) volant.MachineID {
	w.made++
	w.commands[v]++
	m := &machineState{Machine: deploy.Machine{
		ID: volant.MachineID(fmt.Sprintf("c%04d", w.made)), Group: deploy.GroupCommand, Command: true, Release: v, Cordoned: true,
		Run: volant.RunOn, State: volant.StateStarting, Acted: true, Created: time.Now(),
	}}
	w.machines[m.ID] = m
	time.AfterFunc(time.Second, func() { w.change(func() { m.State, m.Since = volant.StateStarted, time.Now() }) })
	time.AfterFunc(3*time.Second, func() {
		w.change(func() {
			m.State, m.Ended, m.EndedWell = volant.StateStopped, "it ended", !w.badCmd[v]
		})
	})
	return m.ID
}

func (w *world) createLocked(v uint64, group string, replaces volant.MachineID, r volant.Region, run volant.Run, cordoned bool) volant.MachineID {
	w.made++
	m := &machineState{Machine: deploy.Machine{
		ID: volant.MachineID(fmt.Sprintf("m%04d", w.made)), Region: r, Group: group, Release: v, Replaces: replaces, Managed: true,
		Run: run, Cordoned: cordoned, State: volant.StateStarting, Acted: true, Created: time.Now(), Changed: time.Now(),
	}}
	if n, bad := w.good[v]; bad {
		m.bad = n <= 0
		w.good[v] = max(0, n-1)
		if n > 0 && w.good[v] == 0 {
			w.good[v] = -1 // it had good ones, so that it may be made current
		}
	}
	w.machines[m.ID] = m
	w.bootLocked(m)
	return m.ID
}

func (w *world) bootLocked(m *machineState) {
	m.State = volant.StateStarting
	time.AfterFunc(time.Second+time.Duration(w.rnd.IntN(1000))*time.Millisecond, func() {
		w.change(func() {
			switch {
			case w.machines[m.ID] != m:
			case !m.bad:
				m.State, m.Ready, m.Since = volant.StateStarted, true, time.Now()
			case m.Failures < 3:
				if m.Failures++; m.Failures == 3 {
					m.State, m.Reason = volant.StateFailed, "exit code 1"
				} else {
					w.bootLocked(m)
				}
			}
		})
	})
}

func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	w.settleLocked()
	w.d.Poke("app")
}

// settleLocked puts drained and empty machines to sleep, and notes how many machines take connections.
func (w *world) settleLocked() {
	for _, id := range slices.Sorted(maps.Keys(w.machines)) {
		m := w.machines[id]
		if m.Command {
			continue
		}
		if m.State == volant.StateStarted && m.Draining && m.conns == 0 {
			m.State, m.Ready = volant.StateStopping, false
			time.AfterFunc(200*time.Millisecond, func() {
				w.change(func() {
					if m.State, m.Draining = volant.StateStopped, false; m.Run == volant.RunOn {
						w.bootLocked(m)
					}
				})
			})
		}
	}
	for g := range w.groups {
		w.routed[g] = min(w.routed[g], len(w.routedLocked(g)))
	}
}

func (w *world) routedLocked(group string) []*machineState {
	var out []*machineState
	for _, id := range slices.Sorted(maps.Keys(w.machines)) {
		if m := w.machines[id]; m.State == volant.StateStarted && !m.Cordoned && !m.Draining && m.Group == group {
			out = append(out, m)
		}
	}
	return out
}

// deploy writes a release, and says its version. Change may be nil.
func (w *world) deploy(bad bool, change func(*deploy.Release)) uint64 {
	var v uint64
	w.change(func() {
		v = uint64(len(w.releases)) + 1
		if bad {
			w.good[v] = 0
		}
		r := deploy.Release{Version: v, Status: volant.ReleasePending, WaitTimeout: time.Minute}
		for _, g := range slices.Sorted(maps.Keys(w.groups)) {
			r.Groups = append(r.Groups, deploy.Group{Name: g, Worker: worker(g)})
		}
		if change != nil {
			change(&r)
		}
		w.releases = append(w.releases, r)
	})
	return v
}

func (w *world) status(v uint64) volant.ReleaseStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.releases[v-1].Status
}

// seeds are how many worlds are tried: more where VOLANT_SEEDS says so.
func seeds() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("VOLANT_SEEDS"), 10, 32); err == nil {
		return n
	}
	return 40
}

func TestManyDeploysHalfOfThemBroken(t *testing.T) {
	for seed := range seeds() {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { manyDeploys(t, seed) })
		})
	}
}

var strategies = []string{"", volant.StrategyRolling, volant.StrategyCanary, volant.StrategyBlueGreen, volant.StrategyImmediate}

func manyDeploys(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	w := newWorld(t, seed)
	for _, g := range []string{"app", "api", "worker"}[:1+rnd.IntN(3)] {
		w.groups[g] = 1 + rnd.IntN(4)
	}
	w.run(func() {
		w.deploy(false, nil)
		time.Sleep(5 * time.Second)
		all := 0
		w.change(func() {
			for _, g := range slices.Sorted(maps.Keys(w.groups)) {
				for range w.groups[g] {
					all++
					id := w.createLocked(1, g, "", "ams", volant.RunAuto, false)
					w.machines[id].Run = w.ownRun(w.machines[id])
				}
			}
		})
		time.Sleep(5 * time.Second)
		if rnd.IntN(3) == 0 {
			w.room = all + len(w.groups)
		}
		want := uint64(1)
		for range 6 {
			w.change(func() {
				for g, n := range w.groups {
					if w.routed[g] = len(w.routedLocked(g)); w.routed[g] != n {
						t.Fatalf("%d of group %s serve, want %d", w.routed[g], g, n)
					}
				}
			})
			strategy := strategies[rnd.IntN(len(strategies))]
			bad := rnd.IntN(2) == 0 && strategy != volant.StrategyImmediate
			v, fails := w.deployRandom(rnd, strategy, bad, all)
			stay := rnd.IntN(2) == 0
			for range 20 { // connections come and go
				w.change(func() {
					for g := range w.groups {
						for _, m := range w.routedLocked(g) {
							if !worker(g) {
								m.conns += rnd.IntN(3)
							}
						}
					}
					for _, id := range slices.Sorted(maps.Keys(w.machines)) {
						m := w.machines[id]
						m.conns = max(0, m.conns-rnd.IntN(3))
					}
				})
				time.Sleep(time.Duration(rnd.IntN(2000)) * time.Millisecond)
			}
			if !stay {
				w.hangUp()
			}
			time.Sleep(5 * time.Minute)
			w.hangUp()
			time.Sleep(5 * time.Minute)
			status := volant.ReleaseComplete
			if fails {
				status = volant.ReleaseFailed
			} else {
				want = v
			}
			if got := w.status(v); got != status {
				t.Fatalf("release %d (%s) is %s, want %s", v, strategy, got, status)
			}
			w.check(want, strategy)
		}
	})
}

// deployRandom deploys, and says whether the release is to fail.
func (w *world) deployRandom(rnd *rand.Rand, strategy string, bad bool, all int) (v uint64, fails bool) {
	command, good := rnd.IntN(4), rnd.IntN(all)
	v = w.deploy(bad, func(r *deploy.Release) {
		r.Strategy = strategy
		if rnd.IntN(2) == 0 {
			r.MaxUnavailable = []float64{0.1, 0.5, 0.9, 1, 2, 3}[rnd.IntN(6)]
		}
		if command < 2 {
			r.Command = &deploy.ReleaseCommand{Timeout: time.Minute}
			w.badCmd[r.Version] = bad && command == 1
		}
		// Some come to serve, and one later does not. Where there is no room for all, a bluegreen deploy goes
		// over to those that serve.
		if bad && rnd.IntN(2) == 0 && (strategy != volant.StrategyBlueGreen || w.room == 100) {
			w.good[r.Version] = good
		}
	})
	return v, bad
}

// hangUp ends all connections.
func (w *world) hangUp() {
	w.change(func() {
		for _, m := range w.machines {
			m.conns = 0
		}
	})
}

// check looks at the world after a deploy.
func (w *world) check(current uint64, strategy string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current != current {
		w.t.Errorf("release %d is current, want %d", w.current, current)
	}
	for g, n := range w.groups {
		if w.routed[g] < n && strategy != volant.StrategyImmediate {
			w.t.Errorf("only %d machines of group %s served at one time (%s), before there were %d", w.routed[g], g, strategy, n)
		}
	}
	for v, n := range w.commands {
		if n != 1 {
			w.t.Errorf("the command of release %d was run %d times", v, n)
		}
	}
	for _, m := range w.machines {
		if m.Release != current || m.State != volant.StateStarted || m.Cordoned || m.Draining || m.Run != w.ownRun(m) {
			w.t.Errorf("left over: %+v", m)
		}
	}
}

func TestTheNextDeployWaitsForTheOneThatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		w.run(func() {
			w.deploy(false, nil)
			time.Sleep(5 * time.Second)
			w.change(func() { w.createLocked(1, "app", "", "ams", volant.RunAuto, false) })
			time.Sleep(5 * time.Second)
			a, b, c := w.deploy(false, nil), w.deploy(true, nil), w.deploy(false, nil)
			for w.status(a) == volant.ReleasePending {
				time.Sleep(time.Millisecond)
			}
			for w.status(c) != volant.ReleaseComplete {
				time.Sleep(10 * time.Millisecond)
				running := 0
				for _, v := range []uint64{a, b, c} {
					if w.status(v) == volant.ReleaseRunning {
						running++
					}
				}
				if running > 1 {
					t.Fatalf("%d run at once", running)
				}
			}
			if w.status(a) != volant.ReleaseComplete || w.status(b) != volant.ReleaseFailed {
				t.Errorf("got %s and %s", w.status(a), w.status(b))
			}
		})
	})
}
