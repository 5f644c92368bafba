package proxy

import (
	"net/netip"
	"time"

	"github.com/volant-edge/volant"
)

// verdict is what becomes of a connection that asked for a slot. The zero verdict is: wait.
type verdict struct {
	seat    seat
	refusal rule
}

func (v verdict) waits() bool { return v.seat.place == nil && v.refusal == ruleNone }

// waiter is one connection that may wait for a slot of one service.
type waiter struct {
	svc     *service
	region  volant.Region
	peer    netip.Addr // /32 or /56 of the client
	arrival uint64
	// quiet ones take a slot but are no demand: they wake nothing until their first byte.
	quiet bool
	// deliver hands over the verdict. It is called with the app's lock held, at most once per enqueue.
	deliver func(verdict)

	next, prev *waiter
	queued     bool

	wish *wish // nil for all that is not HTTP
	// from is the node where it entered, if that is not this one: then it wants a machine that is here, and is that
	// node's to report.
	from *node
	now  bool // it does not wait
}

// queue is a list of waiters in order of arrival.
type queue struct {
	first, last  *waiter
	plain, picky int // how many take any slot, and how many do not
}

func (q *queue) count(w *waiter, n int) {
	if w.picky() {
		q.picky += n
	} else {
		q.plain += n
	}
}

// insert keeps the order of arrival: a waiter that comes back goes before those who came after it.
func (q *queue) insert(w *waiter) {
	q.count(w, 1)
	after := q.last
	for after != nil && after.arrival > w.arrival {
		after = after.prev
	}
	w.prev = after
	if after == nil {
		w.next, q.first = q.first, w
	} else {
		w.next, after.next = after.next, w
	}
	if w.next == nil {
		q.last = w
	} else {
		w.next.prev = w
	}
}

func (q *queue) remove(w *waiter) {
	q.count(w, -1)
	if w.prev == nil {
		q.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		q.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.next, w.prev = nil, nil
}

// peerKey is what MaxPerPeer counts by: the /32 of an IPv4 client, the /56 of an IPv6 one.
func peerKey(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Is4() {
		return a
	}
	p, err := a.WithZone("").Prefix(56)
	if err != nil {
		return a // the zero Addr of a client without an address
	}
	return p.Addr()
}

// mayWait says why w may not wait, or ruleNone; a.mu is held.
func (a *app) mayWait(w *waiter) rule {
	if !a.present || w.svc.retired {
		return ruleAppGone
	}
	if r := a.hopeless(w.from != nil); r != ruleNone {
		return r
	}
	if r := a.unmeetable(w); r != ruleNone {
		return r
	}
	if w.from != nil { // its own node keeps its app's bounds; this one only keeps it from asking for more
		if w.from.waiters(a) >= a.cfg.MaxQueue {
			return ruleQueueFull
		}
		return ruleNone
	}
	if a.waiting-a.foreign.waiting >= a.cfg.MaxQueue {
		return ruleQueueFull
	}
	if a.perPeer[w.peer] >= a.cfg.MaxPerPeer {
		return rulePeerLimit
	}
	return ruleNone
}

// hopeless says why waiting is in vain whatever happens next, or ruleNone; here is for those who want a machine of
// this node.
func (a *app) hopeless(here bool) rule {
	alive, usable := 0, 0
	for _, m := range a.machines {
		if !m.present || m.cfg.Cordoned || here && m.node != nil {
			continue
		}
		usable++
		if m.cfg.Phase == PhaseServing || m.cfg.Phase == PhaseBooting || m.cfg.Phase == phaseUnknown {
			alive++
		}
	}
	switch {
	case alive > 0:
		return ruleNone
	case usable == 0 && here:
		return ruleNoMachine
	case a.cfg.NoWake:
		return ruleNoWake
	case usable == 0 && !a.cfg.CanGrow:
		return ruleNoMachine
	}
	return ruleNone
}

// enqueue makes w wait; a.mu is held.
func (a *app) enqueue(w *waiter) {
	w.queued = true
	w.svc.queue.insert(w)
	a.waiting++
	if w.from != nil {
		a.foreign.waiting++
		w.from.wait(a, 1)
	} else {
		a.perPeer[w.peer]++
	}
	if !w.quiet {
		a.demand(w, 1)
	}
}

// demand counts w in or out of those for whom machines are woken and made.
func (a *app) demand(w *waiter, n int) {
	a.loud += n
	w.svc.loud += n
	if w.from != nil {
		a.foreign.loud += n
		w.svc.foreign += n
	} else {
		a.region(w.region).waiting += n
	}
	a.peaked()
	a.touch(n > 0)
	if n > 0 && a.loud == 1 {
		a.report.atOnce = true
		a.p.reporter.ring()
	}
	if n > 0 {
		a.rewake()
	}
}

// dequeue takes w out of the queue; a.mu is held.
func (a *app) dequeue(w *waiter) {
	w.queued = false
	w.svc.queue.remove(w)
	a.waiting--
	if w.from != nil {
		a.foreign.waiting--
		w.from.wait(a, -1)
	} else if a.perPeer[w.peer]--; a.perPeer[w.peer] <= 0 {
		delete(a.perPeer, w.peer)
	}
	if !w.quiet {
		a.demand(w, -1)
	}
}

// deny takes w out of the queue and refuses it; a.mu is held.
func (a *app) deny(w *waiter, r rule) {
	a.dequeue(w)
	if w.from == nil {
		a.refused++
	}
	w.deliver(verdict{refusal: r})
}

// recheckWaiters refuses those for whom a new table leaves no hope.
func (a *app) recheckWaiters() {
	all, here := a.hopeless(false), a.hopeless(true)
	for _, s := range a.services {
		if all == ruleNone && (here == ruleNone || a.foreign.waiting == 0) {
			a.denyUnmeetable(s)
			continue
		}
		for w := s.queue.first; w != nil; {
			next, r := w.next, all
			if w.from != nil {
				r = here
			}
			if r == ruleNone {
				r = a.unmeetable(w)
			}
			if r != ruleNone {
				a.deny(w, r)
			}
			w = next
		}
	}
}

// quit takes w out of the queue. It returns false if its verdict was delivered before.
func (a *app) quit(w *waiter, counts bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if counts && w.from == nil {
		a.refused++
		a.touch(false)
	}
	if !w.queued {
		return false
	}
	a.dequeue(w)
	return true
}

// speak makes a quiet waiter loud: its client has sent its first byte.
func (a *app) speak(w *waiter) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w.quiet {
		w.quiet = false
		if w.queued {
			a.demand(w, 1)
		}
	}
}

// extension is how much longer w may wait past its time, because a machine it could have is still within
// the time its app has for its first accept.
func (a *app) extension(w *waiter, now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	var most time.Duration
	for _, pl := range w.svc.places {
		if pl.mood&unproven != 0 && pl.m.flags(w.svc.port)&^failing == serving {
			most = max(most, pl.deadline().Sub(now))
		}
	}
	return most
}
