package node

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/internal/perapp"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/scale"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/why"
)

// publisher tells the rooms each change of the catalog: the host its wishes, the proxy its table, scaling and
// deploys their apps. Changes which come together are told once, and cost what the apps that changed are large.
type publisher struct {
	p       *Platform
	apps    map[volant.AppID]bool      // which live
	newApps bool                       // that is news
	acts    bool                       // this node acts for apps
	asks    map[volant.AppID]time.Time // when a machine of the app asks its clients to leave
	parts   map[volant.AppID][]proxy.App
	shared  map[volant.AppID][]netip.Addr // addresses that other apps may have too
	certs   map[volant.AppID][]proxy.Cert
	wishes  store.Revision // what the host and the network were told of
	told    bool           // they were told without an error
	local   []netip.Addr   // what Local was last told
	version uint64         // of the table
	enters  bool           // clients enter here: this node is an edge
}

// publishAgain is how long a room that could not take what it was told has until it is told again.
const publishAgain = 5 * time.Second

func (p *Platform) publish(ctx context.Context) error {
	sub := p.cat.Changes()
	defer sub.Close()
	pub := &publisher{
		p: p, apps: map[volant.AppID]bool{}, asks: map[volant.AppID]time.Time{}, parts: map[volant.AppID][]proxy.App{},
		shared: map[volant.AppID][]netip.Addr{}, certs: map[volant.AppID][]proxy.Cert{},
	}
	snap, changed := sub.Take()
	all := func() {
		for id := range snap.Apps() {
			changed[id] = true
		}
	}
	all()
	renew := time.NewTicker(renewEvery)
	defer renew.Stop()
	for {
		pub.tell(ctx, snap, changed)
		var again <-chan time.Time
		if !pub.told {
			again = time.After(publishAgain)
		}
		ask, stop := pub.nextAsk()
		due := false
		select {
		case <-ctx.Done():
			stop()
			return nil
		case <-sub.C:
		case <-p.holding.changed:
		case <-again:
		case <-ask:
		case <-renew.C:
			due = true
		}
		stop()
		snap, changed = sub.Take()
		if due {
			all()
		}
		for id := range p.holding.take() {
			changed[id] = true
		}
		for id, due := range pub.asks {
			if !due.After(time.Now()) {
				changed[id] = true
			}
		}
	}
}

// nextAsk rings when the next machine asks its clients to leave.
func (u *publisher) nextAsk() (<-chan time.Time, func()) {
	var next time.Time
	for _, due := range u.asks {
		next = perapp.Sooner(next, due)
	}
	if next.IsZero() {
		return nil, func() {}
	}
	t := time.NewTimer(max(time.Until(next), 0) + time.Millisecond)
	return t.C, func() { t.Stop() }
}

func (u *publisher) tell(ctx context.Context, snap *catalog.Snapshot, changed map[volant.AppID]bool) {
	if snap.Rev != u.wishes || !u.told {
		u.tellWishes(ctx, snap)
	}
	if enters := u.p.has(volant.RoleEdge); enters != u.enters {
		u.enters = enters
		for id := range snap.Apps() {
			changed[id] = true
		}
	}
	for id := range changed {
		u.take(snap, id)
	}
	u.version++
	t := proxy.Table{Epoch: u.p.Epoch, Version: u.version, Node: u.p.Node, Region: u.p.Region, Mesh: u.p.Mesh}
	if t.Mesh.IsValid() {
		t.Peers = tablePeers(snap, u.p.Node)
	}
	for _, id := range slices.Sorted(maps.Keys(u.parts)) {
		t.Apps = append(t.Apps, u.parts[id]...)
		t.Certs = append(t.Certs, u.certs[id]...)
		for _, ip := range u.shared[id] {
			if !slices.Contains(t.Shared, ip) {
				t.Shared = append(t.Shared, ip)
			}
		}
	}
	if !u.p.expelled.Load() {
		u.p.edge.set(t, snap.Rev)
	}
	if acts := u.p.isControl(); u.newApps || acts != u.acts { // only control nodes act for apps
		var apps []volant.AppID
		if acts {
			apps = slices.Sorted(maps.Keys(u.apps))
		}
		u.p.holder.SetApps(apps)
		u.newApps, u.acts = false, acts
	}
	for id := range changed {
		if u.apps[id] {
			u.p.scaler.Poke(id)
			u.p.deploys.Poke(id)
			u.p.keeper.Poke(id)
		} else {
			u.p.forget(id)
		}
	}
}

// take notes what became of an app.
func (u *publisher) take(snap *catalog.Snapshot, id volant.AppID) {
	delete(u.parts, id)
	delete(u.asks, id)
	delete(u.shared, id)
	delete(u.certs, id)
	a, ok := snap.App(id)
	if !ok || a.Tombstone {
		u.newApps = u.newApps || u.apps[id]
		delete(u.apps, id)
		return
	}
	u.newApps = u.newApps || !u.apps[id]
	u.apps[id] = true
	u.p.host.SetMin(id, least(snap, a))
	now := time.Now()
	if due := nextAsk(snap, a, now); !due.IsZero() {
		u.asks[id] = due
	}
	parts := tableApps(snap, a, u.p.Node, now)
	if !u.enters {
		deafen(parts)
	}
	hosts := u.p.names.hosts(snap, a)
	for i := range parts {
		parts[i].Unscaled, parts[i].Hosts = !u.p.scaled(id), hosts
	}
	if u.enters && ends(parts) {
		u.certs[id] = u.p.names.certs(snap, a, now)
	}
	if len(parts) > 0 {
		u.parts[id] = parts
		if u.enters {
			u.shared[id] = sharedAddrs(snap, id)
		}
	}
}

// tellWishes tells the host what is wished, and the network which addresses are local, before the proxy listens
// on them.
func (u *publisher) tellWishes(ctx context.Context, snap *catalog.Snapshot) {
	var wishes []volant.Machine
	for m := range snap.MachinesOn(u.p.Node) {
		wishes = append(wishes, *m)
	}
	err := u.p.host.SetWishes(wishes)
	if err != nil {
		u.p.Log.Error("wishes are not on record", "err", err)
	}
	u.wishes, u.told = snap.Rev, u.setLocal(ctx, snap) && err == nil
}

func (u *publisher) setLocal(ctx context.Context, snap *catalog.Snapshot) bool {
	if u.p.Local == nil {
		return true
	}
	var addrs []netip.Addr
	for id := range snap.Apps() {
		if !u.p.has(volant.RoleEdge) {
			break // clients enter elsewhere
		}
		for _, ad := range snap.Addresses(id) {
			if ip, err := netip.ParseAddr(ad.IP); err == nil && !ad.Tombstone {
				addrs = append(addrs, ip)
			}
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	if slices.Equal(addrs, u.local) {
		return true
	}
	if err := u.p.Local(ctx, addrs); err != nil {
		u.p.Log.Error("addresses of apps are not local", "err", err)
		return false
	}
	u.local = addrs
	return true
}

// forget drops what the rooms keep of an app that is gone.
func (p *Platform) forget(id volant.AppID) {
	p.scaler.ForgetApp(id)
	p.deploys.ForgetApp(id)
	p.keeper.ForgetApp(id)
	p.host.ForgetApp(id)
	p.traffic.drop(id)
}

func (p *Platform) lives(id volant.AppID) bool {
	a, ok := p.cat.Snapshot().App(id)
	return ok && !a.Tombstone
}

// heard are the proxy's events, led to the rooms that want them.
func (p *Platform) heard() proxy.Events {
	return proxy.Events{
		Load: func(l proxy.Load) {
			for id, n := range p.traffic.set(l) {
				p.host.SetSlots(id, n)
			}
			for _, id := range l.Accepting {
				p.host.Served(id)
			}
			for _, id := range l.Deaf {
				p.host.Deaf(id)
			}
			if !p.lives(l.App) {
				if p.traffic.empty(l.App) {
					p.traffic.drop(l.App)
				}
				return
			}
			p.scaler.Load(p.Node, l.App, scale.Load{Group: l.Group, Waiting: l.Waiting, Entering: l.Entering, Spilled: l.Spilled, Slots: l.Slots, Peak: l.Peak, Avoid: l.Avoid})
			p.deploys.Poke(l.App)
		},
		Wake: func(w proxy.Wake) { // beside the loop: a host that is slow with one must not hold up what is heard
			go p.wake(w)
		},
		Why:  func(r why.Record) { p.Reasons.Add(r) },
		Fact: p.fact,
		Peer: p.peer,
	}
}

func (p *Platform) wake(w proxy.Wake) {
	ctx, cancel := context.WithTimeout(context.Background(), wakeWithin)
	defer cancel()
	if err := p.host.WakeFor(ctx, w.Machine, volant.SourceProxy, w.Reason); err != nil {
		p.Log.Warn("wake refused", "app", w.App, "machine", w.Machine, "err", err)
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

// proxyLinked begins with a proxy, which knows nothing of what this server says of its machines.
func (p *Platform) proxyLinked() {
	p.known.linked()
	p.telling.linked()
}

// publishHave tells all who want to know what became of a machine here.
func (p *Platform) publishHave(h volant.Have) {
	p.cat.SetHave(h)
	p.telling.have(h)
}

// isPast says whether a machine has been a tombstone for so long that nobody needs to hear of it: there are ever more
// of those.
func (p *Platform) isPast(id volant.MachineID) bool {
	m, ok := p.cat.Snapshot().Machine(id)
	return ok && past(m, time.Now())
}

// pastAfter is how long a tombstone is still told of: until its last connections have heard of it.
const pastAfter = time.Minute

func past(m *volant.Machine, now time.Time) bool {
	return m.Tombstone && now.Sub(m.Updated) > pastAfter
}

// room is what this node tells of its host and of the way to other regions.
func (p *Platform) room() room {
	r := room{RTT: p.regionRTTs()}
	if !p.has(volant.RoleHost) {
		return r
	}
	h := p.host.Room()
	r.Host, r.MemoryMB, r.OverheadMB, r.Shared, r.Cores, r.Isolates = true, h.FreeMB, h.OverheadMB, h.SharedFree, h.FreeCores, h.Isolates
	r.Orgs = h.Orgs[:min(len(h.Orgs), 2)] // two refuse everybody
	return r
}

// hostStatus is control's.
func (p *Platform) hostStatus(node volant.NodeID) string {
	switch {
	case p.known.heard(node):
		return control.HostOK
	case p.known.silent(node):
		return control.HostUnreachable
	}
	return control.HostUnknown
}

// mayCall says whether a node may ask this one's host: those that act for apps and serve the API.
func (p *Platform) mayCall(from volant.NodeID) error {
	if n, ok := p.cat.Snapshot().Node(from); ok && n.Has(volant.RoleControl) {
		return nil
	}
	return volant.Errorf(volant.ErrForbidden, "node %s does not have the control role", from).
		WithRemedy("ask a node that has it")
}
