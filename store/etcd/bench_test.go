package etcd_test

import (
	"context"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
	"github.com/volant-edge/volant/store/local"
)

// BenchmarkStart opens an existing directory.
func BenchmarkStart(b *testing.B) {
	dir := b.TempDir()
	for i := 0; b.Loop(); i++ {
		s, err := etcd.Open(b.Context(), etcd.Config{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkCommit writes one record after the other.
func BenchmarkCommit(b *testing.B) {
	s, err := etcd.Open(b.Context(), etcd.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close() // the benchmark is over
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprint(i)
		if _, err := store.Create(b.Context(), s, "bench", &volant.App{Meta: volant.Meta{App: volant.AppID(id), ID: id}}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkToTheCopy is from a commit to its being on the copy's disk.
func BenchmarkToTheCopy(b *testing.B) {
	dir := b.TempDir()
	s, err := etcd.Open(b.Context(), etcd.Config{Dir: filepath.Join(dir, "etcd")})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close() // the benchmark is over
	c, err := local.Open(local.Config{Path: filepath.Join(dir, "copy")})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx, s) }()
	for c.Revision().IsZero() {
		time.Sleep(time.Millisecond)
	}
	at := make(chan store.Revision, 1000)
	go c.Watch(ctx, "", c.Revision(), func(x store.Batch) error { at <- x.Rev; return nil }) //nolint:errcheck // ends with ctx
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprint(i)
		rev, err := store.Create(b.Context(), s, "bench", &volant.App{Meta: volant.Meta{App: volant.AppID(id), ID: id}})
		if err != nil {
			b.Fatal(err)
		}
		for (<-at).Before(rev) {
		}
	}
	cancel()
	<-done
}

// BenchmarkWatch is from a commit to a watcher of the store.
func BenchmarkWatch(b *testing.B) {
	s, err := etcd.Open(b.Context(), etcd.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close() // the benchmark is over
	_, rev, err := s.List(b.Context(), "")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	at := make(chan store.Revision, 1000)
	go s.Watch(ctx, "", rev, func(x store.Batch) error { at <- x.Rev; return nil }) //nolint:errcheck // ends with ctx
	for i := 0; b.Loop(); i++ {
		rev, err := s.Commit(b.Context(), store.Op{Key: fmt.Sprint(i)})
		if err != nil {
			b.Fatal(err)
		}
		for (<-at).Before(rev) {
		}
	}
}

// BenchmarkIdle reports the CPU time that an idle member takes per second.
func BenchmarkIdle(b *testing.B) {
	s, err := etcd.Open(b.Context(), etcd.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close() // the benchmark is over
	before := cpu(b)
	const d = 5 * time.Second
	time.Sleep(d)
	used := cpu(b) - before
	for b.Loop() { // nothing: what counts is above
	}
	b.ReportMetric(float64(used.Microseconds())/d.Seconds(), "cpu-us/s")
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
