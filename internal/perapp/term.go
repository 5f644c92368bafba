// Package perapp runs the loops that act for one app at a time: scaling and deploys.
//
// Whoever holds an app's term acts for it. Holder keeps the terms of all apps it is told of and runs
// its workers under each; Loop is the observe, plan, apply loop that such a worker is made of.
//
// # Invariants
//
//   - No step is started when the term is no longer valid, and a worker ends when its term is lost.
//   - Plan and Done of an Actor are called by one goroutine; Apply by others, a bounded number at once.
package perapp

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
)

// Term is the right to act for an app.
type Term interface {
	Token() uint64         // grows with each holder
	Valid() bool           // by the monotonic clock, well before others may take over
	Lost() <-chan struct{} // closed when it is no longer valid
	Release()              // gives it up, so that others need not wait for it to end
}

// Terms hands out terms.
type Terms interface {
	// Acquire blocks until the app's term is held or ctx is done.
	Acquire(ctx context.Context, app volant.AppID) (Term, error)
}

// Worker acts for an app until ctx is done, which is at the latest when the term is lost.
type Worker interface {
	Work(ctx context.Context, app volant.AppID, term Term) error
}

// Holder holds the terms of apps and runs workers under them.
type Holder struct {
	terms   Terms
	workers []Worker
	log     *slog.Logger

	mu      sync.Mutex // guards those below
	ctx     context.Context
	apps    map[volant.AppID]context.CancelFunc // running
	want    []volant.AppID
	running sync.WaitGroup
}

// NewHolder returns a Holder; nil log discards.
func NewHolder(terms Terms, log *slog.Logger, workers ...Worker) *Holder {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Holder{terms: terms, workers: workers, log: log, apps: map[volant.AppID]context.CancelFunc{}}
}

// Run holds terms until ctx is done, and then returns nil.
func (h *Holder) Run(ctx context.Context) error {
	h.mu.Lock()
	h.ctx = ctx
	h.syncLocked()
	h.mu.Unlock()
	<-ctx.Done()
	h.mu.Lock()
	h.want = nil
	h.syncLocked()
	h.mu.Unlock()
	h.running.Wait()
	return nil
}

// SetApps says which apps there are.
func (h *Holder) SetApps(apps []volant.AppID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.want = slices.Clone(apps)
	h.syncLocked()
}

func (h *Holder) syncLocked() {
	if h.ctx == nil {
		return
	}
	for app, cancel := range h.apps {
		if !slices.Contains(h.want, app) {
			cancel()
			delete(h.apps, app)
		}
	}
	if h.ctx.Err() != nil {
		return
	}
	for _, app := range h.want {
		if h.apps[app] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(h.ctx)
		h.apps[app] = cancel
		h.running.Go(func() { h.hold(ctx, app) })
	}
}

// Between attempts to act for an app.
const (
	retryFirst = 500 * time.Millisecond
	retryMost  = 15 * time.Second
)

// hold takes the app's term again and again, and lets the workers act under it.
func (h *Holder) hold(ctx context.Context, app volant.AppID) {
	log := h.log.With("app", app)
	for wait := retryFirst; ctx.Err() == nil; {
		began := time.Now()
		err := h.act(ctx, app)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > retryMost {
			wait = retryFirst
		}
		if err != nil {
			log.Warn("acting for app ended", "err", err, "again_in", wait)
		}
		if !pause(ctx, wait) {
			return
		}
		wait = min(2*wait, retryMost)
	}
}

// act runs the workers under one term; the first to end ends all.
func (h *Holder) act(ctx context.Context, app volant.AppID) error {
	term, err := h.terms.Acquire(ctx, app)
	if err != nil {
		return err
	}
	defer term.Release()
	h.log.Debug("acting for app", "app", app, "term", term.Token())
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	for _, w := range h.workers {
		wg.Go(func() { cancel(errors.Join(errEnded, w.Work(ctx, app, term))) })
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-term.Lost():
		return volant.Errorf(volant.ErrStaleTerm, "term %d is lost", term.Token())
	}
}

var errEnded = errors.New("worker ended")

// pause waits for d, and says whether ctx still lives.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
