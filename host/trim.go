package host

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/why"
)

const (
	trimEvery = time.Minute
	trimAbove = 0.8 // of the disk
)

// diskUsed is the part of dir's disk that is in use, of what we may use: what is kept for others is not ours.
func diskUsed(dir string) (float64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, err
	}
	used := s.Blocks - s.Bfree
	if used+s.Bavail == 0 {
		return 0, nil
	}
	return float64(used) / float64(used+s.Bavail), nil
}

func (h *Host) diskFull() (bool, error) {
	used, err := h.cfg.DiskUsed(h.cfg.Dir)
	return used > trimAbove, err
}

// trimNowAndThen throws away what a full disk needs more than we do.
func (h *Host) trimNowAndThen(ctx context.Context) {
	t := time.NewTicker(trimEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := h.trim(ctx); err != nil && ctx.Err() == nil {
			h.log.Warn("disk not trimmed", "err", err)
		}
	}
}

// trim throws away templates, then snapshots, the longest unused first, until the disk is below its bound.
func (h *Host) trim(ctx context.Context) error {
	for {
		if full, err := h.diskFull(); !full || err != nil {
			return err
		}
		if !h.templates.trim() {
			break
		}
	}
	for _, m := range h.suspended() {
		if full, err := h.diskFull(); !full || err != nil {
			return err
		}
		a := &ask{what: AskStop, rule: "disk_full", by: "a disk above 80 %"}
		if err := m.order(ctx, a); err != nil {
			m.log.Debug("snapshot kept", "err", err)
			continue
		}
		select {
		case <-a.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// suspended are the machines with a snapshot, the longest asleep first.
func (h *Host) suspended() []*machine {
	since := map[*machine]time.Time{}
	var ms []*machine
	for _, m := range h.all() {
		if r := m.record(); r.State == volant.StateSuspended {
			since[m] = r.Since
			ms = append(ms, m)
		}
	}
	slices.SortStableFunc(ms, func(a, b *machine) int { return since[a].Compare(since[b]) })
	return ms
}

// trim throws away the template that was not used for the longest time, and says whether there was one.
func (t *templates) trim() bool {
	t.mu.Lock()
	var oldest string
	for key, e := range t.known {
		if e.ok && !e.making && (oldest == "" || e.used.Before(t.known[oldest].used)) {
			oldest = key
		}
	}
	if oldest != "" {
		delete(t.known, oldest)
	}
	t.mu.Unlock()
	if oldest == "" {
		return false
	}
	if err := os.Remove(t.dir(oldest) + ".json"); err != nil {
		t.h.log.Warn("template's record not removed", "err", err)
	}
	t.h.removeTree(t.dir(oldest))
	if t.h.deps.Why != nil {
		t.h.deps.Why.Add(t.h.reason(why.Machine, "disk_full", fmt.Sprintf("template %s was thrown away: the disk is above 80 %%", oldest)))
	}
	return true
}
