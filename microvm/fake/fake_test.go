package fake_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/microvm/fake"
	"github.com/volant-edge/volant/microvm/microvmtest"
)

func spec(_ testing.TB, id string) microvm.Spec {
	return microvm.Spec{
		ID: id, VCPUs: 2, MemoryMiB: 256, Kernel: "vmlinux", Initrd: "initrd",
		Drives: []microvm.Drive{{Path: "/images/" + id, ReadOnly: true}},
	}
}

func TestConformance(t *testing.T) {
	world := fake.NewWorld()
	t.Cleanup(world.Close)
	microvmtest.Run(t, microvmtest.Fixture{
		Open:   func(testing.TB) microvm.Engine { return fake.New(fake.Config{World: world}) },
		Spec:   spec,
		Config: func(microvm.Spec) guest.Config { return guest.Config{Hostname: "fake", Args: []string{"app"}} },
		Count:  []string{"count"},
		Name:   []string{"name"},
		Die: func(t testing.TB, vm microvm.VM) {
			if !world.Die(vm.ID(), microvm.VMExit{Signal: 6}) {
				t.Errorf("vm %s did not live", vm.ID())
			}
		},
		Left: func(testing.TB) []string { return world.Kept() },
	})
}

// start makes a VM and an open session with its agent.
func start(t *testing.T, e *fake.Engine, id string) (microvm.VM, *guest.Session) {
	t.Helper()
	vm, err := e.Create(t.Context(), spec(t, id))
	if err != nil {
		t.Fatal(err)
	}
	return vm, session(t, vm)
}

func session(t *testing.T, vm microvm.VM) *guest.Session {
	t.Helper()
	if err := vm.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	link, err := vm.OpenLink(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := guest.Open(t.Context(), link)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func configure(t *testing.T, s *guest.Session) {
	t.Helper()
	if err := s.Configure(t.Context(), guest.Config{Hostname: "h", Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestBootTakesItsLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := fake.New(fake.Config{Latency: fake.Latency{Create: time.Second, Boot: 2 * time.Second}})
		defer e.World().Close()
		begun := time.Now()
		start(t, e, "a")
		if got := time.Since(begun); got < 3*time.Second || got > 3100*time.Millisecond {
			t.Errorf("the agent answered after %v, want 3s", got)
		}
	})
}

func TestClockStandsStillUntilThaw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := fake.New(fake.Config{})
		defer e.World().Close()
		vm, s := start(t, e, "a")
		configure(t, s)
		snap, err := vm.Snapshot(t.Context(), filepath.Join(t.TempDir(), "snap"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(vm.Kill(t.Context()), vm.Remove(t.Context())); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if vm, err = e.Restore(t.Context(), snap, spec(t, "a")); err != nil {
			t.Fatal(err)
		}
		s = session(t, vm)
		g := e.World().Guest("a")
		if behind := time.Since(g.Now()); behind < 59*time.Minute {
			t.Errorf("before Thaw the guest's clock is %v behind, want an hour", behind)
		}
		if err := s.Thaw(t.Context(), guest.Thaw{Now: time.Now(), Entropy: []byte("new")}); err != nil {
			t.Fatal(err)
		}
		if behind := time.Since(g.Now()); behind != 0 {
			t.Errorf("after Thaw the guest's clock is %v behind", behind)
		}
		if got := string(g.Entropy()); got != "new" {
			t.Errorf("entropy %q", got)
		}
	})
}

func TestAppGoesOnAfterRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app := func(ctx context.Context, g *fake.Guest) guest.Exit {
			g.Log("stdout", "started")
			g.Add("starts", 1)
			for g.Await(ctx) == nil {
				g.Add("ticks", 1)
				select {
				case <-time.After(time.Second):
				case <-ctx.Done():
				}
			}
			return guest.Exit{Code: int(g.Add("ticks", 0))}
		}
		e := fake.New(fake.Config{App: app})
		defer e.World().Close()
		vm, s := start(t, e, "a")
		configure(t, s)
		time.Sleep(2500 * time.Millisecond)
		if err := vm.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		g := e.World().Guest("a")
		if got := g.Add("ticks", 0); got != 3 {
			t.Errorf("a paused app counted to %d, want 3", got)
		}
		snap, err := vm.Snapshot(t.Context(), filepath.Join(t.TempDir(), "snap"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(vm.Kill(t.Context()), vm.Remove(t.Context())); err != nil {
			t.Fatal(err)
		}
		if vm, err = e.Restore(t.Context(), snap, spec(t, "a")); err != nil {
			t.Fatal(err)
		}
		s = session(t, vm)
		synctest.Wait()
		if err := s.Signal(t.Context(), 15); err != nil {
			t.Fatal(err)
		}
		exit, err := s.Wait(t.Context())
		if err != nil || exit.Code != 4 {
			t.Errorf("Wait = %+v, %v; want code 4", exit, err)
		}
		if got := e.World().Guest("a").Add("starts", 0); got != 2 || !e.World().Guest("a").Restored() {
			t.Errorf("the app was started %d times", got)
		}
	})
}

func TestFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("broken")
		hook := fake.FailNth("create", 2, broken)
		e := fake.New(fake.Config{Hook: func(op fake.Op) fake.Fault {
			if op.Name == "resume" {
				return fake.Fault{DieAfter: time.Second}
			}
			if op.Name == "snapshot" {
				return fake.Fault{Truncate: true}
			}
			return hook(op)
		}})
		defer e.World().Close()
		vm, _ := start(t, e, "a")
		if _, err := e.Create(t.Context(), spec(t, "b")); !errors.Is(err, broken) {
			t.Errorf("second Create: error %v", err)
		}
		snap, err := vm.Snapshot(t.Context(), filepath.Join(t.TempDir(), "snap"))
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		<-vm.Done()
		if got := time.Since(begun); got != time.Second {
			t.Errorf("died after %v, want 1s", got)
		}
		if _, err := e.Restore(t.Context(), snap, spec(t, "a")); !errors.Is(err, microvm.ErrIncompatible) {
			t.Errorf("Restore of a truncated snapshot: error %v", err)
		}
	})
}
