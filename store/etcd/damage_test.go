package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
)

func put(t *testing.T, s *etcd.Store, key, value string) store.Revision {
	t.Helper()
	rev, err := s.Commit(t.Context(), store.Op{Key: key, Value: []byte(value)})
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// within waits for something that etcd does in its own time.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in time", what)
		}
	}
}

// look runs the store's Run until the test ends.
func look(t *testing.T, s *etcd.Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestReopen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, etcd.Config{Dir: dir})
	rev := put(t, s, "a", "1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, volant.ErrUnavailable) {
		t.Errorf("closed: %v", err)
	}
	s = open(t, etcd.Config{Dir: dir, Floor: rev})
	if e, err := s.Get(t.Context(), "a"); err != nil || e.Mod != rev {
		t.Errorf("reopened: %v at %s, want %s", err, e.Mod, rev)
	}
}

func TestFloor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	floor := store.Revision{Epoch: 1, Rev: 100}
	if _, err := etcd.Open(t.Context(), etcd.Config{Dir: dir, Floor: floor}); !errors.Is(err, volant.ErrPrecondition) || !strings.Contains(err.Error(), "restore") {
		t.Errorf("empty directory of a node which has seen more: %v", err)
	}
	s := open(t, etcd.Config{Dir: dir})
	put(t, s, "a", "1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.Open(t.Context(), etcd.Config{Dir: dir, Floor: floor}); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("directory put back to an older state: %v", err)
	}
	open(t, etcd.Config{Dir: dir, Floor: store.Revision{Epoch: 1, Rev: 2}})
}

func TestDirectoryTakenAway(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "etcd")
	s := open(t, etcd.Config{Dir: dir, Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	look(t, s)
	put(t, s, "a", "1")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	const remedy = "volant control restore"
	if _, err := s.Commit(t.Context(), store.Op{Key: "b"}); !errors.Is(err, volant.ErrUnavailable) || !strings.Contains(err.Error(), remedy) {
		t.Errorf("commit into a directory that is gone: %v", err)
	}
	within(t, "down", func() bool { return s.Down() != nil })
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, volant.ErrUnavailable) || !strings.Contains(err.Error(), remedy) {
		t.Errorf("get: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty store was made in place of the one taken away: %v", err)
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	within(t, "back", func() bool { return s.Down() == nil })
	if e, err := s.Get(t.Context(), "a"); err != nil || string(e.Value) != "1" {
		t.Errorf("brought back: %s, %v", e.Value, err)
	}
	put(t, s, "c", "1")
}

func TestStartedLater(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "etcd")
	s := open(t, etcd.Config{Dir: dir})
	rev := put(t, s, "a", "1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	s = etcd.New(etcd.Config{Dir: dir, Floor: rev})
	defer s.Close() // the test is over
	if err := s.Start(t.Context()); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("start without the directory: %v", err)
	}
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, volant.ErrUnavailable) || !strings.Contains(err.Error(), "restore") {
		t.Errorf("down: %v", err)
	}
	look(t, s)
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	within(t, "up", func() bool { return s.Down() == nil })
	if e, err := s.Get(t.Context(), "a"); err != nil || e.Mod != rev {
		t.Errorf("up: %v, %v", e, err)
	}
}

func TestDirectoryDeleted(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "etcd")
	s := open(t, etcd.Config{Dir: dir})
	look(t, s)
	put(t, s, "a", "1")
	watched := make(chan error, 1)
	rev := put(t, s, "b", "1")
	go func() { watched <- s.Watch(t.Context(), "", rev, func(store.Batch) error { return nil }) }()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	// Much more than fits into what is open: new files would be needed.
	for i := range 40 {
		if _, err := s.Commit(t.Context(), store.Op{Key: fmt.Sprint("k", i), Value: make([]byte, store.MaxValue)}); !errors.Is(err, volant.ErrUnavailable) {
			t.Fatalf("commit %d: %v", i, err)
		}
	}
	if err := <-watched; !errors.Is(err, volant.ErrUnavailable) {
		t.Errorf("watch: %v", err)
	}
	within(t, "down", func() bool { return s.Down() != nil })
	time.Sleep(50 * time.Millisecond)
}

// testWriter leads a log into the test's.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// Whatever happened to the files, opening ends with a store or an error, never with the process.
func TestDamagedDirectory(t *testing.T) {
	t.Parallel()
	sound := filepath.Join(t.TempDir(), "sound")
	s := open(t, etcd.Config{Dir: sound})
	for i := range 50 {
		put(t, s, fmt.Sprint("k", i), strings.Repeat("x", 1000))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wal, err := filepath.Glob(filepath.Join(sound, "member", "wal", "*.wal"))
	if err != nil || len(wal) == 0 {
		t.Fatal(wal, err)
	}
	walName := filepath.Join("member", "wal", filepath.Base(wal[0]))
	db := filepath.Join("member", "snap", "db")
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   bool // whether it may open
	}{
		{"database is text", func(t *testing.T, dir string) { write(t, filepath.Join(dir, db), []byte("hello")) }, false},
		{"database is zeros", func(t *testing.T, dir string) { write(t, filepath.Join(dir, db), make([]byte, 65536)) }, false},
		{"database is cut", func(t *testing.T, dir string) { cut(t, filepath.Join(dir, db), 8192) }, false},
		{"database is missing", func(t *testing.T, dir string) { remove(t, filepath.Join(dir, db)) }, true},
		{"log is text", func(t *testing.T, dir string) { write(t, filepath.Join(dir, walName), []byte("hello")) }, false},
		{"log is cut", func(t *testing.T, dir string) { cut(t, filepath.Join(dir, walName), 4000) }, false},
		{"log is missing", func(t *testing.T, dir string) { remove(t, filepath.Join(dir, walName)) }, true},
		{"a byte of the log is flipped", func(t *testing.T, dir string) { flip(t, filepath.Join(dir, walName), 20000) }, false},
		{"directory is a file", func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			write(t, dir, []byte("x"))
		}, false},
		{"sound", func(*testing.T, string) {}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "etcd")
			if err := os.CopyFS(dir, os.DirFS(sound)); err != nil {
				t.Fatal(err)
			}
			tt.damage(t, dir)
			s, err := etcd.Open(t.Context(), etcd.Config{Dir: dir, Floor: store.Revision{Epoch: 1, Rev: 52}, StartTime: 2 * time.Second})
			t.Logf("%v", err)
			if err != nil {
				if len(err.Error()) > 600 || strings.Contains(err.Error(), "goroutine") {
					t.Errorf("not for people: %v", err)
				}
				return
			}
			defer s.Close() // damaged
			list, rev, err := s.List(t.Context(), "")
			if err == nil && len(list) != 50 {
				t.Errorf("opened with %d of 50 records at %s", len(list), rev)
			}
			if !tt.want {
				t.Errorf("opened at %s with %d records, %v", rev, len(list), err)
			}
		})
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func cut(t *testing.T, path string, at int64) {
	t.Helper()
	if err := os.Truncate(path, at); err != nil {
		t.Fatal(err)
	}
}

func flip(t *testing.T, path string, at int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 0xff
	write(t, path, b)
}
