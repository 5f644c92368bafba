package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/volant-edge/volant/microvm"
)

// Sweep ends processes whose directory is ours, by this engine or an earlier one, and removes
// directories and memory files, all that keep does not name.
func (e *Engine) Sweep(ctx context.Context, keep func(id string) bool) ([]string, error) {
	var removed []string
	var errs []error
	for _, v := range e.all() {
		if keep(v.handle.ID) {
			continue
		}
		if err := v.discard(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, "vm "+v.handle.ID)
	}
	found, err := processes(ctx, e.cfg.ShmDir)
	if err != nil {
		return removed, errors.Join(append(errs, err)...)
	}
	for id, pids := range found {
		for _, pid := range pids {
			if keep(id) {
				continue
			}
			if err := e.endStray(ctx, id, pid); err != nil {
				errs = append(errs, fmt.Errorf("end process %d of vm %s: %w", pid, id, err))
				continue
			}
			removed = append(removed, fmt.Sprintf("process %d of vm %s", pid, id))
		}
	}
	for _, dir := range []struct{ path, suffix string }{{e.vms, ""}, {e.cfg.ShmDir, memorySuffix}} {
		gone, err := sweepDir(dir.path, dir.suffix, keep)
		removed, errs = append(removed, gone...), append(errs, err)
	}
	slices.Sort(removed)
	return removed, errors.Join(errs...)
}

// endStray kills a process that no VM of ours stands for.
func (e *Engine) endStray(ctx context.Context, id string, pid int) error {
	started, _, err := stat(pid)
	if err != nil {
		return nil // it has ended
	}
	p, err := attach(microvm.Handle{ID: id, PID: pid, StartTime: started}, e.cfg.ShmDir)
	if errors.Is(err, microvm.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.release()
	if _, err := p.kill(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { _, err := p.wait(); ended <- err }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func sweepDir(dir, suffix string, keep func(string) bool) ([]string, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, f := range list {
		id, ok := strings.CutSuffix(f.Name(), suffix)
		if !ok || microvm.CheckID(id) != nil || keep(id) {
			continue
		}
		path := filepath.Join(dir, f.Name())
		if err := os.RemoveAll(path); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, path)
	}
	return removed, errors.Join(errs...)
}
