package proxy

import (
	"slices"
	"time"

	"github.com/volant-edge/volant"
)

const (
	wakeBackoff    = 250 * time.Millisecond // after the first wake that failed; doubles
	wakeBackoffMax = 30 * time.Second
	wakeResend     = 10 * time.Second // a wake of which nothing is heard is asked for again
)

// wakeTry is what is known of waking one machine. It is dropped when the machine serves.
type wakeTry struct {
	epoch, seq uint64    // of the machine when it was asked for
	pending    bool      // asked for, nothing heard
	booting    bool      // heard that it boots
	unsent     bool      // to be told to the server
	asked      time.Time // when it was last told
	failures   int
	notBefore  time.Time
	reason     string
}

// settleWakes compares the wakes asked for with what the new table says; a.mu is held.
func (a *app) settleWakes(now time.Time) {
	for id, w := range a.wakes {
		m := a.machines[id]
		if m == nil || !m.present || m.cfg.Phase == PhaseServing {
			delete(a.wakes, id)
			continue
		}
		if !w.pending && !w.booting || a.epoch == w.epoch && m.cfg.Seq <= w.seq {
			continue
		}
		if m.cfg.Phase == PhaseBooting {
			w.pending, w.booting, w.unsent = false, true, false
			continue
		}
		w.pending, w.booting, w.unsent = false, false, false
		wait := min(wakeBackoff<<min(w.failures, 16), wakeBackoffMax)
		w.failures++
		w.notBefore = now.Add(wait)
		a.p.noteWake(a, id, "wake_failed", "the machine did not come to serve (it is "+string(m.cfg.Phase)+
			"): not asked again for "+wait.String())
	}
}

// rewake asks for the machines that those who wait need; a.mu is held.
func (a *app) rewake() {
	if a.loud == 0 || !a.present {
		return
	}
	now := time.Now()
	for _, s := range a.services {
		a.wakeWished(s, now)
	}
	need := 0
	for _, s := range a.services {
		need = max(need, planWakes(a.wakeView(s, true)))
		if v := a.wakeView(s, false); !a.sleepsElsewhere(s, v) {
			need = max(need, planWakes(v))
		}
	}
	for ; need > 0; need-- {
		m := a.sleeper(now)
		if m == nil {
			break
		}
		a.wake(m, now)
	}
	a.remind(now)
}

// wakeView is what there is of machines for those who wait for a service: who entered here may have any, and with
// foreign those who came by another node one of this node.
func (a *app) wakeView(s *service, foreign bool) wakeView {
	v := wakeView{queued: s.loud - s.foreign, soft: int(s.soft), canGrow: a.scaled(), noWake: a.cfg.NoWake}
	if foreign {
		v.queued = s.foreign
	}
	if v.queued == 0 {
		return v
	}
	for id, m := range a.machines {
		if !m.present || m.cfg.Cordoned || slices.Contains(m.cfg.Absent, s.port) || m.node != nil && (foreign || m.node.away.Load()) {
			continue
		}
		w := a.wakes[id]
		switch {
		case m.cfg.Phase == PhaseBooting, w != nil && w.pending:
			v.coming++
		case m.cfg.Phase == PhaseServing && !m.sealed && (!m.cfg.Draining || a.scaled()):
			v.serving++
		}
	}
	return v
}

// sleepsElsewhere says that nothing serves or boots, and that the machine to wake is on another node: who waits asks
// there.
func (a *app) sleepsElsewhere(s *service, v wakeView) bool {
	if v.queued == 0 || v.serving+v.coming > 0 {
		return false
	}
	m := a.bestToAsk(s, nil)
	return m != nil && m.node != nil
}

// scaled says whether a scaler acts for those who wait.
func (a *app) scaled() bool { return a.cfg.CanGrow && !a.cfg.Unscaled }

// sleeper chooses the machine to wake: while no scaler acts one that drains, then suspended before stopped,
// fewest failures, then by ID.
func (a *app) sleeper(now time.Time) *machine {
	var best *machine
	rank := func(m *machine) int {
		r := 0
		if w := a.wakes[m.id]; w != nil {
			r = 2 * w.failures
		}
		switch m.cfg.Phase {
		case PhaseServing: // it drains
			r--
		case PhaseStopped:
			r++
		default:
		}
		return r
	}
	for id, m := range a.machines {
		asleep := m.cfg.Phase == PhaseSuspended || m.cfg.Phase == PhaseStopped
		drains := m.cfg.Phase == PhaseServing && m.cfg.Draining && !m.sealed && !a.scaled()
		if !m.present || m.node != nil || m.cfg.Cordoned || !asleep && !drains || !a.helps(m) {
			continue
		}
		if w := a.wakes[id]; w != nil && (w.pending || now.Before(w.notBefore)) {
			continue
		}
		if best == nil || rank(m) < rank(best) || rank(m) == rank(best) && id < best.id {
			best = m
		}
	}
	return best
}

// helps says whether somebody waits for a port that the machine has.
func (a *app) helps(m *machine) bool {
	for _, s := range a.services {
		if s.loud > 0 && !slices.Contains(m.cfg.Absent, s.port) {
			return true
		}
	}
	return false
}

func (a *app) wake(m *machine, now time.Time) {
	w := a.wakes[m.id]
	if w == nil {
		w = &wakeTry{}
		a.wakes[m.id] = w
	}
	w.epoch, w.seq = a.epoch, m.cfg.Seq
	w.pending, w.unsent, w.asked = true, true, now
	w.reason = "a connection waits and no machine that serves has a free slot"
	a.p.noteWake(a, m.id, "wake", w.reason+": asked its host to wake it ("+string(m.cfg.Phase)+")")
	a.touch(true)
}

// remind sets the alarm for the next moment at which a wake may be asked for (again).
func (a *app) remind(now time.Time) {
	var next time.Time
	for _, w := range a.wakes {
		t := w.notBefore
		switch {
		case w.pending:
			t = w.asked.Add(wakeResend)
		case w.booting || !t.After(now):
			continue
		}
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	if next.IsZero() {
		return
	}
	if a.alarm == nil {
		a.alarm = time.AfterFunc(max(next.Sub(now), 0), a.alarmed)
		return
	}
	a.alarm.Reset(max(next.Sub(now), 0))
}

func (a *app) alarmed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.loud == 0 {
		return
	}
	now := time.Now()
	for _, w := range a.wakes {
		if w.pending && now.Sub(w.asked) >= wakeResend {
			w.unsent, w.asked = true, now
			a.touch(true)
		}
	}
	a.rewake()
}

// unsentWakes takes the wakes to be told now; all says those told before as well. a.mu is held.
func (a *app) unsentWakes(all bool) []Wake {
	var out []Wake
	for id, w := range a.wakes {
		if !w.pending || !w.unsent && !all || a.loud == 0 {
			continue
		}
		w.unsent = false
		out = append(out, Wake{App: a.id, Machine: id, Reason: w.reason})
	}
	slices.SortFunc(out, func(x, y Wake) int { return compareIDs(x.Machine, y.Machine) })
	return out
}

func compareIDs(x, y volant.MachineID) int {
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}
