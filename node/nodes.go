package node

import (
	"cmp"
	"context"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/join"
)

// nodes are the servers as their operator sees them: this one by itself, the others by their records and by what is
// heard of them.
func (p *Platform) nodes() []api.Node {
	snap := p.cat.Snapshot()
	self := p.self()
	out := []api.Node{}
	for id, n := range snap.Nodes() {
		switch {
		case n.Tombstone:
		case id == p.Node:
			describe(&self, n)
			self.Control = p.seatOf(n)
		default:
			out = append(out, p.other(snap, n))
		}
	}
	out = append(out, self)
	slices.SortFunc(out, func(a, b api.Node) int {
		return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// describe adds what a node's record says.
func describe(v *api.Node, n *volant.Node) {
	v.ID, v.Name, v.Region, v.Roles, v.Draining = n.ID, n.Name, string(n.Region), n.Roles, n.Draining
	if n.Mesh.Key != "" {
		v.Mesh = volant.MeshAddr(volant.NodeID(n.ID)).String()
	}
	if n.Mesh.Endpoint.IsValid() {
		v.At = n.Mesh.Endpoint.String()
	}
}

// other is a server that this one is not.
func (p *Platform) other(snap *catalog.Snapshot, n *volant.Node) api.Node {
	v := api.Node{State: control.NodeUnknown}
	describe(&v, n)
	v.Control = p.seatOf(n)
	id := volant.NodeID(n.ID)
	v.RTT = p.known.rtt(id).Nanoseconds()
	if p.known.heard(id) {
		v.State = control.NodeOK
	} else if p.known.silent(id) {
		v.State = control.NodeSilent
	}
	if r, ok := p.known.roomOf(id); ok {
		v.MemoryFree = r.MemoryMB
	}
	for app := range snap.Apps() {
		for mid, m := range snap.Machines(app) {
			if m.Node != id || m.Tombstone || m.Run == volant.RunDestroyed {
				continue
			}
			v.Machines++
			if have, ok := snap.Have(mid); ok && have.State.Awake() {
				v.Awake++
			}
		}
	}
	return v
}

// self is this server as its operator sees it.
func (p *Platform) self() api.Node {
	room := p.host.Room()
	n := api.Node{
		ID: string(p.Node), Name: p.Name, Region: string(p.Region), Roles: p.Roles, State: control.NodeOK, Self: true,
		Version: p.Version, Engine: p.Engine.Name(), Memory: room.MemoryMB, MemoryFree: room.FreeMB,
		Uptime: time.Since(p.start),
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if caps, err := p.Engine.Probe(ctx); err != nil { // cached
		n.EngineWhy = err.Error()
	} else {
		n.EngineWhy = caps.Why
	}
	for _, h := range p.host.Haves() {
		if h.State == volant.StateDestroyed {
			continue
		}
		n.Machines++
		if h.State.Awake() {
			n.Awake++
		}
	}
	n.Proxy, n.ProxyPID = p.edge.status()
	return n
}

// allRoles are those of a server that is alone.
func allRoles() []string { return join.Roles() }
