package host

import (
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	volant "github.com/volant-edge/volant"
)

// happened adds an event to the machine's history. It is part of the record, so that an event is known exactly
// when what it tells of is.
func (r *record) happened(typ string, status volant.State, source string) {
	r.tell(volant.Event{Type: typ, Status: status, Source: source})
}

func (r *record) tell(e volant.Event) {
	e.ID, e.At = ulid.Make().String(), time.Now().UTC()
	r.Events = volant.Happened(r.Events, e)
}

// exited tells of the end of a run, once: a run whose end was told when it was to be run again is not told of
// again when the machine comes to rest.
func (r *record) exited(e volant.Exit, status volant.State, again bool) {
	if r.ExitTold {
		return
	}
	r.ExitTold = true
	r.tell(volant.Event{
		Type: volant.EventExit, Status: status, Source: volant.SourceHost,
		Exit: &e, Again: again, Restarts: len(within(r.Restarts, e.At)),
	})
}

// woken is the event of a boot: a suspended machine resumes, and a policy restarts.
func (r *record) woken(rule string) string {
	switch {
	case rule == "restart_policy":
		return volant.EventRestart
	case r.Mode == modeRestore:
		return volant.EventResume
	}
	return volant.EventStart
}

// wishSource is who is behind a wish.
func wishSource(w *volant.Machine) string {
	switch w.Actor {
	case "scaler", "deploy", "host":
		return volant.SourceHost
	}
	return volant.SourceUser
}

// source is who is behind an order.
func (a *ask) source() string {
	if a != nil && a.user {
		return volant.SourceUser
	}
	return volant.SourceHost
}

// Events are what happened to a machine, the newest first, at most limit. They are kept for as long as the
// host knows the machine.
func (h *Host) Events(id volant.MachineID, limit int) []volant.Event {
	h.mu.Lock()
	m := h.machines[id]
	h.mu.Unlock()
	if m == nil {
		return nil
	}
	all := *m.events.Load()
	out := slices.Clone(all[max(0, len(all)-limit):])
	slices.Reverse(out)
	return out
}
