package local

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// The pause before the store is tried again grows from the first to the longest.
const (
	firstPause   = 100 * time.Millisecond
	longestPause = 5 * time.Second
)

// Run follows the store until ctx ends. Whatever the store does, the copy serves on with what it has.
func (c *Copy) Run(ctx context.Context, src store.Reader) error {
	pause := firstPause
	for {
		before := c.Revision()
		err := c.follow(ctx, src)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // asked to end
		}
		if before.Before(c.Revision()) {
			pause = firstPause
		}
		c.heard(err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, longestPause)
	}
}

// follow takes what the store has and watches it, until that fails.
func (c *Copy) follow(ctx context.Context, src store.Reader) error {
	if err := c.checkHistory(ctx, src); err != nil {
		return err
	}
	whole := c.Revision().IsZero() || len(c.Status().Bad) > 0
	for {
		if whole {
			entries, rev, err := src.List(ctx, "")
			if err != nil {
				return fmt.Errorf("read the store: %w", err)
			}
			if err := c.Replace(entries, rev); err != nil {
				return err
			}
			c.heard(nil)
			c.log.Info("copy taken", "revision", rev.String(), "records", len(entries))
		}
		err := src.Watch(ctx, "", c.Revision(), c.Apply)
		if !errors.Is(err, store.ErrCompacted) {
			return err
		}
		whole = true
	}
}

// checkHistory says if the store is not the one that the copy has followed: it was put back to an
// older state, though its epoch is the same.
func (c *Copy) checkHistory(ctx context.Context, src store.Reader) error {
	c.mu.Lock()
	newest := c.newest
	c.mu.Unlock()
	if newest.Key == "" {
		return nil
	}
	e, err := src.Get(ctx, newest.Key)
	switch {
	case err == nil && e.Mod.Before(newest.Mod):
		return fmt.Errorf("%s is of %s in the store and of %s here: %w", newest.Key, e.Mod, newest.Mod, store.ErrAhead)
	case err != nil && !errors.Is(err, volant.ErrNotFound):
		return fmt.Errorf("read the store: %w", err)
	}
	return nil
}

// heard notes that the store was heard, or why it was not. Trouble is told once, until it changes.
func (c *Copy) heard(err error) {
	c.mu.Lock()
	old := c.trouble
	c.trouble = err
	if err == nil {
		c.seen = time.Now()
	}
	c.mu.Unlock()
	switch {
	case err == nil && old != nil:
		c.log.Info("store followed again", "revision", c.Revision().String())
	case err != nil && (old == nil || old.Error() != err.Error()):
		if errors.Is(err, store.ErrAhead) || errors.Is(err, ErrDamaged) {
			c.alarm("", "the store is not followed: "+err.Error()+"; this node serves what it has. "+
				"Bring the store's directory back, or run volant control restore")
			return
		}
		c.log.Warn("store not followed", "err", err)
	}
}
