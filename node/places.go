package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/place"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/why"
)

// pending is a machine that has a place, and that is not told of everywhere yet: neither its record nor the host's
// room show it.
type pending struct {
	m     *volant.Machine // in the making
	by    string          // who makes it
	node  volant.NodeID
	guest volant.Guest
	told  time.Time // until when its host's room may not show it
	until time.Time
}

// pendings are those, for a moment.
type pendings struct {
	mu  sync.Mutex // guards all
	all []pending
}

const (
	// untold is how long a host's room may show a reservation late.
	untold = time.Second
	// unrecorded is how long a machine may take from its place to its record at most.
	unrecorded = 30 * time.Second
)

// choose has pick choose a host for a machine, one choice at a time, so that none is made without the one before.
func (p *pendings) choose(m *volant.Machine, by string, pick func([]pending) (place.Choice, error)) (place.Choice, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, err := pick(p.nowLocked())
	if err == nil {
		rec := *m
		rec.Node, rec.Region = c.Node, c.Region
		p.all = append(p.all, pending{
			m: &rec, by: by, node: c.Node, guest: m.Config.Guest.WithDefaults(), told: time.Now().Add(reserveWithin + untold),
			until: time.Now().Add(unrecorded),
		})
	}
	return c, err
}

// reserved notes that the host has reserved room: what it tells shows that soon.
func (p *pendings) reserved(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.all {
		if p.all[i].m.ID == id {
			p.all[i].told = time.Now().Add(untold)
		}
	}
}

// drop forgets a machine that is not made, or not there.
func (p *pendings) drop(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = slices.DeleteFunc(p.all, func(e pending) bool { return e.m.ID == id })
}

// unseen are the records of machines of an app that another than one who plans makes, and that a picture does not have
// yet. Those made by hand are not among them.
func (p *pendings) unseen(snap *catalog.Snapshot, app volant.AppID, but string) []*volant.Machine {
	var out []*volant.Machine
	for _, e := range p.now() {
		if _, ok := snap.Machine(volant.MachineID(e.m.ID)); !ok && e.m.App == app && e.by != "" && e.by != but {
			out = append(out, e.m)
		}
	}
	return out
}

func (p *pendings) now() []pending {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nowLocked()
}

func (p *pendings) nowLocked() []pending {
	now := time.Now()
	p.all = slices.DeleteFunc(p.all, func(e pending) bool { return !e.until.After(now) })
	return slices.Clone(p.all)
}

// hostsFor are the hosts as a new machine of an app sees them, beside those that are to be placed.
func (f *fleet) hostsFor(snap *catalog.Snapshot, app volant.AppID, coming []pending) []place.Host {
	byNode, avoided := map[volant.NodeID]*place.Host{}, map[volant.NodeID]bool{}
	f.known.avoided(avoided)
	f.traffic.avoided(avoided)
	var out []place.Host
	add := func(id volant.NodeID, region volant.Region, draining bool) {
		r, told := f.ownRoom(), true
		if id != f.node {
			r, told = f.known.roomOf(id)
		}
		out = append(out, place.Host{
			Node: id, Region: region, Silent: !told || !f.known.heard(id) || avoided[id], Closed: draining || told && !r.Host,
			MemoryMB: r.MemoryMB, OverheadMB: r.OverheadMB, Shared: r.Shared, Cores: r.Cores, Strong: r.Isolates, Orgs: r.Orgs,
		})
	}
	own, ok := snap.Node(f.node)
	if !ok || own.Tombstone {
		add(f.node, f.region, false)
	}
	for id, n := range snap.Nodes() {
		if !n.Tombstone && n.Has(volant.RoleHost) {
			add(id, n.Region, n.Draining)
		}
	}
	for i := range out {
		byNode[out[i].Node] = &out[i]
	}
	machines, now := snap.Machines(app), time.Now()
	for _, m := range machines {
		if h := byNode[m.Node]; h != nil && counts(m) {
			h.Siblings++
		}
	}
	for _, p := range coming {
		h := byNode[p.node]
		if h == nil {
			continue
		}
		if machines[volant.MachineID(p.m.ID)] == nil && p.m.App == app {
			h.Siblings++
		}
		if p.node != f.node && p.told.After(now) { // the own room shows it at once
			h.MemoryMB -= p.guest.MemoryMB + h.OverheadMB
			if p.guest.CPUKind == volant.CPUPerformance {
				h.Cores -= p.guest.CPUs
			} else {
				h.Shared -= p.guest.CPUs
			}
			if !slices.Contains(h.Orgs, p.m.Org) {
				h.Orgs = append(slices.Clone(h.Orgs), p.m.Org)
			}
		}
	}
	return out
}

// counts says whether a machine's record is of one that there is, or is to be.
func counts(m *volant.Machine) bool {
	return !m.Tombstone && m.Run != volant.RunDestroyed && m.Lost.IsZero()
}

const (
	// mostTries bounds the hosts that are asked for room for one machine.
	mostTries = 8
	// reserveWithin bounds how long a host may take to answer.
	reserveWithin = 1500 * time.Millisecond
)

// place finds a host for a machine in its region, has it reserve room, and writes into the record which it is.
func (f *fleet) place(ctx context.Context, m *volant.Machine, by string, term uint64) (string, error) {
	req := place.Request{Org: m.Org, App: m.App, Region: m.Region, Guest: m.Config.Guest}
	for range mostTries {
		c, err := f.pending.choose(m, by, func(coming []pending) (place.Choice, error) {
			return place.Pick(req, f.hostsFor(f.cat.Snapshot(), m.App, coming))
		})
		if err != nil {
			return "", err
		}
		bound, cancel := context.WithTimeout(ctx, reserveWithin)
		err = f.hosts.at(c.Node).Reserve(bound, host.Reservation{
			ID: volant.MachineID(m.ID), App: m.App, Org: m.Org, Guest: m.Config.Guest, Term: term,
		})
		cancel()
		if err == nil {
			f.pending.reserved(m.ID)
			m.Node, m.Region = c.Node, c.Region
			return c.Text, nil
		}
		f.pending.drop(m.ID)
		f.why.Add(why.Record{
			Time: time.Now(), Kind: why.Placement, Org: m.Org, App: m.App, Rule: "refused_by_host",
			Text: fmt.Sprintf("node %s refused a new machine: %v", c.Node, err),
		})
		if ctx.Err() != nil || errors.Is(err, volant.ErrStaleTerm) || errors.Is(err, volant.ErrInvalid) {
			return "", err
		}
		req.Avoid = append(req.Avoid, c.Node)
	}
	return "", volant.Errorf(volant.ErrNoCapacity, "%d hosts in %s refused the machine", mostTries, m.Region).WithRemedy("see `volant why`")
}

// create places a machine, then writes the wish and waits until the catalog has it.
func (f *fleet) create(ctx context.Context, m *volant.Machine, by string, term uint64) error {
	where, err := f.place(ctx, m, by, term)
	if err != nil {
		return err
	}
	rev, err := f.commit(ctx, m.App, by, term, store.Creation(m))
	if err != nil {
		if !errors.Is(err, volant.ErrUnavailable) { // else it may be there after all
			f.pending.drop(m.ID)
		}
		return err
	}
	id := volant.MachineID(m.ID)
	f.why.Add(why.Record{
		Time: time.Now(), Kind: why.Placement, Org: m.Org, App: m.App, Machine: id, Rule: "placed",
		Text: fmt.Sprintf("machine %s was placed: %s", id, where),
	})
	return f.cat.Wait(ctx, rev)
}

// createNear is create in the region the machine is for or, where no host has room, in the next nearest that its app
// may use.
func (f *fleet) createNear(ctx context.Context, m *volant.Machine, allowed []volant.Region, by string, term uint64) error {
	err := f.create(ctx, m, by, term)
	if !errors.Is(err, volant.ErrNoCapacity) {
		return err
	}
	for _, r := range f.regionsNow(f.cat.Snapshot()).near(m.Region) {
		if len(allowed) > 0 && !slices.Contains(allowed, r) {
			continue
		}
		m.Region = r
		if again := f.create(ctx, m, by, term); !errors.Is(again, volant.ErrNoCapacity) {
			return again
		}
	}
	return err
}

// regionsFor is how long what is known of distances is good.
const regionsFor = 2 * time.Second

// regionsNow is how far regions are from each other.
func (f *fleet) regionsNow(snap *catalog.Snapshot) *regions {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.regions == nil || time.Since(f.regionsAt) >= regionsFor {
		f.regions, f.regionsAt = newRegions(snap, f.node, f.region, f.known), time.Now()
	}
	return f.regions
}
