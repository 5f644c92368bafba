package catalog

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	volant "github.com/volant-edge/volant"
)

// next is a snapshot in the making, which shares all that does not change with the one before.
type next struct {
	*Snapshot
	own map[volant.AppID]*app // apps copied already, which may be written to
	// changed are the apps of which anything changed, facts of machines included.
	changed map[volant.AppID]bool
}

func (s *Snapshot) next() *next {
	c := *s
	return &next{Snapshot: &c, own: map[volant.AppID]*app{}, changed: map[volant.AppID]bool{}}
}

// app returns the app's part to write to.
func (n *next) app(id volant.AppID) *app {
	n.changed[id] = true
	if a := n.own[id]; a != nil {
		return a
	}
	a := &app{machines: map[volant.MachineID]*volant.Machine{}, releases: map[uint64]*volant.Release{}}
	if old, ok := n.apps.get(id); ok {
		*a = *old
		a.machines, a.releases = maps.Clone(old.machines), maps.Clone(old.releases)
		a.addresses, a.certs = slices.Clone(old.addresses), slices.Clone(old.certs)
	}
	n.apps, n.own[id] = n.apps.with(id, a), a
	return a
}

func (n *next) put(rec volant.Record) {
	switch r := rec.(type) {
	case *volant.Org:
		n.orgs = n.orgs.with(volant.OrgID(r.ID), r)
	case *volant.Node:
		n.nodes = n.nodes.with(volant.NodeID(r.ID), r)
	case *volant.Token:
		if old, ok := n.hashes.get(r.ID); ok && old != r.Hash { // the old secret opens nothing any more
			n.tokens = n.tokens.without(old)
		}
		n.tokens, n.hashes = n.tokens.with(r.Hash, r), n.hashes.with(r.ID, r.Hash)
	case *volant.App:
		n.putApp(r)
	case *volant.Release:
		n.app(r.App).releases[r.Version] = r
	case *volant.Machine:
		n.putMachine(r)
	case *volant.Address:
		n.putAddress(r)
	case *volant.Certificate:
		n.putCertificate(r)
	case *volant.Secrets:
		if r.ID == volant.SecretsID { // keys are read from the store when they are used
			n.app(r.App).secrets = r
		}
	case *volant.Lease:
		n.putLease(r)
	case *volant.Image:
		n.images = n.images.with(r.ID, r)
	case *volant.Place:
		n.places = n.places.with(volant.Region(r.ID), r)
	case *volant.JoinToken:
		n.joins = n.joins.with(r.ID, r)
	}
}

// putLease keeps leases that are not given back.
func (n *next) putLease(r *volant.Lease) {
	if id := volant.MachineID(r.ID); r.Tombstone {
		n.leases = n.leases.without(id)
	} else {
		n.leases = n.leases.with(id, r)
	}
}

// drop forgets a tombstone which was swept.
func (n *next) drop(rec volant.Record) {
	switch r := rec.(type) {
	case *volant.Org:
		n.orgs = n.orgs.without(volant.OrgID(r.ID))
	case *volant.Node:
		n.nodes = n.nodes.without(volant.NodeID(r.ID))
	case *volant.Token:
		n.tokens, n.hashes = n.tokens.without(r.Hash), n.hashes.without(r.ID)
	case *volant.App:
		n.app(r.App).rec = nil
		n.tidy(r.App)
	case *volant.Release:
		delete(n.app(r.App).releases, r.Version)
		n.tidy(r.App)
	case *volant.Machine:
		id := volant.MachineID(r.ID)
		delete(n.app(r.App).machines, id)
		on, _ := n.onNode.get(r.Node)
		n.onNode = n.onNode.with(r.Node, on.without(id))
		n.owner, n.haves = n.owner.without(id), n.haves.without(id)
		n.tidy(r.App)
	case *volant.Address:
		n.addresses = n.addresses.without(r.ID)
	case *volant.Certificate:
		n.certs = n.certs.without(r.ID)
	case *volant.Image:
		n.images = n.images.without(r.ID)
	case *volant.Place:
		n.places = n.places.without(volant.Region(r.ID))
	case *volant.JoinToken:
		n.joins = n.joins.without(r.ID)
	case *volant.Secrets:
		if r.ID != volant.SecretsID {
			return
		}
		n.app(r.App).secrets = nil
		n.tidy(r.App)
	}
}

// tidy forgets an app of which nothing is left.
func (n *next) tidy(id volant.AppID) {
	if a := n.app(id); a.rec == nil && a.secrets == nil && len(a.machines)+len(a.releases)+len(a.addresses)+len(a.certs) == 0 {
		n.apps = n.apps.without(id)
		delete(n.own, id)
	}
}

func (n *next) putApp(r *volant.App) {
	a := n.app(r.App)
	if a.rec != nil {
		if id, _ := n.names.get(a.rec.Name); id == r.App {
			n.names = n.names.without(a.rec.Name)
		}
	}
	a.rec = r
	if !r.Tombstone {
		n.names = n.names.with(r.Name, r.App)
	}
}

func (n *next) putMachine(r *volant.Machine) {
	id := volant.MachineID(r.ID)
	a := n.app(r.App)
	if old := a.machines[id]; old != nil && old.Node != r.Node { // cannot be, unless a store was restored
		on, _ := n.onNode.get(old.Node)
		n.onNode = n.onNode.with(old.Node, on.without(id))
	}
	a.share(r)
	a.machines[id] = r
	if owner, _ := n.owner.get(id); owner != r.App {
		n.owner = n.owner.with(id, r.App)
	}
	on, _ := n.onNode.get(r.Node)
	n.onNode = n.onNode.with(r.Node, on.with(id, r))
}

// share gives a machine the config of another one of its release, if they are equal: most are, and there are many.
func (a *app) share(r *volant.Machine) {
	at := shape{r.Release, r.Config.Group()}
	if like := a.molds[at]; like != nil && reflect.DeepEqual(like.Config, r.Config) {
		r.Config = like.Config
		return
	}
	molds := maps.Clone(a.molds) // older snapshots have the old one
	if len(molds) >= moldsMost {
		clear(molds)
	}
	if molds == nil {
		molds = map[shape]*volant.Machine{}
	}
	molds[at] = r
	a.molds = molds
}

// moldsMost bounds the configs that are kept to be shared.
const moldsMost = 64

func (n *next) putAddress(r *volant.Address) {
	if old, ok := n.addresses.get(r.ID); ok && old.Owner != "" {
		a := n.app(old.Owner)
		a.addresses = slices.DeleteFunc(a.addresses, func(ad *volant.Address) bool { return ad.ID == r.ID })
	}
	n.addresses = n.addresses.with(r.ID, r)
	if !r.Tombstone && r.Owner != "" { // one without an owner is shared by those that have it each by a record
		a := n.app(r.Owner)
		a.addresses = append(a.addresses, r)
	}
}

func (n *next) putCertificate(r *volant.Certificate) {
	if old, ok := n.certs.get(r.ID); ok {
		a := n.app(old.Owner)
		a.certs = slices.DeleteFunc(a.certs, func(c *volant.Certificate) bool { return c.ID == r.ID })
	}
	n.certs = n.certs.with(r.ID, r)
	if !r.Tombstone {
		a := n.app(r.Owner)
		a.certs = append(a.certs, r)
	}
}

// have takes a fact of a machine, unless it is older than the one held. A machine has one host, and a
// fact of another node is an error.
func (n *next) have(h volant.Have) error {
	if m, ok := n.Machine(h.Machine); ok && m.Node != "" && h.Node != "" && h.Node != m.Node {
		return fmt.Errorf("node %s speaks of machine %s, which is on node %s", h.Node, h.Machine, m.Node)
	}
	old, ok := n.haves.get(h.Machine)
	if ok && (h.Epoch < old.Epoch || h.Epoch == old.Epoch && h.Seq <= old.Seq) {
		return nil
	}
	n.haves = n.haves.with(h.Machine, &h)
	n.changed[h.App] = true
	if _, ok := n.owner.get(h.Machine); !ok {
		n.owner = n.owner.with(h.Machine, h.App)
	}
	return nil
}

// byKey finds a record by its key in the store, or nil.
func (n *next) byKey(key string) volant.Record {
	parts := strings.SplitN(key, "/", 3)
	kind, id := volant.Kind(parts[0]), parts[2]
	a, ok := n.apps.get(volant.AppID(parts[1]))
	switch kind {
	case volant.KindOrg:
		return found(n.orgs.get(volant.OrgID(id)))
	case volant.KindNode:
		return found(n.nodes.get(volant.NodeID(id)))
	case volant.KindToken:
		hash, _ := n.hashes.get(id)
		return found(n.tokens.get(hash))
	case volant.KindAddress:
		return found(n.addresses.get(id))
	case volant.KindCert:
		return found(n.certs.get(id))
	case volant.KindSecrets:
		if ok && a.secrets != nil && a.secrets.ID == id {
			return a.secrets
		}
	case volant.KindApp:
		if ok && a.rec != nil {
			return a.rec
		}
	case volant.KindMachine:
		if ok {
			m, has := a.machines[volant.MachineID(id)]
			return found(m, has)
		}
	case volant.KindRelease:
		if ok {
			for _, r := range a.releases {
				if r.ID == id {
					return r
				}
			}
		}
	case volant.KindImage:
		return found(n.images.get(id))
	case volant.KindPlace:
		return found(n.places.get(volant.Region(id)))
	case volant.KindJoin:
		return found(n.joins.get(id))
	case volant.KindLease:
		return found(n.leases.get(volant.MachineID(id)))
	case volant.KindAppName, volant.KindVersions: // read from the store when they are used
	}
	return nil
}

// found is r, or a nil Record if it was not found.
func found[R volant.Record](r R, ok bool) volant.Record {
	if !ok {
		return nil
	}
	return r
}
