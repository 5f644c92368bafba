package image

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/volant-edge/volant"
)

const (
	perNode   = 4                      // streams from one node, while others have the blob too
	longest   = 8                      // pieces of a stream
	giveUp    = 3                      // failures of a node running, after which it is not asked any more
	fallsBack = 10                     // failures of a node in all
	slowAfter = 2 * time.Second        // a stream may be slow for so long
	slowBy    = 4                      // times slower than another node: its pieces go there
	lookAgain = 200 * time.Millisecond // for slow streams, while there is nothing to do
	mistakes  = 8                      // times a blob may have another digest than it should
)

var (
	errQuiet = errors.New("the node was silent for too long")
	errSlow  = errors.New("another node is faster")
)

// fetch gets blobs from the nodes that have them. Those that another call gets it waits for.
func (s *Store) fetch(ctx context.Context, blobs []Blob, all []Holding, bar *sharedMeter) error {
	var mine []Blob
	var others []<-chan struct{}
	for _, b := range blobs {
		release, ok := s.claim(b.Digest)
		switch {
		case !ok:
			s.mu.Lock()
			if done := s.fetching[b.Digest]; done != nil {
				others = append(others, done)
			}
			s.mu.Unlock()
			continue
		case s.Has(b.Digest):
			release()
			continue
		}
		defer release()
		mine = append(mine, b)
	}
	if err := s.swarm(ctx, mine, all, bar); err != nil {
		return err
	}
	for _, done := range others {
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// swarm is one fetch of some blobs from several nodes. A piece is written by one stream at a time.
type swarm struct {
	s   *Store
	bar *sharedMeter

	mu      sync.Mutex // guards what follows
	changed chan struct{}
	wants   []*want
	nodes   []*source // nearest first
	running []*stream
	left    int // wants that are not here
	err     error
}

// want is a blob that is to come.
type want struct {
	*partial
	from    []*source // nodes that have it, nearest first
	orgs    []string
	state   []state // of its pieces
	left    int     // pieces that are not here
	resumed bool    // pieces came by an earlier call
	used    []*source
	wrong   int // times it was not the blob
	summing bool
	here    bool
}

type state uint8

const (
	absent state = iota
	coming
	present
)

// source is a node that has blobs.
type source struct {
	node  volant.NodeID
	busy  int // streams
	fails int // running
	total int
	rate  float64 // bytes a second of a stream
}

// measure adds the rate of a stream that ended.
func (s *source) measure(rate float64) {
	if s.rate == 0 {
		s.rate = rate
	}
	s.rate = (s.rate + rate) / 2
}

// stream is one request to a node for some pieces of a blob.
type stream struct {
	b        *want
	src      *source
	from, to int // pieces
	began    time.Time
	n        atomic.Int64 // bytes that came
	kept     atomic.Int64 // of whole pieces
	cancel   context.CancelCauseFunc
}

// swarm fetches blobs that nobody else does.
func (s *Store) swarm(ctx context.Context, blobs []Blob, all []Holding, bar *sharedMeter) error {
	w := &swarm{s: s, bar: bar, changed: make(chan struct{})}
	defer w.close()
	for _, h := range all {
		if len(h.Blobs) > 0 {
			w.nodes = append(w.nodes, &source{node: h.Node})
		}
	}
	for _, b := range blobs {
		if err := w.want(b, all); err != nil {
			return s.diskFull(err)
		}
	}
	if w.left == 0 {
		return w.err
	}
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { w.fail(ctx.Err()) })
	defer stop()
	for range s.cfg.Streams {
		g.Go(func() error {
			for st := w.next(); st != nil; st = w.next() {
				w.done(st, w.run(ctx, st))
			}
			return w.failed()
		})
	}
	return s.diskFull(g.Wait())
}

// want adds a blob.
func (w *swarm) want(b Blob, all []Holding) error {
	p, here, err := w.s.openPartial(b)
	if err != nil {
		return err
	}
	x := &want{partial: p, state: make([]state, len(here))}
	w.wants = append(w.wants, x)
	w.left++
	for _, h := range all {
		for _, held := range h.Blobs {
			if held.Digest == b.Digest && held.Size == b.Size {
				i := slices.IndexFunc(w.nodes, func(s *source) bool { return s.node == h.Node })
				x.from = append(x.from, w.nodes[i])
				x.orgs = append(x.orgs, held.Orgs...)
			}
		}
	}
	if len(x.from) == 0 {
		return nobody(b.Digest, all)
	}
	for i, ok := range here {
		if !ok {
			x.left++
			continue
		}
		x.state[i], x.resumed = present, true
		_, n := x.span(i)
		w.bar.add(n)
	}
	return nil
}

func (w *swarm) close() {
	for _, b := range w.wants {
		if b.here {
			continue
		}
		if err := b.close(); err != nil {
			w.s.log.Warn("part of a blob not closed", "digest", string(b.blob.Digest), "err", err)
		}
	}
}

func (w *swarm) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failLocked(err)
}

func (w *swarm) failLocked(err error) {
	if w.err == nil && w.left > 0 {
		w.err = err
		for _, st := range w.running {
			st.cancel(err)
		}
	}
	w.wakeLocked()
}

func (w *swarm) failed() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *swarm) wakeLocked() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// next waits for something to do; nil is the end.
func (w *swarm) next() *stream {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if w.err != nil || w.left == 0 {
			return nil
		}
		if st := w.takeLocked(); st != nil {
			return st
		}
		w.overtakeLocked()
		changed := w.changed
		w.mu.Unlock()
		select {
		case <-changed:
		case <-time.After(lookAgain):
		}
		w.mu.Lock()
	}
}

// takeLocked begins a stream for the first pieces that are to come, or sums up a blob that is whole.
func (w *swarm) takeLocked() *stream {
	for _, b := range w.wants {
		if b.here || b.summing {
			continue
		}
		if b.left == 0 {
			if w.runsLocked(b) {
				continue // it would put back pieces of another try
			}
			b.summing = true
			return &stream{b: b, began: time.Now(), cancel: func(error) {}}
		}
		from := slices.Index(b.state, absent)
		if from < 0 {
			continue
		}
		src := b.pick()
		if src == nil {
			if len(b.from) == 0 && !w.runsLocked(b) {
				w.failLocked(allFailed(b.blob.Digest))
				return nil
			}
			continue
		}
		to := from + 1
		for most := from + min(max(b.left/(2*w.s.cfg.Streams), 1), longest); to < most && b.state[to] == absent; {
			to++
		}
		for i := from; i < to; i++ {
			b.state[i] = coming
		}
		st := &stream{b: b, src: src, from: from, to: to, began: time.Now(), cancel: func(error) {}}
		src.busy++
		w.running = append(w.running, st)
		return st
	}
	return nil
}

func (w *swarm) runsLocked(b *want) bool {
	return slices.ContainsFunc(w.running, func(st *stream) bool { return st.b == b })
}

// pick chooses the node for the next pieces: the nearest that has failed least. After a wrong digest one node
// after the other is to send the whole blob, so that it shows which is wrong.
func (b *want) pick() *source {
	if b.wrong > 0 && len(b.from) > 0 {
		return b.from[b.wrong%len(b.from)]
	}
	var best *source
	for _, s := range b.from {
		if s.busy < perNode && (best == nil || s.total < best.total) {
			best = s
		}
	}
	return best
}

// overtakeLocked ends a stream that is much slower than another node of its blob, which has time.
func (w *swarm) overtakeLocked() {
	for _, st := range w.running {
		took := time.Since(st.began)
		if took < slowAfter || st.b.wrong > 0 {
			continue
		}
		rate := float64(st.n.Load()) / took.Seconds()
		for _, s := range st.b.from {
			if s != st.src && s.busy < perNode && s.total <= st.src.total && s.rate > slowBy*rate {
				st.cancel(errSlow)
				break
			}
		}
	}
}

// run does what a stream is for.
func (w *swarm) run(ctx context.Context, st *stream) error {
	if st.src == nil {
		return w.finish(st.b)
	}
	select {
	case w.s.streams <- struct{}{}:
		defer func() { <-w.s.streams }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w.mu.Lock()
	st.began, st.cancel = time.Now(), cancel
	w.mu.Unlock()
	watch := time.AfterFunc(w.s.cfg.Stall, func() { cancel(errQuiet) })
	defer watch.Stop()
	err := w.read(ctx, st, watch)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		var mine *localError
		if !errors.As(err, &mine) {
			err = cause
		}
	}
	return err
}

// localError is one of this node's disk: no other node can help.
type localError struct{ error }

func (e *localError) Unwrap() error { return e.error }

func (w *swarm) read(ctx context.Context, st *stream, watch *time.Timer) error {
	off, _ := st.b.span(st.from)
	last, n := st.b.span(st.to - 1)
	r, err := w.s.cfg.Peers.Open(ctx, st.src.node, st.b.blob.Digest, off, last+n-off)
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // only read from
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer stop()
	buf := make([]byte, 128<<10)
	for i := st.from; i < st.to; i++ {
		off, n := st.b.span(i)
		for n > 0 {
			got, err := r.Read(buf[:min(int64(len(buf)), n)])
			watch.Reset(w.s.cfg.Stall)
			if got > 0 {
				if _, err := st.b.content.WriteAt(buf[:got], off); err != nil {
					return &localError{err}
				}
				off, n = off+int64(got), n-int64(got)
				st.n.Add(int64(got))
				w.bar.add(int64(got))
			}
			switch {
			case n == 0: // whatever comes with the last bytes
			case errors.Is(err, io.EOF):
				return io.ErrUnexpectedEOF
			case err != nil:
				return err
			case ctx.Err() != nil:
				return ctx.Err()
			}
		}
		if err := w.landed(st, i); err != nil {
			return &localError{err}
		}
	}
	return nil
}

// landed notes that a piece is here, and hashes what is whole by now.
func (w *swarm) landed(st *stream, i int) error {
	if err := st.b.came(i); err != nil {
		return err
	}
	if i%16 == 0 {
		if err := w.s.room(0); err != nil {
			return err
		}
	}
	_, n := st.b.span(i)
	st.kept.Add(n)
	w.bar.landed(n)
	w.mu.Lock()
	b := st.b
	b.state[i] = present
	b.left--
	st.src.fails = 0
	if !slices.Contains(b.used, st.src) {
		b.used = append(b.used, st.src)
	}
	whole := slices.IndexFunc(b.state, func(s state) bool { return s != present })
	if whole < 0 {
		whole = len(b.state)
	}
	w.mu.Unlock()
	return b.add(whole)
}

// finish looks whether a whole blob is the right one.
func (w *swarm) finish(b *want) error {
	d, err := b.digest(b.wrong > 0)
	if err != nil {
		return &localError{err}
	}
	if d == b.blob.Digest {
		if err := b.publish(w.s); err != nil {
			return &localError{err}
		}
		return w.s.mark(d, b.orgs)
	}
	if err := b.reset(); err != nil {
		return &localError{err}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(b.used) == 1 && !b.resumed {
		w.s.log.Error("a node sent a damaged blob", "node", b.used[0].node, "digest", string(b.blob.Digest), "got", string(d))
		b.from = slices.DeleteFunc(b.from, func(s *source) bool { return s == b.used[0] })
	}
	b.wrong++
	if b.wrong == mistakes || b.pieces() == 0 {
		b.from = nil
	}
	w.bar.add(-b.blob.Size)
	w.bar.landed(-b.blob.Size)
	b.used, b.resumed, b.left = nil, false, len(b.state)
	clear(b.state)
	if len(b.from) == 0 {
		return allFailed(b.blob.Digest)
	}
	return errWrong
}

func allFailed(d volant.Digest) error {
	return &brokenOff{volant.Errorf(volant.ErrUnavailable, "blob %s: each node that has it failed", string(d)).
		WithRemedy("look at `volant nodes list`; or deploy or push the image again")}
}

var errWrong = errors.New("it is another blob")

// done takes a stream off, and puts back what it did not bring.
func (w *swarm) done(st *stream, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.wakeLocked()
	var mine *localError
	switch {
	case st.src == nil:
		st.b.summing = false
		switch {
		case err == nil:
			st.b.here = true
			w.left--
		case !errors.Is(err, errWrong):
			w.failLocked(err)
		}
		return
	case errors.As(err, &mine):
		w.failLocked(mine.error)
	}
	w.running = slices.DeleteFunc(w.running, func(x *stream) bool { return x == st })
	st.src.busy--
	st.src.measure(float64(st.n.Load()) / max(time.Since(st.began).Seconds(), 1e-6))
	w.bar.add(st.kept.Load() - st.n.Load())
	for i := st.from; i < st.to; i++ {
		if st.b.state[i] == coming {
			st.b.state[i] = absent
		}
	}
	if err == nil || w.err != nil {
		return
	}
	w.s.log.Debug("stream of a blob broke off", "node", st.src.node, "digest", string(st.b.blob.Digest), "err", err)
	w.blame(st, err)
}

// blame notes that a node failed.
func (w *swarm) blame(st *stream, err error) {
	st.src.total++
	if !errors.Is(err, errSlow) {
		st.src.fails++
	}
	gone := func(s *source) bool { return s == st.src }
	switch {
	case errors.Is(err, volant.ErrNotFound):
		st.b.from = slices.DeleteFunc(st.b.from, gone)
	case st.src.fails >= giveUp || st.src.total >= fallsBack:
		w.s.log.Warn("a node is not asked for blobs any more", "node", st.src.node, "err", err)
		for _, b := range w.wants {
			b.from = slices.DeleteFunc(b.from, gone)
		}
	}
}
