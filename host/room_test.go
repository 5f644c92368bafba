package host_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/why"
)

func size(kind string, cpus, mb int) func(*volant.Machine) {
	return func(m *volant.Machine) { m.Config.Guest = volant.Guest{CPUKind: kind, CPUs: cpus, MemoryMB: mb} }
}

// small is a host with memory for two machines of 512 MB and no template in the way.
func small(r *rig) {
	r.cfg.MemoryMB, r.cfg.NoTemplates = 512+2*512, true
}

func TestWakeWithoutMemoryPutsAnEmptyMachineToSleep(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		small(r)
		r.start()
		ms := []volant.Machine{machine(1), machine(2), machine(3)}
		r.SetWishes(ms)
		r.settle()
		for _, m := range ms[:2] {
			r.wake(idOf(m))
			r.await(idOf(m), volant.StateStarted)
			time.Sleep(time.Second)
		}
		// The first is in use, the second empty.
		r.proxy.hold(idOf(ms[0]), 1)
		r.SetSlots(idOf(ms[0]), 1)
		r.SetSlots(idOf(ms[1]), 0)
		r.wake(idOf(ms[2]))
		r.await(idOf(ms[2]), volant.StateStarted)
		if v := r.have(idOf(ms[1])); v.State != volant.StateSuspended {
			t.Errorf("the empty machine is %s", v.State)
		}
		if v := r.have(idOf(ms[0])); v.State != volant.StateStarted {
			t.Errorf("the used machine is %s", v.State)
		}
		// Now both are in use: a wake fails, and says why.
		r.proxy.hold(idOf(ms[2]), 1)
		r.SetSlots(idOf(ms[2]), 1)
		err := r.Wake(t.Context(), idOf(ms[1]), "a connection")
		if !errors.Is(err, volant.ErrNoCapacity) {
			t.Errorf("wake without room: %v", err)
		}
		if v := r.have(idOf(ms[1])); v.State != volant.StateSuspended || v.Memory != 0 {
			t.Errorf("got %+v", v)
		}
		if got := r.rules(why.Wake); got[len(got)-1] != "no_capacity" {
			t.Errorf("reasons %v", got)
		}
		// When one goes, the next wake has room.
		r.proxy.hold(idOf(ms[0]), 0)
		r.SetSlots(idOf(ms[0]), 0)
		r.wake(idOf(ms[1]))
		if v := r.await(idOf(ms[1]), volant.StateStarted); v.Cold {
			t.Error("its snapshot was lost by the refusal")
		}
	})
}

func TestNeverBelowMinForMemory(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		small(r)
		r.start()
		ms := []volant.Machine{machine(1), machine(2), machine(3, func(m *volant.Machine) { m.App = "app_2" })}
		r.SetWishes(ms)
		r.SetMin("app_1", 2)
		r.settle()
		for _, m := range ms[:2] {
			r.wake(idOf(m))
			r.await(idOf(m), volant.StateStarted)
		}
		if err := r.Wake(t.Context(), idOf(ms[2]), "a connection"); !errors.Is(err, volant.ErrNoCapacity) {
			t.Errorf("got %v", err)
		}
		r.SetMin("app_1", 1)
		r.wake(idOf(ms[2]))
		r.await(idOf(ms[2]), volant.StateStarted)
	})
}

func TestReservation(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		small(r)
		r.start()
		reserve := func(n int, term uint64) error {
			return r.Reserve(t.Context(), host.Reservation{ID: idOf(machine(n)), App: "app_1", Org: volant.OrgPersonal, Term: term})
		}
		for _, n := range []int{1, 2, 2} {
			if err := reserve(n, 5); err != nil {
				t.Fatal(err)
			}
		}
		if got := r.Room().FreeMB; got != 0 {
			t.Errorf("%d MB free", got)
		}
		if err := reserve(3, 5); !errors.Is(err, volant.ErrNoCapacity) {
			t.Errorf("a third: %v", err)
		}
		// Its wish takes the reservation over.
		r.SetWishes([]volant.Machine{machine(1)})
		r.wake(idOf(machine(1)))
		r.await(idOf(machine(1)), volant.StateStarted)
		if got := r.Room().FreeMB; got != 0 {
			t.Errorf("%d MB free with one awake and one reserved", got)
		}
		time.Sleep(31 * time.Second)
		if got := r.Room().FreeMB; got != 512 {
			t.Errorf("%d MB free after the reservation's end", got)
		}
		if err := reserve(3, 4); !errors.Is(err, volant.ErrStaleTerm) {
			t.Errorf("by an old term: %v", err)
		}
	})
}

func TestOnMachineWaitsForRoom(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		small(r)
		r.cfg.MemoryMB -= 512
		r.start()
		on := func(m *volant.Machine) { m.Run = volant.RunOn }
		a, b := machine(1, on), machine(2, on)
		r.SetWishes([]volant.Machine{a})
		r.await(idOf(a), volant.StateStarted)
		r.SetWishes([]volant.Machine{a, b})
		r.settle()
		if v := r.have(idOf(b)); v.State != volant.StateCreated || v.Reason == "" {
			t.Fatalf("got %+v", v)
		}
		r.SetWishes([]volant.Machine{changed(a, func(m *volant.Machine) { m.Run = volant.RunOff }), b})
		r.await(idOf(b), volant.StateStarted)
	})
}

func TestOrganizationsAreNotMixed(t *testing.T) {
	other := func(m *volant.Machine) { m.Org = "acme" }
	for name, row := range map[string]struct {
		tenants, allow bool
		want           error
	}{
		"an engine that does not isolate": {false, false, volant.ErrNoCapacity},
		"unless it is allowed":            {false, true, nil},
		"an engine that does":             {true, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				r.fakes.Tenants, r.cfg.AllowMixed = row.tenants, row.allow
				awakeRig(t, r)
				err := r.Reserve(t.Context(), host.Reservation{ID: idOf(machine(2)), App: "app_2", Org: "acme"})
				if !errors.Is(err, row.want) {
					t.Errorf("reserve: %v, want %v", err, row.want)
				}
				r.SetWishes([]volant.Machine{machine(1), machine(2, other)})
				if err := r.Wake(t.Context(), idOf(machine(2)), "a connection"); !errors.Is(err, row.want) {
					t.Errorf("wake: %v, want %v", err, row.want)
				}
				r.settle()
			})
		})
	}
}

func TestPerformanceMachineGetsWholeCores(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.cfg.Cores = [][]int{{0, 4}, {1, 5}, {2, 6}, {3, 7}}
		r.start()
		shared, fast := machine(1), machine(2, size(volant.CPUPerformance, 2, 1024))
		r.SetWishes([]volant.Machine{shared, fast})
		r.settle()
		r.wake(idOf(shared))
		r.await(idOf(shared), volant.StateStarted)
		if l, ok := r.groups.of(idOf(shared)); !ok || l.Weight != 0 {
			t.Errorf("just awake it has limits %+v", l)
		}
		r.settle()
		if l, _ := r.groups.of(idOf(shared)); len(l.CPUs) != 8 || l.Weight != 100 {
			t.Errorf("limits %+v", l)
		}
		r.wake(idOf(fast))
		r.await(idOf(fast), volant.StateStarted)
		synctest.Wait()
		if l, _ := r.groups.of(idOf(fast)); !slices.Equal(l.CPUs, []int{2, 3, 6, 7}) {
			t.Errorf("the performance machine has CPUs %v", l.CPUs)
		}
		if !slices.Equal(r.groups.pins, []int{2, 3}) {
			t.Errorf("vCPUs pinned to %v", r.groups.pins)
		}
		if l, _ := r.groups.of(idOf(shared)); !slices.Equal(l.CPUs, []int{0, 1, 4, 5}) {
			t.Errorf("the shared machine has CPUs %v", l.CPUs)
		}
		if got := r.Room(); got.DedicatedCores != 2 || got.FreeCores != 1 {
			t.Errorf("room %+v", got)
		}
		r.suspend(idOf(fast))
		synctest.Wait()
		if l, _ := r.groups.of(idOf(shared)); len(l.CPUs) != 8 {
			t.Errorf("after it sleeps the shared machine has CPUs %v", l.CPUs)
		}
	})
}

func TestSharedMachineSpendsItsCredit(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.groups.busy = 1
		_, id := awakeRig(t, r)
		quota := func() time.Duration {
			l, _ := r.groups.of(id)
			return l.Quota
		}
		time.Sleep(7 * time.Second) // 3 s of a full share, then most of 5 s of credit
		if got := quota(); got > 0 {
			t.Errorf("with credit left its quota is %v", got)
		}
		time.Sleep(4 * time.Second)
		if got := quota(); got != 5*time.Millisecond {
			t.Errorf("without credit its quota is %v", got)
		}
		r.groups.mu.Lock()
		r.groups.busy = 0
		r.groups.mu.Unlock()
		time.Sleep(10 * time.Second)
		if got := quota(); got <= 0 {
			t.Error("it has its full share for a second's savings")
		}
		time.Sleep(10 * time.Second)
		if got := quota(); got > 0 {
			t.Errorf("after it was idle its quota is %v", got)
		}
	})
}
