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
//   - A change costs what its app is large, never what the platform is large.
//
// # Not here
//
// The disk: package store/local. What to do about any of it: the rooms.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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

// Alarm is a record that was refused.
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
	subs   map[chan struct{}]bool
	alarms []Alarm
}

// New returns an empty Catalog.
func New(cfg Config) *Catalog {
	c := &Catalog{log: cfg.Log, subs: map[chan struct{}]bool{}}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.snap.Store(empty())
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
				entries := make([]store.Entry, 0, len(b.Events))
				for _, ev := range b.Events {
					if !ev.Deleted { // absence is never an order
						entries = append(entries, ev.Entry)
					}
				}
				c.Apply(entries, b.Rev)
				return nil
			})
		}
		if ctx.Err() != nil {
			return nil
		}
		c.log.Warn("the copy of the intent is read anew", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Apply takes records as they stand at a revision. A record which cannot be read is refused and alarmed.
func (c *Catalog) Apply(entries []store.Entry, rev store.Revision) {
	c.change(func(n *next) {
		for _, e := range entries {
			if !store.IsRecord(e.Key) {
				continue
			}
			rec, err := store.DecodeAny(e.Key, e.Value)
			if err != nil {
				c.alarmLocked(e.Key, err)
				continue
			}
			n.put(rec)
		}
		if n.Rev.Before(rev) {
			n.Rev = rev
		}
	})
}

// SetHave takes what a host says of one of its machines, unless it is older than what is held.
func (c *Catalog) SetHave(h volant.Have) {
	c.change(func(n *next) { n.have(h) })
}

// change makes the next snapshot and wakes the subscribers.
func (c *Catalog) change(fn func(*next)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.snap.Load().next()
	fn(n)
	c.snap.Store(n.Snapshot)
	for ch := range c.subs {
		select {
		case ch <- struct{}{}:
		default: // it has not yet looked at the one before
		}
	}
}

func (c *Catalog) alarmLocked(key string, err error) {
	c.log.Error("record refused", "key", key, "err", err)
	c.alarms = append(c.alarms, Alarm{At: time.Now(), Key: key, Text: err.Error()})
	if len(c.alarms) > maxAlarms {
		c.alarms = c.alarms[len(c.alarms)-maxAlarms:]
	}
}

// Alarms are the newest refusals of records.
func (c *Catalog) Alarms() []Alarm {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Alarm(nil), c.alarms...)
}

// Subscribe returns a channel that has a value whenever the snapshot changed since the last receive, and a
// func that ends it.
func (c *Catalog) Subscribe() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	c.mu.Lock()
	c.subs[ch] = true
	c.mu.Unlock()
	return ch, func() {
		c.mu.Lock()
		delete(c.subs, ch)
		c.mu.Unlock()
	}
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
