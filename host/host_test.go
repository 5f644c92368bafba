package host_test

import (
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/host"
)

func TestConnectionWakesAndDrainSleeps(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.start()
		m := machine(1)
		id := idOf(m)
		r.SetWishes([]volant.Machine{m})
		r.settle()
		if v := r.have(id); v.State != volant.StateCreated || v.Generation != 1 || v.Memory != 0 {
			t.Fatalf("got %+v", v)
		}
		begun := time.Now()
		r.wake(id)
		if v := r.have(id); v.State != volant.StateStarting {
			t.Errorf("after wake it is %s", v.State)
		}
		v := r.await(id, volant.StateStarted)
		if took := time.Since(begun); took > 500*time.Millisecond {
			t.Errorf("a start from the template took %v", took)
		}
		if !v.IP.IsValid() || !v.Ready || v.Memory != 512 || v.Boots != 1 || !v.Cold {
			t.Errorf("got %+v", v)
		}
		if !r.proxy.hold(id, 3) {
			t.Fatal("the proxy gets no slot")
		}
		r.SetSlots(id, 3)
		if err := r.Drain(t.Context(), id, host.Drain{On: true, Then: host.AskSuspend, Term: 1}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if v := r.have(id); v.State != volant.StateStarted || !v.Draining {
			t.Fatalf("with open connections it is %s, draining %v", v.State, v.Draining)
		}
		r.proxy.hold(id, 0)
		r.SetSlots(id, 0)
		v = r.await(id, volant.StateSuspended)
		if v.Draining || v.Memory != 0 {
			t.Errorf("got %+v", v)
		}
		if got := r.world.Running(); len(got) != 0 {
			t.Errorf("processes of a sleeping host: %v", got)
		}
		r.world.Close()
		r.wake(id)
		if v = r.await(id, volant.StateStarted); v.Cold || v.Boots != 2 {
			t.Errorf("got %+v", v)
		}
		synctest.Wait()
		if len(r.proxy.broken) > 0 {
			t.Error(r.proxy.broken)
		}
	})
}
