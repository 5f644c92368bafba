package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/volant-edge/volant"
)

// TermPrefix begins the keys of terms. They are no records and are not copied to other nodes' disks.
const TermPrefix = "term/"

// TermConfig configures Terms.
type TermConfig struct {
	Owner string        // who holds the terms: a node's ID
	Start uint64        // counts the owner's processes, of which one lives at a time; 0: not counted
	TTL   time.Duration // how long the store keeps a term without renewal; 10s if zero
	Log   *slog.Logger  // nil discards
	// Changed is called when a key, given without TermPrefix, has another holder or none, or when that is no longer
	// known. It must not block.
	Changed func(key string)
}

// Terms holds terms in the name of one process: keys in the store that one holder has at a time. All
// of them live under one lease, which Run renews.
type Terms struct {
	store Store
	cfg   TermConfig
	wake  chan struct{} // capacity 1: a new lease is there to be renewed

	making chan struct{} // capacity 1: who has its place makes a lease
	mu     sync.Mutex    // guards cur
	cur    *lease

	held held
}

// lease is a lease of the store and what its terms share: the end of all of them.
type lease struct {
	id   LeaseID
	lost chan struct{}

	mu    sync.Mutex // guards the fields below
	until time.Time  // valid until then; grows with each renewal
	over  bool
	timer *time.Timer // ends the lease at until
}

// Term is one key held. It ends once, for good.
type Term struct {
	store Store
	key   string
	rev   Revision
	lease *lease

	mu       sync.Mutex // guards released
	released bool
}

// NewTerms returns the terms of one process. They are renewed while Run runs.
func NewTerms(s Store, cfg TermConfig) *Terms {
	if cfg.TTL == 0 {
		cfg.TTL = 10 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Changed == nil {
		cfg.Changed = func(string) {}
	}
	return &Terms{store: s, cfg: cfg, wake: make(chan struct{}, 1), making: make(chan struct{}, 1), held: newHeld()}
}

// Run renews the terms and watches those of others until ctx ends, and then gives all of its own up.
func (t *Terms) Run(ctx context.Context) error {
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		t.watch(ctx)
	}()
	defer func() { <-watched }()
	tick := time.NewTicker(t.cfg.TTL / 5)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			t.giveUp(context.WithoutCancel(ctx))
			return nil
		case <-t.wake:
		case <-tick.C:
		}
		t.renew(ctx)
	}
}

// Hold waits until it holds the key, or ctx ends. The key is given without TermPrefix.
func (t *Terms) Hold(ctx context.Context, key string) (*Term, error) {
	for {
		free := t.held.free(key)
		term, err := t.Try(ctx, key)
		if err == nil || !errors.Is(err, volant.ErrLeased) && !errors.Is(err, volant.ErrUnavailable) {
			return term, err
		}
		again := t.cfg.TTL / 5
		if _, known := t.held.owner(key); known && errors.Is(err, volant.ErrLeased) {
			again = 5 * t.cfg.TTL // its end is told: asking all the time is a load on the store
		}
		wait := time.NewTimer(again)
		select {
		case <-ctx.Done():
			wait.Stop()
			return nil, fmt.Errorf("hold %s: %w (%w)", key, ctx.Err(), err)
		case <-free:
		case <-wait.C:
		}
		wait.Stop()
	}
}

// Try holds the key, or returns volant.ErrLeased if somebody holds it already. What an earlier process of
// the same owner held is free, since that process has ended.
func (t *Terms) Try(ctx context.Context, key string) (*Term, error) {
	l, err := t.lease(ctx)
	if err != nil {
		return nil, fmt.Errorf("hold %s: %w", key, err)
	}
	key = TermPrefix + key
	take := Op{Key: key, Value: t.name(), Lease: l.id}
	rev, err := t.store.Commit(ctx, take)
	if errors.Is(err, volant.ErrExists) {
		held, gerr := t.store.Get(ctx, key)
		switch {
		case gerr == nil && !t.outlived(held.Value):
			return nil, volant.Errorf(volant.ErrLeased, "%s is held by %s", key, held.Value)
		case gerr == nil:
			if _, err = t.store.Commit(ctx, Op{Verb: Erase, Key: key, Expect: held.Mod}); err == nil {
				rev, err = t.store.Commit(ctx, take)
			}
		}
	}
	switch {
	case errors.Is(err, volant.ErrNotFound): // the lease ran out
		l.end()
		return nil, volant.Errorf(volant.ErrUnavailable, "hold %s: the lease ran out", key)
	case errors.Is(err, volant.ErrExists), errors.Is(err, volant.ErrConflict):
		return nil, volant.Errorf(volant.ErrLeased, "%s is held by somebody", key)
	case err != nil:
		return nil, fmt.Errorf("hold %s: %w", key, err)
	}
	return &Term{store: t.store, key: key, rev: rev, lease: l}, nil
}

// name is the value of the keys held.
func (t *Terms) name() []byte {
	if t.cfg.Start == 0 {
		return []byte(t.cfg.Owner)
	}
	return fmt.Appendf(nil, "%s %d", t.cfg.Owner, t.cfg.Start)
}

// outlived says whether the holder of that name is an earlier process of our owner.
func (t *Terms) outlived(name []byte) bool {
	owner, start, ok := strings.Cut(string(name), " ")
	n, err := strconv.ParseUint(start, 10, 64)
	return ok && err == nil && owner == t.cfg.Owner && n < t.cfg.Start
}

// lease returns the lease that lives, or makes one.
func (t *Terms) lease(ctx context.Context) (*lease, error) {
	select {
	case t.making <- struct{}{}:
		defer func() { <-t.making }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	t.mu.Lock()
	l := t.cur
	t.mu.Unlock()
	if l != nil && l.valid() {
		return l, nil
	}
	asked := time.Now()
	id, err := t.store.Grant(ctx, t.cfg.TTL)
	if err != nil {
		return nil, err
	}
	l = &lease{id: id, lost: make(chan struct{}), until: asked.Add(t.believe())}
	if time.Until(l.until) <= 0 {
		return nil, volant.Errorf(volant.ErrUnavailable, "the store took %s to grant a lease, which is over by now", time.Since(asked).Round(time.Millisecond))
	}
	l.mu.Lock() // the timer may ring at once
	l.timer = time.AfterFunc(time.Until(l.until), l.expire)
	l.mu.Unlock()
	t.mu.Lock()
	t.cur = l
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
	return l, nil
}

// believe is how long after a renewal was asked for its holder counts on it: 2/3 of what the store
// grants, so that it stops well before the store lets the next one in.
func (t *Terms) believe() time.Duration { return t.cfg.TTL * 2 / 3 }

func (t *Terms) renew(ctx context.Context) {
	t.mu.Lock()
	l := t.cur
	t.mu.Unlock()
	if l == nil || !l.valid() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, t.cfg.TTL/5)
	defer cancel()
	asked := time.Now()
	err := t.store.Renew(ctx, l.id)
	switch {
	case err == nil:
		l.extend(asked.Add(t.believe()))
	case errors.Is(err, volant.ErrNotFound):
		l.end()
		t.cfg.Log.Warn("terms lost", "owner", t.cfg.Owner)
	case ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded):
		t.cfg.Log.Warn("terms not renewed", "owner", t.cfg.Owner, "err", err)
	}
}

func (t *Terms) giveUp(ctx context.Context) {
	t.mu.Lock()
	l := t.cur
	t.cur = nil
	t.mu.Unlock()
	if l == nil {
		return
	}
	l.end()
	ctx, cancel := context.WithTimeout(ctx, t.cfg.TTL/5)
	defer cancel()
	if err := t.store.Revoke(ctx, l.id); err != nil && !errors.Is(err, volant.ErrNotFound) {
		t.cfg.Log.Warn("terms not given up", "owner", t.cfg.Owner, "err", err)
	}
}

func (l *lease) valid() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.over && time.Now().Before(l.until)
}

// extend moves the end; a lease whose end has come stays ended.
func (l *lease) extend(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over || !time.Now().Before(l.until) {
		return
	}
	l.until = until
	l.timer.Reset(time.Until(until))
}

// expire ends the lease if its time has come; the timer may have fired just before an extension.
func (l *lease) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if left := time.Until(l.until); left > 0 && !l.over {
		l.timer.Reset(left)
		return
	}
	l.endLocked()
}

func (l *lease) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endLocked()
}

func (l *lease) endLocked() {
	if !l.over {
		l.over = true
		l.timer.Stop()
		close(l.lost)
	}
}

// tokenRev is how many bits of a token the engine's revision has: enough for five centuries of a
// thousand commits a second, and the epoch stands above them.
const tokenRev = 44

// Token orders the terms of a key: each is greater than all before it, also over a restore.
func (t *Term) Token() uint64 { return t.rev.Epoch<<tokenRev | t.rev.Rev&(1<<tokenRev-1) }

// Valid says whether the term is surely held now, by the monotonic clock.
func (t *Term) Valid() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.released && t.lease.valid()
}

// Lost is closed when the lease ends without Release. The holder must stop then.
func (t *Term) Lost() <-chan struct{} { return t.lease.lost }

// Guard is an operation which lets a Commit succeed only while the store knows this term as held.
func (t *Term) Guard() Op { return Op{Verb: Check, Key: t.key, Expect: t.rev} }

// GuardOf is the Guard of the term of a key that has the token.
func GuardOf(key string, token uint64) Op {
	return Op{Verb: Check, Key: key, Expect: Revision{Epoch: token >> tokenRev, Rev: token & (1<<tokenRev - 1)}}
}

// Release gives the key to whoever asks next.
func (t *Term) Release(ctx context.Context) error {
	t.mu.Lock()
	t.released = true
	t.mu.Unlock()
	_, err := t.store.Commit(ctx, Op{Verb: Erase, Key: t.key, Expect: t.rev})
	if errors.Is(err, volant.ErrConflict) { // not ours any more
		return nil
	}
	return err
}
