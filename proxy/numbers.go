package proxy

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/volant-edge/volant"
)

// Numbers are what became of connections since the proxy began: gauges of now, and counters that only grow.
type Numbers struct {
	Apps map[volant.AppID]AppNumbers `json:"apps"`
}

// AppNumbers are one app's.
type AppNumbers struct {
	Waiting  int               `json:"waiting"`
	Slots    int               `json:"slots"`
	Served   uint64            `json:"served"`  // connections that a machine accepted
	Ended    uint64            `json:"ended"`   // of those, the ones which are over
	Refused  map[string]uint64 `json:"refused"` // by the rule
	BytesIn  uint64            `json:"bytes_in"`
	BytesOut uint64            `json:"bytes_out"`
	Connect  Histogram         `json:"connect"` // seconds from accept until the machine accepted
}

// Histogram counts observations by the upper bounds of their buckets, as Prometheus does.
type Histogram struct {
	Counts []uint64 `json:"counts"` // by bound, each with the ones below; without the last, which is all
	Sum    float64  `json:"sum"`
	Count  uint64   `json:"count"`
}

// SecondsBounds are the upper bounds of a Histogram's buckets.
func SecondsBounds() []float64 { return secondsBounds[:] }

var secondsBounds = [...]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}

// seconds is a Histogram that any goroutine may add to.
type seconds struct {
	counts [len(secondsBounds)]atomic.Uint64
	count  atomic.Uint64
	sum    atomic.Int64 // nanoseconds
}

func (s *seconds) add(d time.Duration) {
	for i, bound := range secondsBounds {
		if d.Seconds() <= bound {
			s.counts[i].Add(1)
			break
		}
	}
	s.count.Add(1)
	s.sum.Add(int64(d))
}

func (s *seconds) picture() Histogram {
	h := Histogram{Counts: make([]uint64, len(s.counts)), Sum: time.Duration(s.sum.Load()).Seconds(), Count: s.count.Load()}
	below := uint64(0)
	for i := range s.counts {
		below += s.counts[i].Load()
		h.Counts[i] = below
	}
	h.Count = max(h.Count, below) // one may be in its bucket and not counted yet
	return h
}

// counts are what became of an app's connections.
type counts struct {
	served, ended     atomic.Uint64
	bytesIn, bytesOut atomic.Int64 // from clients, to clients
	refused           [len(ruleNames)]atomic.Uint64
	connect           seconds
}

func (c *counts) refusals() map[string]uint64 {
	out := map[string]uint64{}
	for r := range c.refused {
		if n := c.refused[r].Load(); n > 0 {
			out[rule(r).String()] = n //nolint:gosec // there are few rules
		}
	}
	return out
}

// Numbers are those of all apps now.
func (p *Proxy) Numbers(context.Context) (Numbers, error) {
	out := Numbers{Apps: map[volant.AppID]AppNumbers{}}
	for _, a := range p.allApps() {
		n, other := a.numbers(), out.Apps[a.id]
		n.add(&other)
		out.Apps[a.id] = n
	}
	return out, nil
}

// add adds those of another group of the app.
func (n *AppNumbers) add(of *AppNumbers) {
	n.Waiting, n.Slots = n.Waiting+of.Waiting, n.Slots+of.Slots
	n.Served, n.Ended = n.Served+of.Served, n.Ended+of.Ended
	n.BytesIn, n.BytesOut = n.BytesIn+of.BytesIn, n.BytesOut+of.BytesOut
	n.Connect.Sum, n.Connect.Count = n.Connect.Sum+of.Connect.Sum, n.Connect.Count+of.Connect.Count
	for i := range of.Connect.Counts {
		n.Connect.Counts[i] += of.Connect.Counts[i]
	}
	for r, c := range of.Refused {
		n.Refused[r] += c
	}
}

func (a *app) numbers() AppNumbers {
	c := &a.counts
	n := AppNumbers{
		Served: c.served.Load(), Refused: c.refusals(), Connect: c.connect.picture(),
		BytesIn: uint64(max(0, c.bytesIn.Load())), BytesOut: uint64(max(0, c.bytesOut.Load())),
	}
	n.Ended = min(c.ended.Load(), n.Served)
	a.mu.Lock()
	defer a.mu.Unlock()
	n.Waiting = a.waiting
	for _, s := range a.services {
		for _, pl := range s.places {
			n.Slots += int(pl.used)
		}
	}
	return n
}
