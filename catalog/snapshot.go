package catalog

import (
	"iter"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// Snapshot is one picture. What its methods return belongs to it and must not be changed.
type Snapshot struct {
	Rev store.Revision // all intent up to here is in it

	apps      table[volant.AppID, *app]
	names     table[string, volant.AppID] // live apps by name
	orgs      table[volant.OrgID, *volant.Org]
	nodes     table[volant.NodeID, *volant.Node]
	tokens    table[string, *volant.Token]       // by hash
	hashes    table[string, string]              // of tokens, by ID
	addresses table[string, *volant.Address]     // by ID, which is the address but for shared ones
	certs     table[string, *volant.Certificate] // by host name
	haves     table[volant.MachineID, *volant.Have]
	owner     table[volant.MachineID, volant.AppID]
	leases    table[volant.MachineID, *volant.Lease]
	images    table[string, *volant.Image]
	places    table[volant.Region, *volant.Place]
	joins     table[string, *volant.JoinToken]
	onNode    table[volant.NodeID, table[volant.MachineID, *volant.Machine]]
}

// app is all intent that belongs to one app. It is copied when something of it changes.
type app struct {
	rec       *volant.App // nil until its own record has come
	machines  map[volant.MachineID]*volant.Machine
	releases  map[uint64]*volant.Release
	addresses []*volant.Address
	certs     []*volant.Certificate // live ones
	secrets   *volant.Secrets       // nil: none
	molds     map[shape]*volant.Machine
}

// shape is what machines with the same config have in common.
type shape struct {
	release uint64
	group   string
}

// App returns an app by ID, be it a tombstone.
func (s *Snapshot) App(id volant.AppID) (*volant.App, bool) {
	a, ok := s.apps.get(id)
	if !ok || a.rec == nil {
		return nil, false
	}
	return a.rec, true
}

// AppByName returns a live app.
func (s *Snapshot) AppByName(name string) (*volant.App, bool) {
	id, ok := s.names.get(name)
	if !ok {
		return nil, false
	}
	return s.App(id)
}

// Apps are all apps, tombstones too, in no order.
func (s *Snapshot) Apps() iter.Seq2[volant.AppID, *volant.App] {
	return func(yield func(volant.AppID, *volant.App) bool) {
		for id, a := range s.apps.all() {
			if a.rec != nil && !yield(id, a.rec) {
				return
			}
		}
	}
}

// Org returns an organization, be it a tombstone.
func (s *Snapshot) Org(id volant.OrgID) (*volant.Org, bool) { return s.orgs.get(id) }

// Node returns a node, be it a tombstone.
func (s *Snapshot) Node(id volant.NodeID) (*volant.Node, bool) { return s.nodes.get(id) }

// Nodes are all nodes, tombstones too, in no order.
func (s *Snapshot) Nodes() iter.Seq2[volant.NodeID, *volant.Node] { return s.nodes.all() }

// Place returns what operators know of a region.
func (s *Snapshot) Place(r volant.Region) (*volant.Place, bool) {
	p, ok := s.places.get(r)
	if !ok || p.Tombstone {
		return nil, false
	}
	return p, true
}

// Places are all that operators know of regions, in no order.
func (s *Snapshot) Places() iter.Seq[*volant.Place] {
	return func(yield func(*volant.Place) bool) {
		for _, p := range s.places.all() {
			if !p.Tombstone && !yield(p) {
				return
			}
		}
	}
}

// JoinTokens are all tokens by which servers may join, tombstones too, in no order.
func (s *Snapshot) JoinTokens() iter.Seq2[string, *volant.JoinToken] { return s.joins.all() }

// TokenByHash returns a token, be it a tombstone.
func (s *Snapshot) TokenByHash(hash string) (*volant.Token, bool) { return s.tokens.get(hash) }

// Token returns a token by ID, be it a tombstone.
func (s *Snapshot) Token(id string) (*volant.Token, bool) {
	hash, _ := s.hashes.get(id)
	return s.tokens.get(hash)
}

// Tokens are all tokens, tombstones too, in no order.
func (s *Snapshot) Tokens() iter.Seq[*volant.Token] {
	return func(yield func(*volant.Token) bool) {
		for _, t := range s.tokens.all() {
			if !yield(t) {
				return
			}
		}
	}
}

// Orgs are all organizations, tombstones too, in no order.
func (s *Snapshot) Orgs() iter.Seq2[volant.OrgID, *volant.Org] { return s.orgs.all() }

// Address returns an address given to one app alone, be it a tombstone.
func (s *Snapshot) Address(ip string) (*volant.Address, bool) { return s.addresses.get(ip) }

// Image returns a live tag of the servers' own registry.
func (s *Snapshot) Image(org volant.OrgID, repository, tag string) (*volant.Image, bool) {
	i, ok := s.images.get(volant.ImageID(org, repository, tag))
	if !ok || i.Tombstone {
		return nil, false
	}
	return i, true
}

// Images are the live tags of the servers' own registry, in no order.
func (s *Snapshot) Images() iter.Seq[*volant.Image] {
	return func(yield func(*volant.Image) bool) {
		for _, i := range s.images.all() {
			if !i.Tombstone && !yield(i) {
				return
			}
		}
	}
}

// Certificate returns who has a host name, be it a tombstone.
func (s *Snapshot) Certificate(hostname string) (*volant.Certificate, bool) {
	return s.certs.get(hostname)
}

// Certificates are the live host names of an app.
func (s *Snapshot) Certificates(id volant.AppID) []*volant.Certificate {
	if a, ok := s.apps.get(id); ok {
		return a.certs
	}
	return nil
}

// Secrets are an app's secrets, their values sealed.
func (s *Snapshot) Secrets(id volant.AppID) (*volant.Secrets, bool) {
	a, ok := s.apps.get(id)
	if !ok || a.secrets == nil || a.secrets.Tombstone {
		return nil, false
	}
	return a.secrets, true
}

// Machines are an app's machines, tombstones too, by ID.
func (s *Snapshot) Machines(id volant.AppID) map[volant.MachineID]*volant.Machine {
	if a, ok := s.apps.get(id); ok {
		return a.machines
	}
	return nil
}

// Releases are an app's releases by version.
func (s *Snapshot) Releases(id volant.AppID) map[uint64]*volant.Release {
	if a, ok := s.apps.get(id); ok {
		return a.releases
	}
	return nil
}

// Release returns one release of an app.
func (s *Snapshot) Release(id volant.AppID, version uint64) (*volant.Release, bool) {
	r, ok := s.Releases(id)[version]
	return r, ok
}

// Addresses are the live addresses of an app.
func (s *Snapshot) Addresses(id volant.AppID) []*volant.Address {
	if a, ok := s.apps.get(id); ok {
		return a.addresses
	}
	return nil
}

// Machine returns a machine, be it a tombstone.
func (s *Snapshot) Machine(id volant.MachineID) (*volant.Machine, bool) {
	owner, ok := s.owner.get(id)
	if !ok {
		return nil, false
	}
	m, ok := s.Machines(owner)[id]
	return m, ok
}

// Lease returns the lease of a machine, which may have run out.
func (s *Snapshot) Lease(id volant.MachineID) (*volant.Lease, bool) { return s.leases.get(id) }

// Have returns what a machine's host says of it.
func (s *Snapshot) Have(id volant.MachineID) (volant.Have, bool) {
	if h, ok := s.haves.get(id); ok {
		return *h, true
	}
	return volant.Have{}, false
}

// Haves are what hosts say of their machines, in no order. Machines without a wish are among them.
func (s *Snapshot) Haves() iter.Seq2[volant.MachineID, *volant.Have] { return s.haves.all() }

// MachinesOn are the machines placed on a node, tombstones too, in no order.
func (s *Snapshot) MachinesOn(node volant.NodeID) iter.Seq[*volant.Machine] {
	return func(yield func(*volant.Machine) bool) {
		on, _ := s.onNode.get(node)
		for _, m := range on.all() {
			if !yield(m) {
				return
			}
		}
	}
}
