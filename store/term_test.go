package store_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/storetest"
)

// holder starts the terms of one process; the returned function stops it.
func holder(t *testing.T, s store.Store, owner string) (*store.Terms, func()) {
	t.Helper()
	terms := store.NewTerms(s, store.TermConfig{Owner: owner, TTL: 9 * time.Second})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- terms.Run(ctx) }()
	return terms, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func lost(term *store.Term) bool {
	select {
	case <-term.Lost():
		return true
	default:
		return false
	}
}

func TestTermIsHeldByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		a, stopA := holder(t, s, "a")
		b, stopB := holder(t, s, "b")
		defer stopB()
		first, err := a.Hold(t.Context(), "app")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Try(t.Context(), "app"); !errors.Is(err, volant.ErrLeased) {
			t.Errorf("held twice: %v", err)
		}
		time.Sleep(time.Hour)
		if !first.Valid() || lost(first) {
			t.Error("lost while it was renewed")
		}
		second := make(chan *store.Term)
		go func() {
			term, err := b.Hold(t.Context(), "app")
			if err != nil {
				t.Error(err)
			}
			second <- term
		}()
		time.Sleep(time.Minute)
		stopA() // which gives it up
		if first.Valid() || !lost(first) {
			t.Error("valid after its process was asked to stop")
		}
		next := <-second
		if next.Token() <= first.Token() || !next.Valid() {
			t.Errorf("token %d after %d", next.Token(), first.Token())
		}
		if err := next.Release(t.Context()); err != nil || next.Valid() {
			t.Errorf("released: valid %v, %v", next.Valid(), err)
		}
		third, err := b.Try(t.Context(), "app")
		if err != nil || third.Token() <= next.Token() {
			t.Errorf("held again: %v", err)
		}
	})
}

// The holder stops believing well before the store lets the next one in, whatever the store does to it.
func TestTermEndsBeforeTheNextBegins(t *testing.T) {
	for name, fault := range map[string]func(*storetest.Memory){
		"store down": func(s *storetest.Memory) { s.SetDown(true) },
		"store slow": func(s *storetest.Memory) { s.SetSlow(5 * time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := storetest.New()
				a, stopA := holder(t, s, "a")
				defer stopA()
				term, err := a.Hold(t.Context(), "app")
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(20 * time.Second)
				fault(s)
				start := time.Now()
				<-term.Lost()
				took := time.Since(start)
				if term.Valid() || took > 6*time.Second || took < 3*time.Second {
					t.Errorf("believed for %s, valid %v", took, term.Valid())
				}
				s.SetDown(false)
				s.SetSlow(0)
				b, stopB := holder(t, s, "b")
				defer stopB()
				next, err := b.Hold(t.Context(), "app")
				if err != nil || next.Token() <= term.Token() {
					t.Fatalf("next: %v", err)
				}
				if since := time.Since(start); since < took {
					t.Errorf("the next began %s after the fault, the one before ended %s after", since, took)
				}
				if term.Valid() {
					t.Error("valid again")
				}
				// The guard refuses the one who lost it, though it may not know.
				if _, err := s.Commit(t.Context(), term.Guard(), store.Op{Key: "x"}); !errors.Is(err, volant.ErrStaleTerm) {
					t.Errorf("commit of the one before: %v", err)
				}
				if _, err := s.Commit(t.Context(), next.Guard(), store.Op{Key: "x"}); err != nil {
					t.Errorf("commit of the holder: %v", err)
				}
				if err := term.Release(t.Context()); err != nil || !next.Valid() {
					t.Errorf("late release: %v", err)
				}
				if _, err := s.Get(t.Context(), "term/app"); err != nil {
					t.Errorf("a late release took the key from the next: %v", err)
				}
			})
		})
	}
}

func TestTermAfterALostLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		a, stop := holder(t, s, "a")
		defer stop()
		first, err := a.Hold(t.Context(), "app")
		if err != nil {
			t.Fatal(err)
		}
		s.SetDown(true)
		time.Sleep(time.Minute)
		if first.Valid() || !lost(first) {
			t.Error("still valid")
		}
		s.SetDown(false)
		again, err := a.Hold(t.Context(), "app")
		if err != nil || !again.Valid() || again.Token() <= first.Token() {
			t.Fatalf("held again: %v", err)
		}
		time.Sleep(time.Hour)
		if !again.Valid() {
			t.Error("not renewed")
		}
	})
}

// A store that is so slow that a lease is over when it is granted gives no terms, until it is quick again.
func TestTermOfASlowStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		a, stop := holder(t, s, "a")
		defer stop()
		s.SetSlow(10 * time.Second)
		if _, err := a.Try(t.Context(), "app"); !errors.Is(err, volant.ErrUnavailable) {
			t.Errorf("held by a lease that is over: %v", err)
		}
		s.SetSlow(0)
		if _, err := a.Try(t.Context(), "app"); err != nil {
			t.Errorf("not held though the store is quick again: %v", err)
		}
	})
}

func TestTokenGrowsOverARestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		token := func(s store.Store) uint64 {
			terms, stop := holder(t, s, "a")
			defer stop()
			term, err := terms.Hold(t.Context(), "app")
			if err != nil {
				t.Fatal(err)
			}
			return term.Token()
		}
		old := storetest.New()
		for range 1000 { // the old store has come far
			old.Corrupt("x", nil)
		}
		if before, after := token(old), token(storetest.NewEpoch(2)); after <= before {
			t.Errorf("token %d after %d", after, before)
		}
	})
}

func TestHoldEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		s.SetDown(true)
		a, stop := holder(t, s, "a")
		defer stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := a.Hold(ctx, "app"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, volant.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	})
}

// A process that was killed gives nothing up; its successor need not wait for the lease to run out, others must.
func TestTermsOfAnEarlierProcessAreTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		start := func(owner string, n uint64) *store.Terms {
			return store.NewTerms(s, store.TermConfig{Owner: owner, Start: n, TTL: 9 * time.Second})
		}
		old, err := start("a", 9).Try(t.Context(), "app")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := start("b", 10).Try(t.Context(), "app"); !errors.Is(err, volant.ErrLeased) {
			t.Errorf("another node took a term that is held: %v", err)
		}
		if _, err := start("a", 8).Try(t.Context(), "app"); !errors.Is(err, volant.ErrLeased) {
			t.Errorf("an earlier process took a term that is held: %v", err)
		}
		next, err := start("a", 10).Try(t.Context(), "app")
		if err != nil {
			t.Fatal(err)
		}
		if next.Token() <= old.Token() {
			t.Errorf("token %d after %d", next.Token(), old.Token())
		}
		if _, err := s.Commit(t.Context(), old.Guard()); err == nil {
			t.Error("the old term still guards a write")
		}
	})
}
