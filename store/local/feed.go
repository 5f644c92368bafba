package local

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/volant-edge/volant/store"
)

// history bounds how many events are kept for watches which begin a little late.
const history = 4096

// feed leads batches to watchers: a list of places, at whose end they wait. What lies behind all
// watchers and beyond history is garbage.
type feed struct {
	mu     sync.Mutex // guards the fields below
	first  *place
	last   *place
	events int // between first and last
}

// place is a revision, and the batch that leads from it to the next.
type place struct {
	rev   store.Revision
	ready chan struct{} // closed when batch and next are set
	batch store.Batch
	next  *place
}

func newPlace(rev store.Revision) *place { return &place{rev: rev, ready: make(chan struct{})} }

func (f *feed) start(rev store.Revision) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.first = newPlace(rev)
	f.last = f.first
}

func (f *feed) publish(b store.Batch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	prev := f.last
	f.last = newPlace(b.Rev)
	prev.batch, prev.next = b, f.last
	close(prev.ready)
	f.events += weight(b)
	for f.events > history && f.first != f.last {
		f.events -= weight(f.first.batch)
		f.first = f.first.next
	}
}

// weight counts a batch without events too, so that a quiet store's progress does not pile up.
func weight(b store.Batch) int { return len(b.Events) + 1 }

// at returns the place where a watch from rev begins.
func (f *feed) at(rev store.Revision) (*place, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last.rev.Before(rev) {
		return nil, store.ErrAhead
	}
	if rev.Before(f.first.rev) {
		return nil, store.ErrCompacted
	}
	p := f.first
	for p != f.last && !rev.Before(p.next.rev) {
		p = p.next
	}
	return p, nil
}

// follow leads all batches from a place on to fn.
func follow(ctx context.Context, p *place, prefix string, fn func(store.Batch) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.ready:
		}
		b := p.batch
		p = p.next
		if prefix != "" {
			b.Events = slices.DeleteFunc(slices.Clone(b.Events), func(e store.Event) bool { return !strings.HasPrefix(e.Key, prefix) })
		}
		if err := fn(b); err != nil {
			return err
		}
	}
}
