package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/deploy"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/store"
)

// deployFleet is the fleet as deploys see it.
type deployFleet struct{ *fleet }

// Observe is deploy's.
func (f *deployFleet) Observe(_ context.Context, id volant.AppID) (deploy.Observation, error) {
	snap := f.cat.Snapshot()
	a, ok := snap.App(id)
	if !ok || a.Tombstone {
		return deploy.Observation{}, volant.Errorf(volant.ErrNotFound, "app %s does not exist", id)
	}
	o := deploy.Observation{Now: time.Now(), Org: a.Org, Current: a.Release, Min: a.Scale.Least(), Primary: f.primary(a)}
	for _, r := range snap.Releases(id) {
		if !r.Tombstone {
			o.Releases = append(o.Releases, deploy.ReleaseOf(r))
		}
	}
	for _, m := range snap.Machines(id) {
		if m.Tombstone || m.Run == volant.RunDestroyed {
			continue
		}
		var have *volant.Have
		if h, ok := snap.Have(volant.MachineID(m.ID)); ok {
			have = &h
		}
		o.Machines = append(o.Machines, deploy.MachineOf(m, have))
	}
	return o, nil
}

// Apply is deploy's.
func (f *deployFleet) Apply(ctx context.Context, app volant.AppID, step deploy.Step, term uint64) (volant.MachineID, error) {
	const by = "deploy"
	switch step.Kind {
	case deploy.Begin:
		return "", f.release(ctx, app, step.Release, volant.ReleaseRunning, "")
	case deploy.Complete:
		// Who deploys may connect at once: complete means that the proxy listens.
		if err := f.acts(ctx, f.cat.Snapshot().Rev); err != nil {
			return "", err
		}
		return "", f.release(ctx, app, step.Release, volant.ReleaseComplete, "")
	case deploy.Fail:
		return "", f.release(ctx, app, step.Release, volant.ReleaseFailed, step.Text)
	case deploy.Create:
		return f.createFor(ctx, app, step, term)
	case deploy.Switch:
		_, rev, err := store.Update(ctx, f.store, by, volant.RecordKey(volant.KindApp, app, string(app)), func(a *volant.App) error {
			a.Release = step.Release
			return nil
		})
		return "", f.wait(ctx, rev, err)
	case deploy.Route:
		return step.Machine, f.edit(ctx, app, step.Machine, by, func(m *volant.Machine) { m.Cordoned, m.Run = false, volant.RunAuto })
	case deploy.Drain:
		if err := f.edit(ctx, app, step.Machine, by, func(m *volant.Machine) { m.Cordoned, m.Run = true, volant.RunAuto }); err != nil {
			return step.Machine, err
		}
		err := f.host.Drain(ctx, step.Machine, host.Drain{On: true, Then: "stop", Term: term, By: by})
		if errors.Is(err, volant.ErrPrecondition) {
			err = nil // asleep already: there is nothing to drain
		}
		return step.Machine, err
	case deploy.Destroy:
		return step.Machine, f.destroy(ctx, app, step.Machine, by)
	}
	return "", fmt.Errorf("step %q is not known", step.Kind)
}

func (f *deployFleet) release(ctx context.Context, app volant.AppID, version uint64, st volant.ReleaseStatus, reason string) error {
	r, ok := f.cat.Snapshot().Release(app, version)
	if !ok {
		return volant.Errorf(volant.ErrNotFound, "release %d of app %s does not exist", version, app)
	}
	_, rev, err := store.Update(ctx, f.store, "deploy", r.Key(), func(r *volant.Release) error {
		r.Status, r.Reason = st, reason
		return nil
	})
	return f.wait(ctx, rev, err)
}

// createFor makes a machine of a release that is not routed yet.
func (f *deployFleet) createFor(ctx context.Context, app volant.AppID, step deploy.Step, term uint64) (volant.MachineID, error) {
	snap := f.cat.Snapshot()
	a, ok := snap.App(app)
	if !ok || a.Tombstone {
		return "", volant.Errorf(volant.ErrNotFound, "app %s does not exist", app)
	}
	r, ok := snap.Release(app, step.Release)
	if !ok {
		return "", volant.Errorf(volant.ErrNotFound, "release %d of app %s does not exist", step.Release, app)
	}
	m := f.newMachine(a, r.Config.Group(), mold{r.Version, r.Image, r.Config}, volant.RunOn)
	m.Cordoned = true
	if step.Replaces != "" {
		m.Config.Metadata[deploy.MetadataReplaces] = string(step.Replaces)
	}
	return volant.MachineID(m.ID), f.create(ctx, m, "deploy", term)
}

func (f *fleet) edit(ctx context.Context, app volant.AppID, id volant.MachineID, by string, fn func(*volant.Machine)) error {
	_, rev, err := store.Update(ctx, f.store, by, volant.RecordKey(volant.KindMachine, app, string(id)), func(m *volant.Machine) error {
		fn(m)
		return nil
	})
	return f.wait(ctx, rev, err)
}

// wait returns when the catalog holds what was written.
func (f *fleet) wait(ctx context.Context, rev store.Revision, err error) error {
	if err != nil {
		return err
	}
	return f.cat.Wait(ctx, rev)
}
