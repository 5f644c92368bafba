// Package catalog is the picture every room reads: the intent this node has seen and the live facts of the
// hosts, merged into one immutable snapshot.
//
//	store/local ──Watch──► Catalog ◄──SetHave── host
//	                          └─► Snapshot (one atomic load), Subscribe
//
// # Invariants
//
//   - A Snapshot never changes. Who holds one may read it without a lock for as long as it likes.
//   - Records come in the order of the copy, which refuses what is older. A fact that is older than the one
//     held, by (Epoch, Seq) of its one writer, is not taken.
//   - A record that cannot be read is refused and listed in Alarms; the one before it stays, and the loop
//     goes on.
//   - Tombstones stay: a destroyed machine can still be read.
//   - A fact of a machine costs the logarithm of all machines, a record what its app is large; never what the
//     platform is large.
//   - Absence is never an order: a record that is gone from the store stays, unless it was a tombstone.
//
// # Not here
//
// The disk: package store/local. What to do about any of it: the rooms.
package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// maxAlarms bounds the alarms kept.
const maxAlarms = 100

// Config configures a Catalog.
type Config struct {
	Log *slog.Logger // nil discards
}

// Alarm is a record, or a fact, that was refused.
type Alarm struct {
	At   time.Time
	Key  string
	Text string
}

// Catalog holds the newest Snapshot.
type Catalog struct {
	log  *slog.Logger
	snap atomic.Pointer[Snapshot]

	mu     sync.Mutex // held while a new snapshot is made; guards the fields below
	subs   map[*Subscription]bool
	seen   map[string]store.Revision // newest revision taken of each key, read or refused
	alarms map[string]Alarm          // what is refused now, by key
}

// New returns an empty Catalog.
func New(cfg Config) *Catalog {
	c := &Catalog{log: cfg.Log, subs: map[*Subscription]bool{}, seen: map[string]store.Revision{}, alarms: map[string]Alarm{}}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.snap.Store(&Snapshot{})
	return c
}

// Snapshot returns the newest picture.
func (c *Catalog) Snapshot() *Snapshot { return c.snap.Load() }

// Run follows a reader of the intent, which is the local copy, until ctx ends.
func (c *Catalog) Run(ctx context.Context, r store.Reader) error {
	for {
		entries, rev, err := r.List(ctx, "")
		if err == nil {
			c.Apply(entries, rev)
			err = r.Watch(ctx, "", rev, func(b store.Batch) error {
				c.apply(b)
				return nil
			})
		}
		if ctx.Err() != nil {
			return nil //nolint:nilerr // asked to end
		}
		c.log.Warn("the copy of the intent is read anew", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Apply takes records as they stand at a revision. A record which cannot be read is refused and alarmed,
// and the one before it stays; one that is older than what is held is not taken.
func (c *Catalog) Apply(entries []store.Entry, rev store.Revision) {
	b := store.Batch{Rev: rev, Events: make([]store.Event, len(entries))}
	for i, e := range entries {
		b.Events[i].Entry = e
	}
	c.apply(b)
}

func (c *Catalog) apply(b store.Batch) {
	c.change(func(n *next) {
		for _, e := range b.Events {
			if store.IsRecord(e.Key) {
				c.takeLocked(n, e)
			}
		}
		if n.Rev.Before(b.Rev) {
			n.Rev = b.Rev
		}
	})
}

func (c *Catalog) takeLocked(n *next, e store.Event) {
	if seen, ok := c.seen[e.Key]; ok && !seen.Before(e.Mod) {
		return
	}
	if e.Deleted {
		c.dropLocked(n, e.Key)
		return
	}
	c.seen[e.Key] = e.Mod
	rec, err := store.DecodeAny(e.Key, e.Value)
	if err != nil {
		c.refuseLocked(e.Key, err)
		return
	}
	delete(c.alarms, e.Key)
	n.put(rec)
}

// dropLocked forgets a tombstone that was swept, of kinds that are not kept as well. Absence is no order: a
// live record stays.
func (c *Catalog) dropLocked(n *next, key string) {
	rec := n.byKey(key)
	if rec != nil && !rec.Head().Tombstone {
		return
	}
	delete(c.seen, key)
	if rec != nil {
		n.drop(rec)
	}
}

// SetHave takes what a host says of one of its machines, unless it is older than what is held.
func (c *Catalog) SetHave(h volant.Have) { c.SetHaves([]volant.Have{h}) }

// SetHaves takes many facts in one step.
func (c *Catalog) SetHaves(hs []volant.Have) {
	c.change(func(n *next) {
		for _, h := range hs {
			if err := n.have(h); err != nil {
				c.refuseLocked("have/"+string(h.Machine), err)
			}
		}
	})
}

// change makes the next snapshot and tells the subscribers, unless nothing changed.
func (c *Catalog) change(fn func(*next)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.snap.Load()
	n := old.next()
	fn(n)
	if *n.Snapshot == *old {
		return
	}
	c.snap.Store(n.Snapshot)
	for sub := range c.subs {
		sub.tell(n.changed)
	}
}

func (c *Catalog) refuseLocked(key string, err error) {
	if old, ok := c.alarms[key]; ok && old.Text == err.Error() {
		return
	}
	c.log.Error("record refused", "key", key, "err", err)
	if len(c.alarms) >= maxAlarms {
		oldest := ""
		for k, a := range c.alarms {
			if oldest == "" || a.At.Before(c.alarms[oldest].At) {
				oldest = k
			}
		}
		delete(c.alarms, oldest)
	}
	c.alarms[key] = Alarm{At: time.Now(), Key: key, Text: err.Error()}
}

// Alarms are what is refused now, the newest last. A record that is good again is no longer among them.
func (c *Catalog) Alarms() []Alarm {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.SortedFunc(maps.Values(c.alarms), func(a, b Alarm) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Key, b.Key))
	})
}

// Subscription tells of changes: C has a value whenever something changed since Take.
type Subscription struct {
	C   <-chan struct{}
	c   chan struct{}
	cat *Catalog

	mu      sync.Mutex // guards changed
	changed map[volant.AppID]bool
}

// Changes begins a subscription, which its reader must Close.
func (c *Catalog) Changes() *Subscription {
	ch := make(chan struct{}, 1)
	s := &Subscription{C: ch, c: ch, cat: c, changed: map[volant.AppID]bool{}}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs[s] = true
	return s
}

// Take returns the newest snapshot, and the apps of which anything may have changed since the Take before.
func (s *Subscription) Take() (*Snapshot, map[volant.AppID]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.changed
	s.changed = map[volant.AppID]bool{}
	return s.cat.Snapshot(), changed
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.cat.mu.Lock()
	defer s.cat.mu.Unlock()
	delete(s.cat.subs, s)
}

func (s *Subscription) tell(changed map[volant.AppID]bool) {
	s.mu.Lock()
	if s.changed != nil {
		maps.Copy(s.changed, changed)
	}
	s.mu.Unlock()
	select {
	case s.c <- struct{}{}:
	default: // it has not yet looked at the one before
	}
}

// Subscribe returns a channel that has a value whenever the snapshot changed since the last receive, and a
// func that ends it.
func (c *Catalog) Subscribe() (<-chan struct{}, func()) {
	s := c.Changes()
	s.mu.Lock()
	s.changed = nil // nobody takes them
	s.mu.Unlock()
	return s.C, s.Close
}

// waitAtMost bounds Wait.
const waitAtMost = 10 * time.Second

// Wait returns when the catalog holds all intent up to rev.
func (c *Catalog) Wait(ctx context.Context, rev store.Revision) error {
	ctx, cancel := context.WithTimeout(ctx, waitAtMost)
	defer cancel()
	changed, end := c.Subscribe()
	defer end()
	for c.Snapshot().Rev.Before(rev) {
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the catalog is at revision %s, not yet at %s", c.Snapshot().Rev, rev), ctx.Err())
		}
	}
	return nil
}
