package proxy

import (
	"context"
	"net/netip"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
)

// tableLocked makes facts of the newest table; p.mu is held.
func (f *feed) tableLocked(t *Table) {
	f.on.Store(t.Mesh.IsValid())
	if f.addr != t.Mesh.Unmap() {
		f.addr = t.Mesh.Unmap()
		select {
		case f.moved <- struct{}{}:
		default:
		}
	}
	var peers []live.Peer
	if t.Mesh.IsValid() {
		for _, c := range t.Peers {
			if c.Node != t.Node {
				peers = append(peers, live.Peer{Node: c.Node, Addr: netip.AddrPortFrom(c.Addr.Unmap(), volant.LivePort), Want: c.Want})
			}
		}
	}
	f.SetPeers(peers)
	if !t.Mesh.IsValid() {
		return
	}
	kinds := live.KindsOf(live.Route, live.Slots)
	facts := f.ownFactsLocked(t)
	if !f.begun {
		f.begun = true
		kinds |= live.KindsOf(live.Load)
		for k, a := range f.p.apps {
			a.mu.Lock()
			if fact := loadFact(k, a.ownLoad()); !fact.Gone {
				facts = append(facts, fact)
			}
			a.mu.Unlock()
		}
	}
	if err := f.SetAll(kinds, facts...); err != nil {
		f.p.log.Error("facts are not told to other nodes", "err", err)
	}
}

// ownFactsLocked are the facts of this node's machines.
func (f *feed) ownFactsLocked(t *Table) []live.Fact {
	var facts []live.Fact
	for i := range t.Apps {
		cfg := &t.Apps[i]
		a := f.p.apps[appKey{cfg.ID, cfg.Group}]
		a.mu.Lock()
		for j := range cfg.Machines {
			m := &cfg.Machines[j]
			if m.Node != "" && m.Node != t.Node {
				continue
			}
			facts = append(facts, routeFact(m))
			if mine := a.machines[m.ID]; mine != nil {
				mine.moved, mine.hasty = false, false
				facts = append(facts, slotsFact(m.ID, f.p.cfg.Epoch, a.counted(mine)))
			}
		}
		a.mu.Unlock()
	}
	return facts
}

// counted are the slots held of a machine's ports, which are told with this; a.mu is held.
func (a *app) counted(m *machine) []RemoteSlots {
	var out []RemoteSlots
	for port, s := range a.services {
		if pl := s.byID[m.id]; pl != nil && pl.index >= 0 {
			pl.usedTold = pl.used
			out = append(out, RemoteSlots{Port: port, Held: int(pl.used), Version: live.Version{Epoch: a.p.cfg.Epoch, Seq: pl.seq}})
		}
	}
	return out
}

// slotsMoved notes that the count of a place's slots changed; app.mu is held.
func (f *feed) slotsMoved(pl *place) {
	if !f.on.Load() || pl.m.node != nil {
		return
	}
	was, is := pl.usedTold, pl.used
	crossed := func(limit int32) bool { return (was >= limit) != (is >= limit) }
	step := min(max(pl.hard/10, 1), moveMost)
	now := crossed(1) || crossed(pl.soft) || crossed(pl.hard) || is-was >= step || was-is >= step
	if pl.m.moved && (!now || pl.m.hasty) {
		return
	}
	pl.m.hasty = pl.m.hasty || now
	f.mu.Lock()
	if !pl.m.moved {
		f.slots = append(f.slots, held{pl.svc.app, pl.m})
	}
	f.mu.Unlock()
	pl.m.moved = true
	if now {
		f.ring()
	}
}

// loadMoved notes that an app's Load changed; a.mu is held.
func (f *feed) loadMoved(a *app, urgent bool) {
	if !f.on.Load() || a.fed.dirty && (!urgent || a.fed.urgent) {
		return
	}
	a.fed.urgent = a.fed.urgent || urgent
	if !a.fed.dirty {
		a.fed.dirty = true
		f.mu.Lock()
		f.apps = append(f.apps, a)
		f.mu.Unlock()
	}
	f.ring()
}

func (f *feed) ring() {
	select {
	case f.bell <- struct{}{}:
	default:
	}
}

// collect tells what changed until ctx ends.
func (f *feed) collect(ctx context.Context) {
	t := time.NewTimer(slotsLater)
	defer t.Stop()
	later := time.Now().Add(slotsLater) // when small moves of slots are told
	var next time.Time                  // when slots are told again at the earliest
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.bell:
		case <-t.C:
		}
		now := time.Now()
		all := !now.Before(later)
		if all {
			later = now.Add(slotsLater)
		}
		facts, wait := f.loadFacts(now)
		if !now.Before(next) {
			slots := f.slotsFacts(all)
			next = now.Add(f.costOf(len(slots)))
			facts = append(facts, slots...)
		} else if wait == 0 || next.Sub(now) < wait {
			wait = next.Sub(now)
		}
		if err := f.Set(facts...); err != nil {
			f.p.log.Error("facts are not told to other nodes", "err", err)
		}
		pause := time.NewTimer(feedEvery)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
		if left := time.Until(later); wait == 0 || left < wait-feedEvery {
			wait = left + feedEvery
		}
		t.Reset(max(wait-feedEvery, 0))
	}
}

// costOf is for how long no slots are told after so many counts were: with many nodes and machines each count costs a
// datagram to all of them.
func (f *feed) costOf(counts int) time.Duration {
	if counts == 0 {
		return 0
	}
	bytes := f.Readers(live.Slots) * (letterSize + counts*slotsSize)
	return min(time.Duration(bytes)*time.Second/slotsRate, slotsLater)
}

// loadFacts are the Loads that are due, and after how long the next one is; 0 for none.
func (f *feed) loadFacts(now time.Time) (facts []live.Fact, next time.Duration) {
	f.mu.Lock()
	apps := f.apps
	f.apps = nil
	f.mu.Unlock()
	var again []*app
	for _, a := range apps {
		a.mu.Lock()
		every := loadLater
		if a.fed.urgent {
			every = loadSoon
		}
		if wait := every - now.Sub(a.fed.last); wait > 0 {
			again = append(again, a)
			if next == 0 || wait < next {
				next = wait
			}
		} else {
			l := a.ownLoad()
			facts = append(facts, loadFact(appKey{a.id, a.group}, l))
			a.fed = fed{last: now, peak: a.own()}
			if l.Peak > a.own() { // that is over soon
				a.fed.dirty = true
				again = append(again, a)
				if next == 0 || loadLater < next {
					next = loadLater
				}
			}
		}
		a.mu.Unlock()
	}
	f.mu.Lock()
	f.apps = append(f.apps, again...)
	f.mu.Unlock()
	return facts, next
}

// ownLoad is the demand that enters here; a.mu is held.
func (a *app) ownLoad() Load { return a.entering(a.fed.peak) }

// slotsFacts are the counts of slots that moved far enough, or all that moved.
func (f *feed) slotsFacts(all bool) (facts []live.Fact) {
	f.mu.Lock()
	slots := f.slots
	f.slots = nil
	f.mu.Unlock()
	var again []held
	for _, h := range slots {
		h.app.mu.Lock()
		switch {
		case !h.m.moved || !h.m.present: // a table has told, or says that it is no more
			h.m.moved, h.m.hasty = false, false
		case !all && !h.m.hasty:
			again = append(again, h)
		default:
			h.m.moved, h.m.hasty = false, false
			facts = append(facts, slotsFact(h.m.id, f.p.cfg.Epoch, h.app.counted(h.m)))
		}
		h.app.mu.Unlock()
	}
	f.mu.Lock()
	f.slots = append(f.slots, again...)
	f.mu.Unlock()
	return facts
}
