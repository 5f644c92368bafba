package fake

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/volant-edge/volant/microvm"
)

// firstThread is above every thread ID a kernel gives out, as firstPID is.
const firstThread = 1<<30 + 1<<29

// vm is one server's view of a proc.
type vm struct {
	e *Engine
	p *proc
}

func (v *vm) ID() string             { return v.p.handle.ID }
func (v *vm) Handle() microvm.Handle { return v.p.handle }
func (v *vm) Done() <-chan struct{}  { return v.p.done }

// Exit is valid after Done.
func (v *vm) Exit() microvm.VMExit {
	v.p.mu.Lock()
	defer v.p.mu.Unlock()
	return v.p.exit
}

func (v *vm) Resume(ctx context.Context) error {
	return v.do(ctx, "resume", func(f Fault) error {
		if err := v.p.set(running); err != nil {
			return err
		}
		v.p.dieAfter(f.DieAfter)
		return nil
	})
}

func (v *vm) Pause(ctx context.Context) error {
	return v.do(ctx, "pause", func(Fault) error { return v.p.set(paused) })
}

// do runs one change of the VM, alone, after its fault.
func (v *vm) do(ctx context.Context, op string, change func(Fault) error) error {
	v.p.change.Lock()
	defer v.p.change.Unlock()
	f, err := v.e.fault(ctx, op, v.ID(), 0)
	if err == nil {
		err = change(f)
	}
	if err != nil {
		return fmt.Errorf("%s vm %s: %w", op, v.ID(), err)
	}
	return nil
}

// Snapshot writes the guest's RAM as JSON for the state, and a small file for the memory.
func (v *vm) Snapshot(ctx context.Context, dir string) (microvm.Snapshot, error) {
	var s microvm.Snapshot
	err := v.do(ctx, "snapshot", func(f Fault) error {
		if err := v.p.set(paused); err != nil {
			return err
		}
		if err := sleep(ctx, v.e.cfg.Latency.Snapshot); err != nil {
			return err
		}
		if _, err := os.Lstat(dir); err == nil {
			return fmt.Errorf("%s exists: %w", dir, microvm.ErrState)
		}
		var err error
		if s, err = v.write(dir); err != nil || !f.Truncate {
			return err
		}
		return os.Truncate(filepath.Join(dir, microvm.MemoryFile), s.MemSize/2)
	})
	return s, err
}

func (v *vm) write(dir string) (s microvm.Snapshot, err error) {
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return s, err
	}
	if err := os.MkdirAll(part, 0o700); err != nil {
		return s, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(part) //nolint:errcheck // the first error matters
		}
	}()
	sum, size, err := v.p.guest.write(part)
	if err != nil {
		return s, err
	}
	h := v.p.handle
	s = microvm.Snapshot{
		Dir: part, Engine: h.Engine, Build: v.e.cfg.Build, VMID: h.ID, VCPUs: h.VCPUs, MemoryMiB: h.MemoryMiB,
		Drives: h.Drives, NICs: h.NICs, KernelSum: h.KernelSum, StateSum: sum, MemSize: size,
		Taken: time.Now().UTC(),
	}
	if err := s.WriteManifest(); err != nil {
		return s, err
	}
	if err := os.Rename(part, dir); err != nil {
		return s, err
	}
	s.Dir = dir
	return s, nil
}

// OpenLink opens a pipe to the guest's agent.
func (v *vm) OpenLink(ctx context.Context) (io.ReadWriteCloser, error) {
	if _, err := v.e.fault(ctx, "link", v.ID(), 0); err != nil {
		return nil, fmt.Errorf("open link to vm %s: %w", v.ID(), err)
	}
	c, err := v.p.open()
	if err != nil {
		return nil, fmt.Errorf("open link to vm %s: %w", v.ID(), err)
	}
	return c, nil
}

// VCPUThreads returns thread IDs that no kernel gives out, so that pinning them harms nobody.
func (v *vm) VCPUThreads(ctx context.Context) ([]int, error) {
	if v.p.ended() {
		return nil, fmt.Errorf("threads of vm %s: %w", v.ID(), microvm.ErrGone)
	}
	ids := make([]int, v.p.handle.VCPUs)
	for i := range ids {
		ids[i] = firstThread + (v.p.handle.PID-firstPID)*64 + i
	}
	return ids, ctx.Err()
}

func (v *vm) Kill(ctx context.Context) error {
	if _, err := v.e.fault(ctx, "kill", v.ID(), 0); err != nil {
		return fmt.Errorf("kill vm %s: %w", v.ID(), err)
	}
	v.p.end(microvm.VMExit{Signal: 9, Killed: true})
	if err := wait(ctx, v.p.done); err != nil {
		return fmt.Errorf("kill vm %s: %w", v.ID(), err)
	}
	return nil
}

func (v *vm) Remove(ctx context.Context) error {
	select {
	case <-v.p.done:
	default:
		return fmt.Errorf("remove vm %s: it runs: %w", v.ID(), microvm.ErrState)
	}
	if _, err := v.e.fault(ctx, "remove", v.ID(), 0); err != nil {
		return fmt.Errorf("remove vm %s: %w", v.ID(), err)
	}
	v.e.world.remove(v.p)
	return nil
}
