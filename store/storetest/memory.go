// Package storetest has a store in memory for tests, with faults on demand, and the conformance suite
// which every engine passes.
package storetest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// Memory is a store in memory. It has no goroutines and may live in a synctest bubble.
type Memory struct {
	mu      sync.Mutex // guards the fields below
	rev     store.Revision
	entries map[string]item
	history []store.Batch // after compacted
	compact uint64        // history begins after this revision
	leases  map[store.LeaseID]*lease
	lastID  store.LeaseID
	down    bool
	slow    time.Duration
	changed chan struct{} // closed and replaced when rev or down changes
	commits int
}

type item struct {
	store.Entry
	lease store.LeaseID
}

type lease struct {
	ttl   time.Duration
	timer *time.Timer
	until time.Time
}

var _ store.Store = (*Memory)(nil)

// New returns an empty store at epoch 1.
func New() *Memory { return NewEpoch(1) }

// NewEpoch returns an empty store at the given cluster epoch.
func NewEpoch(epoch uint64) *Memory {
	return &Memory{
		rev:     store.Revision{Epoch: epoch, Rev: 1},
		entries: map[string]item{},
		leases:  map[store.LeaseID]*lease{},
		changed: make(chan struct{}),
	}
}

// SetDown makes every call fail with volant.ErrUnavailable, and ends watches so. Leases run on.
func (m *Memory) SetDown(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
	m.wakeLocked()
}

// SetSlow makes every call take this long.
func (m *Memory) SetSlow(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slow = d
}

// Compact forgets all history: watches from before now fail with store.ErrCompacted.
func (m *Memory) Compact() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.history, m.compact = nil, m.rev.Rev
}

// Corrupt replaces a key's value with bytes that no Commit has checked.
func (m *Memory) Corrupt(key string, value []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.applyLocked([]store.Op{{Key: key, Value: value}})
}

// Commits returns how many commits have succeeded.
func (m *Memory) Commits() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.commits
}

// Get implements store.Reader.
func (m *Memory) Get(ctx context.Context, key string) (store.Entry, error) {
	if err := m.enter(ctx); err != nil {
		return store.Entry{}, err
	}
	defer m.mu.Unlock()
	it, ok := m.entries[key]
	if !ok {
		return store.Entry{}, store.NotFound(key)
	}
	return it.Entry, nil
}

// List implements store.Reader.
func (m *Memory) List(ctx context.Context, prefix string) ([]store.Entry, store.Revision, error) {
	if err := m.enter(ctx); err != nil {
		return nil, store.Revision{}, err
	}
	defer m.mu.Unlock()
	var out []store.Entry
	for _, key := range slices.Sorted(maps.Keys(m.entries)) {
		if strings.HasPrefix(key, prefix) {
			out = append(out, m.entries[key].Entry)
		}
	}
	return out, m.rev, nil
}

// Watch implements store.Reader.
func (m *Memory) Watch(ctx context.Context, prefix string, after store.Revision, fn func(store.Batch) error) error {
	for {
		if err := m.enter(ctx); err != nil {
			return err
		}
		batches, err := m.sinceLocked(after)
		changed := m.changed
		m.mu.Unlock()
		if err != nil {
			return err
		}
		for _, b := range batches {
			b.Events = slices.DeleteFunc(slices.Clone(b.Events), func(e store.Event) bool { return !strings.HasPrefix(e.Key, prefix) })
			after = b.Rev
			if err := fn(b); err != nil {
				return err
			}
		}
		if len(batches) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (m *Memory) sinceLocked(after store.Revision) ([]store.Batch, error) {
	switch {
	case m.rev.Before(after):
		return nil, store.ErrAhead
	case after.Epoch != m.rev.Epoch || after.Rev < m.compact:
		return nil, store.ErrCompacted
	}
	i, _ := slices.BinarySearchFunc(m.history, after, func(b store.Batch, r store.Revision) int {
		if b.Rev.Compare(r) <= 0 {
			return -1
		}
		return 1
	})
	return slices.Clone(m.history[i:]), nil
}

// Commit implements store.Store.
func (m *Memory) Commit(ctx context.Context, ops ...store.Op) (store.Revision, error) {
	if err := store.CheckOps(ops); err != nil {
		return store.Revision{}, err
	}
	if err := m.enter(ctx); err != nil {
		return store.Revision{}, err
	}
	defer m.mu.Unlock()
	for _, op := range ops {
		if m.entries[op.Key].Mod != op.Expect {
			return store.Revision{}, store.Mismatch(op)
		}
		if op.Lease != 0 && m.leases[op.Lease] == nil {
			return store.Revision{}, errNoLease
		}
	}
	m.commits++
	return m.applyLocked(ops), nil
}

var errNoLease = volant.Errorf(volant.ErrNotFound, "the lease has run out")

func (m *Memory) applyLocked(ops []store.Op) store.Revision {
	next := store.Revision{Epoch: m.rev.Epoch, Rev: m.rev.Rev + 1}
	b := store.Batch{Rev: next}
	for _, op := range ops {
		switch op.Verb {
		case store.Check:
		case store.Erase:
			if _, ok := m.entries[op.Key]; ok {
				delete(m.entries, op.Key)
				b.Events = append(b.Events, store.Event{Entry: store.Entry{Key: op.Key, Mod: next}, Deleted: true})
			}
		case store.Put:
			it := item{Entry: store.Entry{Key: op.Key, Value: slices.Clone(op.Value), Created: next, Mod: next}, lease: op.Lease}
			if old, ok := m.entries[op.Key]; ok {
				it.Created = old.Created
			}
			m.entries[op.Key] = it
			b.Events = append(b.Events, store.Event{Entry: it.Entry})
		}
	}
	if len(b.Events) > 0 {
		m.rev = next
		m.history = append(m.history, b)
		m.wakeLocked()
	}
	return m.rev
}

// Grant implements store.Store.
func (m *Memory) Grant(ctx context.Context, ttl time.Duration) (store.LeaseID, error) {
	if err := m.enter(ctx); err != nil {
		return 0, err
	}
	defer m.mu.Unlock()
	m.lastID++
	id := m.lastID
	m.leases[id] = &lease{ttl: ttl, until: time.Now().Add(ttl), timer: time.AfterFunc(ttl, func() { m.expire(id) })}
	return id, nil
}

func (m *Memory) expire(id store.LeaseID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l := m.leases[id]; l != nil && time.Now().Before(l.until) {
		l.timer.Reset(time.Until(l.until))
		return
	}
	m.endLocked(id)
}

func (m *Memory) endLocked(id store.LeaseID) {
	delete(m.leases, id)
	var ops []store.Op
	for _, key := range slices.Sorted(maps.Keys(m.entries)) {
		if m.entries[key].lease == id {
			ops = append(ops, store.Op{Verb: store.Erase, Key: key})
		}
	}
	m.applyLocked(ops)
}

// Renew implements store.Store.
func (m *Memory) Renew(ctx context.Context, id store.LeaseID) error {
	if err := m.enter(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	l := m.leases[id]
	if l == nil {
		return errNoLease
	}
	l.until = time.Now().Add(l.ttl)
	l.timer.Reset(l.ttl)
	return nil
}

// Revoke implements store.Store.
func (m *Memory) Revoke(ctx context.Context, id store.LeaseID) error {
	if err := m.enter(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	l := m.leases[id]
	if l == nil {
		return errNoLease
	}
	l.timer.Stop()
	m.endLocked(id)
	return nil
}

// enter waits as long as calls take now. Without an error the mutex is held then.
func (m *Memory) enter(ctx context.Context) error {
	m.mu.Lock()
	slow := m.slow
	m.mu.Unlock()
	if slow > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(slow):
		}
	}
	if err := ctx.Err(); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return volant.Errorf(volant.ErrUnavailable, "the store did not answer in time")
		}
		return err
	}
	m.mu.Lock()
	if m.down {
		m.mu.Unlock()
		return volant.Errorf(volant.ErrUnavailable, "the store is down")
	}
	return nil
}

func (m *Memory) wakeLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// Seed implements the restore into an empty store.
func (m *Memory) Seed(ctx context.Context, epoch uint64, entries []store.Entry) (store.Revision, error) {
	if err := m.enter(ctx); err != nil {
		return store.Revision{}, err
	}
	defer m.mu.Unlock()
	if len(m.entries) > 0 || epoch <= m.rev.Epoch {
		return store.Revision{}, volant.Errorf(volant.ErrPrecondition, "the store is not empty, or its epoch %d is not older", m.rev.Epoch)
	}
	m.rev.Epoch = epoch
	m.history, m.compact = nil, m.rev.Rev
	for _, e := range entries {
		m.applyLocked([]store.Op{{Key: e.Key, Value: e.Value}})
	}
	return m.rev, nil
}
