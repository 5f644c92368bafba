package node

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
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

// fleet is what the scaler and deploys see of the machines and do with them: intent by the store, calls to the
// hosts, wherever they are.
type fleet struct {
	node    volant.NodeID
	region  volant.Region
	store   store.Store
	cat     *catalog.Catalog
	hosts   *hosts
	known   *known
	traffic *traffic
	ownRoom func() room
	why     why.Log
	acts    func(ctx context.Context, rev store.Revision) error // the proxy acts on intent up to rev

	pending pendings

	mu        sync.Mutex // guards the fields below
	regions   *regions
	regionsAt time.Time
	unspoken  map[volant.MachineID]time.Time // machines of which no host has spoken, since when
}

// Observe is scale's.
func (f *fleet) Observe(_ context.Context, id volant.AppID) ([]scale.Observation, error) {
	snap := f.cat.Snapshot()
	a, ok := snap.App(id)
	if !ok || a.Tombstone {
		return nil, volant.Errorf(volant.ErrNotFound, "app %s does not exist", id)
	}
	groups := groupsOf(snap, a)
	ms := f.machinesOf(snap, id, groups[0].name)
	hosts, near := f.hostsFor(snap, id, f.pending.now()), f.regionsNow(snap)
	var out []scale.Observation
	for i := range groups {
		g := &groups[i]
		o := scale.Observation{
			Org: a.Org, Group: g.name, Worker: g.worker(), Scale: g.scale.WithDefaults(), Soft: volant.DefaultSoft,
			Primary: primary(snap, a, f.region), Release: a.Release, Template: g.ok, Machines: ms[g.name],
		}
		if g.ok {
			o.Soft = soft(&g.mold.cfg)
		}
		o.Regions = map[volant.Region]scale.Region{}
		for _, r := range near.all {
			room := place.Fits(place.Request{Org: a.Org, App: id, Region: r, Guest: g.mold.cfg.Guest}, hosts)
			o.Regions[r] = scale.Region{Room: room, Near: near.near(r)}
		}
		out = append(out, o)
	}
	return out, nil
}

// machinesOf are the machines of an app by group, as scaling sees them; those that are lost count no more.
func (f *fleet) machinesOf(snap *catalog.Snapshot, id volant.AppID, def string) map[string][]scale.Machine {
	now := time.Now()
	ms := map[string][]scale.Machine{}
	for _, m := range snap.Machines(id) {
		if !counts(m) {
			continue
		}
		var have *volant.Have
		rec := m
		if h, ok := snap.Have(volant.MachineID(m.ID)); ok {
			have = &h
		} else {
			rec = f.unspokenOf(m, now)
		}
		sm := scale.MachineOf(rec, have, now)
		sm.Silent = f.known.silent(m.Node)
		if n, ok := snap.Node(m.Node); ok {
			sm.Evacuate = n.Draining || n.Tombstone
		}
		name := groupOf(m, def)
		ms[name] = append(ms[name], sm)
	}
	for _, m := range f.pending.unseen(snap, id, scale.Actor) { // a deploy makes it
		c := *m
		c.Created = now
		sm := scale.MachineOf(&c, nil, now)
		sm.Blocked = true
		ms[groupOf(m, def)] = append(ms[groupOf(m, def)], sm)
	}
	return ms
}

// oldRecord is how old a record is at least, by any clock, that is not of a machine just made.
const oldRecord = 5 * time.Minute

// unspokenOf is the record of a machine of which its host has not spoken yet, with the time it was first seen here:
// the clock of who wrote it may differ.
func (f *fleet) unspokenOf(m *volant.Machine, now time.Time) *volant.Machine {
	if now.Sub(m.Created) > oldRecord {
		return m
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.unspoken == nil || len(f.unspoken) > mostPast {
		f.unspoken = map[volant.MachineID]time.Time{}
	}
	id := volant.MachineID(m.ID)
	if _, ok := f.unspoken[id]; !ok {
		f.unspoken[id] = now
	}
	c := *m
	c.Created = f.unspoken[id]
	return &c
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
		return step.Machine, f.hosts.of(step.Machine).WakeFor(ctx, step.Machine, volant.SourceHost, step.Text)
	case scale.Undrain:
		return step.Machine, f.hosts.of(step.Machine).Drain(ctx, step.Machine, host.Drain{Term: term, By: by})
	case scale.Drain:
		return step.Machine, f.hosts.of(step.Machine).Drain(ctx, step.Machine, host.Drain{On: true, Then: step.Then, Term: term, By: by})
	case scale.Sleep:
		return step.Machine, f.hosts.of(step.Machine).Sleep(ctx, step.Machine, host.Sleep{How: step.Then, Term: term, By: by})
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
	m := f.newMachine(a, groups[i].name, groups[i].mold, run, step.Region)
	id := volant.MachineID(m.ID)
	if err := f.create(ctx, m, scale.Actor, term); err != nil {
		return "", err
	}
	return id, f.hosts.wake(ctx, m.Node, id, step.Text)
}

// newMachine makes the record of a machine that scaling or a deploy creates, which has no host yet.
func (f *fleet) newMachine(a *volant.App, group string, t mold, run volant.Run, in volant.Region) *volant.Machine {
	id := volant.NewMachineID()
	m := &volant.Machine{
		Name: "m-" + string(id)[:6], Region: in, Run: run, Release: t.release, Image: t.image,
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

// commit writes changes only while the store knows the term as held; 0 is no term.
func (f *fleet) commit(ctx context.Context, app volant.AppID, by string, term uint64, changes ...store.Change) (store.Revision, error) {
	if term == 0 {
		return store.Apply(ctx, f.store, by, changes...)
	}
	guard := store.GuardOf(store.TermPrefix+termOf(app), term)
	return store.Apply(ctx, f.store, by, append(changes, store.Raw(guard))...)
}

// destroy writes the wish; the host ends the machine. One that somebody holds a lease on waits for its end.
func (f *fleet) destroy(ctx context.Context, app volant.AppID, id volant.MachineID, by string, term uint64) error {
	if l, ok := f.cat.Snapshot().Lease(id); ok && l.Live(time.Now()) {
		return volant.Errorf(volant.ErrLeased, "machine %s is leased to %s until %s", id, l.Owner, l.Expires.UTC().Format(time.RFC3339))
	}
	return f.edit(ctx, app, id, by, term, func(m *volant.Machine) { m.Run = volant.RunDestroyed })
}
