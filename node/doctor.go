package node

import (
	"context"
	"net/netip"
	"os"

	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/doctor"
	"github.com/volant-edge/volant/kernel"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/microvm/qemu"
)

// Doctor says what this machine can do as a server of the given configuration, and what is missing. It
// changes nothing that stays; a canary guest may boot, and ends.
func Doctor(ctx context.Context, cfg Config) ([]doctor.Finding, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp("", "volant-doctor-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(tmp) }() // the probe's own files
	d := doctor.Config{
		Data: cfg.Data, Shm: cfg.Host.ShmDir, Pool: cfg.Host.Private4, Apps: []netip.Prefix{cfg.Edge.Pool4, cfg.Edge.Pool6},
		Kernel: func() (string, error) {
			k, err := kernel.Load(cfg.Host.KernelDir)
			return k.Release, err
		},
		Engine: func(ctx context.Context) (microvm.Capabilities, error) { return probe(ctx, cfg, tmp) },
	}
	dir, err := datadir.Attach(cfg.Data)
	if err == nil {
		d.Node = dir.Node()
	} else {
		dir = nil
	}
	d.Mesh = lookMesh(cfg.Mesh, dir)
	return doctor.Check(ctx, d), nil
}

// probe asks the engine in a directory of its own, so that a running server is not disturbed.
func probe(ctx context.Context, cfg Config, tmp string) (microvm.Capabilities, error) {
	shm, err := os.MkdirTemp(cfg.Host.ShmDir, "volant-doctor-")
	if err != nil {
		return microvm.Capabilities{}, err
	}
	defer func() { _ = os.RemoveAll(shm) }() // the probe's own files
	q := qemu.Config{Dir: tmp, ShmDir: shm, Log: cfg.Log}
	if k, err := kernel.Load(cfg.Host.KernelDir); err == nil { // without one there is no canary, and the kernel's finding says so
		q.Kernel, q.Initrd, q.KernelSum = k.Vmlinux, k.Initrd, k.Sum
	}
	e, err := qemu.New(q)
	if err != nil {
		return microvm.Capabilities{}, err
	}
	caps, err := e.Probe(ctx)
	if cerr := e.Close(); err == nil {
		err = cerr
	}
	return caps, err
}
