package host_test

import (
	"context"
	"io"
	"runtime"
	"sync"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/microvm"
)

// fuse stands between a host and its powers. When it is blown, each goroutine of the host ends at its next
// call, and all links are closed: what a kill -9 does to a process.
type fuse struct {
	mu    sync.Mutex
	blown bool
	links []io.Closer
}

// blow ends the host, from one of its goroutines or from the test.
func (f *fuse) blow() {
	f.mu.Lock()
	f.blown = true
	links := f.links
	f.links = nil
	f.mu.Unlock()
	for _, l := range links {
		_ = l.Close() // nobody is left to tell
	}
}

// check ends the goroutine if the fuse is blown.
func (f *fuse) check() {
	f.mu.Lock()
	blown := f.blown
	f.mu.Unlock()
	if blown {
		runtime.Goexit()
	}
}

func (f *fuse) wrap(d host.Deps) host.Deps {
	publish := d.Publish
	d.Engine = fusedEngine{d.Engine, f}
	d.Images = fusedImages{d.Images, f}
	d.Net = fusedNet{d.Net, f}
	d.Cgroups = fusedGroups{d.Cgroups, f}
	d.Seal = fusedSeal{d.Seal, f}
	d.Publish = func(v volant.Have) { f.check(); publish(v) }
	return d
}

type fusedEngine struct {
	microvm.Engine
	f *fuse
}

func (e fusedEngine) vm(vm microvm.VM, err error) (microvm.VM, error) {
	e.f.check()
	if err != nil {
		return nil, err
	}
	return fusedVM{vm, e.f}, nil
}

func (e fusedEngine) Create(ctx context.Context, s microvm.Spec) (microvm.VM, error) {
	e.f.check()
	return e.vm(e.Engine.Create(ctx, s))
}

func (e fusedEngine) Restore(ctx context.Context, snap microvm.Snapshot, s microvm.Spec) (microvm.VM, error) {
	e.f.check()
	return e.vm(e.Engine.Restore(ctx, snap, s))
}

func (e fusedEngine) Adopt(ctx context.Context, h microvm.Handle) (microvm.VM, error) {
	e.f.check()
	return e.vm(e.Engine.Adopt(ctx, h))
}

func (e fusedEngine) Sweep(ctx context.Context, keep func(string) bool) ([]string, error) {
	e.f.check()
	return e.Engine.Sweep(ctx, keep)
}

type fusedVM struct {
	microvm.VM
	f *fuse
}

func (v fusedVM) Resume(ctx context.Context) error {
	v.f.check()
	return v.VM.Resume(ctx)
}

func (v fusedVM) Pause(ctx context.Context) error {
	v.f.check()
	return v.VM.Pause(ctx)
}

func (v fusedVM) Snapshot(ctx context.Context, dir string) (microvm.Snapshot, error) {
	v.f.check()
	s, err := v.VM.Snapshot(ctx, dir)
	v.f.check()
	return s, err
}

func (v fusedVM) Kill(ctx context.Context) error {
	v.f.check()
	return v.VM.Kill(ctx)
}

func (v fusedVM) Remove(ctx context.Context) error {
	v.f.check()
	return v.VM.Remove(ctx)
}

func (v fusedVM) OpenLink(ctx context.Context) (io.ReadWriteCloser, error) {
	v.f.check()
	l, err := v.VM.OpenLink(ctx)
	if err != nil {
		return nil, err
	}
	v.f.mu.Lock()
	v.f.links = append(v.f.links, l)
	v.f.mu.Unlock()
	return l, nil
}

type fusedImages struct {
	host.Images
	f *fuse
}

func (i fusedImages) Rootfs(ctx context.Context, d volant.Digest) (host.Rootfs, error) {
	i.f.check()
	return i.Images.Rootfs(ctx, d)
}

func (i fusedImages) Scratch(ctx context.Context, path string, mb int) error {
	i.f.check()
	return i.Images.Scratch(ctx, path, mb)
}

type fusedNet struct {
	host.Net
	f *fuse
}

func (n fusedNet) Attach(ctx context.Context, id volant.MachineID, org volant.OrgID) (host.Link, error) {
	n.f.check()
	return n.Net.Attach(ctx, id, org)
}

func (n fusedNet) Detach(ctx context.Context, id volant.MachineID) error {
	n.f.check()
	return n.Net.Detach(ctx, id)
}

type fusedGroups struct {
	host.Cgroups
	f *fuse
}

func (g fusedGroups) Add(ctx context.Context, id volant.MachineID, pid int) error {
	g.f.check()
	return g.Cgroups.Add(ctx, id, pid)
}

func (g fusedGroups) Remove(ctx context.Context, id volant.MachineID) error {
	g.f.check()
	return g.Cgroups.Remove(ctx, id)
}

type fusedSeal struct {
	host.Sealer
	f *fuse
}

func (s fusedSeal) Seal(ctx context.Context, id volant.MachineID, seq uint64) (bool, error) {
	s.f.check()
	ok, err := s.Sealer.Seal(ctx, id, seq)
	s.f.check()
	return ok, err
}
