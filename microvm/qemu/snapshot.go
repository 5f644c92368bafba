package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/volant-edge/volant/microvm"
)

// migrateTime bounds a migration of the device state. It takes 5 ms on a machine that is idle.
const migrateTime = 20 * time.Second

// Snapshot migrates the device state into a file and copies the memory beside it.
func (v *vm) Snapshot(ctx context.Context, dir string) (microvm.Snapshot, error) {
	var s microvm.Snapshot
	err := v.do(ctx, "snapshot", func() (err error) {
		if _, err := os.Lstat(dir); err == nil {
			return fmt.Errorf("%s exists: %w", dir, microvm.ErrState)
		}
		part := dir + ".part"
		if err := errors.Join(os.RemoveAll(part), os.MkdirAll(part, 0o700)); err != nil {
			return err
		}
		if s, err = v.write(ctx, part); err == nil {
			err = os.Rename(part, dir)
		}
		if err != nil {
			return errors.Join(err, os.RemoveAll(part))
		}
		s.Dir = dir
		return syncDir(filepath.Dir(dir))
	})
	if err != nil {
		return microvm.Snapshot{}, err
	}
	return s, nil
}

func (v *vm) write(ctx context.Context, dir string) (microvm.Snapshot, error) {
	s := microvm.Snapshot{
		Dir: dir, Engine: v.handle.Engine, Build: v.build, VMID: v.handle.ID, VCPUs: v.handle.VCPUs,
		MemoryMiB: v.handle.MemoryMiB, Drives: v.handle.Drives, NICs: v.handle.NICs,
		KernelSum: v.handle.KernelSum, MemSize: int64(v.handle.MemoryMiB) << 20,
		HostBoot: v.e.host, ClockKHz: v.clock, Taken: time.Now().UTC(),
	}
	state, err := secretFile(filepath.Join(dir, microvm.StateFile))
	if err != nil {
		return s, err
	}
	defer state.Close() //nolint:errcheck // synced below
	if err := v.migrate(ctx, state); err != nil {
		return s, err
	}
	memory, err := secretFile(filepath.Join(dir, microvm.MemoryFile))
	if err != nil {
		return s, err
	}
	defer memory.Close() //nolint:errcheck // synced below
	if s.MemSum, err = pack(ctx, memory, v.memory, s.MemSize); err != nil {
		return s, err
	}
	if s.StateSum, err = microvm.SumFile(state.Name()); err != nil {
		return s, err
	}
	if err := errors.Join(state.Sync(), memory.Sync()); err != nil {
		return s, err
	}
	return s, s.WriteManifest()
}

// secretFile makes a file for root alone: a guest's memory has its secrets in it.
func secretFile(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
}

// migrate writes the device state into a file. The VM is paused then, by the migration if not before.
func (v *vm) migrate(ctx context.Context, state *os.File) error {
	moves := v.expect()
	defer v.unexpect()
	raw, err := v.mon.do(ctx, nil, call("stop", nil), call("query-status", nil))
	if err != nil {
		return err
	}
	status, err := decode[struct {
		Status string `json:"status"`
	}](raw)
	if err != nil {
		return err
	}
	if status.Status == "postmigrate" {
		// QEMU refuses a second migration before the VM has run again.
		if _, err := v.mon.do(ctx, nil, call("cont", nil), call("stop", nil)); err != nil {
			return err
		}
	}
	// A migration that has begun is waited for: it would stop a VM that was resumed meanwhile.
	begun, cancel := context.WithTimeout(context.WithoutCancel(ctx), migrateTime)
	defer cancel()
	if _, err := v.mon.do(begun, state, call("getfd", map[string]string{"fdname": "state"}),
		call("migrate", map[string]string{"uri": "fd:state"})); err != nil {
		return err
	}
	if err := v.await(begun, moves); err != nil {
		return err
	}
	return ctx.Err()
}

// expect lets the statuses of the migration that is about to begin be waited for.
func (v *vm) expect() <-chan string {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.moves = make(chan string, 32)
	return v.moves
}

func (v *vm) unexpect() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.moves = nil
}

// await waits for the migration's end, either way.
func (v *vm) await(ctx context.Context, moves <-chan string) error {
	for {
		select {
		case s := <-moves:
			switch s {
			case "completed":
				return nil
			case "failed", "cancelled":
				return fmt.Errorf("migration %s: %w", s, v.whyFailed(ctx))
			}
		case <-v.mon.done:
			return errMonitor
		case <-v.done:
			return microvm.ErrGone
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// whyFailed is QEMU's word on the last migration.
func (v *vm) whyFailed(ctx context.Context) error {
	raw, err := v.mon.do(ctx, nil, call("query-migrate", nil))
	if err != nil {
		return err
	}
	info, err := decode[struct {
		Desc string `json:"error-desc"`
	}](raw)
	if err != nil || info.Desc == "" {
		return errors.New("without a reason")
	}
	return errors.New(info.Desc)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Restore makes a paused VM from a snapshot, in a copy of its memory.
func (e *Engine) Restore(ctx context.Context, snap microvm.Snapshot, spec microvm.Spec) (microvm.VM, error) {
	v, err := e.restore(ctx, snap, spec)
	if err != nil {
		return nil, fmt.Errorf("restore vm %s: %w", spec.ID, err)
	}
	return v, nil
}

func (e *Engine) restore(ctx context.Context, snap microvm.Snapshot, spec microvm.Spec) (*vm, error) {
	if err := spec.Check(); err != nil {
		return nil, err
	}
	host, err := e.probed(ctx)
	if err != nil {
		return nil, err
	}
	kernel, err := e.sums.of(spec)
	if err != nil {
		return nil, err
	}
	if err := e.check(ctx, snap, host, kernel, spec); err != nil {
		return nil, err
	}
	return e.make(ctx, host, spec, kernel, func(v *vm) error { return v.load(ctx, host, snap, spec) })
}

// check says whether the snapshot fits. Its memory is read only if the host was rebooted since:
// until then, what was written is what is read.
func (e *Engine) check(ctx context.Context, snap microvm.Snapshot, host found, kernel string, spec microvm.Spec) error {
	if err := snap.Check(e.Name(), host.Build, kernel, spec); err != nil {
		return err
	}
	if want := int64(spec.MemoryMiB) << 20; snap.MemSize != want {
		return fmt.Errorf("%w: its memory has %d bytes, not %d", microvm.ErrIncompatible, snap.MemSize, want)
	}
	if !sameClock(snap.ClockKHz, host.TSCKHz) {
		return fmt.Errorf("%w: its clock runs at %d kHz, this host's at %d", microvm.ErrIncompatible, snap.ClockKHz, host.TSCKHz)
	}
	if err := snap.CheckFiles(); err != nil {
		return err
	}
	if snap.HostBoot == e.host {
		return nil
	}
	f, err := os.Open(filepath.Join(snap.Dir, microvm.MemoryFile))
	if err != nil {
		return fmt.Errorf("%w: %w", microvm.ErrIncompatible, err)
	}
	defer f.Close() //nolint:errcheck // only read
	sum, err := sumMemory(ctx, f, snap.MemSize)
	switch {
	case err != nil:
		return err
	case sum != snap.MemSum:
		return fmt.Errorf("%w: the memory file was changed", microvm.ErrIncompatible)
	}
	return nil
}

// load starts a process that waits for the state, while the memory is copied, and hands it over.
func (v *vm) load(ctx context.Context, host found, snap microvm.Snapshot, spec microvm.Spec) error {
	state, err := os.Open(filepath.Join(snap.Dir, microvm.StateFile))
	if err != nil {
		return fmt.Errorf("%w: %w", microvm.ErrIncompatible, err)
	}
	defer state.Close() //nolint:errcheck // only read
	if err := v.memory.Truncate(snap.MemSize); err != nil {
		return err
	}
	copied := make(chan error, 1)
	go func() { copied <- v.fill(ctx, snap) }()
	err = v.spawn(ctx, host, spec, state)
	if err == nil {
		_, err = v.mon.do(ctx, nil, v.settings()...)
	}
	if err := errors.Join(err, <-copied); err != nil {
		return err
	}
	moves := v.expect()
	defer v.unexpect()
	_, err = v.mon.do(ctx, nil, call("migrate-incoming", map[string]string{"uri": fmt.Sprintf("fd:%d", fdState)}))
	if err == nil {
		err = v.await(ctx, moves)
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: load state: %w", microvm.ErrIncompatible, v.because(err))
	}
	return err
}

func (v *vm) fill(ctx context.Context, snap microvm.Snapshot) error {
	src, err := os.Open(filepath.Join(snap.Dir, microvm.MemoryFile))
	if err != nil {
		return fmt.Errorf("%w: %w", microvm.ErrIncompatible, err)
	}
	defer src.Close() //nolint:errcheck // only read
	return unpack(ctx, v.memory, src, snap.MemSize)
}
