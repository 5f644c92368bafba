package volanttest

import (
	"context"
	"encoding/json"
	"net/netip"
	"sync"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
	"github.com/volant-edge/volant/node"
	"github.com/volant-edge/volant/proxy"
)

// link is a node's proxy with a live feed beside it.
type link struct {
	*proxy.Proxy
	s    *spot
	feed *live.Feed

	mu sync.Mutex // guards ev
	ev proxy.Events
	at map[volant.MachineID]bool
}

func (s *spot) link() node.Link {
	f := live.New(live.Config{Node: s.p.ID, Epoch: s.epoch})
	return &link{Proxy: s.p.Proxy, s: s, feed: f, at: map[volant.MachineID]bool{}}
}

func (l *link) Tell(_ context.Context, facts []live.Fact) error { return l.feed.Set(facts...) }

func (l *link) SetTable(ctx context.Context, t proxy.Table) error {
	var ps []live.Peer
	for _, p := range t.Peers {
		ps = append(ps, live.Peer{Node: p.Node, Addr: netip.AddrPortFrom(p.Addr, volant.LivePort), Want: p.Want})
	}
	l.feed.SetPeers(ps)
	return l.Proxy.SetTable(ctx, t)
}

func (l *link) Watch(ctx context.Context, ev proxy.Events) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := l.s.c.Mesh.ListenPacket(ctx, netip.AddrPortFrom(volant.MeshAddr(l.s.p.ID), volant.LivePort))
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- l.feed.Run(ctx, conn, live.Events{Fact: ev.Fact, Peer: ev.Peer}) }()
	defer func() {
		cancel()
		<-done
		_ = conn.Close()
	}()
	load := ev.Load
	ev.Load = func(x proxy.Load) {
		l.mu.Lock()
		for id := range x.Slots {
			l.at[id] = true
		}
		for id := range l.at {
			b, _ := json.Marshal(x.Slots[id])
			_ = l.feed.Set(live.Fact{Key: live.Key{Kind: live.Slots, ID: string(id)}, Body: b})
		}
		l.mu.Unlock()
		own := x
		own.Slots, own.Accepting, own.Deaf = nil, nil, nil
		b, _ := json.Marshal(own)
		_ = l.feed.Set(live.Fact{Key: live.Key{Kind: live.Load, ID: string(x.App) + "/" + x.Group}, Body: b})
		load(x)
	}
	return l.Proxy.Watch(ctx, ev)
}
