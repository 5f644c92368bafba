package proxy

import (
	"cmp"
	"slices"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/backhaul"
	"github.com/volant-edge/volant/live"
)

// away is 0 for a machine on this node, else 1.
func (m *machine) away() int {
	if m.node == nil {
		return 0
	}
	return 1
}

// band is how far the machine is.
func (m *machine) band() uint8 {
	if m.node == nil {
		return 0
	}
	return uint8(m.node.band.Load())
}

// lifeNow is what connections to the machine do not outlive: its guest, or of one on another node the host's proxy.
func (m *machine) lifeNow() *life {
	if m.node == nil {
		return m.life
	}
	_, l := m.node.now()
	return l
}

// setRemote takes what its host tells of a machine on another node.
func (a *app) setRemote(id volant.MachineID, f *remoteFacts, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.machines[id]
	if m == nil || !m.present || m.node == nil {
		return
	}
	a.applyMachine(f.over(m.cfg), false, now)
	a.reviewed(m)
}

// nodesChanged looks at the nodes of the app's machines again: how far they are, and whether they answer.
func (a *app) nodesChanged() {
	a.mu.Lock()
	defer a.mu.Unlock()
	var ms []*machine
	for _, m := range a.machines {
		if m.present && m.node != nil {
			ms = append(ms, m)
		}
	}
	if len(ms) > 0 {
		a.reviewed(ms...)
	}
}

// reviewed does what follows from a change of machines on other nodes; a.mu is held.
func (a *app) reviewed(ms ...*machine) {
	for _, s := range a.services {
		changed := false
		for _, m := range ms {
			pl := s.byID[m.id]
			if pl == nil || pl.index < 0 {
				continue
			}
			c := &s.cands[pl.index]
			flags, band := m.flags(s.port)|pl.mood, m.band()
			changed = changed || c.flags != flags || c.band != band
			c.flags, c.band = flags, band
		}
		if changed {
			s.rank()
			a.grant(s)
		}
	}
	a.recheckWaiters()
	a.rewake()
	a.touch(a.loud > 0)
}

// told takes what its host tells of a machine's slots.
func (a *app) told(id volant.MachineID, r RemoteSlots) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.services[r.Port]
	if s == nil {
		return
	}
	if pl := s.byID[id]; pl != nil && pl.m.node != nil && pl.tell(int32(min(max(r.Held, 0), slotsMost)), r.Version) {
		if pl.used+pl.others < pl.hard {
			pl.rested()
		}
		a.grant(s)
	}
}

// slotsMost bounds what is believed of a count.
const slotsMost = 1 << 20

// tell takes a count of all slots held; false if a newer one is known. What this node's own requests hold without
// the host having granted it yet comes on top.
func (pl *place) tell(held int32, v live.Version) bool {
	if v.Before(pl.told) {
		return false
	}
	pl.told = v
	pl.others = max(0, held-pl.granted)
	pl.rerank()
	return true
}

// version is of the counts in an answer.
func version(ans *backhaul.Answer) live.Version { return live.Version{Epoch: ans.Epoch, Seq: ans.Seq} }

// grantedBy notes that the host has granted the seat, and what it says of the slots.
func (a *app) grantedBy(st *seat, ans *backhaul.Answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	st.granted = true
	st.place.granted++
	st.place.rested()
	st.place.backoff = 0
	if st.place.tell(int32(min(ans.Slots, slotsMost)), version(ans)) {
		return
	}
	st.place.others = max(0, st.place.others-1) // what was told last has it in
	st.place.rerank()
}

// bestToAsk is the machine for which w, or anybody if it is nil, waits best: one that serves or boots, else one to be
// woken; of those the nearest, the suspended before the stopped, here before elsewhere, and then where fewest of
// this node wait. It may be one of this node's, or nil. a.mu is held.
func (a *app) bestToAsk(s *service, w *waiter) *machine {
	var best *machine
	for _, m := range a.machines {
		if a.mayAsk(m, s, w) && (best == nil || askOrder(m, best) < 0) {
			best = m
		}
	}
	return best
}

func (a *app) mayAsk(m *machine, s *service, w *waiter) bool {
	if !m.present || m.cfg.Cordoned || m.cfg.Draining || m.sealed || slices.Contains(m.cfg.Absent, s.port) {
		return false
	}
	if m.node != nil && m.node.away.Load() {
		return false
	}
	if w != nil && !w.wanted(m) {
		return false
	}
	if w != nil && w.wish != nil && (w.wish.only != "" && w.wish.only != m.id || w.wish.not != "" && a.hosts(m.node, w.wish.not)) {
		return false
	}
	switch m.cfg.Phase {
	case PhaseServing, PhaseBooting:
		return true
	case PhaseSuspended, PhaseStopped:
		return !a.cfg.NoWake
	default:
		return false
	}
}

// hosts says whether a machine is on a node: there, a request cannot say that it wants any but this one.
func (a *app) hosts(n *node, id volant.MachineID) bool {
	m := a.machines[id]
	return m != nil && m.node == n && n != nil
}

func askOrder(x, y *machine) int {
	rank := func(m *machine) int {
		switch m.cfg.Phase {
		case PhaseSuspended:
			return 1
		case PhaseStopped:
			return 2
		default:
			return 0
		}
	}
	asleep := func(m *machine) int { return min(rank(m), 1) }
	asks := func(m *machine) int32 {
		if m.node == nil {
			return -1
		}
		return m.node.asks.Load()
	}
	return cmp.Or(cmp.Compare(asleep(x), asleep(y)), cmp.Compare(x.band(), y.band()), cmp.Compare(rank(x), rank(y)),
		cmp.Compare(x.away(), y.away()), cmp.Compare(asks(x), asks(y)), cmp.Compare(x.id, y.id))
}
