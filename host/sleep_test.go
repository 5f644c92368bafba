package host_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/microvm/fake"
	"github.com/volant-edge/volant/why"
)

// awakeRig is a rig with one machine that was woken by a connection.
func awakeRig(t *testing.T, r *rig, edit ...func(*volant.Machine)) (volant.Machine, volant.MachineID) {
	t.Helper()
	r.start()
	m := machine(1, edit...)
	r.SetWishes([]volant.Machine{m})
	r.settle()
	r.wake(idOf(m))
	r.await(idOf(m), volant.StateStarted)
	return m, idOf(m)
}

func (r *rig) suspend(id volant.MachineID) {
	r.t.Helper()
	if err := r.Sleep(r.t.Context(), id, host.Sleep{How: host.AskSuspend}); err != nil {
		r.t.Fatalf("suspend: %v", err)
	}
	r.await(id, volant.StateSuspended)
}

func TestSuspendedMachineGoesOnWithTimeAndEntropy(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		_, id := awakeRig(t, r)
		g := r.world.Guest(string(id))
		g.Add("counter", 41)
		old := string(g.Entropy())
		r.suspend(id)
		time.Sleep(time.Hour)
		r.wake(id)
		r.await(id, volant.StateStarted)
		g = r.world.Guest(string(id))
		if got := g.Add("counter", 1); got != 42 {
			t.Errorf("counter in RAM is %d, want 42", got)
		}
		if behind := time.Since(g.Now()); behind != 0 {
			t.Errorf("the guest's clock is %v behind", behind)
		}
		if string(g.Entropy()) == old {
			t.Error("the guest got no fresh entropy")
		}
		if got := r.disks.made["00000000000001.img"]; got != 1 {
			t.Errorf("its disk was made %d times, want once", got)
		}
	})
}

func TestBadSnapshotBootsColdWithOneReason(t *testing.T) {
	state := func(f func(path string) error) func(r *rig, dir string) error {
		return func(_ *rig, dir string) error { return f(filepath.Join(dir, microvm.StateFile)) }
	}
	memory := func(f func(path string) error) func(r *rig, dir string) error {
		return func(_ *rig, dir string) error { return f(filepath.Join(dir, microvm.MemoryFile)) }
	}
	short := func(path string) error { return os.Truncate(path, 100) }
	for name, spoil := range map[string]func(r *rig, dir string) error{
		"state missing":  state(os.Remove),
		"state short":    state(short),
		"memory missing": memory(os.Remove),
		"memory short":   memory(short),
		"all missing":    func(_ *rig, dir string) error { return os.RemoveAll(dir) },
		"a byte of state flipped": state(func(path string) error {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b[len(b)/2] ^= 1
			return os.WriteFile(path, b, 0o600)
		}),
		"disk changed": func(r *rig, _ string) error {
			return os.WriteFile(filepath.Join(r.dir, "scratch", "00000000000001.img"), []byte("other"), 0o600)
		},
		"of another machine": func(r *rig, dir string) error {
			other := machine(2)
			r.SetWishes([]volant.Machine{machine(1), other})
			r.wake(idOf(other))
			r.await(idOf(other), volant.StateStarted)
			r.suspend(idOf(other))
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
			es, err := filepath.Glob(filepath.Join(r.dir, "snapshots", "00000000000002-*"))
			if err != nil || len(es) != 1 {
				return errors.Join(err, errors.New("no snapshot of the other machine"))
			}
			return os.Rename(es[0], dir)
		},
		"address changed": func(r *rig, _ string) error {
			r.stop()
			r.links.m[idOf(machine(1))] = 77 // the file of addresses was lost
			r.start()
			r.settle()
			return nil
		},
		"engine changed": func(r *rig, _ string) error {
			r.stop()
			r.fakes.Build = "fake-2"
			r.start()
			r.settle()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) {
				_, id := awakeRig(t, r)
				r.suspend(id)
				dirs, err := filepath.Glob(filepath.Join(r.dir, "snapshots", string(id)+"-*"))
				if err != nil || len(dirs) != 1 {
					t.Fatalf("snapshots: %v, %v", dirs, err)
				}
				if err := spoil(r, dirs[0]); err != nil {
					t.Fatal(err)
				}
				before := len(r.rules(why.Wake))
				r.wake(id)
				v := r.await(id, volant.StateStarted)
				if !v.Cold {
					t.Error("it was restored")
				}
				if got := r.rules(why.Wake)[before:]; len(got) != 2 || got[0] != "cold_boot" {
					t.Errorf("reasons %v, want one cold_boot and the wake", got)
				}
				if got := entries(t, filepath.Join(r.dir, "snapshots")); slices.Contains(got, filepath.Base(dirs[0])) {
					t.Errorf("the spent snapshot is left: %v", got)
				}
				if got := r.disks.made["00000000000001.img"]; got < 2 {
					t.Error("a cold boot got the old disk")
				}
			})
		})
	}
}

func TestConnectionWhileItFallsAsleepResumesInPlace(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.fakes.Latency.Snapshot = 5 * time.Second
		_, id := awakeRig(t, r)
		g := r.world.Guest(string(id))
		if err := r.Sleep(t.Context(), id, host.Sleep{How: host.AskSuspend}); err != nil {
			t.Fatal(err)
		}
		if v := r.have(id); v.State != volant.StateSuspending {
			t.Fatalf("it is %s", v.State)
		}
		r.wake(id)
		r.await(id, volant.StateStarted)
		if r.world.Guest(string(id)) != g {
			t.Error("it was restored, not resumed in place")
		}
		if g.Thaws() != 1 {
			t.Errorf("thawed %d times, want once", g.Thaws())
		}
		if got := entries(t, filepath.Join(r.dir, "snapshots")); len(got) != 0 {
			t.Errorf("snapshots left: %v", got)
		}
		if !r.proxy.hold(id, 1) {
			t.Error("the proxy gets no slot: it is still sealed")
		}
	})
}

func TestFailedSnapshotStops(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.fakes.Hook = func(op fake.Op) fake.Fault {
			if op.Name == "snapshot" && op.VM == "00000000000001" {
				return fake.Fault{Err: errors.New("no space left on device")}
			}
			return fake.Fault{}
		}
		_, id := awakeRig(t, r)
		if err := r.Sleep(t.Context(), id, host.Sleep{How: host.AskSuspend}); err != nil {
			t.Fatal(err)
		}
		r.await(id, volant.StateStopped)
		if got := r.rules(why.Sleep); !slices.Contains(got, "snapshot_failed") {
			t.Errorf("reasons %v", got)
		}
		r.wake(id)
		r.await(id, volant.StateStarted)
	})
}

func TestSlotsForbidSleep(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		_, id := awakeRig(t, r)
		r.proxy.hold(id, 1)
		for _, how := range []string{host.AskSuspend, host.AskStop} {
			err := r.Sleep(t.Context(), id, host.Sleep{How: how})
			if !errors.Is(err, volant.ErrPrecondition) {
				t.Errorf("%s with an open connection: %v", how, err)
			}
		}
		if v := r.have(id); v.State != volant.StateStarted {
			t.Fatalf("it is %s", v.State)
		}
		r.proxy.hold(id, 0)
		if !r.proxy.hold(id, 1) {
			t.Error("it stays sealed after a refused sleep")
		}
		if err := r.Sleep(t.Context(), id, host.Sleep{How: host.AskStop, Force: true}); err != nil {
			t.Errorf("forced: %v", err)
		}
		v := r.await(id, volant.StateStopped)
		if v.Exit == nil || !v.Exit.Requested {
			t.Errorf("exit %+v, want a requested one", v.Exit)
		}
	})
}

func TestProxyThatDoesNotAnswerKeepsItAwake(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		_, id := awakeRig(t, r)
		r.proxy.fail(errors.New("connection refused"))
		if err := r.Drain(t.Context(), id, host.Drain{On: true, Then: host.AskSuspend}); err != nil {
			t.Fatal(err)
		}
		r.settle()
		if v := r.have(id); v.State != volant.StateStarted {
			t.Fatalf("it is %s", v.State)
		}
		if asked := r.proxy.fail(nil); asked > 7 {
			t.Errorf("asked %d times in 5 s", asked)
		}
		r.await(id, volant.StateSuspended)
	})
}

// A Have that says "started" would break the seal, so none goes out between the seal and the sleep.
func TestNothingBreaksTheSeal(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		m, id := awakeRig(t, r)
		var sealedAt uint64
		r.proxy.onSeal = func() {
			if sealedAt == 0 {
				sealedAt = r.have(id).Seq
				go r.SetWishes(nil) // an orphan is published
			}
		}
		r.suspend(id)
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, v := range r.haves {
			if v.Machine == idOf(m) && v.Seq > sealedAt && v.State == volant.StateStarted {
				t.Errorf("published after the seal: %+v", v)
			}
		}
	})
}

func TestDemandClearsADrain(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		_, id := awakeRig(t, r)
		r.proxy.hold(id, 1)
		r.SetSlots(id, 1)
		for _, d := range []host.Drain{{On: true, Then: host.AskSuspend}, {On: true, Then: host.AskSuspend}, {}} {
			if err := r.Drain(t.Context(), id, d); err != nil {
				t.Fatal(err)
			}
			if v := r.have(id); v.Draining != d.On {
				t.Errorf("draining is %v after %+v", v.Draining, d)
			}
		}
		r.proxy.hold(id, 0)
		r.SetSlots(id, 0)
		r.settle()
		if v := r.have(id); v.State != volant.StateStarted {
			t.Errorf("it is %s", v.State)
		}
		r.suspend(id)
		if err := r.Drain(t.Context(), id, host.Drain{On: true, Then: host.AskSuspend}); !errors.Is(err, volant.ErrPrecondition) {
			t.Errorf("drain of a sleeping machine: %v", err)
		}
	})
}

func TestStopResetsTheDisk(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		_, id := awakeRig(t, r)
		if err := r.Sleep(t.Context(), id, host.Sleep{How: host.AskStop}); err != nil {
			t.Fatal(err)
		}
		r.await(id, volant.StateStopped)
		r.settle()
		made := r.disks.made["00000000000001.img"]
		if made != 2 {
			t.Errorf("the disk was made %d times, want anew after the stop", made)
		}
		begun := time.Now()
		r.wake(id)
		r.await(id, volant.StateStarted)
		if took := time.Since(begun); took > 100*time.Millisecond {
			t.Errorf("woken in %v", took)
		}
		synctest.Wait()
		if got := r.disks.made["00000000000001.img"]; got != made {
			t.Error("the disk was made on the way of a wake")
		}
	})
}

func TestTemplateFailsBootsCold(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		restores := 0
		r.fakes.Hook = func(op fake.Op) fake.Fault {
			if op.Name == "restore" {
				if restores++; restores == 1 {
					return fake.Fault{Err: errors.New("bad template")}
				}
			}
			return fake.Fault{}
		}
		_, id := awakeRig(t, r)
		if got := r.rules(why.Wake); !slices.Equal(got, []string{"cold_boot", "cold"}) {
			t.Errorf("reasons %v", got)
		}
		// It is made anew when it is needed next, and used then.
		for _, want := range []string{"cold", "template"} {
			if err := r.Sleep(t.Context(), id, host.Sleep{How: host.AskStop}); err != nil {
				t.Fatal(err)
			}
			r.await(id, volant.StateStopped)
			r.wake(id)
			r.await(id, volant.StateStarted)
			r.settle()
			if got := r.rules(why.Wake); got[len(got)-1] != want {
				t.Errorf("woken by %s, want %s", got[len(got)-1], want)
			}
		}
	})
}

func TestNoTemplatesBootsCold(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		r.cfg.NoTemplates = true
		_, id := awakeRig(t, r)
		if got := r.rules(why.Wake); !slices.Equal(got, []string{"cold"}) {
			t.Errorf("reasons %v", got)
		}
		if v := r.have(id); !v.Cold {
			t.Error("not cold")
		}
	})
}
