package local_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/local"
	"github.com/volant-edge/volant/store/storetest"
)

func openCopy(t *testing.T, path string) *local.Copy {
	t.Helper()
	c, err := local.Open(local.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() }) // closed twice in some tests
	return c
}

// follow runs the copy behind src until the returned function is called.
func follow(t *testing.T, c *local.Copy, src store.Reader) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx, src) }()
	synctest.Wait()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

func create(t *testing.T, s store.Store, id, name string) string {
	t.Helper()
	app := &volant.App{Meta: volant.Meta{Org: "o", App: volant.AppID(id), ID: id}, Name: name}
	if _, err := store.Create(t.Context(), s, "test", app); err != nil {
		t.Fatal(err)
	}
	return app.Key()
}

func rename(t *testing.T, s store.Store, key, name string) {
	t.Helper()
	if _, _, err := store.Update(t.Context(), s, "test", key, func(a *volant.App) error { a.Name = name; return nil }); err != nil {
		t.Fatal(err)
	}
}

func nameOf(t *testing.T, r store.Reader, key string) string {
	t.Helper()
	app, err := store.Load[volant.App](t.Context(), r, key)
	if err != nil {
		return err.Error()
	}
	return app.Name
}

// same fails unless both readers list the same records.
func same(t *testing.T, want, got store.Reader) {
	t.Helper()
	a, rev, err1 := want.List(t.Context(), "")
	b, at, err2 := got.List(t.Context(), "")
	if diff := cmp.Diff(a, b); err1 != nil || err2 != nil || rev != at || diff != "" {
		t.Errorf("at %s, want %s; %v, %v\n%s", at, rev, err1, err2, diff)
	}
}

func TestCopyServesWhenTheStoreIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "intent.db")
		s := storetest.New()
		a := create(t, s, "a", "before")
		c := openCopy(t, path)
		stop := follow(t, c, s)
		b := create(t, s, "b", "after")
		rename(t, s, a, "changed")
		synctest.Wait()
		same(t, s, c)

		s.SetDown(true)
		synctest.Wait()
		if got := nameOf(t, c, a) + " " + nameOf(t, c, b); got != "changed after" {
			t.Errorf("with the store down: %s", got)
		}
		if got := c.Status().Trouble; !strings.Contains(got, "down") {
			t.Errorf("trouble: %q", got)
		}
		stop()
		c.Close() // reopened below
		c = openCopy(t, path)
		if got := nameOf(t, c, a); got != "changed" {
			t.Errorf("started with the store down: %s", got)
		}
		stop = follow(t, c, s)
		defer stop()
		s.SetDown(false)
		rename(t, s, b, "caught up")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		same(t, s, c)
		if got := c.Status(); got.Trouble != "" || len(got.Alarms) != 0 {
			t.Errorf("status: %+v", got)
		}
	})
}

func TestCopyResyncsAfterCompaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		a := create(t, s, "a", "1")
		gone := create(t, s, "gone", "1")
		c := openCopy(t, filepath.Join(t.TempDir(), "c"))
		follow(t, c, s)()
		rename(t, s, a, "2")
		create(t, s, "b", "1")
		if _, err := store.Delete(t.Context(), s, "test", gone); err != nil {
			t.Fatal(err)
		}
		s.Compact()
		stop := follow(t, c, s)
		same(t, s, c)
		// A tombstone which the store sweeps goes here too.
		e, err := s.Get(t.Context(), gone)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Commit(t.Context(), store.Op{Verb: store.Erase, Key: gone, Expect: e.Mod}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		same(t, s, c)
		stop()
		if got := c.Status(); len(got.Alarms) != 0 {
			t.Errorf("alarms: %+v", got.Alarms)
		}
	})
}

func TestAbsenceIsNoOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		key := create(t, s, "a", "alive")
		path := filepath.Join(t.TempDir(), "c")
		c := openCopy(t, path)
		stop := follow(t, c, s)
		e, err := s.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Commit(t.Context(), store.Op{Verb: store.Erase, Key: key, Expect: e.Mod}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for range 2 { // and again after a restart
			if got := nameOf(t, c, key); got != "alive" {
				t.Errorf("a record erased in the store: %s", got)
			}
			if got := c.Status(); !cmp.Equal(got.Missing, []string{key}) {
				t.Errorf("missing: %v", got.Missing)
			}
			stop()
			c.Close() // reopened
			c = openCopy(t, path)
			stop = follow(t, c, s)
		}
		create(t, s, "a", "again")
		synctest.Wait()
		same(t, s, c)
		if got := c.Status(); len(got.Missing) != 0 {
			t.Errorf("missing after it came back: %v", got.Missing)
		}
		stop()
	})
}

func TestCopyNeverGoesBack(t *testing.T) {
	for _, tt := range []struct {
		name string
		old  func(t *testing.T) *storetest.Memory
	}{
		{"emptied store", func(*testing.T) *storetest.Memory { return storetest.NewEpoch(3) }},
		{"older epoch", func(t *testing.T) *storetest.Memory {
			s := storetest.NewEpoch(2)
			for i := range 20 {
				create(t, s, fmt.Sprint(i), "old")
			}
			return s
		}},
		{"put back, and written to since", func(t *testing.T) *storetest.Memory {
			s := storetest.NewEpoch(3)
			create(t, s, "a", "old")
			for i := range 20 {
				create(t, s, fmt.Sprint(i), "old")
			}
			return s
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := storetest.NewEpoch(3)
				create(t, s, "b", "x")
				a := create(t, s, "a", "1")
				rename(t, s, a, "2")
				c := openCopy(t, filepath.Join(t.TempDir(), "c"))
				follow(t, c, s)()
				stop := follow(t, c, tt.old(t))
				defer stop()
				time.Sleep(time.Minute)
				synctest.Wait()
				same(t, s, c)
				if got := c.Status(); got.Trouble == "" || len(got.Alarms) != 1 {
					t.Errorf("status: %+v, want trouble and one alarm", got)
				}
			})
		})
	}
}

func TestRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := storetest.New()
		a := create(t, s, "a", "1")
		dead := create(t, s, "dead", "1")
		if _, err := store.Delete(t.Context(), s, "test", dead); err != nil {
			t.Fatal(err)
		}
		strange := []byte(`{"kind":"app","schema":1,"id":"x","app":"x","generation":1,"future":{"deep":[1,2,12345678901234567890]}}`)
		if _, err := s.Commit(t.Context(), store.Op{Key: "app/x/x", Value: strange}); err != nil {
			t.Fatal(err)
		}
		behind := openCopy(t, filepath.Join(dir, "behind"))
		follow(t, behind, s)()
		// The other node has seen more: a change, and a record that the restored store will lack.
		rename(t, s, a, "2")
		late := create(t, s, "late", "alive")
		ahead := openCopy(t, filepath.Join(dir, "ahead"))
		follow(t, ahead, s)()
		before := ahead.Revision()
		behind.Close() // only read

		next := storetest.New()
		done, err := local.Restore(t.Context(), filepath.Join(dir, "behind"), next, false)
		if err != nil || done.From != behind.Revision() || done.To.Epoch != 2 || done.Records != 3 {
			t.Fatalf("restore: %+v, %v", done, err)
		}
		if e, err := next.Get(t.Context(), "app/x/x"); err != nil || string(e.Value) != string(strange) {
			t.Errorf("unknown fields: %s, %v", e.Value, err)
		}
		if rec, _, err := store.LoadAny[volant.App](t.Context(), next, dead); err != nil || !rec.Tombstone {
			t.Errorf("tombstone: %+v, %v", rec, err)
		}
		stop := follow(t, ahead, next)
		defer stop()
		if got := ahead.Revision(); !before.Before(got) || got.Epoch != 2 {
			t.Errorf("the node ahead is at %s, was at %s", got, before)
		}
		if got := nameOf(t, ahead, a); got != "1" {
			t.Errorf("restored record on the node ahead: %s, want 1: the newer epoch holds", got)
		}
		if got := nameOf(t, ahead, late); got != "alive" {
			t.Errorf("record that the restored store lacks: %s, want alive", got)
		}
		if got := ahead.Status(); !cmp.Equal(got.Missing, []string{late}) {
			t.Errorf("missing: %v", got.Missing)
		}
		// The old store coming back is refused from now on.
		rename(t, s, a, "3")
		stop()
		defer follow(t, ahead, s)()
		if got := nameOf(t, ahead, a); got != "1" || ahead.Status().Trouble == "" {
			t.Errorf("the old store came back: %s, %+v", got, ahead.Status())
		}
	})
}

// patch changes raw bytes of a record in a closed file.
func patch(t *testing.T, path, key string, fn func([]byte) []byte) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() // the update is checked
	if err := db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte("records"))
		return b.Put([]byte(key), fn(append([]byte(nil), b.Get([]byte(key))...)))
	}); err != nil {
		t.Fatal(err)
	}
}

func TestBadRecordIsRefusedAlarmedAndHealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "c")
		s := storetest.New()
		a, b := create(t, s, "a", "1"), create(t, s, "b", "1")
		c := openCopy(t, path)
		follow(t, c, s)()
		c.Close() // reopened
		patch(t, path, a, func(raw []byte) []byte { raw[len(raw)-5] ^= 1; return raw })

		c = openCopy(t, path)
		if _, err := c.Get(t.Context(), a); !errors.Is(err, volant.ErrUnavailable) {
			t.Errorf("bad record: got %v, want unavailable", err)
		}
		if list, _, err := c.List(t.Context(), ""); err != nil || len(list) != 1 || list[0].Key != b {
			t.Errorf("list around a bad record: %d, %v", len(list), err)
		}
		if got := c.Status(); !cmp.Equal(got.Bad, []string{a}) || got.Refused != 1 || len(got.Alarms) != 1 {
			t.Errorf("status: %+v", got)
		}
		c.Close() // restored from
		if _, err := local.Restore(t.Context(), path, storetest.New(), false); !errors.Is(err, volant.ErrPrecondition) {
			t.Errorf("restore with a bad record: %v", err)
		}
		if done, err := local.Restore(t.Context(), path, storetest.New(), true); err != nil || done.Records != 1 || len(done.Damaged) != 1 {
			t.Errorf("restore without it: %+v, %v", done, err)
		}
		c = openCopy(t, path)
		defer follow(t, c, s)()
		same(t, s, c)
		if got := c.Status(); len(got.Bad) != 0 {
			t.Errorf("bad after healing: %v", got.Bad)
		}
	})
}

func TestDamagedFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "c")
		s := storetest.New()
		for i := range 50 {
			create(t, s, fmt.Sprint(i), strings.Repeat("x", 500))
		}
		c := openCopy(t, path)
		follow(t, c, s)()
		c.Close() // damaged below
		sound, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		blank := make([]byte, len(sound))
		for name, bytes := range map[string][]byte{
			"text": []byte("hello"), "zeros": blank, "cut": sound[:len(sound)/2], "cut to the head": sound[:8192],
			"no head": append(append([]byte(nil), blank[:8192]...), sound[8192:]...),
		} {
			if err := os.WriteFile(path, bytes, 0o600); err != nil {
				t.Fatal(err)
			}
			if c, err := local.Open(local.Config{Path: path}); !errors.Is(err, local.ErrDamaged) {
				t.Errorf("%s: got %v, want damaged", name, err)
				if err == nil {
					c.Close() // the test has failed
				}
			}
		}
		down := storetest.New()
		down.SetDown(true)
		if _, err := local.Rebuild(t.Context(), local.Config{Path: path}, down); !errors.Is(err, volant.ErrUnavailable) {
			t.Errorf("rebuild without a store: %v", err)
		}
		c, err = local.Rebuild(t.Context(), local.Config{Path: path}, s)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() // the test is over
		same(t, s, c)
		if got := c.Status().Alarms; len(got) != 1 {
			t.Errorf("alarms: %+v", got)
		}
		if aside, _ := filepath.Glob(path + ".damaged-*"); len(aside) != 1 {
			t.Errorf("set aside: %v", aside)
		}
	})
}

// Whatever one byte of the file becomes, opening and reading ends, without a crash and without a record
// that was never written.
func TestFlippedBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	c := openCopy(t, path)
	written := map[string]string{}
	var entries []store.Entry
	for i := range 40 {
		e := store.Entry{Key: fmt.Sprintf("app/%d/%d", i, i), Value: []byte(strings.Repeat("v", 100*i)), Mod: store.Revision{Epoch: 1, Rev: uint64(i + 1)}}
		entries, written[e.Key] = append(entries, e), string(e.Value)
	}
	if err := c.Replace(entries, store.Revision{Epoch: 1, Rev: 40}); err != nil {
		t.Fatal(err)
	}
	c.Close() // damaged below
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(sound); i += 307 {
		bytes := append([]byte(nil), sound...)
		bytes[i] ^= 0x5a
		if err := os.WriteFile(path, bytes, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := local.Open(local.Config{Path: path})
		if err != nil {
			if !errors.Is(err, local.ErrDamaged) {
				t.Errorf("byte %d: %v", i, err)
			}
			continue
		}
		list, _, err := c.List(t.Context(), "")
		if err != nil && !errors.Is(err, local.ErrDamaged) {
			t.Errorf("byte %d: list: %v", i, err)
		}
		for _, e := range list {
			if v, ok := written[e.Key]; !ok || v != string(e.Value) {
				t.Errorf("byte %d: record %s was never written so", i, e.Key)
			}
		}
		if len(list) < len(written) && err == nil && len(c.Status().Alarms) == 0 {
			t.Errorf("byte %d: %d of %d records, and no alarm", i, len(list), len(written))
		}
		c.Close() // damaged
	}
}

func TestCopyIsOpenedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	openCopy(t, path)
	if _, err := local.Open(local.Config{Path: path}); !errors.Is(err, volant.ErrUnavailable) {
		t.Errorf("opened twice: %v", err)
	}
}

func TestWatchOfTheCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New()
		c := openCopy(t, filepath.Join(t.TempDir(), "c"))
		defer follow(t, c, s)()
		create(t, s, "a", "1")
		synctest.Wait()
		_, rev, err := c.List(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		create(t, s, "b", "1")
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		var got []string
		done := make(chan error)
		go func() {
			done <- c.Watch(ctx, "app/", rev, func(b store.Batch) error {
				for _, e := range b.Events {
					got = append(got, e.Key)
				}
				return nil
			})
		}()
		create(t, s, "c", "1")
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"app/b/b", "app/c/c"}, got); diff != "" {
			t.Error(diff)
		}
		if err := c.Watch(t.Context(), "", store.Revision{Epoch: 9}, nil); !errors.Is(err, store.ErrAhead) {
			t.Errorf("from the future: %v", err)
		}
		long := make([]store.Entry, 5000)
		for i := range long {
			long[i] = store.Entry{Key: fmt.Sprint("x/y/", i), Mod: store.Revision{Epoch: 1, Rev: 1000}}
		}
		if err := c.Replace(long, store.Revision{Epoch: 1, Rev: 1000}); err != nil {
			t.Fatal(err)
		}
		if err := c.Watch(t.Context(), "", rev, nil); !errors.Is(err, store.ErrCompacted) {
			t.Errorf("from long ago: %v", err)
		}
	})
}

// A watch may begin wherever a List has read, at any moment.
func TestWatchBeginsWhereAListHasRead(t *testing.T) {
	c := openCopy(t, filepath.Join(t.TempDir(), "c"))
	const changes = 500
	done := make(chan error, 1)
	go func() {
		for rev := uint64(1); rev <= changes; rev++ {
			if err := c.Apply(store.Batch{Rev: store.Revision{Epoch: 1, Rev: rev}}); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	over := context.Canceled
	for last := uint64(0); last < changes; {
		_, rev, err := c.List(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.Watch(ctx, "", rev, func(store.Batch) error { return nil }); !errors.Is(err, over) {
			t.Fatalf("from %s: %v", rev, err)
		}
		last = rev.Rev
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
