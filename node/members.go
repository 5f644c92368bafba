package node

import (
	"context"
	"errors"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/join"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
)

const (
	lookAtMembers = 5 * time.Second
	// askStanding is how often a node that does not reach the intent asks whether it was removed.
	askStanding = 5 * time.Second
	tidyEvery   = time.Hour
	// keepJoinTokens is how long a join token is shown after its end.
	keepJoinTokens = 30 * 24 * time.Hour
)

// errNodeRemoved marks the error by which the platform ends when its node was removed.
var errNodeRemoved = errors.New("removed")

// removedSelf watches this node's own record, until it is a tombstone: then clients are accepted no longer, and the
// platform ends with an error that says why. A node that was removed may never see its tombstone, since no other
// node hears it any more: one that does not reach the intent asks where servers join.
func (p *Platform) removedSelf(ctx context.Context) error {
	changed, cancel := p.cat.Subscribe()
	defer cancel()
	tick := time.NewTicker(askStanding)
	defer tick.Stop()
	for {
		n, ok := p.cat.Snapshot().Node(p.Node)
		if ok && n.Tombstone {
			break
		}
		asked := false
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
			asked = p.StoreDown != nil && p.StoreDown() != nil && p.thrownOut(ctx)
		}
		if asked {
			break
		}
	}
	p.Log.Error("this node was removed from the cluster: it accepts no clients any more")
	p.expelled.Store(true)
	p.edge.set(proxy.Table{Epoch: p.Epoch, Version: 1 << 62, Node: p.Node, Region: p.Region}, p.cat.Snapshot().Rev)
	if err := p.edge.acts(ctx, p.cat.Snapshot().Rev); err != nil {
		p.Log.Warn("the proxy was not told", "err", err)
	}
	return errors.Join(errRemoved(p.Node), errNodeRemoved)
}

// thrownOut asks the control nodes, outside the mesh, whether this node was removed. They prove themselves by the
// key that servers join by, so that nobody else can say so.
func (p *Platform) thrownOut(ctx context.Context) bool {
	key, err := p.joinKey()
	if err != nil {
		return false
	}
	cluster, err := join.FingerprintOf(key)
	if err != nil {
		return false
	}
	for id, n := range p.cat.Snapshot().Nodes() {
		if id == p.Node || n.Tombstone || !n.Has(volant.RoleControl) || !n.Mesh.Endpoint.IsValid() {
			continue
		}
		if out, err := (join.Asker{Dial: p.JoinDial}).Removed(ctx, n.Mesh.Endpoint.String(), cluster, p.Node); err == nil && out {
			return true
		}
	}
	return false
}

// buryNodes takes what nodes that were removed leave behind off the records, while this is a control node: their
// machines, whose hosts cannot say any more that they are gone. Join tokens that are long over go too.
func (p *Platform) buryNodes(ctx context.Context) error {
	return p.while(ctx, volant.RoleControl, func(ctx context.Context) error {
		changed, cancel := p.cat.Subscribe()
		defer cancel()
		tidy := time.NewTicker(tidyEvery)
		defer tidy.Stop()
		var done store.Revision
		for {
			snap := p.cat.Snapshot()
			if snap.Rev != done {
				if err := p.buryOf(ctx, snap); err != nil {
					return err
				}
				done = snap.Rev
			}
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			case <-tidy.C:
				if err := p.dropJoinTokens(ctx, snap); err != nil {
					return err
				}
			}
		}
	})
}

func (p *Platform) buryOf(ctx context.Context, snap *catalog.Snapshot) error {
	for id, n := range snap.Nodes() {
		if !n.Tombstone {
			continue
		}
		for m := range snap.MachinesOn(id) {
			if m.Tombstone {
				continue
			}
			_, err := store.Apply(ctx, p.Store, "node "+n.Name, store.IfThere(store.Removal(m.Key())),
				store.IfThere(store.Removal(volant.RecordKey(volant.KindLease, m.App, m.ID))),
				store.IfThere(store.Removal(volant.RecordKey(volant.KindVersions, m.App, m.ID))))
			if err != nil {
				return err
			}
			p.Log.Info("machine went with its node", "machine", m.ID, "node", id)
		}
	}
	return nil
}

func (p *Platform) dropJoinTokens(ctx context.Context, snap *catalog.Snapshot) error {
	for _, t := range snap.JoinTokens() {
		if t.Tombstone || time.Since(t.Expires) < keepJoinTokens {
			continue
		}
		if _, err := store.Apply(ctx, p.Store, "tidy", store.IfThere(store.Removal(t.Key()))); err != nil {
			return err
		}
	}
	return nil
}

// watchMembers keeps what is shown of the store's members fresh, while this is a control node.
func (p *Platform) watchMembers(ctx context.Context) error {
	if p.Members == nil {
		return nil
	}
	return p.while(ctx, volant.RoleControl, func(ctx context.Context) error {
		tick := time.NewTicker(lookAtMembers)
		defer tick.Stop()
		trouble := map[volant.NodeID]string{}
		for {
			ms, err := p.Members(ctx)
			if err == nil {
				p.members.Store(&ms)
				p.tellTrouble(ms, trouble)
			} else if ctx.Err() == nil {
				p.Log.Debug("members of the store not known", "err", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
}

// tellTrouble logs what is news of the members' troubles, which it keeps in known.
func (p *Platform) tellTrouble(ms []etcd.Member, known map[volant.NodeID]string) {
	for _, m := range ms {
		if m.Trouble == known[m.Node] {
			continue
		}
		known[m.Node] = m.Trouble
		if m.Trouble != "" {
			p.Log.Warn("member of the store is in trouble", "node", m.Node, "why", m.Trouble)
		} else {
			p.Log.Info("member of the store is well", "node", m.Node)
		}
	}
}

// seatOf says what a node is to the store: by its members, and by its role where they have yet to follow.
func (p *Platform) seatOf(n *volant.Node) string {
	ms := p.members.Load()
	if ms == nil {
		return ""
	}
	i := slices.IndexFunc(*ms, func(m etcd.Member) bool { return m.Node == volant.NodeID(n.ID) })
	keeps := n.Has(volant.RoleControl)
	switch {
	case i < 0 && keeps:
		return "joining"
	case i < 0:
		return ""
	case !keeps:
		return "leaving"
	case (*ms)[i].Learner:
		return "learner"
	case !(*ms)[i].Healthy:
		return "down"
	}
	return "member"
}
