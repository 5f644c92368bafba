package perapp_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/perapp"
)

// terms hands out one term per app at a time.
type terms struct {
	mu    sync.Mutex
	token uint64
	held  map[volant.AppID]*term
	err   error
}

type term struct {
	of    *terms
	app   volant.AppID
	token uint64
	lost  chan struct{}
	gone  bool
}

func (t *terms) Acquire(_ context.Context, app volant.AppID) (perapp.Term, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return nil, t.err
	}
	if t.held[app] != nil {
		return nil, volant.Errorf(volant.ErrLeased, "held twice")
	}
	t.token++
	h := &term{t, app, t.token, make(chan struct{}), false}
	if t.held == nil {
		t.held = map[volant.AppID]*term{}
	}
	t.held[app] = h
	return h, nil
}

// lose ends the app's term.
func (t *terms) lose(app volant.AppID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.held[app]; h != nil {
		h.gone = true
		close(h.lost)
	}
}

func (t *terms) holds() []volant.AppID {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []volant.AppID
	for app := range t.held {
		out = append(out, app)
	}
	slices.Sort(out)
	return out
}

func (t *term) Token() uint64         { return t.token }
func (t *term) Lost() <-chan struct{} { return t.lost }

func (t *term) Valid() bool {
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	return !t.gone
}

func (t *term) Release() {
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	t.gone = true
	delete(t.of.held, t.app)
}

// worker notes when it works.
type worker struct {
	mu    sync.Mutex
	notes []string
	err   error // ends Work at once
}

func (w *worker) Work(ctx context.Context, app volant.AppID, t perapp.Term) error {
	w.note(fmt.Sprintf("%s begins with %d", app, t.Token()))
	if w.err != nil {
		return w.err
	}
	<-ctx.Done()
	w.note(fmt.Sprintf("%s ends", app))
	return nil
}

func (w *worker) note(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notes = append(w.notes, s)
}

// take returns the notes since the last call.
func (w *worker) take() string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.notes
	w.notes = nil
	return fmt.Sprint(n)
}

func TestHolderActsForEachAppUnderItsTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts, w := &terms{}, &worker{}
		h := perapp.NewHolder(ts, nil, w)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		h.SetApps([]volant.AppID{"a"}) // before Run
		go func() { done <- h.Run(ctx) }()
		want := func(notes string, holds ...volant.AppID) {
			t.Helper()
			if got := w.take(); got != notes {
				t.Errorf("got %s, want %s", got, notes)
			}
			if got := ts.holds(); !slices.Equal(got, holds) {
				t.Errorf("holds %v, want %v", got, holds)
			}
		}
		want("[a begins with 1]", "a")
		h.SetApps([]volant.AppID{"a", "b"})
		want("[b begins with 2]", "a", "b")
		ts.lose("a")
		want("[a ends]", "b")
		time.Sleep(time.Second)
		want("[a begins with 3]", "a", "b")
		h.SetApps([]volant.AppID{"a"})
		want("[b ends]", "a")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		want("[a ends]")
	})
}

func TestHolderTriesAgainWithBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ts, w := &terms{}, &worker{err: errors.New("broken")}
		h := perapp.NewHolder(ts, nil, w)
		h.SetApps([]volant.AppID{"a"})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- h.Run(ctx) }()
		time.Sleep(time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := len(w.notes); n < 5 || n > 10 {
			t.Errorf("began %d times within a minute", n)
		}
		if got := ts.holds(); len(got) > 0 {
			t.Errorf("still holds %v", got)
		}
	})
}

// actor plans what it is told to.
type actor struct {
	mu     sync.Mutex
	steps  []int
	next   time.Time
	err    error
	plans  int
	flying int
	most   int
	took   time.Duration
	done   map[int]error
	fails  map[int]error
}

func (a *actor) Plan(_ context.Context, inFlight []int) ([]int, time.Time, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.plans++
	var out []int
	for _, s := range a.steps {
		if _, ok := a.done[s]; !ok && !slices.Contains(inFlight, s) {
			out = append(out, s)
		}
	}
	next := a.next
	a.next = time.Time{}
	return out, next, a.err
}

func (a *actor) Apply(ctx context.Context, s int) error {
	a.mu.Lock()
	a.flying++
	a.most = max(a.most, a.flying)
	took := a.took
	a.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-time.After(took):
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.flying--
	return a.fails[s]
}

func (a *actor) Done(s int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done == nil {
		a.done = map[int]error{}
	}
	a.done[s] = err
}

func (a *actor) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// loop runs a loop of the actor while f acts, and returns its error.
func loop(t *testing.T, a *actor, f func(poke chan struct{}, ts *terms)) error {
	t.Helper()
	ts := &terms{}
	term, err := ts.Acquire(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	poke := make(chan struct{}, 1)
	l := perapp.Loop[int]{Actor: a, Term: term, Poke: poke, Parallel: 3}
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	f(poke, ts)
	cancel()
	return <-done
}

func TestLoopAppliesStepsBesideEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &actor{steps: []int{1, 2, 3, 4, 5, 6}, took: time.Second, fails: map[int]error{4: errors.New("no")}}
		err := loop(t, a, func(chan struct{}, *terms) { time.Sleep(2500 * time.Millisecond) })
		if err != nil || len(a.done) != 6 || a.most != 3 || a.done[4] == nil || a.done[5] != nil {
			t.Errorf("got %v, %v done, %d at once", err, a.done, a.most)
		}
	})
}

func TestLoopPlansWhenPokedWhenDueAndAfterSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &actor{next: time.Now().Add(time.Minute)}
		err := loop(t, a, func(poke chan struct{}, _ *terms) {
			plans := func(want int, when string) {
				t.Helper()
				synctest.Wait()
				a.set(func() {
					if a.plans != want {
						t.Errorf("%s: planned %d times, want %d", when, a.plans, want)
					}
				})
			}
			plans(1, "at first")
			time.Sleep(59 * time.Second)
			plans(1, "before it is due")
			time.Sleep(2 * time.Second)
			plans(2, "when it is due")
			time.Sleep(time.Hour)
			plans(2, "long after")
			poke <- struct{}{}
			plans(3, "poked")
			a.set(func() { a.steps = []int{1} })
			poke <- struct{}{}
			plans(5, "poked, and after the step")
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestLoopPlansAgainAfterAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &actor{err: errors.New("store is away")}
		err := loop(t, a, func(chan struct{}, *terms) { time.Sleep(time.Minute) })
		if err != nil || a.plans < 5 || a.plans > 12 {
			t.Errorf("got %v, planned %d times in a minute", err, a.plans)
		}
	})
}

func TestLoopEndsWithItsTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &actor{steps: []int{1}, took: time.Hour}
		err := loop(t, a, func(_ chan struct{}, ts *terms) {
			synctest.Wait()
			ts.lose("a")
			synctest.Wait()
			a.set(func() {
				if a.flying != 0 {
					t.Error("a step is still on its way")
				}
			})
		})
		if !errors.Is(err, volant.ErrStaleTerm) {
			t.Errorf("got %v", err)
		}
	})
}

func TestLoopEndsWhenAStepFindsTheTermStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &actor{steps: []int{1}, fails: map[int]error{1: fmt.Errorf("host: %w", volant.ErrStaleTerm)}}
		err := loop(t, a, func(chan struct{}, *terms) { synctest.Wait() })
		if !errors.Is(err, volant.ErrStaleTerm) {
			t.Errorf("got %v", err)
		}
	})
}
