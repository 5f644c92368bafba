package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/oklog/ulid/v2"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/deploy"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/place"
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
}

// Observe is scale's.
func (f *fleet) Observe(_ context.Context, id volant.AppID) ([]scale.Observation, error) {
	snap := f.cat.Snapshot()
	a, ok := snap.App(id)
	if !ok || a.Tombstone {
		return nil, volant.Errorf(volant.ErrNotFound, "app %s does not exist", id)
	}
	now := time.Now()
	groups := groupsOf(snap, a)
	ms := map[string][]scale.Machine{}
	for _, m := range snap.Machines(id) {
		if m.Tombstone || m.Run == volant.RunDestroyed {
			continue
		}
		var have *volant.Have
		if h, ok := snap.Have(volant.MachineID(m.ID)); ok {
			have = &h
		}
		name := groupOf(m, groups[0].name)
		ms[name] = append(ms[name], scale.MachineOf(m, have, now))
	}
	var out []scale.Observation
	for i := range groups {
		g := &groups[i]
		o := scale.Observation{
			Org: a.Org, Group: g.name, Worker: g.worker(), Scale: g.scale.WithDefaults(), Soft: volant.DefaultSoft,
			Primary: f.primary(a), Release: a.Release, Template: g.ok, Machines: ms[g.name],
		}
		if g.ok {
			o.Soft = soft(&g.mold.cfg)
		}
		o.Regions = map[volant.Region]scale.Region{f.region: {Room: f.room(g.mold.cfg.Guest)}}
		out = append(out, o)
	}
	return out, nil
}

// room is how many more machines of a size the host can take.
func (f *fleet) room(g volant.Guest) int {
	g = g.WithDefaults()
	r := f.host.Room()
	n := r.FreeMB / (g.MemoryMB + r.OverheadMB)
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

// Apply is scale's.
func (f *fleet) Apply(ctx context.Context, app volant.AppID, step scale.Step, term uint64) (volant.MachineID, error) {
	const by = scale.Actor
	switch step.Kind {
	case scale.Create:
		return f.createOne(ctx, app, step, term)
	case scale.Wake:
		return step.Machine, f.host.Wake(ctx, step.Machine, step.Text)
	case scale.Undrain:
		return step.Machine, f.host.Drain(ctx, step.Machine, host.Drain{Term: term, By: by})
	case scale.Drain:
		return step.Machine, f.host.Drain(ctx, step.Machine, host.Drain{On: true, Then: step.Then, Term: term, By: by})
	case scale.Sleep:
		return step.Machine, f.host.Sleep(ctx, step.Machine, host.Sleep{How: step.Then, Term: term, By: by})
	case scale.Retire:
		return step.Machine, f.edit(ctx, app, step.Machine, by, term, func(m *volant.Machine) { m.Cordoned = true })
	case scale.Restore:
		return step.Machine, f.edit(ctx, app, step.Machine, by, term, func(m *volant.Machine) { m.Cordoned = false })
	case scale.Destroy:
		return step.Machine, f.destroy(ctx, app, step.Machine, by, term)
	case scale.Hold:
		return "", nil
	}
	return "", fmt.Errorf("step %q is not known", step.Kind)
}

// createOne makes a machine of a group of the current release and has it awake.
func (f *fleet) createOne(ctx context.Context, app volant.AppID, step scale.Step, term uint64) (volant.MachineID, error) {
	snap := f.cat.Snapshot()
	a, ok := snap.App(app)
	if !ok || a.Tombstone {
		return "", volant.Errorf(volant.ErrNotFound, "app %s does not exist", app)
	}
	groups := groupsOf(snap, a)
	i := slices.IndexFunc(groups, func(g group) bool { return g.name == step.Group })
	if i < 0 || !groups[i].ok {
		return "", volant.Errorf(volant.ErrPrecondition, "app %s has no release to make machines of group %s from", a.Name, step.Group)
	}
	run := volant.RunAuto
	if groups[i].worker() {
		run = volant.RunOn
	}
	m := f.newMachine(a, groups[i].name, groups[i].mold, run)
	id := volant.MachineID(m.ID)
	if err := f.create(ctx, m, scale.Actor, term); err != nil {
		return "", err
	}
	return id, f.wake(ctx, id, step.Text)
}

// newMachine makes the record of a machine that scaling or a deploy creates.
func (f *fleet) newMachine(a *volant.App, group string, t mold, run volant.Run) *volant.Machine {
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
	m.Config.Metadata[volant.MetadataGroup] = group
	if t.release != 0 {
		m.Config.Metadata[volant.MetadataReleaseVersion] = strconv.FormatUint(t.release, 10)
	}
	m.Meta = volant.Meta{Kind: volant.KindMachine, Org: a.Org, App: a.App, ID: string(id)}
	return m
}

// create reserves room at the host, then writes the wish and waits until the host has it.
func (f *fleet) create(ctx context.Context, m *volant.Machine, by string, term uint64) error {
	id := volant.MachineID(m.ID)
	where, err := f.place(m)
	if err != nil {
		return err
	}
	if err := f.host.Reserve(ctx, host.Reservation{ID: id, App: m.App, Org: m.Org, Guest: m.Config.Guest, Term: term}); err != nil {
		f.why.Add(why.Record{
			Time: time.Now(), Kind: why.Placement, Org: m.Org, App: m.App, Rule: "refused_by_host",
			Text: fmt.Sprintf("node %s refused a new machine: %v", f.node, err),
		})
		return err
	}
	rev, err := f.commit(ctx, m.App, by, term, store.Creation(m))
	if err != nil {
		return err
	}
	f.why.Add(why.Record{
		Time: time.Now(), Kind: why.Placement, Org: m.Org, App: m.App, Machine: id, Rule: "placed", Text: fmt.Sprintf("machine %s was placed: %s", id, where),
	})
	return f.cat.Wait(ctx, rev)
}

// place chooses the host of a new machine. Whether that can take it besides its memory is the host's to say.
func (f *fleet) place(m *volant.Machine) (string, error) {
	r := f.host.Room()
	const plenty = 1 << 20
	h := place.Host{Node: f.node, Region: f.region, MemoryMB: r.FreeMB - r.OverheadMB, Shared: plenty, Cores: plenty, Mixed: true}
	for _, other := range f.cat.Snapshot().Machines(m.App) {
		if !other.Tombstone && other.Run != volant.RunDestroyed && other.Node == f.node {
			h.Siblings++
		}
	}
	c, err := place.Pick(place.Request{Org: m.Org, App: m.App, Region: m.Region, Guest: m.Config.Guest}, []place.Host{h})
	return c.Text, err
}

// commit writes changes only while the store knows the term as held; 0 is no term.
func (f *fleet) commit(ctx context.Context, app volant.AppID, by string, term uint64, changes ...store.Change) (store.Revision, error) {
	if term == 0 {
		return store.Apply(ctx, f.store, by, changes...)
	}
	guard := store.GuardOf(store.TermPrefix+termOf(app), term)
	return store.Apply(ctx, f.store, by, append(changes, store.Raw(guard))...)
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

// destroy writes the wish; the host ends the machine. One that somebody holds a lease on waits for its end.
func (f *fleet) destroy(ctx context.Context, app volant.AppID, id volant.MachineID, by string, term uint64) error {
	if l, ok := f.cat.Snapshot().Lease(id); ok && l.Live(time.Now()) {
		return volant.Errorf(volant.ErrLeased, "machine %s is leased to %s until %s", id, l.Owner, l.Expires.UTC().Format(time.RFC3339))
	}
	return f.edit(ctx, app, id, by, term, func(m *volant.Machine) { m.Run = volant.RunDestroyed })
}
