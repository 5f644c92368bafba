package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
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
	o := deploy.Observation{Now: time.Now(), Org: a.Org, Current: a.Release, Primary: primary(snap, a, f.region)}
	current, ok := snap.Release(id, a.Release)
	if !ok {
		current = nil
	}
	for _, r := range snap.Releases(id) {
		if r.Tombstone {
			continue
		}
		def := r.Config.Group()
		o.Releases = append(o.Releases, deploy.ReleaseOf(r, current, func(g string) volant.Scale { return a.ScaleOf(g, def) }))
	}
	for _, m := range snap.Machines(id) {
		if !counts(m) {
			continue
		}
		var have *volant.Have
		if h, ok := snap.Have(volant.MachineID(m.ID)); ok {
			have = &h
		}
		o.Machines = append(o.Machines, deploy.MachineOf(m, have))
	}
	for _, m := range f.pending.unseen(snap, id, deploy.Actor) { // scaling makes it
		c := *m
		c.Created = o.Now
		o.Machines = append(o.Machines, deploy.MachineOf(&c, nil))
	}
	return o, nil
}

// Apply is deploy's.
func (f *deployFleet) Apply(ctx context.Context, app volant.AppID, step deploy.Step, term uint64) (volant.MachineID, error) {
	const by = deploy.Actor
	switch step.Kind {
	case deploy.Begin:
		return "", f.release(ctx, app, step.Release, term, func(r *volant.Release) { r.Status = volant.ReleaseRunning })
	case deploy.Commanded:
		return step.Machine, f.release(ctx, app, step.Release, term, func(r *volant.Release) { r.CommandDone = true })
	case deploy.Complete:
		// Who deploys may connect at once: complete means that the proxy listens.
		if err := f.acts(ctx, f.cat.Snapshot().Rev); err != nil {
			return "", err
		}
		return "", f.release(ctx, app, step.Release, term, func(r *volant.Release) { r.Status = volant.ReleaseComplete })
	case deploy.Fail:
		reason := f.reason(ctx, step)
		return "", f.release(ctx, app, step.Release, term, func(r *volant.Release) { r.Status, r.Reason = volant.ReleaseFailed, reason })
	case deploy.Command:
		return f.createCommand(ctx, app, step, term)
	case deploy.Create:
		return f.createFor(ctx, app, step, term)
	case deploy.Switch, deploy.Revert:
		return "", f.makeCurrent(ctx, app, step, term)
	case deploy.Route:
		return step.Machine, f.edit(ctx, app, step.Machine, by, term, func(m *volant.Machine) { m.Cordoned, m.Run = false, ownRun(m) })
	case deploy.Restore:
		return step.Machine, f.restore(ctx, app, step, term)
	case deploy.Drain:
		if err := f.edit(ctx, app, step.Machine, by, term, func(m *volant.Machine) { m.Cordoned, m.Run = true, volant.RunAuto }); err != nil {
			return step.Machine, err
		}
		err := f.hosts.of(step.Machine).Drain(ctx, step.Machine, host.Drain{On: true, Then: "stop", Term: term, By: by})
		if errors.Is(err, volant.ErrPrecondition) {
			err = nil // asleep already: there is nothing to drain
		}
		return step.Machine, err
	case deploy.Destroy:
		return step.Machine, f.destroy(ctx, app, step.Machine, by, term)
	}
	return "", fmt.Errorf("step %q is not known", step.Kind)
}

// ownRun is how a machine runs when nobody asks for anything else: one without services is not woken by a
// connection.
func ownRun(m *volant.Machine) volant.Run {
	if len(m.Config.Services) == 0 {
		return volant.RunOn
	}
	return volant.RunAuto
}

func (f *deployFleet) release(ctx context.Context, app volant.AppID, version, term uint64, fn func(*volant.Release)) error {
	rev, err := f.commit(ctx, app, deploy.Actor, term, store.Edit(releaseKey(app, version), func(r *volant.Release) error {
		fn(r)
		return nil
	}))
	return f.wait(ctx, rev, err)
}

func releaseKey(app volant.AppID, version uint64) string {
	return volant.RecordKey(volant.KindRelease, app, fmt.Sprintf("%010d", version))
}

// makeCurrent makes the release the app's current one or, where it is reverted, the one before it; the release's
// own record says so in the same commit.
func (f *deployFleet) makeCurrent(ctx context.Context, app volant.AppID, step deploy.Step, term uint64) error {
	var before uint64
	reason := ""
	if step.Kind == deploy.Revert {
		r, ok := f.cat.Snapshot().Release(app, step.Release)
		if !ok {
			return volant.Errorf(volant.ErrNotFound, "release %d of app %s does not exist", step.Release, app)
		}
		before, reason = r.Previous, f.reason(ctx, step)
	} else if a, ok := f.cat.Snapshot().App(app); ok {
		before = a.Release
	}
	rev, err := f.commit(ctx, app, deploy.Actor, term,
		store.Edit(volant.RecordKey(volant.KindApp, app, string(app)), func(a *volant.App) error {
			if step.Kind == deploy.Revert {
				a.Release = before
			} else {
				a.Release = step.Release
			}
			return nil
		}),
		store.Edit(releaseKey(app, step.Release), func(r *volant.Release) error {
			if step.Kind == deploy.Revert {
				r.Status, r.Reason = volant.ReleaseFailed, reason
			} else if before != step.Release {
				r.Previous = before
			}
			return nil
		}))
	return f.wait(ctx, rev, err)
}

// restore has a machine that was drained take connections again; one that is to wake is on until it serves.
func (f *deployFleet) restore(ctx context.Context, app volant.AppID, step deploy.Step, term uint64) error {
	err := f.edit(ctx, app, step.Machine, deploy.Actor, term, func(m *volant.Machine) {
		if m.Cordoned, m.Run = false, ownRun(m); step.Wake {
			m.Run = volant.RunOn
		}
	})
	if err != nil {
		return err
	}
	err = f.hosts.of(step.Machine).Drain(ctx, step.Machine, host.Drain{Term: term, By: deploy.Actor})
	if errors.Is(err, volant.ErrPrecondition) {
		return nil // asleep: there is no drain to clear
	}
	return err
}

const lastLines = 5 // of a failed machine's log that the reason of its release shows

// reason is why a release failed, with the last that the machine at fault said.
func (f *deployFleet) reason(ctx context.Context, step deploy.Step) string {
	if step.Machine == "" {
		return step.Text
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	lines, err := f.tail(ctx, step.Machine, lastLines)
	if err != nil || len(lines) == 0 {
		return step.Text
	}
	return step.Text + "; its last lines: " + strings.Join(lines, " | ")
}

// tail is the last lines that a machine's program wrote.
func (f *deployFleet) tail(ctx context.Context, id volant.MachineID, n int) ([]string, error) {
	var out []string
	err := f.hosts.of(id).Logs(ctx, id, 4*n, false, func(l host.LogLine) error {
		if text := strings.TrimSpace(l.Text); text != "" {
			out = append(out, text[:min(len(text), 200)])
		}
		return nil
	})
	return out[max(0, len(out)-n):], err
}

// createFor makes a machine of a release that is not routed yet.
func (f *deployFleet) createFor(ctx context.Context, app volant.AppID, step deploy.Step, term uint64) (volant.MachineID, error) {
	a, r, err := f.appRelease(app, step.Release)
	if err != nil {
		return "", err
	}
	groups := groupsOfRelease(a, r)
	i := slices.IndexFunc(groups, func(g group) bool { return g.name == step.Group })
	if i < 0 {
		return "", volant.Errorf(volant.ErrPrecondition, "release %d has no process group %s", step.Release, step.Group)
	}
	m := f.newMachine(a, step.Group, groups[i].mold, volant.RunOn, step.Region)
	m.Cordoned = true
	if step.Replaces != "" {
		m.Config.Metadata[deploy.MetadataReplaces] = string(step.Replaces)
	}
	return volant.MachineID(m.ID), f.createNear(ctx, m, groups[i].scale.Regions, deploy.Actor, term)
}

func (f *deployFleet) appRelease(app volant.AppID, version uint64) (*volant.App, *volant.Release, error) {
	snap := f.cat.Snapshot()
	a, ok := snap.App(app)
	if !ok || a.Tombstone {
		return nil, nil, volant.Errorf(volant.ErrNotFound, "app %s does not exist", app)
	}
	r, ok := snap.Release(app, version)
	if !ok {
		return nil, nil, volant.Errorf(volant.ErrNotFound, "release %d of app %s does not exist", version, app)
	}
	return a, r, nil
}

// createCommand makes the machine that runs a release's command: it has no services, and its program runs once.
func (f *deployFleet) createCommand(ctx context.Context, app volant.AppID, step deploy.Step, term uint64) (volant.MachineID, error) {
	a, r, err := f.appRelease(app, step.Release)
	if err != nil {
		return "", err
	}
	if r.Command == nil {
		return "", volant.Errorf(volant.ErrPrecondition, "release %d has no command", step.Release)
	}
	cfg := r.Config
	cfg.Services, cfg.Checks, cfg.Metrics, cfg.Schedule, cfg.AutoDestroy = nil, nil, nil, "", false
	cfg.Restart = volant.Restart{Policy: volant.RestartNo}
	cfg.Init.Exec, cfg.Init.Cmd = nil, r.Command.Cmd
	cfg.Env = maps.Clone(cfg.Env)
	if cfg.Env == nil {
		cfg.Env = map[string]string{}
	}
	cfg.Env["RELEASE_COMMAND"] = "1"
	if r.Command.Guest != (volant.Guest{}) {
		cfg.Guest = r.Command.Guest
	}
	m := f.newMachine(a, deploy.GroupCommand, mold{r.Version, r.Image, cfg}, volant.RunOn, step.Region)
	m.Cordoned = true
	delete(m.Config.Metadata, volant.MetadataManaged)
	return volant.MachineID(m.ID), f.createNear(ctx, m, nil, deploy.Actor, term)
}

func (f *fleet) edit(ctx context.Context, app volant.AppID, id volant.MachineID, by string, term uint64, fn func(*volant.Machine)) error {
	rev, err := f.commit(ctx, app, by, term, store.Edit(volant.RecordKey(volant.KindMachine, app, string(id)), func(m *volant.Machine) error {
		fn(m)
		return nil
	}))
	return f.wait(ctx, rev, err)
}

// wait returns when the catalog holds what was written.
func (f *fleet) wait(ctx context.Context, rev store.Revision, err error) error {
	if err != nil {
		return err
	}
	return f.cat.Wait(ctx, rev)
}
