package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/deploy"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/scale"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/why"
)

// fleet is what the scaler and deploys see of the machines and do with them: intent by the store, calls
// to the one host there is.
type fleet struct {
	node   volant.NodeID
	region volant.Region
	store  store.Store
	cat    *catalog.Catalog
	host   *host.Host
	why    why.Log
	acts   func(ctx context.Context, rev store.Revision) error // the proxy acts on intent up to rev
	// overhead is the memory of a VMM beside its guest's, MB.
	overhead int
}

// Observe is scale's.
func (f *fleet) Observe(_ context.Context, id volant.AppID) (scale.Observation, error) {
	snap := f.cat.Snapshot()
	a, ok := snap.App(id)
	if !ok || a.Tombstone {
		return scale.Observation{}, volant.Errorf(volant.ErrNotFound, "app %s does not exist", id)
	}
	o := scale.Observation{Org: a.Org, Scale: a.Scale.WithDefaults(), Soft: volant.DefaultSoft, Primary: f.region, Release: a.Release}
	now := time.Now()
	tmpl, ok := template(snap, a)
	if ok {
		o.Template = true
		o.Soft = soft(&tmpl.cfg)
	}
	for _, m := range snap.Machines(id) {
		if m.Tombstone || m.Run == volant.RunDestroyed {
			continue
		}
		var have *volant.Have
		if h, ok := snap.Have(volant.MachineID(m.ID)); ok {
			have = &h
		}
		o.Machines = append(o.Machines, scale.MachineOf(m, have, now))
	}
	o.Regions = map[volant.Region]scale.Region{f.region: {Room: f.room(tmpl.cfg.Guest)}}
	return o, nil
}

// room is how many more machines of a size the host can take.
func (f *fleet) room(g volant.Guest) int {
	g = g.WithDefaults()
	r := f.host.Room()
	n := r.FreeMB / (g.MemoryMB + f.overhead)
	if g.CPUKind == volant.CPUPerformance && r.Cores > 0 {
		n = min(n, r.FreeCores/g.CPUs)
	}
	return n
}

// soft is the lowest soft limit of a config's services.
func soft(cfg *volant.MachineConfig) int {
	low := 0
	for i := range cfg.Services {
		if s, _ := cfg.Services[i].Limits(cfg.Guest.WithDefaults().CPUs); low == 0 || s < low {
			low = s
		}
	}
	if low == 0 {
		return volant.DefaultSoft
	}
	return low
}

// mold is what a new machine is made from.
type mold struct {
	release uint64
	image   volant.Digest
	cfg     volant.MachineConfig
}

// template is the current release, and without one the newest machine's config.
func template(snap *catalog.Snapshot, a *volant.App) (mold, bool) {
	if r, ok := snap.Release(a.App, a.Release); ok {
		return mold{r.Version, r.Image, r.Config}, true
	}
	var newest *volant.Machine
	for _, m := range snap.Machines(a.App) {
		// One of another release is not proven, or on its way out.
		usable := !m.Tombstone && m.Run != volant.RunDestroyed && (m.Release == 0 || m.Release == a.Release)
		if usable && (newest == nil || m.Created.After(newest.Created)) {
			newest = m
		}
	}
	if newest == nil {
		return mold{}, false
	}
	return mold{newest.Release, newest.Image, newest.Config}, true
}

// Apply is scale's.
func (f *fleet) Apply(ctx context.Context, app volant.AppID, step scale.Step, term uint64) (volant.MachineID, error) {
	const by = scale.Actor
	switch step.Kind {
	case scale.Create:
		a, ok := f.cat.Snapshot().App(app)
		if !ok || a.Tombstone {
			return "", volant.Errorf(volant.ErrNotFound, "app %s does not exist", app)
		}
		tmpl, ok := template(f.cat.Snapshot(), a)
		if !ok {
			return "", volant.Errorf(volant.ErrPrecondition, "app %s has no release to make machines from", a.Name)
		}
		m := f.newMachine(a, tmpl, volant.RunAuto)
		id := volant.MachineID(m.ID)
		if err := f.create(ctx, m, by, term); err != nil {
			return "", err
		}
		return id, f.wake(ctx, id, step.Text)
	case scale.Wake:
		return step.Machine, f.host.Wake(ctx, step.Machine, step.Text)
	case scale.Undrain:
		return step.Machine, f.host.Drain(ctx, step.Machine, host.Drain{Term: term, By: by})
	case scale.Drain:
		return step.Machine, f.host.Drain(ctx, step.Machine, host.Drain{On: true, Then: step.Then, Term: term, By: by})
	case scale.Sleep:
		return step.Machine, f.host.Sleep(ctx, step.Machine, host.Sleep{How: step.Then, Term: term, By: by})
	case scale.Retire:
		return step.Machine, f.edit(ctx, app, step.Machine, by, func(m *volant.Machine) { m.Cordoned = true })
	case scale.Restore:
		return step.Machine, f.edit(ctx, app, step.Machine, by, func(m *volant.Machine) { m.Cordoned = false })
	case scale.Destroy:
		return step.Machine, f.destroy(ctx, app, step.Machine, by)
	case scale.Hold:
		return "", nil
	}
	return "", fmt.Errorf("step %q is not known", step.Kind)
}

// newMachine makes the record of a machine that scaling or a deploy creates.
func (f *fleet) newMachine(a *volant.App, t mold, run volant.Run) *volant.Machine {
	id := volant.NewMachineID()
	m := &volant.Machine{
		Name: "m-" + string(id)[:6], Node: f.node, Region: f.region, Run: run, Release: t.release, Image: t.image,
		Config: t.cfg, Version: ulid.Make().String(),
	}
	m.Config.Metadata = map[string]string{}
	for k, v := range t.cfg.Metadata {
		if k != deploy.MetadataReplaces {
			m.Config.Metadata[k] = v
		}
	}
	m.Config.Metadata[volant.MetadataManaged] = "scale"
	m.Meta = volant.Meta{Kind: volant.KindMachine, Org: a.Org, App: a.App, ID: string(id)}
	return m
}

// create reserves room at the host, then writes the wish and waits until the host has it.
func (f *fleet) create(ctx context.Context, m *volant.Machine, by string, term uint64) error {
	id := volant.MachineID(m.ID)
	if err := f.host.Reserve(ctx, host.Reservation{ID: id, App: m.App, Org: m.Org, Guest: m.Config.Guest, Term: term}); err != nil {
		f.why.Add(why.Record{
			Time: time.Now(), Kind: why.Placement, Org: m.Org, App: m.App, Rule: "refused_by_host",
			Text: fmt.Sprintf("node %s refused a new machine: %v", f.node, err),
		})
		return err
	}
	rev, err := store.Create(ctx, f.store, by, m)
	if err != nil {
		return err
	}
	f.why.Add(why.Record{
		Time: time.Now(), Kind: why.Placement, Org: m.Org, App: m.App, Machine: id, Rule: "only_host",
		Text: fmt.Sprintf("machine %s was placed on node %s in region %s, the only host there is", id, f.node, f.region),
	})
	return f.cat.Wait(ctx, rev)
}

// wake wakes a machine whose wish has just been written: the host may get it a moment later.
func (f *fleet) wake(ctx context.Context, id volant.MachineID, reason string) error {
	for {
		err := f.host.Wake(ctx, id, reason)
		if !errors.Is(err, volant.ErrNotFound) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// destroy writes the wish; the host ends the machine.
func (f *fleet) destroy(ctx context.Context, app volant.AppID, id volant.MachineID, by string) error {
	return f.edit(ctx, app, id, by, func(m *volant.Machine) { m.Run = volant.RunDestroyed })
}
