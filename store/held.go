package store

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"
)

// held is who holds which terms, as the store tells.
type held struct {
	mu      sync.Mutex // guards the fields below
	known   bool
	owners  map[string]string        // by key, without TermPrefix
	waiting map[string]chan struct{} // closed when the key is free
}

func newHeld() held {
	return held{owners: map[string]string{}, waiting: map[string]chan struct{}{}}
}

// Owner is who holds a key; empty: nobody. It is not known while the store does not tell, or before Run.
func (t *Terms) Owner(key string) (owner string, known bool) { return t.held.owner(key) }

func (h *held) owner(key string) (string, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.owners[key], h.known
}

// free is closed when the key is free the next time.
func (h *held) free(key string) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.waiting[key]
	if c == nil {
		c = make(chan struct{})
		h.waiting[key] = c
	}
	return c
}

// set takes who holds a key, and says whether that is news.
func (h *held) set(key, owner string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.setLocked(key, owner)
}

func (h *held) setLocked(key, owner string) bool {
	old := h.owners[key]
	if owner != "" {
		h.owners[key] = owner
		return old != owner
	}
	delete(h.owners, key)
	if c := h.waiting[key]; c != nil {
		close(c)
		delete(h.waiting, key)
	}
	return old != ""
}

// reset takes all that is held, and returns the keys of which that is news.
func (h *held) reset(all map[string]string) (changed []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known = true
	for key := range h.owners {
		if all[key] == "" && h.setLocked(key, "") {
			changed = append(changed, key)
		}
	}
	for key := range h.waiting { // also those that were never seen held
		if all[key] == "" {
			h.setLocked(key, "")
		}
	}
	for key, owner := range all {
		if h.setLocked(key, owner) {
			changed = append(changed, key)
		}
	}
	return changed
}

// forget makes all unknown, and returns the keys that were held.
func (h *held) forget() (changed []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known = false
	for key := range h.owners {
		changed = append(changed, key)
	}
	clear(h.owners)
	return changed
}

// watch learns who holds which terms until ctx ends. While the store does not tell, what it told last is believed for
// as long as a term lives.
func (t *Terms) watch(ctx context.Context) {
	var broken time.Time
	for ctx.Err() == nil {
		entries, rev, err := t.store.List(ctx, TermPrefix)
		if err == nil {
			broken = time.Time{}
			all := map[string]string{}
			for _, e := range entries {
				all[strings.TrimPrefix(e.Key, TermPrefix)] = ownerOf(e.Value)
			}
			t.tell(t.held.reset(all))
			err = t.store.Watch(ctx, TermPrefix, rev, func(b Batch) error {
				t.follow(b)
				return nil
			})
		}
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, ErrCompacted) {
			t.cfg.Log.Debug("the terms of others are not told", "err", err)
		}
		if broken.IsZero() {
			broken = time.Now()
		}
		if time.Since(broken) >= t.cfg.TTL {
			t.tell(t.held.forget())
		}
		select {
		case <-ctx.Done():
		case <-time.After(t.cfg.TTL / 10):
		}
	}
}

func (t *Terms) follow(b Batch) {
	for _, e := range b.Events {
		key, ok := strings.CutPrefix(e.Key, TermPrefix)
		owner := ""
		if !e.Deleted {
			owner = ownerOf(e.Value)
		}
		if ok && t.held.set(key, owner) {
			t.cfg.Changed(key)
		}
	}
}

func (t *Terms) tell(changed []string) {
	for _, key := range changed {
		t.cfg.Changed(key)
	}
}

// ownerOf is the owner in the value of a key that is held.
func ownerOf(value []byte) string {
	owner, _, _ := strings.Cut(string(value), " ")
	return owner
}
