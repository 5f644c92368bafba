package host_test

import (
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/why"
)

// On a full disk templates go first, then snapshots, the longest asleep first, and no more than need be.
func TestFullDiskCostsTemplatesThenSnapshots(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		var full atomic.Bool
		r.cfg.DiskUsed = func(dir string) (float64, error) {
			snaps, err := filepath.Glob(filepath.Join(dir, "snapshots", "*"))
			if full.Load() && len(snaps) > 1 {
				return 0.85, err
			}
			return 0.5, err
		}
		r.start()
		ms := []volant.Machine{machine(1), machine(2)}
		r.SetWishes(ms)
		r.settle()
		for _, m := range ms {
			r.wake(idOf(m))
			r.await(idOf(m), volant.StateStarted)
			r.suspend(idOf(m))
			time.Sleep(time.Second)
		}
		full.Store(true)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := entries(t, filepath.Join(r.dir, "templates")); len(got) != 0 {
			t.Errorf("templates left: %v", got)
		}
		if a, b := r.have(idOf(ms[0])).State, r.have(idOf(ms[1])).State; a != volant.StateStopped || b != volant.StateSuspended {
			t.Errorf("the longer asleep is %s, the other %s", a, b)
		}
		if got := r.rules(why.Sleep); !slices.Contains(got, "snapshot_discarded") {
			t.Errorf("reasons %v", got)
		}
		r.wake(idOf(ms[0]))
		if v := r.await(idOf(ms[0]), volant.StateStarted); !v.Cold {
			t.Error("it was restored from nothing")
		}
	})
}
