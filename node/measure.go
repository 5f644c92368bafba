package node

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/live"
	"github.com/volant-edge/volant/metrics"
	"github.com/volant-edge/volant/proxy"
)

const (
	measureWithin = 2 * time.Second // a guest that does not answer is shown without its own numbers
	measuring     = 16              // guests that are asked at once
)

// Measure is control's: what the node measures of the apps, and with own of itself.
func (p *Platform) Measure(ctx context.Context, apps []*volant.App, own bool) *metrics.Sample {
	ctx, cancel := context.WithTimeout(ctx, measureWithin)
	defer cancel()
	s := &metrics.Sample{Node: p.Node, Region: p.Region, Apps: make([]metrics.App, len(apps))}
	numbers, err := p.edge.numbers(ctx)
	for i, a := range apps {
		s.Apps[i].Name = a.Name
		if n, ok := numbers.Apps[a.App]; ok && err == nil {
			s.Apps[i].Traffic = trafficOf(&n)
		}
	}
	p.measureMachines(ctx, apps, s.Apps)
	if own {
		s.Own = p.measureOwn(err == nil)
		if err == nil && numbers.Live.Peers > 0 {
			s.Own.Live = liveOf(&numbers.Live)
		}
	}
	return s
}

// measureMachines asks the guests of awake machines, several at once. A machine that sleeps is not woken.
func (p *Platform) measureMachines(ctx context.Context, apps []*volant.App, to []metrics.App) {
	snap := p.cat.Snapshot()
	slots := make(chan struct{}, measuring)
	var wg sync.WaitGroup
	defer wg.Wait()
	for i, a := range apps {
		held := p.traffic.Slots(a.App)
		for id, m := range snap.Machines(a.App) {
			have, ok := snap.Have(id)
			if m.Tombstone || m.Node != p.Node || !ok || have.State == volant.StateDestroyed {
				continue
			}
			u := p.host.Usage(id)
			to[i].Machines = append(to[i].Machines, metrics.Machine{
				ID: id, Up: have.State.Awake(), Slots: held[id], Exit: have.Exit, Boots: have.Boots,
				CPU: u.CPU.Seconds(), Throttled: u.Throttled.Seconds(),
			})
		}
		for j := range to[i].Machines {
			m := &to[i].Machines[j]
			if !m.Up {
				continue
			}
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				if st, err := p.host.Stats(ctx, m.ID); err == nil { // else it fell asleep, or hangs
					m.Guest = guestOf(&st)
				}
			})
		}
	}
}

func (p *Platform) measureOwn(proxyUp bool) *metrics.Own {
	n := p.self()
	return &metrics.Own{
		Version: p.Version, MemoryMB: n.Memory, MemoryFreeMB: n.MemoryFree, Machines: n.Machines, Awake: n.Awake, ProxyUp: proxyUp,
		UptimeSeconds: n.Uptime.Seconds(), Revision: p.cat.Snapshot().Rev.Rev,
	}
}

func liveOf(n *live.Numbers) *metrics.Live {
	return &metrics.Live{
		Peers: n.Peers, Silent: n.Silent, Facts: n.Facts, Behind: n.Behind, LagSeconds: n.Lag.Seconds(), Sent: n.SentBytes,
		Received: n.RecvBytes, Resent: n.Resent, Refused: n.Refused, Mismatches: n.Mismatch,
	}
}

func guestOf(s *guest.Stats) *metrics.Guest {
	return &metrics.Guest{
		Memory: s.Memory, Load: s.Load, CPU: s.CPU, Disks: s.Disks, Links: s.Links, Files: s.Files, FileSystems: s.FileSystems,
	}
}

func trafficOf(n *proxy.AppNumbers) *metrics.Traffic {
	t := &metrics.Traffic{
		Waiting: n.Waiting, Slots: n.Slots, Served: n.Served, Ended: n.Ended, Refused: n.Refused,
		BytesIn: n.BytesIn, BytesOut: n.BytesOut, Connect: histogramOf(n.Connect),
		HandshakeErrors: n.HandshakeErrors, Handshakes: map[string]metrics.Histogram{},
	}
	for _, status := range slices.Sorted(maps.Keys(n.HTTP)) {
		t.HTTP = append(t.HTTP, metrics.Responses{Status: status, Time: histogramOf(n.HTTP[status])})
	}
	for version, h := range n.Handshakes {
		t.Handshakes[version] = histogramOf(h)
	}
	return t
}

func histogramOf(h proxy.Histogram) metrics.Histogram {
	return metrics.Histogram{Bounds: proxy.SecondsBounds(), Counts: h.Counts, Sum: h.Sum, Count: h.Count}
}

func (e *edge) numbers(ctx context.Context) (proxy.Numbers, error) {
	l, err := e.now()
	if err != nil {
		return proxy.Numbers{}, err
	}
	return l.Numbers(ctx)
}
