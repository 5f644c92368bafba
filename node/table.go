package node

import (
	"net/netip"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/internal/perapp"
	"github.com/volant-edge/volant/proxy"
)

// tableApps is one app of the table of a node: an entry for each group that has services. An app without a service or
// address is left out: nothing leads to it.
func tableApps(snap *catalog.Snapshot, a *volant.App, here volant.NodeID, now time.Time) []proxy.App {
	var addrs []netip.Addr
	for _, ad := range snap.Addresses(a.App) {
		if ip, err := netip.ParseAddr(ad.IP); err == nil && !ad.Tombstone {
			addrs = append(addrs, ip)
		}
	}
	if len(addrs) == 0 {
		return nil
	}
	var out []proxy.App
	groups := groupsOf(snap, a)
	for i := range groups {
		if g := &groups[i]; g.ok && !g.worker() {
			out = append(out, tableGroup(snap, a, g, groups[0].name, addrs, here, now))
		}
	}
	return out
}

// deafen takes away where clients enter: what is left is what comes from other nodes to machines here.
func deafen(parts []proxy.App) {
	for i := range parts {
		for j := range parts[i].Services {
			s := &parts[i].Services[j]
			s.Listen, s.Ports = nil, nil
		}
	}
}

// sharedAddrs are the addresses which an app has together with others.
func sharedAddrs(snap *catalog.Snapshot, id volant.AppID) []netip.Addr {
	var out []netip.Addr
	for _, ad := range snap.Addresses(id) {
		if ip, err := netip.ParseAddr(ad.IP); err == nil && !ad.Tombstone && ad.Type == volant.AddressSharedV4 {
			out = append(out, ip)
		}
	}
	return out
}

// tableGroup is one group of an app, whose default group is def.
func tableGroup(
	snap *catalog.Snapshot, a *volant.App, g *group, def string, addrs []netip.Addr, here volant.NodeID, now time.Time,
) proxy.App {
	s := g.scale.WithDefaults()
	app := proxy.App{
		ID: a.App, Group: g.name, Name: a.Name, Org: a.Org, NoWake: s.NoWake, CanGrow: !s.NoWake, Spill: s.Spill, SpillRTT: s.SpillRTT,
		MaxQueue: s.MaxQueue, QueueTime: s.QueueTime, MaxPerPeer: s.MaxPerPeer,
	}
	cfg := &g.mold.cfg
	for i := range cfg.Services {
		app.Services = append(app.Services, tableService(&cfg.Services[i], cfg.Guest.WithDefaults().CPUs, addrs))
	}
	for _, m := range snap.Machines(a.App) {
		if groupOf(m, def) != g.name {
			continue
		}
		if m.Node != here {
			if !m.Tombstone && m.Run != volant.RunDestroyed {
				tm := proxy.Machine{ID: volant.MachineID(m.ID), Node: m.Node, Cordoned: m.Cordoned}
				tm.Absent, tm.Limits = own(app.Services, m)
				app.Machines = append(app.Machines, tm)
			}
			continue
		}
		if have, ok := snap.Have(volant.MachineID(m.ID)); ok && (have.State != volant.StateDestroyed || !past(m, now)) {
			tm := tableMachine(m, &have)
			tm.AskLeave = asksToLeave(&have, s.DrainAfter.D(), now)
			tm.Absent, tm.Limits = own(app.Services, m)
			app.Machines = append(app.Machines, tm)
		}
	}
	return app
}

// asksToLeave says whether a machine drains for longer than after; 0 is never.
func asksToLeave(have *volant.Have, after time.Duration, now time.Time) bool {
	return have.Draining && after > 0 && !have.Drained.Add(after).After(now)
}

// nextAsk is when the next machine of an app asks its clients to leave; zero: none will.
func nextAsk(snap *catalog.Snapshot, a *volant.App, now time.Time) time.Time {
	var next time.Time
	groups := groupsOf(snap, a)
	for _, m := range snap.Machines(a.App) {
		have, ok := snap.Have(volant.MachineID(m.ID))
		if !ok || !have.Draining {
			continue
		}
		i := slices.IndexFunc(groups, func(g group) bool { return g.name == groupOf(m, groups[0].name) })
		if i < 0 || groups[i].scale.DrainAfter <= 0 {
			continue
		}
		if due := have.Drained.Add(groups[i].scale.DrainAfter.D()); due.After(now) {
			next = perapp.Sooner(next, due)
		}
	}
	return next
}

func tableService(s *volant.Service, cpus int, addrs []netip.Addr) proxy.Service {
	out := proxy.Service{InternalPort: uint16(s.InternalPort), WakeOn: s.WakeOn} //nolint:gosec // checked when it was written
	out.Soft, out.Hard = s.Limits(cpus)
	out.Requests = s.Concurrency != nil && s.Concurrency.Type == volant.ConcurrencyRequests
	for i := range s.Ports {
		p := &s.Ports[i]
		var listen []netip.AddrPort
		first, last := p.Range()
		for n := first; n <= last; n++ {
			for _, ip := range addrs {
				listen = append(listen, netip.AddrPortFrom(ip, uint16(n))) //nolint:gosec // checked when it was written
			}
		}
		if len(p.Handlers) == 0 {
			out.Listen = append(out.Listen, listen...)
			continue
		}
		port := proxy.Port{Listen: listen, Handlers: p.Handlers, ForceHTTPS: p.ForceHTTPS, HTTP: p.HTTPOptions, TLS: p.TLSOptions}
		if p.ProxyProtoOptions != nil {
			port.ProxyProto = p.ProxyProtoOptions.Version
		}
		out.Ports = append(out.Ports, port)
	}
	return out
}

func tableMachine(m *volant.Machine, have *volant.Have) proxy.Machine {
	out := proxy.Machine{
		ID: volant.MachineID(m.ID), Seq: have.Seq, Phase: phaseOf(m, have), Addr: have.IP,
		Cordoned: m.Cordoned, Draining: have.Draining, Cold: have.Cold, Life: have.Life,
	}
	out.Failing = failing(m, have)
	return out
}

// failing are the internal ports of services with a check that does not pass.
func failing(m *volant.Machine, have *volant.Have) []uint16 {
	critical := map[string]bool{}
	all := false // a failing readiness check is one of every port
	for _, c := range have.Checks {
		critical[c.Name] = c.Status == volant.CheckCritical
		_, own := m.Config.Checks[c.Name]
		all = all || own && critical[c.Name] && !c.Informational
	}
	var out []uint16
	for i := range m.Config.Services {
		s := &m.Config.Services[i]
		if all {
			out = append(out, uint16(s.InternalPort)) //nolint:gosec // checked when it was written
			continue
		}
		for j := range s.Checks {
			if critical[s.CheckName(i, j)] {
				out = append(out, uint16(s.InternalPort)) //nolint:gosec // checked when it was written
				break
			}
		}
	}
	return out
}

// own says what of the app's services the machine, of an older release perhaps, does not have, and where its
// limits are others.
func own(services []proxy.Service, m *volant.Machine) (absent []uint16, limits []proxy.Limit) {
	cpus := m.Config.Guest.WithDefaults().CPUs
	for _, s := range services {
		i := slices.IndexFunc(m.Config.Services, func(own volant.Service) bool { return own.InternalPort == int(s.InternalPort) })
		if i < 0 {
			absent = append(absent, s.InternalPort)
			continue
		}
		if soft, hard := m.Config.Services[i].Limits(cpus); soft != s.Soft || hard != s.Hard {
			limits = append(limits, proxy.Limit{Port: s.InternalPort, Soft: soft, Hard: hard})
		}
	}
	return absent, limits
}

// phaseOf says what a machine's state means to the proxy. A machine that a deploy has made and not yet
// routed, or that is wished off, is not woken by connections.
func phaseOf(m *volant.Machine, have *volant.Have) proxy.Phase {
	switch {
	case m.Run == volant.RunDestroyed || m.Tombstone:
		return proxy.PhaseGone
	case have.State == volant.StateStarted:
		return proxy.PhaseServing
	case have.State == volant.StateStarting:
		return proxy.PhaseBooting
	case m.Run == volant.RunOff:
		return proxy.PhaseGone
	case have.State == volant.StateSuspended:
		return proxy.PhaseSuspended
	case have.State == volant.StateStopped, have.State == volant.StateCreated:
		return proxy.PhaseStopped
	}
	return proxy.PhaseGone
}
