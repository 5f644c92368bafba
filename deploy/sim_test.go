package deploy_test

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
	"github.com/volant-edge/volant/deploy"
)

// world is one app with its records, its hosts and the connections to its machines. What a deployer
// observes of the hosts lags behind; records are read as they are.
type world struct {
	t    *testing.T
	d    *deploy.Deployer
	room int
	bad  map[uint64]bool // releases whose machines do not come to serve

	mu       sync.Mutex // guards those below
	rnd      *rand.Rand
	current  uint64
	releases []deploy.Release
	machines map[volant.MachineID]*machineState
	made     int
	crash    func() // ends the deployer after some steps
	steps    int
	routed   int // fewest routed machines since the last look
}

type machineState struct {
	deploy.Machine
	conns int
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, room: 100, bad: map[uint64]bool{}, rnd: rand.New(rand.NewPCG(seed, 1)), machines: map[volant.MachineID]*machineState{}}
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
	case deploy.Switch:
		if w.bad[s.Release] {
			w.t.Errorf("release %d, which does not serve, was made current", s.Release)
		}
		w.current = s.Release
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
		return w.createLocked(s.Release, s.Replaces, s.Region, volant.RunOn), nil
	case deploy.Route:
		if m == nil {
			return "", late
		}
		m.Cordoned, m.Run, m.Acted = false, volant.RunAuto, false
		time.AfterFunc(50*time.Millisecond, func() { w.change(func() { m.Acted = true }) })
	case deploy.Drain:
		if m == nil {
			return "", late
		}
		m.Cordoned, m.Run, m.Acted = true, volant.RunAuto, false
		time.AfterFunc(50*time.Millisecond, func() { w.change(func() { m.Acted = true }) })
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

func (w *world) createLocked(v uint64, replaces volant.MachineID, r volant.Region, run volant.Run) volant.MachineID {
	w.made++
	m := &machineState{Machine: deploy.Machine{
		ID: volant.MachineID(fmt.Sprintf("m%04d", w.made)), Region: r, Release: v, Replaces: replaces, Managed: true,
		Run: run, Cordoned: run == volant.RunOn, State: volant.StateStarting, Acted: true, Created: time.Now(),
	}}
	w.machines[m.ID] = m
	w.bootLocked(m)
	return m.ID
}

func (w *world) bootLocked(m *machineState) {
	m.State = volant.StateStarting
	time.AfterFunc(time.Second+time.Duration(w.rnd.IntN(1000))*time.Millisecond, func() {
		w.change(func() {
			switch {
			case !w.bad[m.Release]:
				m.State, m.Ready = volant.StateStarted, true
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
		if m.State == volant.StateStarted && m.Draining && m.conns == 0 {
			m.State, m.Ready = volant.StateStopping, false
			time.AfterFunc(200*time.Millisecond, func() {
				w.change(func() { m.State, m.Draining = volant.StateStopped, false })
			})
		}
	}
	w.routed = min(w.routed, len(w.routedLocked()))
}

func (w *world) routedLocked() []*machineState {
	var out []*machineState
	for _, id := range slices.Sorted(maps.Keys(w.machines)) {
		if m := w.machines[id]; m.State == volant.StateStarted && !m.Cordoned && !m.Draining {
			out = append(out, m)
		}
	}
	return out
}

// deploy writes a release, and says its version.
func (w *world) deploy(bad bool) uint64 {
	var v uint64
	w.change(func() {
		v = uint64(len(w.releases)) + 1
		w.bad[v] = bad
		w.releases = append(w.releases, deploy.Release{Version: v, Status: volant.ReleasePending, WaitTimeout: time.Minute})
	})
	return v
}

func (w *world) status(v uint64) volant.ReleaseStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.releases[v-1].Status
}

func TestManyDeploysHalfOfThemBroken(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { manyDeploys(t, seed) })
		})
	}
}

func manyDeploys(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	w := newWorld(t, seed)
	w.run(func() {
		w.deploy(false)
		time.Sleep(5 * time.Second)
		serving := 1 + rnd.IntN(4)
		w.change(func() {
			for range serving {
				w.createLocked(1, "", "ams", volant.RunAuto)
			}
		})
		time.Sleep(5 * time.Second)
		if rnd.IntN(3) == 0 {
			w.room = serving + 1
		}
		want := uint64(1)
		for range 6 {
			w.change(func() { w.routed = len(w.routedLocked()) })
			if w.routed != serving {
				t.Fatalf("%d serve, want %d", w.routed, serving)
			}
			bad := rnd.IntN(2) == 0
			v := w.deploy(bad)
			stay := rnd.IntN(2) == 0
			for range 20 { // connections come and go
				w.change(func() {
					for _, m := range w.routedLocked() {
						m.conns += rnd.IntN(3)
					}
					for _, m := range w.machines {
						m.conns = max(0, m.conns-rnd.IntN(3))
					}
				})
				time.Sleep(time.Duration(rnd.IntN(2000)) * time.Millisecond)
			}
			if !stay {
				w.change(func() {
					for _, m := range w.machines {
						m.conns = 0
					}
				})
			}
			time.Sleep(3 * time.Minute)
			w.change(func() {
				for _, m := range w.machines {
					m.conns = 0
				}
			})
			time.Sleep(3 * time.Minute)
			status := volant.ReleaseComplete
			if bad {
				status = volant.ReleaseFailed
			} else {
				want = v
			}
			if got := w.status(v); got != status {
				t.Fatalf("release %d is %s, want %s", v, got, status)
			}
			w.check(want, serving)
		}
	})
}

// check looks at the world after a deploy.
func (w *world) check(current uint64, serving int) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current != current {
		w.t.Errorf("release %d is current, want %d", w.current, current)
	}
	if w.routed < serving {
		w.t.Errorf("only %d machines served at one time, before there were %d", w.routed, serving)
	}
	for _, m := range w.machines {
		if m.Release != current || m.State != volant.StateStarted || m.Cordoned || m.Draining {
			w.t.Errorf("left over: %+v", m)
		}
	}
}

func TestTheNextDeployWaitsForTheOneThatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3)
		w.run(func() {
			w.deploy(false)
			time.Sleep(5 * time.Second)
			w.change(func() { w.createLocked(1, "", "ams", volant.RunAuto) })
			time.Sleep(5 * time.Second)
			a, b, c := w.deploy(false), w.deploy(true), w.deploy(false)
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
