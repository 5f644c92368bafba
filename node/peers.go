package node

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/live"
	"github.com/volant-edge/volant/peer"
	"github.com/volant-edge/volant/proxy"
)

// tablePeers are the other nodes of the mesh, in order, and what this node's proxy is to hear of each: an edge how
// machines are routed to, a control node what scaling and the API look at.
func tablePeers(snap *catalog.Snapshot, self volant.NodeID) []proxy.Peer {
	me, ok := snap.Node(self)
	if !ok || me.Tombstone {
		return nil
	}
	var out []proxy.Peer
	for id, n := range snap.Nodes() {
		if id == self || n.Tombstone || n.Mesh.Key == "" {
			continue
		}
		p := proxy.Peer{Node: id, Addr: volant.MeshAddr(id), Region: n.Region}
		if me.Has(volant.RoleEdge) && n.Has(volant.RoleHost) {
			p.Want |= live.KindsOf(live.Route, live.Slots)
		}
		if me.Has(volant.RoleControl) && n.Has(volant.RoleHost) {
			p.Want |= live.KindsOf(live.Have, live.Room, live.Slots)
		}
		if me.Has(volant.RoleControl) && n.Has(volant.RoleEdge) {
			p.Want |= live.KindsOf(live.Load)
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b proxy.Peer) int { return strings.Compare(string(a.Node), string(b.Node)) })
	return out
}

// knownNode says whether a node may call this one.
func (p *Platform) knownNode(id volant.NodeID) bool {
	n, ok := p.cat.Snapshot().Node(id)
	return ok && !n.Tombstone && id != p.Node
}

// servePeers answers the calls of other nodes until ctx ends; there are none without a mesh.
func (p *Platform) servePeers(ctx context.Context) error {
	if !p.Mesh.IsValid() {
		return nil
	}
	listen := p.PeerListen
	if listen == nil {
		listen = func(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
			var lc net.ListenConfig
			return lc.Listen(ctx, "tcp", at.String())
		}
	}
	l, err := listen(ctx, netip.AddrPortFrom(p.Mesh, volant.PeerPort))
	if err != nil {
		return volant.Errorf(volant.ErrUnavailable, "calls of other nodes cannot be heard: %v", err).
			WithRemedy("see `volant doctor` for the mesh")
	}
	return p.peers.Run(ctx, l)
}

// newPeers makes both sides of calls between nodes.
func (p *Platform) newPeers() {
	if p.PeerDial == nil {
		p.PeerDial = peer.Dial
	}
	p.calls = peer.NewClient(p.PeerDial)
	p.peers = peer.New(peer.Config{Known: p.knownNode, Log: p.Log})
	p.forwards = &http.Transport{DialContext: p.PeerDial, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute, DisableCompression: true}
	p.serveForwarded()
}

// closePeers ends the connections to other nodes that no call uses.
func (p *Platform) closePeers() {
	p.calls.Close()
	if t, ok := p.forwards.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}
