package node

import (
	"context"
	"net/netip"
	"slices"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/scale"
	"github.com/volant-edge/volant/why"
)

// publish tells the rooms each change of the catalog: the host its wishes, the proxy its table, scaling and
// deploys their apps. Changes which come together are told once.
func (p *Platform) publish(ctx context.Context) error {
	changed, cancel := p.cat.Subscribe()
	defer cancel()
	var version uint64
	for {
		snap := p.cat.Snapshot()
		var wishes []volant.Machine
		for m := range snap.MachinesOn(p.Node) {
			wishes = append(wishes, *m)
		}
		p.host.SetWishes(wishes)
		p.setLocal(ctx, snap)
		version++
		t := tableOf(snap, p.Node, p.Region)
		t.Epoch, t.Version = p.Epoch, version
		p.edge.set(t, snap.Rev)
		var apps []volant.AppID
		for _, a := range snap.Apps() {
			if !a.Tombstone {
				apps = append(apps, a.App)
				p.host.SetMin(a.App, a.Scale.Min)
			}
		}
		slices.Sort(apps)
		p.holder.SetApps(apps)
		for _, id := range apps {
			p.scaler.Poke(id)
			p.deploys.Poke(id)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// setLocal makes the apps' addresses local before the proxy listens on them.
func (p *Platform) setLocal(ctx context.Context, snap *catalog.Snapshot) {
	var addrs []netip.Addr
	for _, a := range snap.Apps() {
		for _, ad := range snap.Addresses(a.App) {
			if ip, err := netip.ParseAddr(ad.IP); err == nil && !ad.Tombstone {
				addrs = append(addrs, ip)
			}
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	if p.Local == nil || slices.Equal(addrs, p.local) {
		return
	}
	if err := p.Local(ctx, addrs); err != nil {
		p.Log.Error("addresses of apps are not local", "err", err)
		return
	}
	p.local = addrs
}

// heard are the proxy's events, led to the rooms that want them.
func (p *Platform) heard() proxy.Events {
	return proxy.Events{
		Load: func(l proxy.Load) {
			for id, n := range p.traffic.set(l) {
				p.host.SetSlots(id, n)
			}
			p.scaler.Load(p.Node, l.App, scale.Load{Waiting: l.Waiting, Entering: l.Entering, Slots: l.Slots, Peak: l.Peak})
			p.deploys.Poke(l.App)
		},
		Wake: func(w proxy.Wake) {
			ctx, cancel := context.WithTimeout(context.Background(), wakeWithin)
			defer cancel()
			if err := p.host.Wake(ctx, w.Machine, w.Reason); err != nil {
				p.Log.Warn("wake refused", "app", w.App, "machine", w.Machine, "err", err)
			}
		},
		Why: func(r why.Record) { p.Reasons.Add(r) },
	}
}

// slotsUnknown is said of a machine when no proxy says how many slots it holds: it may be empty, and the
// proxy is asked before it is put to sleep.
const slotsUnknown = -1

// proxyLost drops what a proxy that is gone had said. Its successor tells anew.
func (p *Platform) proxyLost() {
	for _, id := range p.traffic.forget() {
		p.host.SetSlots(id, slotsUnknown)
	}
	p.scaler.ForgetNode(p.Node)
}
