package node

import (
	"context"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/host"
)

// machines is the fleet as the API asks for it.
type machines struct{ f *fleet }

func (m machines) Start(ctx context.Context, id volant.MachineID, by string) error {
	return m.f.host.WakeFor(ctx, id, volant.SourceUser, "asked through the API by "+by)
}

func (m machines) Sleep(ctx context.Context, id volant.MachineID, how string, e control.Ending) error {
	return m.f.host.Sleep(ctx, id, host.Sleep{How: how, Force: true, By: e.By, Signal: e.Signal, Grace: e.Grace})
}

func (m machines) Restart(ctx context.Context, id volant.MachineID, e control.Ending) error {
	return m.f.host.Restart(ctx, id, host.Restart{By: e.By, Signal: e.Signal, Grace: e.Grace})
}

func (m machines) Events(id volant.MachineID, limit int) []volant.Event {
	return m.f.host.Events(id, limit)
}

func (m machines) Processes(ctx context.Context, id volant.MachineID) ([]guest.Process, error) {
	return m.f.host.Processes(ctx, id)
}

func (m machines) Stats(ctx context.Context, id volant.MachineID) (guest.Stats, error) {
	return m.f.host.Stats(ctx, id)
}

func (m machines) Signal(ctx context.Context, id volant.MachineID, sig int) error {
	return m.f.host.Signal(ctx, id, sig)
}

func (m machines) Exec(ctx context.Context, id volant.MachineID, e guest.Exec) (guest.Exit, error) {
	return m.f.host.Exec(ctx, id, e)
}

func (m machines) OldLogs(app volant.AppID) []volant.MachineID { return m.f.host.OldLogs(app) }

func (m machines) Logs(ctx context.Context, id volant.MachineID, tail int, follow bool, fn func(guest.LogLine) error) error {
	return m.f.host.Logs(ctx, id, tail, follow, func(l host.LogLine) error {
		return fn(guest.LogLine{Seq: l.Seq, Time: l.Time, Source: l.Source, Text: l.Text})
	})
}

func (m machines) Room(g volant.Guest) map[volant.Region]int {
	return map[volant.Region]int{m.f.region: m.f.room(g)}
}

// Place reserves room for a machine made by hand, unless it begins asleep: such a one needs none.
func (m machines) Place(ctx context.Context, rec *volant.Machine) (volant.NodeID, error) {
	if rec.Region != m.f.region {
		return "", volant.Errorf(volant.ErrNoCapacity, "region %q has no server", rec.Region).WithRemedy("use %q", m.f.region)
	}
	if rec.Launch == volant.LaunchRest {
		return m.f.node, nil
	}
	err := m.f.host.Reserve(ctx, host.Reservation{ID: volant.MachineID(rec.ID), App: rec.App, Org: rec.Org, Guest: rec.Config.Guest})
	return m.f.node, err
}
