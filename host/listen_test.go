package host_test

import (
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
)

// A deploy's new machine has no clients whose connections would tell whether it listens.
func TestAnUnroutedMachineIsReadyWhenItListens(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.disks.listen(false)
		r.start()
		m := machine(1, func(m *volant.Machine) { m.Run, m.Cordoned = volant.RunOn, true })
		id := idOf(m)
		r.SetWishes([]volant.Machine{m})
		r.await(id, volant.StateStarted)
		r.settle()
		if v := r.have(id); v.Ready || len(v.Checks) > 0 {
			t.Errorf("before it listens: ready %v, checks %v", v.Ready, v.Checks)
		}
		r.stop()
		r.start()
		r.SetWishes([]volant.Machine{m})
		r.settle()
		if v := r.have(id); v.Ready {
			t.Error("it became ready by a restart of the server")
		}
		r.disks.listen(true)
		time.Sleep(time.Second)
		synctest.Wait()
		if v := r.have(id); !v.Ready || len(v.Checks) > 0 {
			t.Errorf("when it listens: ready %v, checks %v", v.Ready, v.Checks)
		}
		r.SetWishes([]volant.Machine{changed(m, func(m *volant.Machine) { m.Run, m.Cordoned = volant.RunAuto, false })})
		r.settle()
		if v := r.have(id); v.State != volant.StateStarted || !v.Ready || v.Generation != 2 || v.Boots != 1 {
			t.Errorf("when it is routed: %+v", v)
		}
	})
}

func TestARoutedMachineIsNotProbedUnasked(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.disks.listen(false)
		r.start()
		m := machine(1)
		r.SetWishes([]volant.Machine{m})
		r.settle()
		r.wake(idOf(m))
		if v := r.await(idOf(m), volant.StateStarted); !v.Ready {
			t.Error("it waits for a probe")
		}
	})
}
