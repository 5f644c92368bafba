package proxy

import (
	"errors"
	"syscall"
	"time"
)

// Times of connecting to an app (design: data path).
const (
	probeEvery    = 5 * time.Millisecond
	connectWithin = 30 * time.Second // restored machines, and those that accepted before
	coldWithin    = 60 * time.Second // booted machines
	dialFirst     = 250 * time.Millisecond
	dialMost      = time.Second
	shutFirst     = 5 * time.Millisecond
	shutMost      = time.Second
	deadFirst     = 5 * time.Second
	deadMost      = time.Minute
)

// dialTimeout is how long one attempt may take. A lost SYN is sent again by the kernel after a second only,
// so attempts at an app that boots are short.
func dialTimeout(attempt int) time.Duration {
	return min(dialFirst<<min(attempt, 8), dialMost)
}

// deadline is when the app should have accepted; app.mu is held.
func (pl *place) deadline() time.Time {
	if pl.opened {
		if pl.failed.IsZero() {
			return time.Now().Add(connectWithin)
		}
		return pl.failed.Add(connectWithin)
	}
	begin := pl.m.since
	if pl.failed.After(begin.Add(coldWithin)) {
		begin = pl.failed // it served for long before anyone came
	}
	if pl.m.cfg.Cold {
		return begin.Add(coldWithin)
	}
	return begin.Add(connectWithin)
}

// opened notes that the app accepted a connection.
func (a *app) opened(st *seat) {
	a.mu.Lock()
	defer a.mu.Unlock()
	pl := st.place
	st.probing = false
	pl.failed, pl.opened, pl.backoff = time.Time{}, true, 0
	if !pl.m.accepts {
		pl.m.accepts, pl.m.deaf = true, false
		a.touch(false)
	}
	if pl.mood == 0 {
		return
	}
	pl.mend(0)
	a.grant(pl.svc)
}

// yield lets another connection try the place of a seat that is given up but not free yet.
func (a *app) yield(st seat) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if st.probing {
		st.place.setMood(st.place.mood &^ trying)
		a.grant(st.place.svc)
	}
}

func (pl *place) mend(mood flags) {
	if pl.again != nil {
		pl.again.Stop()
		pl.again = nil
	}
	pl.setMood(mood)
}

// failed notes that the app did not accept, and says where the connection goes instead: to another
// machine with a free slot, to the same one again, or into the queue. held says that the slot is not free yet.
func (a *app) failed(st seat, w *waiter, err error, held bool) verdict {
	a.mu.Lock()
	defer a.mu.Unlock()
	pl, now := st.place, time.Now()
	if !held {
		a.free(st)
	} else if st.probing {
		pl.setMood(pl.mood &^ trying)
	}
	if ownFault(err) {
		v := a.goOn(w)
		a.grant(pl.svc)
		return v
	}
	if pl.failed.IsZero() {
		pl.failed = now
	}
	if now.After(pl.deadline()) {
		a.kill(pl, err)
	} else if pl.mood&dead == 0 {
		pl.backoff = min(max(2*pl.backoff, shutFirst), shutMost)
		pl.setMood(pl.mood | shut)
		pl.shutAt = now
		pl.svc.shy = true
	}
	v := a.goOn(w)
	a.grant(pl.svc)
	return v
}

// goOn looks for another seat for w, before those who came later; a.mu is held.
func (a *app) goOn(w *waiter) verdict {
	s := w.svc
	if !a.present || s.retired {
		a.refused++
		return verdict{refusal: ruleAppGone}
	}
	if c := s.choose(w); c.index >= 0 {
		return verdict{seat: a.seat(c, s.places[c.index], w)}
	}
	if w.now {
		return verdict{refusal: ruleBusy}
	}
	a.enqueue(w)
	return verdict{}
}

// kill leaves a place out for a while, since its app did not accept within its time; a.mu is held.
func (a *app) kill(pl *place, err error) {
	if pl.mood&dead != 0 {
		return
	}
	wait := min(max(2*pl.backoff, deadFirst), deadMost)
	pl.backoff = wait
	pl.mend(pl.mood | dead)
	if !pl.m.accepts {
		pl.m.deaf = true
		a.touch(true)
	}
	a.p.noteConnect(a, pl, "connect_timeout", "the app did not accept a connection on port "+portText(pl.svc.port)+
		" in time ("+err.Error()+"): left out for "+wait.String())
	pl.again = time.AfterFunc(wait, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if pl.mood&dead != 0 {
			pl.failed = time.Time{}
			pl.opened = true // it gets the short time from now on
			pl.setMood(pl.mood&^dead | shut)
			pl.shutAt, pl.svc.shy = time.Now(), true
			a.grant(pl.svc)
		}
	})
}

// reopen lets a place that refused be tried again like any other, a moment after; a.mu is held. While
// somebody waits there is no need: one of them tries all the time.
func (s *service) reopen(now time.Time) {
	s.shy = false
	for _, pl := range s.places {
		if pl.mood&shut == 0 {
			continue
		}
		if pl.mood&(dead|trying) == 0 && now.Sub(pl.shutAt) > pl.backoff {
			pl.setMood(pl.mood&^shut | unproven)
			continue
		}
		s.shy = true
	}
}

// ownFault says that an attempt failed for want of something of this node, not of the machine.
func ownFault(err error) bool {
	for _, e := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EAGAIN,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
