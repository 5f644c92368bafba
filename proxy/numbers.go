package proxy

import (
	"context"
	"crypto/tls"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
)

// Numbers are what became of connections since the proxy began: gauges of now, and counters that only grow.
type Numbers struct {
	Apps map[volant.AppID]AppNumbers `json:"apps"`
	// Live are those of the live feed; all zero on a node that is alone.
	Live live.Numbers `json:"live"`
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
	HTTP     map[int]Histogram `json:"http"`    // seconds from a request to the end of its response, by status
	// Handshakes are the times of TLS handshakes by version, and HandshakeErrors those that failed by the host name
	// asked for: the first 64 names, then "other".
	Handshakes      map[string]Histogram `json:"handshakes,omitempty"`
	HandshakeErrors map[string]uint64    `json:"handshake_errors,omitempty"`
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
	tls               tlsNumbers

	mu   sync.Mutex // guards http
	http map[int]*seconds
}

// answered counts an HTTP response.
func (c *counts) answered(status int, took time.Duration) {
	c.mu.Lock()
	if c.http == nil {
		c.http = map[int]*seconds{}
	}
	s := c.http[status]
	if s == nil {
		s = &seconds{}
		c.http[status] = s
	}
	c.mu.Unlock()
	s.add(took)
}

func (c *counts) responses() map[int]Histogram {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[int]Histogram, len(c.http))
	for status, s := range c.http {
		out[status] = s.picture()
	}
	return out
}

// namesMost bounds the host names that failed handshakes are counted by: clients choose them.
const namesMost = 64

// tlsNumbers count handshakes.
type tlsNumbers struct {
	mu     sync.Mutex // guards the following
	times  map[uint16]*seconds
	errors map[string]uint64
}

func (t *tlsNumbers) done(version uint16, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.times == nil {
		t.times = map[uint16]*seconds{}
	}
	if t.times[version] == nil {
		t.times[version] = &seconds{}
	}
	t.times[version].add(took)
}

func (t *tlsNumbers) failed(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.errors == nil {
		t.errors = map[string]uint64{}
	}
	if _, known := t.errors[name]; !known && len(t.errors) >= namesMost {
		name = "other"
	}
	t.errors[name]++
}

func (t *tlsNumbers) picture() (times map[string]Histogram, errs map[string]uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	times = map[string]Histogram{}
	for v, s := range t.times {
		times[strings.ReplaceAll(tls.VersionName(v), "TLS ", "TLSv")] = s.picture()
	}
	errs = map[string]uint64{}
	maps.Copy(errs, t.errors)
	return times, errs
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
	out := Numbers{Apps: map[volant.AppID]AppNumbers{}, Live: p.feed.Numbers()}
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
	n.Connect.add(of.Connect)
	for r, c := range of.Refused {
		n.Refused[r] += c
	}
	for name, c := range of.HandshakeErrors {
		n.HandshakeErrors[name] += c
	}
	for status, h := range of.HTTP {
		n.HTTP[status] = n.HTTP[status].plus(h)
	}
	for version, h := range of.Handshakes {
		n.Handshakes[version] = n.Handshakes[version].plus(h)
	}
}

func (h *Histogram) add(of Histogram) { *h = h.plus(of) }

func (h Histogram) plus(of Histogram) Histogram {
	if h.Counts == nil {
		return of
	}
	out := Histogram{Counts: slices.Clone(h.Counts), Sum: h.Sum + of.Sum, Count: h.Count + of.Count}
	for i := range min(len(of.Counts), len(out.Counts)) {
		out.Counts[i] += of.Counts[i]
	}
	return out
}

func (a *app) numbers() AppNumbers {
	c := &a.counts
	n := AppNumbers{
		HTTP: c.responses(), Served: c.served.Load(), Refused: c.refusals(), Connect: c.connect.picture(),
		BytesIn: uint64(max(0, c.bytesIn.Load())), BytesOut: uint64(max(0, c.bytesOut.Load())),
	}
	n.Ended = min(c.ended.Load(), n.Served)
	n.Handshakes, n.HandshakeErrors = c.tls.picture()
	a.mu.Lock()
	defer a.mu.Unlock()
	n.Waiting = a.waiting
	for _, s := range a.services {
		for _, pl := range s.places[:s.here] {
			n.Slots += int(pl.used)
		}
	}
	return n
}
