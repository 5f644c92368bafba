package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// wait bounds what a test waits for from an engine.
const wait = 20 * time.Second

// Test runs the conformance suite on empty stores which open returns.
func Test(t *testing.T, open func(t *testing.T) store.Store) {
	for name, test := range map[string]func(*testing.T, store.Store){
		"GetList":       testGetList,
		"Commit":        testCommit,
		"CommitBounds":  testCommitBounds,
		"CommitEpoch":   testCommitEpoch,
		"Watch":         testWatch,
		"WatchErrors":   testWatchErrors,
		"Race":          testRace,
		"Lease":         testLease,
		"Records":       testRecords,
		"CancelledCall": testCancelled,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func put(t *testing.T, s store.Store, key, value string, expect store.Revision) store.Revision {
	t.Helper()
	rev, err := s.Commit(t.Context(), store.Op{Key: key, Value: []byte(value), Expect: expect})
	if err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
	return rev
}

func testGetList(t *testing.T, s store.Store) {
	ctx := t.Context()
	if _, err := s.Get(ctx, "a/1"); !errors.Is(err, volant.ErrNotFound) {
		t.Fatalf("get of nothing: got %v, want not found", err)
	}
	first := put(t, s, "a/1", "one", store.Revision{})
	put(t, s, "a/2", "two", store.Revision{})
	put(t, s, "b/1", "other", store.Revision{})
	last := put(t, s, "a/1", "uno", first)
	if !first.Before(last) || first.Epoch != last.Epoch || first.Epoch == 0 {
		t.Errorf("revisions %s and %s do not grow within an epoch", first, last)
	}
	want := store.Entry{Key: "a/1", Value: []byte("uno"), Created: first, Mod: last}
	got, err := s.Get(ctx, "a/1")
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("get: %v\n%s", err, diff)
	}
	list, rev, err := s.List(ctx, "a/")
	if err != nil || rev != last || len(list) != 2 {
		t.Fatalf("list: got %d entries at %s, %v; want 2 at %s", len(list), rev, err, last)
	}
	if diff := cmp.Diff(want, list[0]); diff != "" {
		t.Error(diff)
	}
	if list, _, _ := s.List(ctx, ""); len(list) != 3 {
		t.Errorf("list of everything: got %d entries, want 3", len(list))
	}
	for i := range 2500 { // more than an engine reads at once
		if i%100 == 0 {
			var ops []store.Op
			for j := range 100 {
				ops = append(ops, store.Op{Key: fmt.Sprintf("many/%05d", i+j), Value: []byte{1}})
			}
			if _, err := s.Commit(ctx, ops...); err != nil {
				t.Fatal(err)
			}
		}
	}
	if list, _, err := s.List(ctx, "many/"); err != nil || len(list) != 2500 || list[2499].Key != "many/02499" {
		t.Errorf("long list: got %d entries, %v", len(list), err)
	}
}

func testCommit(t *testing.T, s store.Store) {
	ctx := t.Context()
	a := put(t, s, "a", "1", store.Revision{})
	stale := a
	a = put(t, s, "a", "2", a)
	for _, tt := range []struct {
		name string
		ops  []store.Op
		want error
	}{
		{"created twice", []store.Op{{Key: "a", Value: []byte("x")}}, volant.ErrExists},
		{"changed since", []store.Op{{Key: "a", Value: []byte("x"), Expect: stale}}, volant.ErrConflict},
		{"gone", []store.Op{{Key: "none", Value: []byte("x"), Expect: a}}, volant.ErrConflict},
		{"stale term", []store.Op{{Verb: store.Check, Key: "a", Expect: stale}, {Key: "b", Value: []byte("x")}}, volant.ErrStaleTerm},
		{"all or nothing", []store.Op{{Key: "b", Value: []byte("x")}, {Key: "a", Value: []byte("x")}}, volant.ErrExists},
		{"erased when changed", []store.Op{{Verb: store.Erase, Key: "a", Expect: stale}}, volant.ErrConflict},
	} {
		if _, err := s.Commit(ctx, tt.ops...); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	if _, err := s.Get(ctx, "b"); !errors.Is(err, volant.ErrNotFound) {
		t.Errorf("b after commits which failed: got %v, want not found", err)
	}
	rev, err := s.Commit(ctx, store.Op{Verb: store.Check, Key: "a", Expect: a}, store.Op{Key: "b", Value: []byte("1")}, store.Op{Verb: store.Erase, Key: "a2"})
	if err != nil {
		t.Fatalf("commit of three: %v", err)
	}
	if e, err := s.Get(ctx, "b"); err != nil || e.Mod != rev {
		t.Errorf("b: got %v at %s, want %s", err, e.Mod, rev)
	}
	if _, err := s.Commit(ctx, store.Op{Verb: store.Erase, Key: "a", Expect: a}); err != nil {
		t.Fatal(err)
	}
	again := put(t, s, "a", "3", store.Revision{})
	if e, err := s.Get(ctx, "a"); err != nil || e.Created != again {
		t.Errorf("created again: got %v, %s, want %s", err, e.Created, again)
	}
}

func testCommitBounds(t *testing.T, s store.Store) {
	ctx := t.Context()
	big := make([]byte, store.MaxValue)
	if _, err := s.Commit(ctx, store.Op{Key: "big1", Value: big}, store.Op{Key: "big2", Value: big}); err != nil {
		t.Errorf("two values of the largest size: %v", err)
	}
	var many []store.Op
	for i := range store.MaxOps {
		many = append(many, store.Op{Key: fmt.Sprintf("m%d", i)})
	}
	if _, err := s.Commit(ctx, many...); err != nil {
		t.Errorf("as many as allowed: %v", err)
	}
	for name, ops := range map[string][]store.Op{
		"no op":      {},
		"big value":  {{Key: "x", Value: make([]byte, store.MaxValue+1)}},
		"empty key":  {{Key: ""}},
		"bad key":    {{Key: "a b"}},
		"long key":   {{Key: string(make([]byte, store.MaxKey+1))}},
		"same twice": {{Key: "x"}, {Key: "x"}},
		"many":       append(many, store.Op{Key: "more"}),
	} {
		if _, err := s.Commit(ctx, ops...); !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("%s: got %v, want invalid", name, err)
		}
	}
}

// A revision of another epoch never matches, be its number the same.
func testCommitEpoch(t *testing.T, s store.Store) {
	rev := put(t, s, "a", "1", store.Revision{})
	other := store.Revision{Epoch: rev.Epoch + 1, Rev: rev.Rev}
	if _, err := s.Commit(t.Context(), store.Op{Key: "a", Value: []byte("x"), Expect: other}); !errors.Is(err, volant.ErrConflict) {
		t.Errorf("revision of another epoch: got %v, want conflict", err)
	}
}

var errEnough = errors.New("enough")

func testWatch(t *testing.T, s store.Store) {
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	start := put(t, s, "x/0", "before", store.Revision{})
	a := put(t, s, "x/a", "1", store.Revision{})
	got := make(chan []string, 1)
	go func() {
		var lines []string
		last := start
		err := s.Watch(ctx, "x/", start, func(b store.Batch) error {
			if b.Rev.Before(last) {
				t.Errorf("revision went from %s back to %s", last, b.Rev)
			}
			last = b.Rev
			for _, e := range b.Events {
				if b.Rev.Before(e.Mod) {
					t.Errorf("event of %s in a batch of %s", e.Mod, b.Rev)
				}
				lines = append(lines, fmt.Sprint(e.Key, " ", string(e.Value), " ", e.Deleted))
				if e.Key == "x/end" {
					return errEnough
				}
			}
			return nil
		})
		if !errors.Is(err, errEnough) {
			t.Errorf("watch ended with %v, want fn's error", err)
		}
		got <- lines
	}()
	a = put(t, s, "x/a", "2", a)
	put(t, s, "y/a", "elsewhere", store.Revision{})
	if _, err := s.Commit(ctx, store.Op{Verb: store.Erase, Key: "x/a", Expect: a}, store.Op{Key: "x/b", Value: []byte("3")}); err != nil {
		t.Fatal(err)
	}
	put(t, s, "x/end", "", store.Revision{})
	want := []string{"x/a 1 false", "x/a 2 false", "x/a  true", "x/b 3 false", "x/end  false"}
	if diff := cmp.Diff(want, <-got); diff != "" {
		t.Error(diff)
	}
}

func testWatchErrors(t *testing.T, s store.Store) {
	rev := put(t, s, "a", "1", store.Revision{})
	never := func(store.Batch) error { return errEnough }
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	for _, tt := range []struct {
		name  string
		after store.Revision
		want  error
	}{
		{"from before everything", store.Revision{}, store.ErrCompacted},
		{"from an older epoch", store.Revision{Epoch: rev.Epoch - 1, Rev: rev.Rev + 100}, store.ErrCompacted},
		{"from the future", store.Revision{Epoch: rev.Epoch, Rev: rev.Rev + 100}, store.ErrAhead},
		{"from a newer epoch", store.Revision{Epoch: rev.Epoch + 1, Rev: 1}, store.ErrAhead},
	} {
		if err := s.Watch(ctx, "", tt.after, never); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
	ended, stop := context.WithCancel(ctx)
	stop()
	if err := s.Watch(ended, "", rev, never); !errors.Is(err, context.Canceled) {
		t.Errorf("context ended: got %v", err)
	}
}

// Ten writers count one key up; nothing is lost and nothing counted twice.
func testRace(t *testing.T, s store.Store) {
	org := &volant.Org{Meta: volant.Meta{Org: "o", ID: "o"}, Name: "x"}
	if _, err := store.Create(t.Context(), s, "test", org); err != nil {
		t.Fatal(err)
	}
	const writers, times = 4, 10
	errs := make(chan error, writers)
	for range writers {
		go func() {
			for range times {
				if _, _, err := store.Update(t.Context(), s, "test", org.Key(), func(o *volant.Org) error { o.Name += "x"; return nil }); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	got, err := store.Load[volant.Org](t.Context(), s, org.Key())
	if err != nil || len(got.Name) != 1+writers*times || got.Generation != 1+writers*times {
		t.Errorf("after %d updates: name of %d, generation %d, %v", writers*times, len(got.Name), got.Generation, err)
	}
}

func testLease(t *testing.T, s store.Store) {
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	id, err := s.Grant(ctx, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(ctx, store.Op{Key: "term/a", Value: []byte("me"), Lease: id}); err != nil {
		t.Fatal(err)
	}
	if err := s.Renew(ctx, id); err != nil {
		t.Errorf("renew: %v", err)
	}
	if err := s.Revoke(ctx, id); err != nil {
		t.Errorf("revoke: %v", err)
	}
	if _, err := s.Get(ctx, "term/a"); !errors.Is(err, volant.ErrNotFound) {
		t.Errorf("key of a revoked lease: got %v, want not found", err)
	}
	if err := s.Renew(ctx, id); !errors.Is(err, volant.ErrNotFound) {
		t.Errorf("renew of a revoked lease: got %v, want not found", err)
	}
	if err := s.Revoke(ctx, id); !errors.Is(err, volant.ErrNotFound) {
		t.Errorf("revoke twice: got %v, want not found", err)
	}
	if _, err := s.Commit(ctx, store.Op{Key: "term/b", Lease: id}); !errors.Is(err, volant.ErrNotFound) {
		t.Errorf("put under a revoked lease: got %v, want not found", err)
	}
	// One that nobody renews runs out by itself, and a watch tells of it.
	short, err := s.Grant(ctx, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := s.Commit(ctx, store.Op{Key: "term/c", Lease: short})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Watch(ctx, "term/", rev, func(b store.Batch) error {
		for _, e := range b.Events {
			if e.Key == "term/c" && e.Deleted {
				return errEnough
			}
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Errorf("a lease that nobody renews: watch ended with %v, want its key's end", err)
	}
}

func testRecords(t *testing.T, s store.Store) {
	ctx := t.Context()
	app := &volant.App{Meta: volant.Meta{Org: "o", App: "app_1", ID: "app_1"}, Name: "web"}
	release := &volant.Release{Meta: volant.Meta{Org: "o", App: "app_1", ID: "1"}, Version: 1}
	rev, err := store.Apply(ctx, s, "ann", store.Creation(app), store.Creation(release))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{app.Key(), release.Key()} {
		if e, err := s.Get(ctx, key); err != nil || e.Mod != rev {
			t.Errorf("%s: %v at %s, want %s", key, err, e.Mod, rev)
		}
	}
	got, next, err := store.Update(ctx, s, "bob", app.Key(), func(a *volant.App) error { a.Release = 1; return nil })
	if err != nil || got.Generation != 2 || got.Actor != "bob" || !rev.Before(next) {
		t.Errorf("update: %+v at %s, %v", got, next, err)
	}
	if _, err := store.Delete(ctx, s, "ann", app.Key()); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Load[volant.App](ctx, s, app.Key()); !errors.Is(err, volant.ErrNotFound) {
		t.Errorf("load of a tombstone: got %v, want not found", err)
	}
	dead, _, err := store.LoadAny[volant.App](ctx, s, app.Key())
	if err != nil || !dead.Tombstone || dead.Generation != 3 || dead.Name != "web" {
		t.Errorf("tombstone: %+v, %v", dead, err)
	}
	if _, err := store.Create(ctx, s, "ann", app); !errors.Is(err, volant.ErrExists) {
		t.Errorf("create over a tombstone: got %v, want exists", err)
	}
}

func testCancelled(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Get(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("get: got %v", err)
	}
	if _, err := s.Commit(ctx, store.Op{Key: "a"}); !errors.Is(err, context.Canceled) {
		t.Errorf("commit: got %v", err)
	}
}
