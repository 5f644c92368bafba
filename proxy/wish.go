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
}

// picky says whether a waiter may have to go on waiting while a slot is free that it does not want.
func (w *waiter) picky() bool {
	return w.from != nil || w.wish != nil && (w.wish.only != "" || w.wish.not != "")
}

// choose picks a machine for w, by its wish and then by the ranks; app.mu is held.
func (s *service) choose(w *waiter) choice {
	chance := s.app.p.chance()
	switch {
	case w.wish != nil && w.wish.only != "":
		return s.chooseOne(w.wish.only) // unmeetable has seen that a machine on another node is not asked for from there
	case w.from != nil:
		return pick(s.ranks[:s.here], s.policy.near, chance)
	case w.wish == nil:
		return pick(s.ranks, s.policy.near, chance)
	}
	if c := s.chooseOne(w.wish.prefer); c.index >= 0 {
		return c
	}
	pl := s.byID[w.wish.not]
	if pl == nil || pl.index < 0 {
		return pick(s.ranks, s.policy.near, chance)
	}
	ranks := slices.Clone(s.ranks)
	ranks[pl.index] = noRank
	return pick(ranks, s.policy.near, chance)
}

// chooseOne is one machine if it may take a connection now.
func (s *service) chooseOne(id volant.MachineID) choice {
	if pl := s.byID[id]; pl != nil && pl.index >= 0 && s.ranks[pl.index] != noRank {
		return chosen(pl.index, s.ranks[pl.index], s.policy.near)
	}
	return choice{index: -1, rule: ruleFull, demand: true}
}

// unmeetable says why w's wish cannot come true whatever happens next, or ruleNone; a.mu is held.
func (a *app) unmeetable(w *waiter) rule {
	if w.wish == nil || w.wish.only == "" {
		return ruleNone
	}
	m := a.machines[w.wish.only]
	if m == nil || !m.present || m.cfg.Cordoned || m.cfg.Draining || slices.Contains(m.cfg.Absent, w.svc.port) || w.from != nil && m.node != nil {
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

// wakeWished asks for the sleeping machines that those who wait want by name; a.mu is held.
func (a *app) wakeWished(s *service, now time.Time) {
	if s.queue.picky == 0 || a.cfg.NoWake {
		return
	}
	for w := s.queue.first; w != nil; w = w.next {
		if w.wish == nil || w.wish.only == "" || w.quiet {
			continue
		}
		m := a.machines[w.wish.only]
		if m == nil || m.node != nil || m.cfg.Phase != PhaseSuspended && m.cfg.Phase != PhaseStopped {
			continue
		}
		if t := a.wakes[m.id]; t == nil || !t.pending && !now.Before(t.notBefore) {
			a.wake(m, now)
		}
	}
}

// wished reads the headers by which a client says where its request is to go. A region is the machines' that
// this proxy knows; ruleNoRegion says that the request wants another.
func wished(h http.Header, here volant.Region) (*wish, rule) {
	if regions := h.Get("Fly-Force-Region"); regions != "" && !inRegions(regions, here) {
		return nil, ruleNoRegion
	}
	only, prefer := h.Get("Fly-Force-Instance-Id"), h.Get("Fly-Prefer-Instance-Id")
	if only == "" && prefer == "" {
		return nil, ruleNone
	}
	return &wish{only: volant.MachineID(only), prefer: volant.MachineID(prefer)}, ruleNone
}

// inRegions says whether a list of regions has one.
func inRegions(list string, r volant.Region) bool {
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		if name == string(r) || name == "any" {
			return true
		}
	}
	return false
}
