package microvmtest

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/microvm"
)

func testSnapshot(t *testing.T, r *rig) {
	vm, s := r.start(t, "snapshot")
	r.wantCount(t, s, 1)
	taken := t.TempDir()
	if _, err := vm.Snapshot(background(t), taken); err == nil {
		t.Error("Snapshot into a directory that exists succeeded")
	}
	dir := filepath.Join(taken, "snap")
	for _, after := range []time.Duration{0, 5 * time.Millisecond, 30 * time.Millisecond} {
		ctx, cancel := context.WithCancel(background(t))
		time.AfterFunc(after, cancel)
		_, err := vm.Snapshot(ctx, dir)
		if _, serr := os.Stat(dir); err != nil && !errors.Is(serr, os.ErrNotExist) {
			t.Errorf("a cancelled Snapshot left its directory, error %v", serr)
		}
		if err == nil {
			err = os.RemoveAll(dir) // it was faster
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Snapshot cancelled after %v: error %v", after, err)
		}
	}
	resume(t, vm)
	r.wantCount(t, s, 2)
	snapshot(t, vm, dir)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	snap := snapshot(t, vm, dir) // a second one without a Resume
	read, err := microvm.ReadSnapshot(dir)
	if err != nil {
		t.Fatalf("ReadSnapshot: %v", err)
	}
	read.Taken, snap.Taken = snap.Taken.UTC(), snap.Taken.UTC()
	if read != snap {
		t.Errorf("the manifest is %+v, want %+v", read, snap)
	}
	if err := snap.CheckFiles(); err != nil {
		t.Errorf("CheckFiles: %v", err)
	}
	files, _ := filepath.Glob(dir + "/*")
	for _, name := range files {
		if fi, err := os.Stat(name); err != nil || fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("others may read %s: %v, %v", name, fi.Mode(), err)
		}
	}
	if names, _ := filepath.Glob(taken + "/*"); len(names) != 1 {
		t.Errorf("files beside the snapshot: %q", names)
	}
	resume(t, vm)
	r.wantCount(t, s, 3)
	end(t, vm)

	vm = r.restore(t, snap, "snapshot") // as it was, not as it went on
	s = open(t, vm)
	thaw(t, s)
	r.wantCount(t, s, 3)
	end(t, vm)
}

func testSuspend(t *testing.T, r *rig) {
	vm, s := r.start(t, "suspend")
	r.wantCount(t, s, 1)
	boot := s.Hello().BootID
	for n := 2; n < 5; n++ {
		if err := s.Freeze(background(t)); err != nil {
			t.Fatalf("Freeze: %v", err)
		}
		snap := snapshot(t, vm, filepath.Join(t.TempDir(), "snap"))
		end(t, vm)
		awaitDone(t, "the session before the suspend", s.Done())
		if left := r.f.Left(t); len(left) > 0 {
			t.Errorf("a suspended VM holds %q", left)
		}
		spec, placed := r.f.Spec(t, "suspend"), 0
		spec.Placed = func(pid int) error { placed = pid; return nil }
		var err error
		if vm, err = r.e.Restore(background(t), snap, spec); err != nil {
			t.Fatalf("Restore %d: %v", n, err)
		}
		if placed != vm.Handle().PID {
			t.Errorf("Placed was called with %d, want %d", placed, vm.Handle().PID)
		}
		resume(t, vm)
		s = open(t, vm)
		if got := s.Hello(); got.BootID != boot || !got.Configured || !got.Running {
			t.Errorf("after restore %d the guest says %+v, want boot ID %s, configured and running", n, got, boot)
		}
		thaw(t, s)
		r.wantCount(t, s, n)
	}
	end(t, vm)
}

func testTemplate(t *testing.T, r *rig) {
	if r.template.Dir == "" {
		r.makeTemplate(t)
	}
	const clones = 3
	vms, sessions := make([]microvm.VM, clones), make([]*guest.Session, clones)
	var wg sync.WaitGroup
	for i := range clones {
		spec := r.f.Spec(t, "clone-"+string(rune('a'+i)))
		wg.Go(func() {
			var err error
			if vms[i], err = r.e.Restore(background(t), r.template, spec); err != nil {
				t.Errorf("Restore: %v", err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for i, vm := range vms {
		resume(t, vm)
		sessions[i] = open(t, vm)
		if got := sessions[i].Hello(); got.Configured {
			t.Errorf("a clone says %+v", got)
		}
		r.configure(t, sessions[i], vm)
	}
	for i, s := range sessions {
		r.wantOwn(t, s, vms[i])
		for n := 1; n <= i+1; n++ {
			r.wantCount(t, s, n) // each its own memory
		}
	}
	snap := snapshot(t, vms[2], filepath.Join(t.TempDir(), "snap"))
	for _, vm := range vms {
		end(t, vm)
	}
	vm := r.restore(t, snap, "clone-c")
	s := open(t, vm)
	thaw(t, s)
	r.wantCount(t, s, clones+1)
	r.wantOwn(t, s, vm)
	end(t, vm)
}

func testCancel(t *testing.T, r *rig) {
	if r.template.Dir == "" {
		r.makeTemplate(t)
	}
	refused := errors.New("no place")
	for _, c := range []struct {
		name   string
		placed func(cancel context.CancelFunc) error
		kind   error
	}{
		{"its ctx ends", func(cancel context.CancelFunc) error { cancel(); return nil }, context.Canceled},
		{"Placed fails", func(context.CancelFunc) error { return refused }, refused},
	} {
		for _, how := range []string{"Create", "Restore"} {
			ctx, cancel := context.WithCancel(background(t))
			spec := r.f.Spec(t, "cancel")
			spec.Placed = func(int) error { return c.placed(cancel) }
			begin := r.e.Create
			if how == "Restore" {
				begin = func(ctx context.Context, spec microvm.Spec) (microvm.VM, error) {
					return r.e.Restore(ctx, r.template, spec)
				}
			}
			_, err := begin(ctx, spec)
			cancel()
			want(t, how+" when "+c.name, err, c.kind)
			if left := r.f.Left(t); len(left) > 0 {
				t.Errorf("%s when %s left %q", how, c.name, left)
			}
		}
	}
}

func testTwice(t *testing.T, r *rig) {
	vm, s := r.start(t, "twice")
	if _, err := r.e.Create(background(t), r.f.Spec(t, "twice")); err == nil {
		t.Error("a second Create of one ID succeeded")
	}
	if _, err := r.e.Restore(background(t), r.template, r.f.Spec(t, "twice")); err == nil {
		t.Error("a Restore over a living VM succeeded")
	}
	r.wantCount(t, s, 1) // and the first was not harmed
	end(t, vm)
	if _, err := r.e.Create(background(t), r.f.Spec(t, "a/b")); err == nil {
		t.Error("Create with a slash in the ID succeeded")
	}
}

func testDamage(t *testing.T, r *rig) {
	vm, _ := r.start(t, "damage")
	good := snapshot(t, vm, filepath.Join(t.TempDir(), "snap"))
	end(t, vm)
	for _, c := range []struct {
		name string
		harm func(t *testing.T, s *microvm.Snapshot, spec *microvm.Spec)
	}{
		{"the state file is missing", func(t *testing.T, s *microvm.Snapshot, _ *microvm.Spec) { remove(t, s.Dir, microvm.StateFile) }},
		{"a bit of the state file is flipped", func(t *testing.T, s *microvm.Snapshot, _ *microvm.Spec) { flip(t, s.Dir) }},
		{"the state file is cut short", func(t *testing.T, s *microvm.Snapshot, _ *microvm.Spec) { truncate(t, s.Dir, microvm.StateFile, 40) }},
		{"the memory file is missing", func(t *testing.T, s *microvm.Snapshot, _ *microvm.Spec) { remove(t, s.Dir, microvm.MemoryFile) }},
		{"the memory file is cut short", func(t *testing.T, s *microvm.Snapshot, _ *microvm.Spec) {
			truncate(t, s.Dir, microvm.MemoryFile, s.MemSize/2)
		}},
		{"the memory file is empty", func(t *testing.T, s *microvm.Snapshot, _ *microvm.Spec) { truncate(t, s.Dir, microvm.MemoryFile, 0) }},
		{"the directory is gone", func(t *testing.T, s *microvm.Snapshot, _ *microvm.Spec) { s.Dir += "-gone" }},
		{"it is of another machine", func(_ *testing.T, s *microvm.Snapshot, _ *microvm.Spec) { s.VMID = "other" }},
		{"it is of another engine", func(_ *testing.T, s *microvm.Snapshot, _ *microvm.Spec) { s.Engine = "other" }},
		{"it is of another build of the engine", func(_ *testing.T, s *microvm.Snapshot, _ *microvm.Spec) { s.Build += "x" }},
		{"it is of another kernel", func(_ *testing.T, s *microvm.Snapshot, _ *microvm.Spec) { s.KernelSum += "x" }},
		{"the machine has other vCPUs", func(_ *testing.T, _ *microvm.Snapshot, p *microvm.Spec) { p.VCPUs++ }},
		{"the machine has other memory", func(_ *testing.T, _ *microvm.Snapshot, p *microvm.Spec) { p.MemoryMiB *= 2 }},
		{"the machine has other drives", func(_ *testing.T, _ *microvm.Snapshot, p *microvm.Spec) {
			p.Drives = append(slices.Clone(p.Drives), microvm.Drive{Path: os.DevNull, ReadOnly: true})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, spec := good, r.f.Spec(t, "damage")
			s.Dir = filepath.Join(t.TempDir(), "copy")
			copySnapshot(t, s.Dir, good.Dir)
			c.harm(t, &s, &spec)
			_, err := r.e.Restore(background(t), s, spec)
			want(t, "Restore", err, microvm.ErrIncompatible)
			if left := r.f.Left(t); len(left) > 0 {
				t.Errorf("Restore left %q", left)
			}
		})
	}
	remove(t, good.Dir, microvm.ManifestFile)
	_, err := microvm.ReadSnapshot(good.Dir)
	want(t, "ReadSnapshot without a manifest", err, microvm.ErrIncompatible)
}

// copySnapshot copies a snapshot, except that the memory file is linked: it is large.
func copySnapshot(t *testing.T, to, from string) {
	t.Helper()
	if err := os.Mkdir(to, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(from, microvm.MemoryFile), filepath.Join(to, microvm.MemoryFile)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{microvm.StateFile, microvm.ManifestFile} {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

// truncate leaves only the first size bytes of a file, in a file of its own.
func truncate(t *testing.T, dir, name string, size int64) {
	t.Helper()
	path := filepath.Join(dir, name)
	b := make([]byte, min(size, 1<<20))
	f, err := os.Open(path)
	if err == nil {
		_, err = io.ReadFull(f, b)
		err = errors.Join(err, f.Close(), os.Remove(path), os.WriteFile(path, b, 0o600), os.Truncate(path, size))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func flip(t *testing.T, dir string) {
	t.Helper()
	name := filepath.Join(dir, microvm.StateFile)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
