package perapp

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
)

// Actor is what a room does for one app.
type Actor[S any] interface {
	// Plan observes and says what to do now and when to look again; zero means only when poked.
	// Steps in flight are given, so that they are not planned twice.
	Plan(ctx context.Context, inFlight []S) (steps []S, next time.Time, err error)
	// Apply does one step. Several run at once.
	Apply(ctx context.Context, step S) error
	// Done tells how a step ended.
	Done(step S, err error)
}

// Loop plans and applies until its context ends or the term is lost.
type Loop[S comparable] struct {
	Actor    Actor[S]
	Term     Term
	Poke     <-chan struct{} // something changed
	Parallel int             // steps applied at once; 8
	Log      *slog.Logger    // nil discards

	inFlight []S
	results  chan result[S]
	slots    chan struct{}
	applying sync.WaitGroup
}

type result[S any] struct {
	step S
	err  error
}

// Run plans and applies until ctx is done (nil) or the term is lost.
func (l *Loop[S]) Run(ctx context.Context) error {
	if l.Log == nil {
		l.Log = slog.New(slog.DiscardHandler)
	}
	if l.Parallel == 0 {
		l.Parallel = 8
	}
	l.results, l.slots = make(chan result[S]), make(chan struct{}, l.Parallel)
	ctx, cancel := context.WithCancel(ctx)
	defer l.applying.Wait()
	defer cancel()
	var backoff time.Duration
	for {
		if !l.Term.Valid() {
			return volant.Errorf(volant.ErrStaleTerm, "term %d is lost", l.Term.Token())
		}
		steps, next, err := l.Actor.Plan(ctx, l.inFlight)
		if err != nil {
			backoff = min(max(2*backoff, retryFirst), retryMost)
			l.Log.Warn("planning went wrong", "err", err, "again_in", backoff)
			next = time.Now().Add(backoff)
		} else {
			backoff = 0
		}
		for _, s := range steps {
			l.start(ctx, s)
		}
		if err := l.wait(ctx, next); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// start applies s beside the loop.
func (l *Loop[S]) start(ctx context.Context, s S) {
	l.inFlight = append(l.inFlight, s)
	l.applying.Go(func() {
		var err error
		select {
		case l.slots <- struct{}{}:
			err = l.Actor.Apply(ctx, s)
			<-l.slots
		case <-ctx.Done():
			err = ctx.Err()
		}
		select {
		case l.results <- result[S]{s, err}:
		case <-ctx.Done():
		}
	})
}

// wait returns when there is a reason to plan again.
func (l *Loop[S]) wait(ctx context.Context, next time.Time) error {
	var timer <-chan time.Time
	if !next.IsZero() {
		// A moment later, so that what is due at next is due for sure.
		t := time.NewTimer(max(time.Until(next), 0) + time.Millisecond)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ctx.Done():
		return nil
	case <-l.Term.Lost():
		return volant.Errorf(volant.ErrStaleTerm, "term %d is lost", l.Term.Token())
	case <-timer:
	case <-l.Poke:
	case r := <-l.results:
		return l.done(r)
	}
	return nil
}

func (l *Loop[S]) done(r result[S]) error {
	for i, s := range l.inFlight {
		if s == r.step {
			l.inFlight = append(l.inFlight[:i:i], l.inFlight[i+1:]...)
			break
		}
	}
	l.Actor.Done(r.step, r.err)
	if errors.Is(r.err, volant.ErrStaleTerm) {
		return r.err
	}
	return nil
}
