package etcd_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
	"github.com/volant-edge/volant/volanttest/need"
)

// A disk which is nearly full fails writes and nothing else; with room again the store takes them.
func TestNearlyFullDisk(t *testing.T) {
	t.Parallel()
	disk := tmpfs(t)
	s := open(t, etcd.Config{Dir: filepath.Join(disk, "etcd"), Reserve: 32 << 20})
	look(t, s)
	rev := put(t, s, "first", "1")
	ballast := filepath.Join(disk, "ballast")
	fill(t, ballast, 16<<20)
	within(t, "writes refused", func() bool {
		_, err := s.Commit(t.Context(), store.Op{Key: "first", Expect: rev, Value: []byte("2")})
		if err == nil {
			rev, _ = s.Commit(t.Context(), store.Op{Key: "first", Expect: rev}) // tried again
		}
		var e *volant.Error
		return errors.As(err, &e) && errors.Is(err, volant.ErrUnavailable) && e.Remedy != ""
	})
	if _, err := s.Get(t.Context(), "first"); err != nil {
		t.Errorf("get: %v", err)
	}
	if _, err := s.Grant(t.Context(), time.Minute); err != nil {
		t.Errorf("terms are held on: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	within(t, "writes taken", func() bool {
		_, err := s.Commit(t.Context(), store.Op{Key: "last"})
		return err == nil
	})
}

// A disk which is full all the same breaks the member, not the process, and nothing acknowledged is lost.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk := tmpfs(t)
	dir := filepath.Join(disk, "etcd")
	s, err := etcd.Open(t.Context(), etcd.Config{Dir: dir, Reserve: 1, Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "first", "1")
	fill(t, filepath.Join(disk, "ballast"), 6<<20)
	kept := map[string]bool{"first": true}
	for i := range 200 {
		key := fmt.Sprint("k", i)
		if _, err = s.Commit(t.Context(), store.Op{Key: key, Value: make([]byte, store.MaxValue)}); err != nil {
			break
		}
		kept[key] = true
	}
	if !errors.Is(err, volant.ErrUnavailable) {
		t.Fatalf("on a full disk: %v", err)
	}
	if _, err := s.Get(t.Context(), "first"); !errors.Is(err, volant.ErrUnavailable) {
		t.Errorf("get of a broken store: %v", err)
	}
	// What a new process finds, which is not held up by what this one holds.
	found := filepath.Join(t.TempDir(), "etcd")
	if err := os.CopyFS(found, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	again := open(t, etcd.Config{Dir: found})
	for key := range kept {
		if _, err := again.Get(t.Context(), key); err != nil {
			t.Errorf("acknowledged before the disk was full: %v", err)
		}
	}
}

// tmpfs is a small disk.
func tmpfs(t *testing.T) string {
	t.Helper()
	need.Root(t)
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=320m"); err != nil {
		need.Unmet(t, "root", err.Error())
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return disk
}

// fill leaves so many bytes free.
func fill(t *testing.T, path string, leave uint64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // ballast
	for {
		var st syscall.Statfs_t
		if err := syscall.Statfs(filepath.Dir(path), &st); err != nil {
			t.Fatal(err)
		}
		if st.Bavail*uint64(st.Bsize) < leave {
			return
		}
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			return
		}
	}
}

// A store at its quota refuses writes with a cure, and takes them again after it has tidied up.
func TestQuota(t *testing.T) {
	t.Parallel()
	s := open(t, etcd.Config{Dir: t.TempDir(), Quota: 4 << 20})
	var err error
	rev := put(t, s, "a", "")
	for range 40 {
		var next store.Revision
		if next, err = s.Commit(t.Context(), store.Op{Key: "a", Value: make([]byte, 512<<10), Expect: rev}); err != nil {
			break
		}
		rev = next
	}
	var e *volant.Error
	if !errors.As(err, &e) || !errors.Is(err, volant.ErrUnavailable) || e.Remedy == "" {
		t.Fatalf("at the quota: %v", err)
	}
	s.Tidy(t.Context())
	if _, err := s.Commit(t.Context(), store.Op{Key: "b"}); err != nil {
		t.Errorf("tidied: %v", err)
	}
}
