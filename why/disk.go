package why

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Config of Rings. Its zero value works.
type Config struct {
	Connections int           // records of connections kept in memory; 16384
	Bytes       int64         // on disk per kind; 2 MiB
	Buffer      int           // records per kind which wait for the disk; 1024, then they are dropped
	Flush       time.Duration // the longest wait for the disk; 100ms
	Log         *slog.Logger  // nil discards
}

// onDisk are the kinds with a ring on disk.
var onDisk = []Kind{Refusal, Wake, Sleep, Scale, Placement, Deploy, Machine, Change}

// Rings keeps records of every kind: those of connections in memory, all others on disk.
type Rings struct {
	cfg     Config
	log     *slog.Logger
	memory  *Ring
	buffers map[Kind]*buffer // never changed
	wake    chan struct{}
	foreign atomic.Uint64 // records of no known kind

	mu sync.Mutex // guards the files
}

// buffer is what waits for one kind's file.
type buffer struct {
	in      chan Record
	dropped atomic.Uint64
	told    uint64 // of dropped, those which have a record; guarded by Rings.mu
	file    *file  // guarded by Rings.mu
}

// Open opens the rings in dir, and makes it if it is missing. Run writes them. One process at a time may
// use a directory.
func Open(dir string, cfg Config) (*Rings, error) {
	if cfg.Connections == 0 {
		cfg.Connections = 16384
	}
	if cfg.Bytes == 0 {
		cfg.Bytes = 2 << 20
	}
	if cfg.Buffer == 0 {
		cfg.Buffer = 1024
	}
	if cfg.Flush == 0 {
		cfg.Flush = 100 * time.Millisecond
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open reason log: %w", err)
	}
	r := &Rings{
		cfg: cfg, log: cfg.Log, memory: NewRing(cfg.Connections),
		buffers: map[Kind]*buffer{}, wake: make(chan struct{}, 1),
	}
	for _, k := range onDisk {
		f, err := openFile(dir, string(k), cfg.Bytes/2)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open reason log: %w", err), r.Close())
		}
		r.buffers[k] = &buffer{in: make(chan Record, cfg.Buffer), file: f}
	}
	return r, nil
}

// Add takes a record. It never blocks on the disk: where the disk is too slow the record is dropped,
// counted, and a record says how many.
func (r *Rings) Add(rec Record) {
	if rec.Kind == Connection {
		r.memory.Add(rec)
		return
	}
	b := r.buffers[rec.Kind]
	if b == nil {
		r.foreign.Add(1)
		return
	}
	select {
	case b.in <- rec:
	default:
		b.dropped.Add(1)
	}
	select {
	case r.wake <- struct{}{}:
	default: // the writer knows already
	}
}

// Dropped is how many records were not kept, in all.
func (r *Rings) Dropped() uint64 {
	n := r.foreign.Load()
	for _, b := range r.buffers {
		n += b.dropped.Load()
	}
	return n
}

// Run writes what is added until ctx is done, and then the rest, and returns nil.
func (r *Rings) Run(ctx context.Context) error {
	t := time.NewTimer(r.cfg.Flush)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return r.flush()
		case <-r.wake:
		}
		t.Reset(r.cfg.Flush)
		select {
		case <-ctx.Done():
			return r.flush()
		case <-t.C:
		}
		if err := r.flush(); err != nil {
			r.log.Error("reason log not written", "err", err)
		}
	}
}

// Close writes what waits and closes the files. Nothing may be added any more.
func (r *Rings) Close() error {
	err := r.flush()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.buffers {
		err = errors.Join(err, b.file.close())
	}
	return err
}

func (r *Rings) flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	for k, b := range r.buffers {
		err = errors.Join(err, b.flushLocked(k))
	}
	return err
}

func (b *buffer) flushLocked(k Kind) error {
	var recs []Record
	for range len(b.in) {
		recs = append(recs, <-b.in)
	}
	if n := b.dropped.Load(); n > b.told {
		recs = append(recs, Record{
			Time: time.Now(), Kind: k, Rule: "dropped", Text: fmt.Sprintf("%d records came too fast to be kept", n-b.told),
		})
		b.told = n
	}
	if len(recs) == 0 {
		return nil
	}
	return b.file.write(recs)
}

// Query returns the records that q selects, newest first.
func (r *Rings) Query(q Query) ([]Record, error) {
	var lists [][]Record
	if len(q.Kinds) == 0 || slices.Contains(q.Kinds, Connection) {
		lists = append(lists, r.memory.Query(q))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var failed error
	for _, k := range onDisk {
		if len(q.Kinds) > 0 && !slices.Contains(q.Kinds, k) {
			continue
		}
		b := r.buffers[k]
		if err := b.flushLocked(k); err != nil {
			r.log.Error("reason log not written", "err", err)
		}
		recs, err := b.file.read(q)
		if err != nil {
			failed = errors.Join(failed, err)
		}
		lists = append(lists, recs)
	}
	if failed != nil {
		return nil, fmt.Errorf("read reason log: %w", failed)
	}
	return Merge(q, lists...), nil
}
