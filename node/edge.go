package node

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/why"
)

// Link is what an edge needs of a proxy, in the process or outside.
type Link interface {
	Hello(ctx context.Context) (proxy.Hello, error)
	SetTable(ctx context.Context, t proxy.Table) error
	Seal(ctx context.Context, id volant.MachineID, seq uint64) (bool, error)
	Slots(ctx context.Context) (map[volant.MachineID]int, error)
	Query(ctx context.Context, q why.Query) ([]why.Record, error)
	Numbers(ctx context.Context) (proxy.Numbers, error)
	Watch(ctx context.Context, ev proxy.Events) error
}

// edge keeps a proxy running and told. It gives it the newest table and listens to it; when the link breaks
// it finds the proxy again or starts one.
type edge struct {
	reach  func(ctx context.Context) (Link, func(), error) // finds or starts a proxy
	events proxy.Events
	lost   func() // the proxy is gone, and what it said with it
	linked func() // another proxy is there
	log    *slog.Logger

	mu    sync.Mutex // guards the fields below
	link  Link       // nil while there is none
	pid   int
	why   string // why there is none
	table proxy.Table
	rev   store.Revision // intent that the table holds
	told  store.Revision // intent that the proxy acts on
	heard chan struct{}  // closed when told grows
	fresh chan struct{}  // 1 deep: the table changed
}

func newEdge(reach func(context.Context) (Link, func(), error), ev proxy.Events, lost, linked func(), log *slog.Logger) *edge {
	return &edge{reach: reach, events: ev, lost: lost, linked: linked, log: log, why: "starting", heard: make(chan struct{}), fresh: make(chan struct{}, 1)}
}

// set makes t, which holds the intent up to rev, the table the proxy is to have.
func (e *edge) set(t proxy.Table, rev store.Revision) {
	e.mu.Lock()
	e.table, e.rev = t, rev
	e.mu.Unlock()
	select {
	case e.fresh <- struct{}{}:
	default: // it will read the newest
	}
}

const (
	edgeBackoffFirst = 50 * time.Millisecond
	edgeBackoffMost  = 5 * time.Second
	edgeProven       = time.Second // a link that has lived so long was a good one
)

func (e *edge) run(ctx context.Context) {
	backoff := edgeBackoffFirst
	for ctx.Err() == nil {
		l, closeLink, err := e.reach(ctx)
		if err == nil {
			began := time.Now()
			err = e.serve(ctx, l)
			closeLink()
			if time.Since(began) > edgeProven {
				backoff = edgeBackoffFirst
			}
		}
		if ctx.Err() != nil {
			return
		}
		e.gone(err)
		e.log.Warn("the proxy is not reachable", "err", err, "again_in", backoff)
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, edgeBackoffMost)
	}
}

func (e *edge) gone(err error) {
	e.mu.Lock()
	e.link, e.pid, e.why = nil, 0, fmt.Sprint(err)
	e.mu.Unlock()
	e.lost()
}

// serve tells one proxy each new table and hears its events, until the link breaks.
func (e *edge) serve(ctx context.Context, l Link) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hello, err := l.Hello(ctx)
	if err != nil {
		return err
	}
	// Seals are asked for only after it has a table of this server: a first one that comes after a seal
	// could undo it.
	if err := e.first(ctx, l); err != nil {
		return err
	}
	e.mu.Lock()
	e.link, e.pid, e.why = l, hello.PID, ""
	close(e.heard)
	e.heard = make(chan struct{})
	e.mu.Unlock()
	e.linked()
	heard := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		heard <- l.Watch(ctx, e.events)
	}()
	defer func() {
		cancel()
		<-ended // nothing is heard of this proxy after it counts as gone
	}()
	e.log.Info("proxy linked", "pid", hello.PID, "epoch", hello.Epoch)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-heard:
			return fmt.Errorf("the proxy's events ended: %w", err)
		case <-e.fresh:
			if err := e.tell(ctx, l); err != nil {
				return err
			}
		}
	}
}

// first tells the first table, as soon as there is one; until then the proxy goes on with the one it has.
func (e *edge) first(ctx context.Context, l Link) error {
	for {
		e.mu.Lock()
		known := e.table.Version != 0
		e.mu.Unlock()
		if known {
			return e.tell(ctx, l)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-e.fresh:
		}
	}
}

func (e *edge) tell(ctx context.Context, l Link) error {
	e.mu.Lock()
	t, rev := e.table, e.rev
	e.mu.Unlock()
	bound, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := l.SetTable(bound, t); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = rev
	close(e.heard)
	e.heard = make(chan struct{})
	return nil
}

// toldWithin bounds acts.
const toldWithin = 15 * time.Second

// acts returns when the proxy acts on all intent up to rev: it listens where it should.
func (e *edge) acts(ctx context.Context, rev store.Revision) error {
	ctx, cancel := context.WithTimeout(ctx, toldWithin)
	defer cancel()
	for {
		e.mu.Lock()
		ok, heard, why := !e.told.Before(rev) && e.link != nil, e.heard, e.why
		e.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-heard:
		case <-ctx.Done():
			return volant.Errorf(volant.ErrUnavailable, "the proxy does not act on revision %s yet (%s)", rev, why)
		}
	}
}

// now is the proxy's link, or an error that says why there is none.
func (e *edge) now() (Link, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.link == nil {
		return nil, volant.Errorf(volant.ErrUnavailable, "the proxy does not answer: %s", e.why)
	}
	return e.link, nil
}

// Seal is host's.
func (e *edge) Seal(ctx context.Context, id volant.MachineID, seq uint64) (bool, error) {
	l, err := e.now()
	if err != nil {
		return false, err
	}
	return l.Seal(ctx, id, seq)
}

func (e *edge) query(ctx context.Context, q why.Query) ([]why.Record, error) {
	l, err := e.now()
	if err != nil {
		return nil, err
	}
	return l.Query(ctx, q)
}

// status says how the proxy is, for people, and its process ID.
func (e *edge) status() (string, int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.link == nil {
		return e.why, 0
	}
	return "running", e.pid
}
