package control

import (
	"net/http"
	"slices"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

// The events shown of a machine: by its events call unless it says otherwise, and with the machine itself.
const shownEvents = 20

func (s *Server) machineEvents(w http.ResponseWriter, c *call) error {
	_, m, _, err := s.machine(c)
	if err != nil {
		return err
	}
	limit, err := c.number("limit", shownEvents, 1, volant.MaxEvents)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, eventViews(s.history(m, limit)))
	return nil
}

// history is what happened to a machine, the newest first: by its host, and once that has forgotten it, by its
// tombstone.
func (s *Server) history(m *volant.Machine, limit int) []volant.Event {
	if events := s.Machines.Events(volant.MachineID(m.ID), limit); len(events) > 0 {
		return events
	}
	events := slices.Clone(m.Last[max(0, len(m.Last)-limit):])
	slices.Reverse(events)
	return events
}

func eventViews(events []volant.Event) []api.MachineEvent {
	out := make([]api.MachineEvent, 0, len(events))
	for _, e := range events {
		v := api.MachineEvent{ID: e.ID, Type: e.Type, Status: string(e.Status), Source: e.Source, Timestamp: e.At.UnixMilli()}
		if x := e.Exit; x != nil {
			v.Request = &api.EventRequest{RestartCount: e.Restarts, ExitEvent: &api.ExitEvent{
				ExitCode: x.Code, GuestExitCode: x.Code, GuestSignal: x.Signal, Signal: x.Signal, OOMKilled: x.OOM,
				RequestedStop: x.Requested, Restarting: e.Again, ExitedAt: x.At.UTC(),
			}}
		}
		out = append(out, v)
	}
	return out
}
