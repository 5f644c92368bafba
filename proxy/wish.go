package proxy

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/volant-edge/volant"
)

// wish is what a request asks of the machine it goes to. It comes before the rules by which one is picked.
type wish struct {
	only   volant.MachineID // this one or none
	prefer volant.MachineID // this one, if it may have the request now
	not    volant.MachineID // any but this one
	// regions are those that a machine must be in, near those that it is to be in if one there may have the request
	// now; the first is tried first.
	regions, near []volant.Region
}

// picky says whether a waiter may have to go on waiting while a slot is free that it does not want.
func (w *waiter) picky() bool {
	return w.from != nil || w.wish != nil && (w.wish.only != "" || w.wish.not != "" || len(w.wish.regions) > 0)
}

// choose picks a machine for w, by its wish and then by the ranks; app.mu is held.
func (s *service) choose(w *waiter) choice {
	chance := s.app.p.chance()
	switch {
	case w.wish != nil && w.wish.only != "":
		return s.chooseOne(w, w.wish.only) // unmeetable has seen that a machine on another node is not asked for from there
	case w.from != nil:
		return pick(s.ranks[:s.here], s.policy.near, chance)
	case w.wish == nil:
		return pick(s.ranks, s.policy.near, chance)
	}
	if c := s.chooseOne(w, w.wish.prefer); c.index >= 0 {
		return c
	}
	ranks := s.ranks
	if pl := s.byID[w.wish.not]; pl != nil && pl.index >= 0 {
		ranks = slices.Clone(ranks)
		ranks[pl.index] = noRank
	}
	for _, r := range slices.Concat(w.wish.near, w.wish.regions) {
		if c := pick(s.only(ranks, r, w.region), s.policy.near, chance); c.index >= 0 {
			return c
		}
	}
	if len(w.wish.regions) > 0 {
		return choice{index: -1, rule: ruleFull, demand: true}
	}
	return pick(ranks, s.policy.near, chance)
}

// only is the ranks of the machines in a region; here is this node's.
func (s *service) only(ranks []uint32, r, here volant.Region) []uint32 {
	out := slices.Clone(ranks)
	for i, pl := range s.places {
		if pl.m.region(here) != r {
			out[i] = noRank
		}
	}
	return out
}

// region is where the machine is; here is this node's.
func (m *machine) region(here volant.Region) volant.Region {
	if m.node == nil {
		return here
	}
	_, r := m.node.where()
	return r
}

// wanted says whether w's wish allows a machine of its region.
func (w *waiter) wanted(m *machine) bool {
	return w.wish == nil || len(w.wish.regions) == 0 || w.from != nil || slices.Contains(w.wish.regions, m.region(w.region))
}

// chooseOne is one machine if it may take a connection now.
func (s *service) chooseOne(w *waiter, id volant.MachineID) choice {
	if pl := s.byID[id]; pl != nil && pl.index >= 0 && s.ranks[pl.index] != noRank && w.wanted(pl.m) {
		return chosen(pl.index, s.ranks[pl.index], s.policy.near)
	}
	return choice{index: -1, rule: ruleFull, demand: true}
}

// unmeetable says why w's wish cannot come true whatever happens next, or ruleNone; a.mu is held.
func (a *app) unmeetable(w *waiter) rule {
	switch {
	case w.wish == nil:
		return ruleNone
	case w.wish.only != "":
		return a.unusable(a.machines[w.wish.only], w)
	case len(w.wish.regions) > 0:
		for _, m := range a.machines {
			if w.wanted(m) && a.unusable(m, w) == ruleNone {
				return ruleNone
			}
		}
		return ruleNoRegion
	}
	return ruleNone
}

// unusable says why w never gets a machine, or ruleNone; a.mu is held.
func (a *app) unusable(m *machine, w *waiter) rule {
	if m == nil || !m.present || m.cfg.Cordoned || m.cfg.Draining || slices.Contains(m.cfg.Absent, w.svc.port) || w.from != nil && m.node != nil ||
		!w.wanted(m) {
		return ruleNoInstance
	}
	switch m.cfg.Phase {
	case PhaseServing, PhaseBooting, phaseUnknown:
		return ruleNone
	case PhaseSuspended, PhaseStopped:
		if a.cfg.NoWake {
			return ruleNoWake
		}
		return ruleNone
	default:
		return ruleNoInstance
	}
}

// denyUnmeetable refuses those whose wish a new table has made vain; a.mu is held.
func (a *app) denyUnmeetable(s *service) {
	for w := s.queue.first; w != nil && s.queue.picky > 0; {
		next := w.next
		if r := a.unmeetable(w); r != ruleNone {
			a.deny(w, r)
		}
		w = next
	}
}

// wakeWished asks for the sleeping machines that those who wait want by name or by region; a.mu is held.
func (a *app) wakeWished(s *service, now time.Time) {
	if s.queue.picky == 0 || a.cfg.NoWake {
		return
	}
	for w := s.queue.first; w != nil; w = w.next {
		if w.wish == nil || w.quiet {
			continue
		}
		m := a.machines[w.wish.only]
		if w.wish.only == "" && len(w.wish.regions) > 0 {
			m = a.bestToAsk(s, w)
		}
		if m == nil || m.node != nil || m.cfg.Phase != PhaseSuspended && m.cfg.Phase != PhaseStopped {
			continue
		}
		if t := a.wakes[m.id]; t == nil || !t.pending && !now.Before(t.notBefore) {
			a.wake(m, now)
		}
	}
}

// wished reads the headers by which a client says where its request is to go.
func wished(h http.Header) *wish {
	w := wish{only: volant.MachineID(h.Get("Fly-Force-Instance-Id")), prefer: volant.MachineID(h.Get("Fly-Prefer-Instance-Id"))}
	w.force(h.Get("Fly-Force-Region"))
	near, _ := regionsOf(h.Get("Fly-Prefer-Region"))
	for _, r := range near {
		if len(w.regions) == 0 || slices.Contains(w.regions, r) {
			w.near = append(w.near, r)
		}
	}
	if w.only == "" && w.prefer == "" && len(w.regions)+len(w.near) == 0 {
		return nil
	}
	return &w
}

// force has the machine be in one of a list of regions. A list with "any" in it only prefers those before.
func (w *wish) force(list string) {
	if regions, anywhere := regionsOf(list); anywhere {
		w.near = append(w.near, regions...)
	} else {
		w.regions = regions
	}
}

// regionsMost bounds the regions that a request may list; the first count.
const regionsMost = 32

// regionsOf reads a list of regions, up to "any".
func regionsOf(list string) (regions []volant.Region, anywhere bool) {
	for name := range strings.SplitSeq(list, ",") {
		switch name = strings.TrimSpace(name); {
		case name == "any":
			return regions, true
		case name != "" && len(regions) < regionsMost:
			regions = append(regions, volant.Region(name))
		}
	}
	return regions, false
}
