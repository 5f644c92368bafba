package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	volant "github.com/volant-edge/volant"
)

// The directories below Config.Dir.
const (
	dirScratch   = "scratch"
	dirSnapshots = "snapshots"
	dirLogs      = "logs"
	dirOldLogs   = "oldlogs"
	dirTemplates = "templates"
)

func (h *Host) scratchFile(id volant.MachineID) string {
	return filepath.Join(h.cfg.Dir, dirScratch, string(id)+".img")
}

func (h *Host) snapshotDir(id volant.MachineID, n uint64) string {
	return filepath.Join(h.cfg.Dir, dirSnapshots, fmt.Sprintf("%s-%d", id, n))
}

func (h *Host) logDir(id volant.MachineID) string {
	return filepath.Join(h.cfg.Dir, dirLogs, string(id))
}

// removeTree removes a directory or file of ours. What stays is swept at the next start.
func (h *Host) removeTree(path string) {
	if !strings.HasPrefix(path, h.cfg.Dir+string(filepath.Separator)) {
		h.log.Error("path outside the host's directory not removed", "path", path)
		return
	}
	if err := os.RemoveAll(path); err != nil {
		h.log.Warn("files not removed", "path", path, "err", err)
	}
}

// removeFiles removes all files of a machine but its record.
func (h *Host) removeFiles(id volant.MachineID) error {
	errs := []error{os.RemoveAll(h.scratchFile(id)), os.RemoveAll(h.logDir(id))}
	snaps, err := filepath.Glob(filepath.Join(h.cfg.Dir, dirSnapshots, string(id)+"-*"))
	errs = append(errs, err)
	for _, s := range snaps {
		errs = append(errs, os.RemoveAll(s))
	}
	return errors.Join(errs...)
}

// sweep removes what earlier processes made and no record names: VMs, links, cgroups and files.
func (h *Host) sweep(ctx context.Context) error {
	vms := map[string]bool{}
	snaps := map[string]bool{}
	known := map[volant.MachineID]bool{}
	for _, m := range h.all() {
		r := m.record()
		known[m.id] = true
		if m.vm != nil {
			vms[m.vm.ID()] = true
		}
		if r.Snapshot != nil {
			snaps[filepath.Base(r.Snapshot.Dir)] = true
		}
	}
	removed, err := h.deps.Engine.Sweep(ctx, func(id string) bool { return vms[id] })
	if err != nil {
		return fmt.Errorf("sweep vms: %w", err)
	}
	keep := func(id volant.MachineID) bool { return known[id] }
	links, err := h.deps.Net.Sweep(ctx, keep)
	if err != nil {
		return fmt.Errorf("sweep network: %w", err)
	}
	groups, err := h.deps.Cgroups.Sweep(ctx, func(id volant.MachineID) bool { return vms[string(id)] })
	if err != nil {
		return fmt.Errorf("sweep cgroups: %w", err)
	}
	removed = append(append(removed, links...), groups...)
	files, err := h.sweepFiles(known, snaps)
	if err != nil {
		return fmt.Errorf("sweep files: %w", err)
	}
	if err := h.sweepOldLogs(); err != nil {
		return fmt.Errorf("sweep old logs: %w", err)
	}
	if removed = append(removed, files...); len(removed) > 0 {
		h.log.Info("leftovers removed", "what", removed)
	}
	return nil
}

func (h *Host) sweepFiles(known map[volant.MachineID]bool, snaps map[string]bool) (removed []string, err error) {
	keep := map[string]func(name string) bool{
		dirScratch:   func(n string) bool { return known[volant.MachineID(strings.TrimSuffix(n, ".img"))] },
		dirSnapshots: func(n string) bool { return snaps[n] },
		dirLogs:      func(n string) bool { return known[volant.MachineID(n)] },
		dirTemplates: h.templates.keeps,
	}
	for dir, ok := range keep {
		path := filepath.Join(h.cfg.Dir, dir)
		if err := os.MkdirAll(path, 0o700); err != nil {
			return removed, err
		}
		entries, err := os.ReadDir(path)
		if err != nil {
			return removed, err
		}
		for _, e := range entries {
			if ok(e.Name()) {
				continue
			}
			if err := os.RemoveAll(filepath.Join(path, e.Name())); err != nil {
				return removed, err
			}
			removed = append(removed, filepath.Join(dir, e.Name()))
		}
	}
	return removed, nil
}
