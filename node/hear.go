package node

import (
	"context"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/live"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/scale"
)

// fact takes what another node tells. What does not parse is refused, and stops nothing.
func (p *Platform) fact(f live.Fact) {
	if f.Node == p.Node {
		return
	}
	var err error
	switch f.Key.Kind {
	case live.Have:
		err = p.factHave(f)
	case live.Room:
		err = p.factRoom(f)
	case live.Load:
		err = p.factLoad(f)
	case live.Slots:
		err = p.factSlots(f)
	case live.Route: // the proxy's own
	}
	if err != nil {
		p.Log.Warn("a fact of another node is refused", "node", f.Node, "kind", f.Key.Kind, "id", f.Key.ID, "err", err)
	}
}

func (p *Platform) factHave(f live.Fact) error {
	if f.Gone {
		return nil // its tombstone says so
	}
	h, err := live.DecodeHave(f)
	if err != nil {
		return err
	}
	h.Since, h.Drained = p.known.here(f.Node, h.Since), p.known.here(f.Node, h.Drained)
	p.cat.SetHave(h)
	return nil
}

func (p *Platform) factRoom(f live.Fact) error {
	if f.Gone {
		return nil
	}
	var r room
	if err := live.DecodeRoom(f, &r); err != nil {
		return err
	}
	before, _ := p.known.roomOf(f.Node)
	p.known.setRoom(f, r)
	if r.MemoryMB > before.MemoryMB || r.Cores > before.Cores || r.Shared > before.Shared {
		p.pokeApps(p.known.hungry())
	}
	return nil
}

func (p *Platform) factLoad(f live.Fact) error {
	l, err := proxy.DecodeLoad(f)
	if err != nil {
		return err
	}
	p.known.setLoad(f, l)
	p.passLoad(p.cat.Snapshot(), f.Node, groupKey{l.App, l.Group})
	return nil
}

func (p *Platform) factSlots(f live.Fact) error {
	_, ports, err := proxy.DecodeSlots(f)
	if err != nil {
		return err
	}
	n := 0
	for _, port := range ports {
		n += port.Held
	}
	p.known.setSlots(f, n)
	snap := p.cat.Snapshot()
	m, ok := snap.Machine(volant.MachineID(f.Key.ID))
	if !ok || m.Node != f.Node {
		return nil
	}
	if a, ok := snap.App(m.App); ok && !a.Tombstone {
		p.passLoad(snap, f.Node, groupKey{m.App, groupOf(m, groupsOf(snap, a)[0].name)})
	}
	return nil
}

// passLoad tells scaling what a node says of a group: the demand that enters there, and the slots of machines there.
func (p *Platform) passLoad(snap *catalog.Snapshot, node volant.NodeID, at groupKey) {
	a, ok := snap.App(at.app)
	if !ok || a.Tombstone || p.known.silent(node) {
		return
	}
	def := groupsOf(snap, a)[0].name
	var here []volant.MachineID
	for id, m := range snap.Machines(at.app) {
		if m.Node == node && groupOf(m, def) == at.group {
			here = append(here, id)
		}
	}
	l := p.known.load(node, at, here)
	p.scaler.Load(node, at.app, scale.Load{Group: at.group, Waiting: l.Waiting, Entering: l.Entering, Spilled: l.Spilled, Slots: l.Slots, Peak: l.Peak, Avoid: l.Avoid})
	p.deploys.Poke(at.app)
}

// peer takes what the proxy says of another node.
func (p *Platform) peer(s live.PeerState) {
	if s.Node == p.Node {
		return
	}
	if fresh := p.known.setPeer(s); fresh {
		p.scaler.ForgetNode(s.Node)
	}
	ring(p.noticed)
}

// watchNodes acts on nodes that fall silent or are heard again, until ctx ends.
func (p *Platform) watchNodes(ctx context.Context) error {
	tick := time.NewTicker(time.Second) // silence is no event
	defer tick.Stop()
	silent := map[volant.NodeID]bool{}
	changed := func(id volant.NodeID) {
		p.pokeNode(id)
		for app := range p.actedFor(id) {
			p.holding.touch(app)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.noticed:
		case <-tick.C:
		}
		now := map[volant.NodeID]bool{}
		for _, n := range p.otherNodes() {
			if id := volant.NodeID(n.ID); p.known.silent(id) {
				now[id] = true
			}
		}
		for id := range now {
			if !silent[id] {
				p.Log.Warn("node is silent", "node", id)
				p.scaler.ForgetNode(id)
				changed(id)
			}
		}
		for id := range silent {
			if !now[id] {
				p.Log.Info("node is heard again", "node", id)
				snap := p.cat.Snapshot()
				for _, at := range p.known.groups(id) {
					p.passLoad(snap, id, at)
				}
				changed(id)
			}
		}
		silent = now
	}
}

// actedFor are the apps for which a node acts.
func (p *Platform) actedFor(node volant.NodeID) map[volant.AppID]bool {
	out := map[volant.AppID]bool{}
	for app := range p.cat.Snapshot().Apps() {
		if owner, _ := p.terms.Owner(termOf(app)); owner == string(node) {
			out[app] = true
		}
	}
	return out
}

// pokeNode has all look at the apps that have machines on a node, and at those that want one.
func (p *Platform) pokeNode(node volant.NodeID) {
	apps := p.known.hungry()
	for m := range p.cat.Snapshot().MachinesOn(node) {
		if !m.Tombstone {
			apps[m.App] = true
		}
	}
	p.pokeApps(apps)
}

func (p *Platform) pokeApps(apps map[volant.AppID]bool) {
	for id := range apps {
		if p.lives(id) {
			p.scaler.Poke(id)
			p.deploys.Poke(id)
		}
	}
}
