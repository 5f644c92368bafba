package live

import (
	"context"
	"slices"
	"sync"

	volant "github.com/volant-edge/volant"
)

// news is what is to be told, the newest version of each.
type news struct {
	mu    sync.Mutex
	facts map[newsKey]Fact
	order []newsKey
	peers map[volant.NodeID]PeerState
	nodes []volant.NodeID // of peers, in order
	bell  chan struct{}
}

type newsKey struct {
	node volant.NodeID
	key  Key
}

func (n *news) init() {
	n.facts, n.peers, n.bell = map[newsKey]Fact{}, map[volant.NodeID]PeerState{}, make(chan struct{}, 1)
}

func (n *news) fact(f Fact) {
	k := newsKey{f.Node, f.Key}
	n.mu.Lock()
	if _, there := n.facts[k]; !there {
		n.order = append(n.order, k)
	}
	n.facts[k] = f
	n.mu.Unlock()
	n.ring()
}

func (n *news) peer(s PeerState) {
	n.mu.Lock()
	if _, there := n.peers[s.Node]; !there {
		n.nodes = append(n.nodes, s.Node)
	}
	n.peers[s.Node] = s
	n.mu.Unlock()
	n.ring()
}

// drop takes back what is to be told of a peer.
func (n *news) drop(id volant.NodeID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.peers, id)
	n.nodes = slices.DeleteFunc(n.nodes, func(x volant.NodeID) bool { return x == id })
}

func (n *news) ring() {
	select {
	case n.bell <- struct{}{}:
	default:
	}
}

// run tells until ctx ends.
func (n *news) run(ctx context.Context, ev Events) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.bell:
		}
		for ctx.Err() == nil {
			peer, hasPeer, fact, hasFact := n.take()
			switch {
			case hasPeer && ev.Peer != nil:
				ev.Peer(peer)
			case hasFact && ev.Fact != nil:
				ev.Fact(fact)
			}
			if !hasPeer && !hasFact {
				break
			}
		}
	}
}

// take takes the next to be told; peers come first.
func (n *news) take() (p PeerState, hasPeer bool, f Fact, hasFact bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.nodes) > 0 {
		id := n.nodes[0]
		n.nodes = n.nodes[1:]
		p = n.peers[id]
		delete(n.peers, id)
		return p, true, f, false
	}
	if len(n.order) > 0 {
		k := n.order[0]
		n.order = n.order[1:]
		f = n.facts[k]
		delete(n.facts, k)
		return p, false, f, true
	}
	n.order, n.nodes = nil, nil
	return p, false, f, false
}
