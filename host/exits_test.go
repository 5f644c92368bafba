package host_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/microvm/fake"
	"github.com/volant-edge/volant/why"
)

// program is an app whose runs end as told.
type program struct {
	mu   sync.Mutex
	runs int
	ends chan guest.Exit
}

func newProgram() *program { return &program{ends: make(chan guest.Exit, 100)} }

func (p *program) app(ctx context.Context, _ *fake.Guest) guest.Exit {
	p.mu.Lock()
	p.runs++
	p.mu.Unlock()
	select {
	case e := <-p.ends:
		return e
	case <-ctx.Done():
		return guest.Exit{}
	}
}

func (p *program) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.runs
}

func policy(name string, retries int) func(*volant.Machine) {
	return func(m *volant.Machine) { m.Config.Restart = volant.Restart{Policy: name, MaxRetries: retries} }
}

func TestAppThatFailsRunsAgainInPlace(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		p := newProgram()
		r.fakes.App = p.app
		_, id := awakeRig(t, r)
		g := r.world.Guest(string(id))
		p.ends <- guest.Exit{Code: 3}
		synctest.Wait()
		v := r.await(id, volant.StateStarted)
		if p.count() != 2 || r.world.Guest(string(id)) != g || v.Boots != 1 {
			t.Errorf("%d runs, boots %d", p.count(), v.Boots)
		}
		if v.Exit == nil || v.Exit.Code != 3 || v.Exit.Requested || v.Memory != 512 {
			t.Errorf("got %+v, exit %+v", v, v.Exit)
		}
		if got := r.disks.made["00000000000001.img"]; got != 1 {
			t.Errorf("its disk was made %d times", got)
		}
		if got := r.rules(why.Machine); !slices.Equal(got, []string{"exit", "restarted"}) {
			t.Errorf("reasons %v", got)
		}
		p.ends <- guest.Exit{Code: 137, Signal: 9, OOM: true}
		r.settle()
		if v = r.have(id); v.State != volant.StateStarted || v.Exit == nil || !v.Exit.OOM {
			t.Errorf("after out of memory: %+v", v)
		}
	})
}

func TestExitedAppServesNobody(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		p := newProgram()
		r.fakes.App = p.app
		_, id := awakeRig(t, r)
		p.ends <- guest.Exit{Code: 1}
		r.settle()
		p.ends <- guest.Exit{Code: 1} // the second time it waits before it runs again
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if v := r.have(id); v.State != volant.StateStarting || v.Memory != 512 {
			t.Errorf("got %+v", v)
		}
		r.await(id, volant.StateStarted)
	})
}

func TestAppThatEndsWellSleepsUntilTheNextConnection(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		p := newProgram()
		r.fakes.App = p.app
		_, id := awakeRig(t, r)
		p.ends <- guest.Exit{}
		v := r.await(id, volant.StateStopped)
		if v.Exit == nil || v.Exit.Code != 0 || v.Exit.Requested || v.Memory != 0 {
			t.Errorf("got %+v, exit %+v", v, v.Exit)
		}
		r.settle()
		if p.count() != 1 {
			t.Errorf("%d runs", p.count())
		}
		r.wake(id)
		r.await(id, volant.StateStarted)
	})
}

func TestRetriesEnd(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		p := newProgram()
		r.fakes.App = p.app
		for range 50 {
			p.ends <- guest.Exit{Code: 1}
		}
		r.start()
		m := machine(1, policy("", 4))
		r.SetWishes([]volant.Machine{m})
		r.settle()
		id := idOf(m)
		r.wake(id)
		v := r.await(id, volant.StateFailed)
		if p.count() != 5 {
			t.Errorf("%d runs, want one and 4 retries", p.count())
		}
		if v.Failures != 5 || v.Memory != 0 || len(r.world.Running()) != 0 {
			t.Errorf("got %+v", v)
		}
		for len(p.ends) > 0 {
			<-p.ends
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if v := r.have(id); v.State != volant.StateStopped {
			t.Errorf("after cooling off it is %s", v.State)
		}
		r.wake(id)
		r.await(id, volant.StateStarted)
		r.Served(id)
		if v := r.have(id); v.Failures != 0 {
			t.Errorf("it serves and has %d failures", v.Failures)
		}
	})
}

func TestPolicies(t *testing.T) {
	for name, row := range map[string]struct {
		policy string
		exit   guest.Exit
		want   volant.State
	}{
		"always, well":     {volant.RestartAlways, guest.Exit{}, volant.StateStarted},
		"no, badly":        {volant.RestartNo, guest.Exit{Code: 1}, volant.StateStopped},
		"on-failure, well": {volant.RestartOnFailure, guest.Exit{}, volant.StateStopped},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				p := newProgram()
				r.fakes.App = p.app
				_, id := awakeRig(t, r, policy(row.policy, 0))
				p.ends <- row.exit
				r.settle()
				if v := r.have(id); v.State != row.want {
					t.Errorf("it is %s, want %s", v.State, row.want)
				}
			})
		})
	}
}

func TestDeadVMIsBootedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		_, id := awakeRig(t, r)
		r.world.Die(string(id), microvm.VMExit{Signal: 9})
		r.await(id, volant.StateStarted)
		r.settle()
		v := r.have(id)
		if v.State != volant.StateStarted || v.Boots != 2 || v.Exit == nil || v.Exit.Signal != 9 {
			t.Errorf("got %+v, exit %+v", v, v.Exit)
		}
	})
}

func TestBootThatFailsIsTriedAgainAndGivenUp(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		m := machine(1)
		id := idOf(m)
		r.disks.fail(errors.New("no such image"))
		r.SetWishes([]volant.Machine{m})
		r.settle()
		begun := time.Now()
		r.wake(id)
		v := r.await(id, volant.StateFailed)
		if v.Failures != 3 || v.Memory != 0 {
			t.Errorf("got %+v", v)
		}
		if took := time.Since(begun); took < time.Second {
			t.Errorf("given up after %v, without a back-off", took)
		}
		r.disks.fail(nil)
		r.wake(id)
		if v := r.await(id, volant.StateStarted); v.Failures != 3 {
			t.Errorf("%d failures before it served", v.Failures)
		}
	})
}

func TestExplicitStopIsNotUndone(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		m, id := awakeRig(t, r, policy(volant.RestartAlways, 0), func(m *volant.Machine) { m.Run = volant.RunOn })
		r.SetWishes([]volant.Machine{changed(m, func(m *volant.Machine) { m.Run = volant.RunOff })})
		r.await(id, volant.StateStopped)
		r.settle()
		if v := r.have(id); v.State != volant.StateStopped {
			t.Errorf("it is %s", v.State)
		}
		if err := r.Wake(t.Context(), id, "a connection"); !errors.Is(err, volant.ErrPrecondition) {
			t.Errorf("wake of a stopped machine: %v", err)
		}
		m.Generation += 2
		r.SetWishes([]volant.Machine{m})
		r.await(id, volant.StateStarted)
	})
}

func TestStubbornAppIsKilledAfterItsTimeout(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.fakes.App = func(ctx context.Context, _ *fake.Guest) guest.Exit {
			<-ctx.Done()
			time.Sleep(8 * time.Second)
			return guest.Exit{Code: 7}
		}
		_, id := awakeRig(t, r, func(m *volant.Machine) {
			m.Config.StopConfig = volant.StopConfig{Timeout: volant.Duration(4 * time.Second), Signal: "SIGTERM"}
		})
		if err := r.Sleep(t.Context(), id, host.Sleep{How: host.AskStop}); err != nil {
			t.Fatal(err)
		}
		v := r.await(id, volant.StateStopped)
		if v.Exit == nil || v.Exit.Signal != 9 || !v.Exit.Requested {
			t.Errorf("exit %+v, want it killed on request", v.Exit)
		}
	})
}

func TestAPIRestartRunsTheAppAgain(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		p := newProgram()
		r.fakes.App = p.app
		_, id := awakeRig(t, r)
		g := r.world.Guest(string(id))
		if err := r.Restart(t.Context(), id, host.Restart{By: "test"}); err != nil {
			t.Fatal(err)
		}
		r.settle()
		if v := r.have(id); v.State != volant.StateStarted || p.count() != 2 || r.world.Guest(string(id)) != g {
			t.Errorf("it is %s after %d runs", v.State, p.count())
		}
	})
}
