package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/peer"
	"github.com/volant-edge/volant/why"
)

// callWhy asks a node for its records.
const callWhy = "POST /why"

// whyWithin bounds how long other nodes are waited for.
const whyWithin = 2 * time.Second

// reasons answers why out of the server's rings, the proxy's memory, and those of other nodes.
type reasons struct {
	Reasons
	proxy  func(ctx context.Context, q why.Query) ([]why.Record, error)
	others func() []*volant.Node
	ask    func(ctx context.Context, node volant.NodeID, q why.Query) ([]why.Record, error)
}

func (p *Platform) reasons() reasons {
	return reasons{p.Reasons, p.edge.query, p.otherNodes, func(ctx context.Context, node volant.NodeID, q why.Query) (recs []why.Record, err error) {
		if err = p.fleet.hosts.gone(node); err == nil {
			err = p.calls.Call(ctx, node, callWhy, q, &recs)
		}
		return recs, err
	}}
}

// otherNodes are the other nodes of the cluster, by ID.
func (p *Platform) otherNodes() []*volant.Node {
	var out []*volant.Node
	if !p.Mesh.IsValid() {
		return nil
	}
	for id, n := range p.cat.Snapshot().Nodes() {
		if id != p.Node && !n.Tombstone {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b *volant.Node) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// serveReasons answers other nodes with this one's own records.
func (p *Platform) serveReasons() {
	peer.Handle(p.peers, callWhy, func(ctx context.Context, from volant.NodeID, q why.Query) (any, error) {
		if err := p.mayCall(from); err != nil {
			return nil, err
		}
		return reasons{Reasons: p.Reasons, proxy: p.edge.query}.own(ctx, q)
	})
}

// Query is control's. A node that does not answer is named by a record of its own.
func (r reasons) Query(ctx context.Context, q why.Query) ([]why.Record, error) {
	all, err := r.own(ctx, q)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, whyWithin)
	defer cancel()
	var mu sync.Mutex // guards all
	var wg sync.WaitGroup
	for _, n := range r.others() {
		wg.Go(func() {
			recs, err := r.ask(ctx, volant.NodeID(n.ID), q)
			switch {
			case err != nil && len(q.Kinds) == 0:
				recs = []why.Record{unanswered(n, q, err)}
			case err != nil:
				return // who asks for some kinds alone, again and again, is not told of nodes each time
			}
			mu.Lock()
			defer mu.Unlock()
			all = why.Merge(q, all, recs)
		})
	}
	wg.Wait()
	return all, nil
}

// own are this node's records.
func (r reasons) own(ctx context.Context, q why.Query) ([]why.Record, error) {
	own, err := r.Reasons.Query(q)
	if err != nil {
		return nil, err
	}
	// The proxy may be away for a moment; what the server knows is worth having alone.
	live, err := r.proxy(ctx, q)
	if err != nil {
		live = nil
	}
	return why.Merge(q, own, live), nil
}

// unanswered stands for the records of a node that does not answer.
func unanswered(n *volant.Node, q why.Query, err error) why.Record {
	return why.Record{
		Time: time.Now(), Kind: why.Machine, Org: q.Org, App: q.App, Machine: q.Machine, Request: q.Request, Rule: "node_unreachable",
		Text:  fmt.Sprintf("what node %s knows is not here: %v", nodeName(n), err),
		Attrs: map[string]string{"node": n.ID, "region": string(n.Region)},
	}
}
