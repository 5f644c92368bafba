package catalog

import (
	"iter"
	"maps"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// Snapshot is one picture. What its methods return belongs to it and must not be changed.
type Snapshot struct {
	Rev store.Revision // all intent up to here is in it

	apps      map[volant.AppID]*app
	names     map[string]volant.AppID // live apps by name
	orgs      map[volant.OrgID]*volant.Org
	nodes     map[volant.NodeID]*volant.Node
	tokens    map[string]*volant.Token   // by hash
	addresses map[string]*volant.Address // by address
	owner     map[volant.MachineID]volant.AppID
	onNode    map[volant.NodeID]map[volant.AppID]bool // apps with machines there
}

// app is all that belongs to one app. It is copied when something of it changes.
type app struct {
	rec       *volant.App // nil until its own record has come
	machines  map[volant.MachineID]*volant.Machine
	haves     map[volant.MachineID]volant.Have
	releases  map[uint64]*volant.Release
	addresses []*volant.Address
}

func empty() *Snapshot {
	return &Snapshot{
		apps: map[volant.AppID]*app{}, names: map[string]volant.AppID{}, orgs: map[volant.OrgID]*volant.Org{},
		nodes: map[volant.NodeID]*volant.Node{}, tokens: map[string]*volant.Token{}, addresses: map[string]*volant.Address{},
		owner: map[volant.MachineID]volant.AppID{}, onNode: map[volant.NodeID]map[volant.AppID]bool{},
	}
}

// App returns an app by ID, be it a tombstone.
func (s *Snapshot) App(id volant.AppID) (*volant.App, bool) {
	a, ok := s.apps[id]
	if !ok || a.rec == nil {
		return nil, false
	}
	return a.rec, true
}

// AppByName returns a live app.
func (s *Snapshot) AppByName(name string) (*volant.App, bool) {
	id, ok := s.names[name]
	if !ok {
		return nil, false
	}
	return s.App(id)
}

// Apps are all apps, tombstones too, in no order.
func (s *Snapshot) Apps() iter.Seq2[volant.AppID, *volant.App] {
	return func(yield func(volant.AppID, *volant.App) bool) {
		for id, a := range s.apps {
			if a.rec != nil && !yield(id, a.rec) {
				return
			}
		}
	}
}

// Org returns an organization.
func (s *Snapshot) Org(id volant.OrgID) (*volant.Org, bool) { return live(s.orgs, id) }

// Node returns a node.
func (s *Snapshot) Node(id volant.NodeID) (*volant.Node, bool) { return live(s.nodes, id) }

// TokenByHash returns a token, be it a tombstone.
func (s *Snapshot) TokenByHash(hash string) (*volant.Token, bool) { return live(s.tokens, hash) }

// Address returns who has an address, be it a tombstone.
func (s *Snapshot) Address(ip string) (*volant.Address, bool) { return live(s.addresses, ip) }

func live[K comparable, V any](m map[K]V, k K) (V, bool) { v, ok := m[k]; return v, ok }

// Machines are an app's machines, tombstones too, by ID.
func (s *Snapshot) Machines(id volant.AppID) map[volant.MachineID]*volant.Machine {
	if a, ok := s.apps[id]; ok {
		return a.machines
	}
	return nil
}

// Releases are an app's releases by version.
func (s *Snapshot) Releases(id volant.AppID) map[uint64]*volant.Release {
	if a, ok := s.apps[id]; ok {
		return a.releases
	}
	return nil
}

// Release returns one release of an app.
func (s *Snapshot) Release(id volant.AppID, version uint64) (*volant.Release, bool) {
	return live(s.Releases(id), version)
}

// Addresses are the live addresses of an app.
func (s *Snapshot) Addresses(id volant.AppID) []*volant.Address {
	if a, ok := s.apps[id]; ok {
		return a.addresses
	}
	return nil
}

// Machine returns a machine, be it a tombstone.
func (s *Snapshot) Machine(id volant.MachineID) (*volant.Machine, bool) {
	return live(s.Machines(s.owner[id]), id)
}

// Have returns what a machine's host says of it.
func (s *Snapshot) Have(id volant.MachineID) (volant.Have, bool) {
	a, ok := s.apps[s.owner[id]]
	if !ok {
		return volant.Have{}, false
	}
	return live(a.haves, id)
}

// MachinesOn are the machines placed on a node, tombstones too, in no order.
func (s *Snapshot) MachinesOn(node volant.NodeID) iter.Seq[*volant.Machine] {
	return func(yield func(*volant.Machine) bool) {
		for id := range s.onNode[node] {
			for _, m := range s.Machines(id) {
				if m.Node == node && !yield(m) {
					return
				}
			}
		}
	}
}

// next is a snapshot in the making. Its parts are still shared with the one before until they are written.
type next struct {
	*Snapshot
	own map[volant.AppID]bool // apps copied already
	// parts copied already
	apps, names, orgs, nodes, tokens, addresses, owner, onNode bool
}

func (s *Snapshot) next() *next {
	c := *s
	return &next{Snapshot: &c, own: map[volant.AppID]bool{}}
}

// mine copies a map the first time it is about to be written.
func mine[K comparable, V any](done *bool, m *map[K]V) map[K]V {
	if !*done {
		*m, *done = maps.Clone(*m), true
	}
	return *m
}

// app returns the app's part to write to.
func (n *next) app(id volant.AppID) *app {
	all := mine(&n.apps, &n.Snapshot.apps)
	if n.own[id] {
		return all[id]
	}
	a := &app{machines: map[volant.MachineID]*volant.Machine{}, haves: map[volant.MachineID]volant.Have{}, releases: map[uint64]*volant.Release{}}
	if old, ok := all[id]; ok {
		*a = *old
		a.machines, a.haves, a.releases = maps.Clone(old.machines), maps.Clone(old.haves), maps.Clone(old.releases)
	}
	all[id], n.own[id] = a, true
	return a
}

func (n *next) put(rec volant.Record) {
	switch r := rec.(type) {
	case *volant.Org:
		mine(&n.orgs, &n.Snapshot.orgs)[volant.OrgID(r.ID)] = r
	case *volant.Node:
		mine(&n.nodes, &n.Snapshot.nodes)[volant.NodeID(r.ID)] = r
	case *volant.Token:
		mine(&n.tokens, &n.Snapshot.tokens)[r.Hash] = r
	case *volant.App:
		n.putApp(r)
	case *volant.Release:
		n.app(r.App).releases[r.Version] = r
	case *volant.Machine:
		n.putMachine(r)
	case *volant.Address:
		n.putAddress(r)
	}
}

func (n *next) putApp(r *volant.App) {
	names := mine(&n.names, &n.Snapshot.names)
	a := n.app(r.App)
	if a.rec != nil && names[a.rec.Name] == r.App {
		delete(names, a.rec.Name)
	}
	a.rec = r
	if !r.Tombstone {
		names[r.Name] = r.App
	}
}

func (n *next) putMachine(r *volant.Machine) {
	id := volant.MachineID(r.ID)
	a := n.app(r.App)
	a.machines[id] = r
	mine(&n.owner, &n.Snapshot.owner)[id] = r.App
	if !n.Snapshot.onNode[r.Node][r.App] {
		on := mine(&n.onNode, &n.Snapshot.onNode)
		apps := maps.Clone(on[r.Node])
		if apps == nil {
			apps = map[volant.AppID]bool{}
		}
		apps[r.App] = true
		on[r.Node] = apps
	}
}

func (n *next) putAddress(r *volant.Address) {
	all := mine(&n.addresses, &n.Snapshot.addresses)
	if old, ok := all[r.IP]; ok {
		n.dropAddress(old)
	}
	all[r.IP] = r
	if !r.Tombstone {
		a := n.app(r.Owner)
		a.addresses = append(a.addresses[:len(a.addresses):len(a.addresses)], r)
	}
}

func (n *next) dropAddress(old *volant.Address) {
	a := n.app(old.Owner)
	var keep []*volant.Address
	for _, ad := range a.addresses {
		if ad.IP != old.IP {
			keep = append(keep, ad)
		}
	}
	a.addresses = keep
}

// have takes a fact of a machine, unless it is older than the one held.
func (n *next) have(h volant.Have) {
	old, ok := n.Snapshot.Have(h.Machine)
	if ok && (h.Epoch < old.Epoch || h.Epoch == old.Epoch && h.Seq <= old.Seq) {
		return
	}
	n.app(h.App).haves[h.Machine] = h
	if _, ok := n.Snapshot.owner[h.Machine]; !ok {
		mine(&n.owner, &n.Snapshot.owner)[h.Machine] = h.App
	}
}
