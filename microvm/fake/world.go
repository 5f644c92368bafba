package fake

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/volant-edge/volant/microvm"
)

// firstPID is above the largest PID a kernel gives out, so that nobody hits a real process with it.
const firstPID = 1 << 30

// World holds the fake VMMs of one host. It outlives the engines that made them.
type World struct {
	mu   sync.Mutex
	vms  map[string]*proc // guarded by mu; until removed
	last int              // guarded by mu
}

// NewWorld returns a world without VMMs.
func NewWorld() *World { return &World{vms: map[string]*proc{}} }

// Running returns the IDs of the VMMs that have not ended, sorted: what a list of processes would show.
func (w *World) Running() []string { return w.ids(func(p *proc) bool { return !p.ended() }) }

// Kept returns the IDs of all VMs that were not removed, sorted: what a list of directories would show.
func (w *World) Kept() []string { return w.ids(func(*proc) bool { return true }) }

// Guest returns the guest of a VM, or nil.
func (w *World) Guest(id string) *Guest {
	if p := w.find(id); p != nil {
		return p.guest
	}
	return nil
}

// Die ends a VMM as by an accident, and waits until it has ended. It reports whether it ran.
func (w *World) Die(id string, exit microvm.VMExit) bool {
	p := w.find(id)
	if p == nil || p.ended() {
		return false
	}
	p.end(exit)
	<-p.done
	return true
}

// Close ends all VMMs, for a test's end.
func (w *World) Close() {
	for _, p := range w.all() {
		p.end(microvm.VMExit{Signal: 9, Killed: true})
		<-p.done
		w.remove(p)
	}
}

func (w *World) ids(is func(*proc) bool) []string {
	var ids []string
	for _, p := range w.all() {
		if is(p) {
			ids = append(ids, p.handle.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

func (w *World) all() []*proc {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ps []*proc
	for _, p := range w.vms {
		ps = append(ps, p)
	}
	return ps
}

func (w *World) find(id string) *proc {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.vms[id]
}

func (w *World) remove(p *proc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.vms[p.handle.ID] == p {
		delete(w.vms, p.handle.ID)
	}
}

func (w *World) spawn(cfg Config, spec microvm.Spec, g *Guest) (*proc, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.vms[spec.ID] != nil {
		return nil, fmt.Errorf("it exists: %w", microvm.ErrState)
	}
	w.last++
	p := newProc(cfg, spec, g, firstPID+w.last)
	w.vms[spec.ID] = p
	return p, nil
}

// counter counts operations by name.
type counter struct {
	mu sync.Mutex
	n  map[string]int // guarded by mu
}

func (c *counter) next(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[name]++
	return c.n[name]
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func wait(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
