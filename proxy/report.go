package proxy

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
	"github.com/volant-edge/volant/why"
)

const (
	loadEvery  = 50 * time.Millisecond // between Loads of one app
	loadUrgent = 5 * time.Millisecond  // the same where a connection waits or a limit was crossed
)

// Events are what a Proxy tells. A nil func is not called; none may block for long, since the others
// wait for it. Loads are states: a slow receiver gets fewer of them, never old ones.
type Events struct {
	Load func(Load)
	Wake func(Wake)
	Why  func(why.Record) // refusals and wakes; connections are asked for by Query
	// Fact is called with each fact of another node that the table's peers want, but Route, and Peer with what is known of
	// a node. Both begin with all that is known; a slow receiver gets the newest of each.
	Fact func(live.Fact)
	Peer func(live.PeerState)

	facts func([]live.Fact) // takes the place of Fact
}

// report is what the reporter keeps of an app; app.mu guards it.
type report struct {
	dirty, urgent bool
	atOnce        bool // the first connection waits
	last          time.Time
}

// reporter collects what is to be told.
type reporter struct {
	mu    sync.Mutex
	dirty []*app
	bell  chan struct{}      // capacity 1
	stop  context.CancelFunc // of the one Watch; nil if none
	notes notes
}

// touch says that the app's Load changed; a.mu is held.
func (a *app) touch(urgent bool) {
	a.p.feed.loadMoved(a, urgent)
	if urgent && !a.report.urgent {
		a.report.urgent = true
		if a.report.dirty {
			a.p.reporter.ring()
		}
	}
	if a.report.dirty {
		return
	}
	a.report.dirty = true
	a.p.reporter.add(a)
}

func (r *reporter) add(a *app) {
	r.mu.Lock()
	r.dirty = append(r.dirty, a)
	r.mu.Unlock()
	r.ring()
}

func (r *reporter) ring() {
	select {
	case r.bell <- struct{}{}:
	default:
	}
}

// Watch tells ev what happens until ctx ends, beginning with the state of every app and with the wakes
// that waiting connections still need. There is one watcher: a new one ends the one before, whose Watch
// returns volant.ErrConflict.
func (p *Proxy) Watch(ctx context.Context, ev Events) error {
	r := &p.reporter
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.mu.Lock()
	if r.stop != nil {
		r.stop()
	}
	r.stop = cancel
	r.mu.Unlock()
	p.watching.Lock() // the one before has returned
	defer p.watching.Unlock()
	for _, a := range p.allApps() {
		p.tell(a, ev, true)
	}
	p.feed.watch()
	defer p.feed.unwatch()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var noted time.Time // when records were told last
	for {
		select {
		case <-ctx.Done():
			if outer.Err() == nil {
				return volant.Errorf(volant.ErrConflict, "another watcher took over the proxy's events")
			}
			return nil
		case <-r.bell:
		case <-timer.C:
		}
		p.feed.tell(ev)
		next := p.tellDirty(ev)
		if wait := time.Until(noted.Add(loadEvery)); wait <= 0 {
			if r.tellNotes(ev) {
				noted = time.Now()
			}
		} else if next == 0 || wait < next {
			next = wait
		}
		if next > 0 {
			timer.Reset(next)
		}
	}
}

// tellNotes tells the records that are new; true if there were any.
func (r *reporter) tellNotes(ev Events) bool {
	recs := r.notes.take()
	for _, rec := range recs {
		if ev.Why != nil {
			ev.Why(rec)
		}
	}
	return len(recs) > 0
}

// tellDirty tells the Loads that are due and says when the next is; 0 for none.
func (p *Proxy) tellDirty(ev Events) time.Duration {
	r := &p.reporter
	r.mu.Lock()
	dirty := r.dirty
	r.dirty = nil
	r.mu.Unlock()
	var next time.Duration
	for _, a := range dirty {
		wait := p.tell(a, ev, false)
		if wait <= 0 {
			continue
		}
		r.mu.Lock()
		r.dirty = append(r.dirty, a)
		r.mu.Unlock()
		if next == 0 || wait < next {
			next = wait
		}
	}
	return next
}

// tell tells one app's Load and wakes if they are due, and else how long they are not.
func (p *Proxy) tell(a *app, ev Events, all bool) time.Duration {
	a.mu.Lock()
	wakes := a.unsentWakes(all)
	every := loadEvery
	if a.report.urgent {
		every = loadUrgent
	}
	now := time.Now()
	wait := every - now.Sub(a.report.last)
	var load Load
	if all || wait <= 0 || a.report.atOnce {
		wait = 0
		load = a.load()
		a.report.last, a.report.urgent, a.report.atOnce = now, false, false
		a.report.dirty = a.report.dirty && all // still in the list
	}
	a.mu.Unlock()
	for _, w := range wakes {
		if ev.Wake != nil {
			ev.Wake(w)
		}
	}
	if wait == 0 && ev.Load != nil {
		ev.Load(load)
	}
	return wait
}

// load is the app's Load now; a.mu is held.
func (a *app) load() Load {
	l := a.entering(a.peak)
	l.Slots = map[volant.MachineID]int{}
	a.peak = a.own()
	for id, m := range a.machines {
		if m.node != nil {
			continue // its host tells
		}
		if m.slots > 0 {
			l.Slots[id] = m.slots
		}
		switch {
		case m.accepts:
			l.Accepting = append(l.Accepting, id)
		case m.deaf:
			l.Deaf = append(l.Deaf, id)
		}
	}
	return l
}

// entering is what a Load says of the connections that enter here; a.mu is held.
func (a *app) entering(peak int) Load {
	l := Load{
		App: a.id, Group: a.group, Peak: max(peak, a.own()), Refused: a.refused,
		Waiting: map[volant.Region]int{}, Entering: map[volant.Region]int{},
	}
	for _, rc := range a.regions {
		if rc.waiting > 0 {
			l.Waiting[rc.region] = rc.waiting
		}
		if rc.held > 0 {
			l.Entering[rc.region] = rc.held
		}
		if rc.spilled > 0 {
			if l.Spilled == nil {
				l.Spilled = map[volant.Region]int{}
			}
			l.Spilled[rc.region] = rc.spilled
		}
	}
	for _, m := range a.machines {
		if m.node != nil && m.node.away.Load() && !slices.Contains(l.Avoid, m.node.id) {
			l.Avoid = append(l.Avoid, m.node.id)
		}
	}
	return l
}

// notes are the records to be told: a bounded ring per kind, kept for Query.
type notes struct {
	mu    sync.Mutex
	rings map[why.Kind][]why.Record
	fresh map[why.Kind]int // of the ring's end, not told yet
}

const (
	notesMost  = 1024 // kept per kind, at least
	notesAhead = 256  // told at once per kind; in a flood the oldest are left out
)

func (n *notes) add(r why.Record) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.rings == nil {
		n.rings, n.fresh = map[why.Kind][]why.Record{}, map[why.Kind]int{}
	}
	ring := n.rings[r.Kind]
	if len(ring) == 2*notesMost {
		ring = append(ring[:0], ring[notesMost:]...)
	}
	n.rings[r.Kind] = append(ring, r)
	n.fresh[r.Kind] = min(n.fresh[r.Kind]+1, notesAhead)
}

// take returns the records not told yet, oldest first within a kind.
func (n *notes) take() []why.Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []why.Record
	for _, k := range slices.Sorted(maps.Keys(n.rings)) {
		ring := n.rings[k]
		out = append(out, ring[len(ring)-n.fresh[k]:]...)
		n.fresh[k] = 0
	}
	return out
}

func (n *notes) query(q why.Query) []why.Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []why.Record
	for k, ring := range n.rings {
		if k == why.Refusal || len(q.Kinds) > 0 && !slices.Contains(q.Kinds, k) {
			continue // refusals of connections are among the roads
		}
		for i := range ring {
			r := &ring[i]
			if (q.Org == "" || q.Org == r.Org) && (q.App == "" || q.App == r.App) && (q.Machine == "" || q.Machine == r.Machine) &&
				(q.Request == "" || q.Request == r.Request) && !r.Time.Before(q.Since) {
				out = append(out, *r)
			}
		}
	}
	return out
}

func (p *Proxy) note(r why.Record) {
	p.reporter.notes.add(r)
	p.reporter.ring()
}

// noteWake records a wake asked for, or one that failed; a.mu is held.
func (p *Proxy) noteWake(a *app, id volant.MachineID, rule, text string) {
	p.note(why.Record{
		Time: time.Now(), Kind: why.Wake, Org: a.cfg.Org, App: a.id, Machine: id, Rule: rule, Text: text,
	})
}

// noteNode records something of another node.
func (p *Proxy) noteNode(n *node, rule, text string) {
	p.note(why.Record{Time: time.Now(), Kind: why.Machine, Rule: rule, Text: text, Attrs: map[string]string{"node": string(n.id)}})
}

// noteConnect records that a machine does not accept connections; a.mu is held.
func (p *Proxy) noteConnect(a *app, pl *place, rule, text string) {
	p.note(why.Record{
		Time: time.Now(), Kind: why.Machine, Org: a.cfg.Org, App: a.id, Machine: pl.m.id, Rule: rule, Text: text,
	})
}
