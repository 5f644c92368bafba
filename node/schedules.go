package node

import (
	"context"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/schedule"
)

// scheduleFleet is the fleet as schedules see it.
type scheduleFleet struct{ *fleet }

// Observe is schedule's.
func (f *scheduleFleet) Observe(_ context.Context, id volant.AppID) (volant.OrgID, []schedule.Machine, error) {
	snap := f.cat.Snapshot()
	a, ok := snap.App(id)
	if !ok || a.Tombstone {
		return "", nil, volant.Errorf(volant.ErrNotFound, "app %s does not exist", id)
	}
	var out []schedule.Machine
	for _, m := range snap.Machines(id) {
		if !counts(m) {
			continue
		}
		have, ok := snap.Have(volant.MachineID(m.ID))
		if !ok || have.Generation < m.Generation {
			continue // its host is yet to act on what its record says
		}
		if sm, ok := schedule.MachineOf(m, &have); ok {
			out = append(out, sm)
		}
	}
	return a.Org, out, nil
}

// Apply is schedule's.
func (f *scheduleFleet) Apply(ctx context.Context, app volant.AppID, step schedule.Step, term uint64) error {
	if step.Kind == schedule.Start {
		return f.hosts.of(step.Machine).WakeFor(ctx, step.Machine, volant.SourceHost, step.Text)
	}
	return f.destroy(ctx, app, step.Machine, "schedule", term)
}
