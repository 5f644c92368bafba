package scale

import (
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/perapp"
)

// How long a step that is done may go unseen before the observation is believed again.
const (
	unseenChange = 5 * time.Second
	unseenRecord = 30 * time.Second
)

// overlay makes the observation show what steps in flight and settled ones bring about, so that they are
// not planned again, drops the settled ones which show by themselves, and says when the next is given up.
func (w *watch) overlay(o *Observation, inFlight []*act) (again time.Time) {
	w.settled = slices.DeleteFunc(w.settled, func(a *act) bool {
		if a.Group != o.Group {
			return false
		}
		i := slices.IndexFunc(o.Machines, func(m Machine) bool { return m.ID == a.Machine })
		due := a.done.Add(unseenChange)
		if a.Kind == Create || a.Kind == Destroy {
			due = a.done.Add(unseenRecord)
		}
		if !due.After(o.Now) || shows(a, o.Machines, i) {
			return true
		}
		again = perapp.Sooner(again, due)
		return false
	})
	for _, a := range slices.Concat(w.settled, inFlight) {
		if a.Group == o.Group {
			a.pretend(o)
		}
	}
	return again
}

// shows says whether the machine with index i, -1 if there is none, shows that the settled act was done.
func shows(a *act, ms []Machine, i int) bool {
	switch {
	case a.Kind == Destroy:
		return i < 0
	case i < 0:
		return a.Kind != Create // a created one is yet to appear
	case a.Kind == Create:
		return ms[i].State != Stopped && ms[i].State != Unknown || ms[i].Failures > 0
	case a.Kind == Drain:
		return ms[i].Draining || ms[i].State != a.before.State
	case a.Kind == Retire:
		return ms[i].Retiring
	case a.Kind == Restore:
		return !ms[i].Retiring
	case a.Kind == Undrain:
		return !ms[i].Draining || ms[i].State != a.before.State
	}
	return ms[i].State != a.before.State || !ms[i].Since.Equal(a.before.Since)
}

// pretend changes o to what it will be when a is seen.
func (a *act) pretend(o *Observation) {
	i := slices.IndexFunc(o.Machines, func(m Machine) bool { return m.ID == a.Machine })
	if a.Kind == Create && (a.Machine == "" || i < 0) {
		m := Machine{
			ID: "pending" + volant.MachineID(a.Region), Region: a.Region, Release: o.Release, Run: volant.RunAuto,
			Managed: true, State: Booting, Since: o.Now, Blocked: true,
		}
		if o.Worker {
			m.Run = volant.RunOn
		}
		o.Machines = append(o.Machines, m)
		if r := o.Regions[a.Region]; a.done.IsZero() {
			r.Room = max(0, r.Room-1)
			o.Regions[a.Region] = r
		}
		return
	}
	if i < 0 {
		return
	}
	m := &o.Machines[i]
	m.Blocked = true
	switch a.Kind {
	case Undrain:
		m.Draining = false
	case Wake, Create:
		m.State = Booting
	case Drain:
		m.Draining = true
	case Sleep:
		m.State = Leaving
	case Retire:
		m.Cordoned, m.Retiring, m.Acted = true, true, false
	case Restore:
		m.Cordoned, m.Retiring = false, false
	case Destroy:
		m.State, m.Run = Leaving, volant.RunDestroyed
		if !a.done.IsZero() {
			o.Machines = slices.Delete(o.Machines, i, i+1)
		}
	case Hold:
	}
}
