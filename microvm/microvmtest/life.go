package microvmtest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/microvm"
)

func testCold(t *testing.T, r *rig) {
	spec, placed := r.f.Spec(t, "cold"), 0
	spec.Placed = func(pid int) error { placed = pid; return nil }
	vm, err := r.e.Create(background(t), spec)
	if err != nil {
		t.Fatalf("Create: %v", err)
	}
	h := vm.Handle()
	if vm.ID() != "cold" || h.ID != "cold" || h.Engine != r.e.Name() {
		t.Errorf("VM %q has handle %+v of engine %q", vm.ID(), h, r.e.Name())
	}
	if placed == 0 || placed != h.PID {
		t.Errorf("Placed was called with %d, want the PID %d", placed, h.PID)
	}
	want(t, "Remove of a VM that lives", vm.Remove(background(t)), microvm.ErrState)

	link := openLink(t, vm)
	opened := make(chan *guest.Session, 1)
	go func() {
		s, err := guest.Open(background(t), link)
		if err != nil {
			t.Errorf("guest.Open: %v", err)
		}
		opened <- s
	}()
	resume(t, vm)
	s := <-opened
	if s == nil {
		t.FailNow()
	}
	if got := s.Hello(); got.Version != guest.Version || got.BootID == "" || got.Configured || got.Running {
		t.Errorf("a cold guest says %+v", got)
	}
	r.configure(t, s, vm)
	r.wantCount(t, s, 1)
	r.wantCount(t, s, 2)
	r.wantOwn(t, s, vm)

	threads, err := vm.VCPUThreads(background(t))
	if err != nil || len(threads) != spec.VCPUs || len(slices.Compact(slices.Sorted(slices.Values(threads)))) != spec.VCPUs {
		t.Errorf("VCPUThreads = %v, %v; want %d different", threads, err, spec.VCPUs)
	}
	end(t, vm)
	if got := vm.Exit(); !got.Killed || got.Signal != 9 {
		t.Errorf("Exit after Kill = %+v", got)
	}
	if err := vm.Kill(background(t)); err != nil {
		t.Errorf("second Kill: %v", err)
	}
	awaitDone(t, "the session of a killed VM", s.Done())
	want(t, "Resume of a killed VM", vm.Resume(background(t)), microvm.ErrGone)
}

func testPause(t *testing.T, r *rig) {
	vm, s := r.start(t, "pause")
	r.wantCount(t, s, 1)
	pause(t, vm)
	pause(t, vm)
	answered := make(chan error, 1)
	ctx, cancel := context.WithCancel(background(t))
	go func() { _, err := s.Stats(ctx); answered <- err }()
	select {
	case err := <-answered:
		t.Errorf("a paused guest answered, error %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	cancel()
	<-answered
	resume(t, vm)
	resume(t, vm)
	r.wantCount(t, s, 2)
	end(t, vm)
}

func testLink(t *testing.T, r *rig) {
	vm, s := r.start(t, "link")
	r.wantCount(t, s, 1)
	next := open(t, vm)
	awaitDone(t, "the session on the old link", s.Done())
	if got, want := next.Hello().BootID, s.Hello().BootID; got != want {
		t.Errorf("boot ID %q on the new link, want %q", got, want)
	}
	r.wantCount(t, next, 2)
	closeSession(t, next)
	third := open(t, vm)
	r.wantCount(t, third, 3)
	end(t, vm)
}

func testShutdown(t *testing.T, r *rig) {
	vm, s := r.start(t, "shutdown")
	if err := s.Shutdown(background(t)); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	awaitDone(t, "the VMM", vm.Done())
	if got := vm.Exit(); got.Killed || got.Code != 0 || got.Signal != 0 {
		t.Errorf("Exit after the guest's shutdown = %+v", got)
	}
	end(t, vm)
	if got := vm.Exit(); got.Killed {
		t.Errorf("Exit after a late Kill = %+v", got)
	}
}

func testDeath(t *testing.T, r *rig) {
	vm, s := r.start(t, "death")
	h := again(t, vm.Handle())
	r.f.Die(t, vm)
	awaitDone(t, "the VMM", vm.Done())
	awaitDone(t, "the session", s.Done())
	if got := vm.Exit(); got.Killed || got.Code == 0 && got.Signal == 0 {
		t.Errorf("Exit of a VMM that died = %+v", got)
	}
	_, err := r.e.Adopt(background(t), h)
	want(t, "Adopt of a dead VMM", err, microvm.ErrGone)
	want(t, "Resume of a dead VMM", vm.Resume(background(t)), microvm.ErrGone)
	_, err = vm.OpenLink(background(t))
	want(t, "OpenLink of a dead VMM", err, microvm.ErrGone)
	_, err = vm.Snapshot(background(t), t.TempDir()+"/snap")
	want(t, "Snapshot of a dead VMM", err, microvm.ErrGone)
	if err := vm.Remove(background(t)); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

func testAdopt(t *testing.T, r *rig) {
	vm, s := r.start(t, "adopt")
	r.wantCount(t, s, 1)
	boot, h := s.Hello().BootID, again(t, vm.Handle())
	r.restart(t)

	reused := h
	reused.StartTime++
	_, err := r.e.Adopt(background(t), reused)
	want(t, "Adopt of a reused PID", err, microvm.ErrGone)

	vm, err = r.e.Adopt(background(t), h)
	if err != nil {
		t.Fatalf("Adopt: %v", err)
	}
	if vm.ID() != "adopt" || vm.Handle() != h {
		t.Errorf("adopted %q with %+v, want %+v", vm.ID(), vm.Handle(), h)
	}
	s = open(t, vm)
	if got := s.Hello(); got.BootID != boot || !got.Configured || !got.Running {
		t.Errorf("the adopted guest says %+v, want boot ID %s, configured and running", got, boot)
	}
	r.wantCount(t, s, 2)
	if threads, err := vm.VCPUThreads(background(t)); err != nil || len(threads) != h.VCPUs {
		t.Errorf("VCPUThreads = %v, %v", threads, err)
	}
	snap := snapshot(t, vm, t.TempDir()+"/snap")
	end(t, vm)
	if !vm.Exit().Killed {
		t.Errorf("Exit of a killed adopted VM = %+v", vm.Exit())
	}
	_, err = r.e.Adopt(background(t), h)
	want(t, "Adopt of a removed VM", err, microvm.ErrGone)

	vm = r.restore(t, snap, "adopt")
	h = again(t, vm.Handle())
	r.restart(t)
	if vm, err = r.e.Adopt(background(t), h); err != nil {
		t.Fatalf("Adopt of a restored VM: %v", err)
	}
	s = open(t, vm)
	thaw(t, s)
	r.wantCount(t, s, 3)
	r.wantOwn(t, s, vm)
	r.f.Die(t, vm)
	awaitDone(t, "the adopted VMM", vm.Done())
	end(t, vm)
}

// restart lets go of the engine as the end of a server does, and opens the next.
func (r *rig) restart(t *testing.T) {
	t.Helper()
	if c, ok := r.e.(interface{ Close() error }); ok {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	r.e = r.f.Open(t)
}

func testSweep(t *testing.T, r *rig) {
	kept, s := r.start(t, "kept")
	gone, _ := r.start(t, "gone")
	r.restart(t)
	removed, err := r.e.Sweep(background(t), func(id string) bool { return id == "kept" })
	if err != nil {
		t.Fatalf("Sweep: %v", err)
	}
	if !contains(removed, "gone") || contains(removed, "kept") {
		t.Errorf("Sweep removed %q", removed)
	}
	_, err = r.e.Adopt(background(t), gone.Handle())
	want(t, "Adopt of a swept VM", err, microvm.ErrGone)
	vm, err := r.e.Adopt(background(t), kept.Handle())
	if err != nil {
		t.Fatalf("Adopt of the kept VM: %v", err)
	}
	closeSession(t, s)
	r.wantCount(t, open(t, vm), 1)
	end(t, vm)
	if removed, err = r.e.Sweep(background(t), func(string) bool { return false }); err != nil || len(removed) > 0 {
		t.Errorf("Sweep with nothing left = %q, %v", removed, err)
	}
}
