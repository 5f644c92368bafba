package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/why"
)

// Config configures a Proxy. Its zero value serves on the kernel's TCP.
type Config struct {
	Epoch   uint64 // boot epoch of this node; 1
	Version string // of the binary, for Hello
	Binary  string // path of the binary, for Hello
	// Listen and Dial replace the kernel's TCP. With both nil, plain TCP takes the fast road. DialFrom is for
	// connections to other nodes, from this one's mesh address.
	Listen   func(ctx context.Context, addr netip.AddrPort) (net.Listener, error)
	Dial     func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	DialFrom func(ctx context.Context, from netip.Addr, addr netip.AddrPort) (net.Conn, error)
	// Packet replaces the kernel's UDP, for the live feed. With Listen or Dial and not this, there is no feed.
	Packet func(ctx context.Context, addr netip.AddrPort) (net.PacketConn, error)
	Recent int // connections remembered; 4096
	Log    *slog.Logger
}

// Hello tells who a proxy is.
type Hello struct {
	Epoch   uint64 `json:"epoch"`
	PID     int    `json:"pid"`
	Version string `json:"version"`
	Binary  string `json:"binary"`
	// Table is the version of the newest Table, zero before the first.
	TableEpoch   uint64 `json:"table_epoch"`
	TableVersion uint64 `json:"table_version"`
}

// Proxy leads connections to machines. See the package comment.
type Proxy struct {
	cfg Config
	log *slog.Logger
	// fast says that both sides are the kernel's TCP: loops serve them.
	fast  bool
	times times

	mu        sync.Mutex // guards what follows; taken before an app's
	table     Table
	apps      map[appKey]*app
	seals     map[volant.MachineID]sealMark
	listeners map[netip.AddrPort]*listener
	stopping  bool
	serving   context.Context //nolint:containedctx // of the listeners; nil before they are served
	loops     []*loop         // none where connections are not the kernel's own
	nodes     map[volant.NodeID]*node
	remotes   map[volant.MachineID]*remoteFacts
	homes     map[volant.MachineID]*app // of the table's machines on other nodes

	routes   atomic.Pointer[map[netip.AddrPort]*route]
	wanted   chan struct{} // rung when the listeners should change; capacity 1
	reporter reporter
	watching sync.Mutex // held by the one Watch
	certs    atomic.Pointer[certs]
	fronts   fronts
	pool     pool
	kept     atomic.Int64 // bytes of requests' bodies that may be sent again
	named    atomic.Pointer[map[nameKey]*route]
	roads    *roads
	peering  atomic.Pointer[peering]
	feed     *feed
	slotSeq  atomic.Uint64 // of the last change of a count of slots
	lastID   atomic.Uint64
	sessions sync.WaitGroup
	open     atomic.Int64
}

// sealMark says of which state of a machine a seal was, and when a table had the machine last.
type sealMark struct {
	epoch, seq uint64
	listed     time.Time
}

// sealKept is how long a seal is kept of a machine that is in no table.
const sealKept = time.Hour

// route is where connections to one address and port go.
type route struct {
	app       *app
	id        volant.AppID
	svc       *service
	name      string
	org       volant.OrgID
	region    volant.Region
	onData    bool // wake at the first byte only
	queueTime time.Duration
	refusal   rule // refuse them all
	backhaul  bool // other nodes' streams come here

	port  *port             // how a port with handlers is served; nil: raw TCP
	hosts map[string]*route // of a shared address, by the host names; then nothing else here counts but port
}

// New returns a Proxy which serves once it runs and has a Table.
func New(cfg Config) (*Proxy, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Recent <= 0 {
		cfg.Recent = 4096
	}
	cfg.Epoch = max(cfg.Epoch, 1)
	fast := cfg.Listen == nil && cfg.Dial == nil
	if cfg.Listen == nil {
		cfg.Listen = listenTCP
	}
	if cfg.Dial == nil {
		cfg.Dial = dialTCP
	}
	if cfg.Packet == nil && fast {
		cfg.Packet = listenPacket
	}
	if cfg.DialFrom == nil {
		cfg.DialFrom = dialMesh
	}
	p := &Proxy{
		cfg: cfg, log: cfg.Log, fast: fast, times: defaultTimes(), apps: map[appKey]*app{},
		seals: map[volant.MachineID]sealMark{}, listeners: map[netip.AddrPort]*listener{},
		wanted: make(chan struct{}, 1), roads: newRoads(cfg.Recent), nodes: map[volant.NodeID]*node{},
		remotes: map[volant.MachineID]*remoteFacts{}, homes: map[volant.MachineID]*app{},
	}
	p.feed = newFeed(p)
	p.reporter.bell = make(chan struct{}, 1)
	p.routes.Store(&map[netip.AddrPort]*route{})
	p.certs.Store(&certs{})
	p.named.Store(&map[nameKey]*route{})
	p.peering.Store(&peering{})
	p.fronts.p, p.fronts.leaving = p, make(chan struct{})
	return p, nil
}

func (p *Proxy) chance() uint64 { return rand.Uint64() }

// Run serves until ctx ends; then it closes what is still open. Use Shutdown first to let connections end.
func (p *Proxy) Run(ctx context.Context) error {
	loops, err := p.newLoops()
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.loops = loops
	p.mu.Unlock()
	for _, l := range loops {
		p.sessions.Go(func() { l.run(ctx) })
	}
	p.sessions.Go(func() { p.feed.run(ctx) })
	p.serve(ctx)
	p.fronts.close()
	p.pool.close()
	p.sessions.Wait()
	return nil
}

// loopsMost bounds the loops; one moves more than a network card.
const loopsMost = 8

func (p *Proxy) newLoops() ([]*loop, error) {
	if !p.fast {
		return nil, nil
	}
	var loops []*loop
	for range min(runtime.GOMAXPROCS(0), loopsMost) {
		l, err := newLoop(p, p.times)
		if err != nil {
			for _, l := range loops {
				l.close()
			}
			return nil, fmt.Errorf("proxy: %w", err)
		}
		loops = append(loops, l)
	}
	return loops, nil
}

// Shutdown stops accepting and returns when the last connection has ended, or ctx has. Established
// connections are not touched.
func (p *Proxy) Shutdown(ctx context.Context) error {
	p.mu.Lock()
	p.stopping = true
	p.mu.Unlock()
	p.ringWanted()
	p.fronts.leave()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for { // the first tick is for those who wait to be accepted
		select {
		case <-ctx.Done():
			return volant.Errorf(volant.ErrUnavailable, "%d connections are still open", p.open.Load())
		case <-t.C:
		}
		if p.open.Load() == 0 && !p.listening() {
			return nil
		}
	}
}

func (p *Proxy) listening() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.listeners) > 0
}

// Hello tells who this proxy is and which Table it has.
func (p *Proxy) Hello(context.Context) (Hello, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Hello{
		Epoch: p.cfg.Epoch, PID: os.Getpid(), Version: p.cfg.Version, Binary: p.cfg.Binary,
		TableEpoch: p.table.Epoch, TableVersion: p.table.Version,
	}, nil
}

// SetTable makes t the newest Table. It is idempotent; one that is older than the newest is refused with
// volant.ErrConflict.
func (p *Proxy) SetTable(_ context.Context, t Table) error {
	if err := t.check(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.Epoch < p.table.Epoch || t.Epoch == p.table.Epoch && t.Version < p.table.Version {
		return volant.Errorf(volant.ErrConflict, "table %d of epoch %d is older than the proxy's, %d of epoch %d",
			t.Version, t.Epoch, p.table.Version, p.table.Epoch)
	}
	t = t.withDefaults()
	p.table = t
	p.applyLocked(t, time.Now())
	if p.serving != nil {
		p.adjustLocked(p.serving) // so that who has told it can connect
	}
	p.ringWanted()
	return nil
}

func (p *Proxy) applyLocked(t Table, now time.Time) {
	routes := map[netip.AddrPort]*route{}
	shared := map[netip.Addr]bool{}
	for _, ip := range t.Shared {
		shared[ip.Unmap()] = true
	}
	p.certs.Store(p.certs.Load().with(t.Certs, p.log))
	listed := map[appKey]bool{}
	machines := map[volant.MachineID]bool{}
	p.homes = map[volant.MachineID]*app{}
	peering := p.meetLocked(&t)
	for _, cfg := range t.Apps {
		k := appKey{cfg.ID, cfg.Group}
		a := p.apps[k]
		if a == nil {
			a = newApp(p, k)
			p.apps[k] = a
		}
		listed[k] = true
		cfg.Machines = p.placedLocked(a, cfg.Machines, t.Node)
		a.apply(cfg, t.Epoch, func(m Machine) bool { return p.sealedLocked(t.Epoch, m) }, now)
		for _, m := range cfg.Machines {
			machines[m.ID] = true
		}
		p.routeApp(routes, shared, a, &cfg, t.Region)
		peering.routeApp(a, &cfg)
	}
	for k, a := range p.apps {
		if listed[k] {
			continue
		}
		a.leave()
		if a.idle() {
			delete(p.apps, k)
		}
	}
	p.buryLocked()
	p.pruneSealsLocked(machines, now)
	p.pruneRemotesLocked(machines, now)
	if peering.self.IsValid() {
		routes[netip.AddrPortFrom(peering.self, volant.BackhaulPort)] = &route{name: "backhaul", region: t.Region, backhaul: true}
	}
	p.peering.Store(peering)
	p.routes.Store(&routes)
	p.nameRoutes(routes)
	p.feed.tableLocked(&t)
}

// nameKey finds a route that serves HTTP without its address.
type nameKey struct {
	app  string
	port uint16
}

func (p *Proxy) nameRoutes(routes map[netip.AddrPort]*route) {
	named := map[nameKey]*route{}
	add := func(ap netip.AddrPort, r *route) {
		if r.port != nil && r.port.http && r.app != nil {
			named[nameKey{r.name, ap.Port()}] = r
		}
	}
	for ap, r := range routes {
		add(ap, r)
		for _, of := range r.hosts {
			add(ap, of)
		}
	}
	p.named.Store(&named)
}

// buryLocked has the loops end the connections to guests that are no more; others see it themselves.
func (p *Proxy) buryLocked() {
	buried := false
	for _, a := range p.apps {
		a.mu.Lock()
		buried = buried || a.buried
		a.buried = false
		a.mu.Unlock()
	}
	if !buried {
		return
	}
	for _, l := range p.loops {
		l.do((*loop).bury)
	}
}

// routeApp adds the addresses of an app's services.
func (p *Proxy) routeApp(routes map[netip.AddrPort]*route, shared map[netip.Addr]bool, a *app, cfg *App, region volant.Region) {
	for i := range cfg.Services {
		s := &cfg.Services[i]
		r := &route{
			app: a, id: a.id, svc: a.service(s.InternalPort), name: cfg.Name, org: cfg.Org, region: region,
			onData: s.WakeOn == "data", queueTime: cfg.QueueTime.D(),
		}
		for _, ap := range s.Listen {
			p.addRoute(routes, shared, unmapped(ap), r, nil)
		}
		for j := range s.Ports {
			handled := *r
			handled.port = newPort(s, &s.Ports[j], cfg.Hosts)
			handled.onData = r.onData && !handled.port.speaks()
			if handled.port.unknown {
				handled.refusal = ruleHandler
			}
			for _, ap := range s.Ports[j].Listen {
				p.addRoute(routes, shared, unmapped(ap), &handled, cfg.Hosts)
			}
		}
	}
}

// addRoute makes r the route of an address, or one of a shared address's for the app's host names.
func (p *Proxy) addRoute(routes map[netip.AddrPort]*route, shared map[netip.Addr]bool, ap netip.AddrPort, r *route, hosts []string) {
	other := routes[ap]
	if !shared[ap.Addr()] {
		if other != nil && other.app != r.app {
			p.log.Error("address is claimed twice", "addr", ap, "app", other.name, "other_app", r.name)
			return
		}
		routes[ap] = r
		return
	}
	if other == nil {
		other = &route{name: "shared", region: r.region, refusal: ruleNoName, hosts: map[string]*route{}}
		routes[ap] = other
	}
	if r.port == nil || r.port.unknown {
		return // raw TCP names no host
	}
	if other.port == nil {
		other.port = r.port.shared()
	} else if !other.port.alike(r.port) {
		p.log.Error("apps ask for different handlers at a shared address", "addr", ap, "app", r.name)
		return
	}
	for _, h := range hosts {
		if taken := other.hosts[h]; taken != nil && taken.app != r.app {
			p.log.Error("host name is claimed twice", "addr", ap, "host", h, "app", taken.name, "other_app", r.name)
			continue
		}
		other.hosts[h] = r
	}
}

func (a *app) service(port uint16) *service {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.services[port]
}

// sealedLocked says whether the machine's seal still holds in its new state.
func (p *Proxy) sealedLocked(epoch uint64, m Machine) bool {
	mark, ok := p.seals[m.ID]
	if !ok {
		return false
	}
	newer := epoch > mark.epoch || epoch == mark.epoch && m.Seq > mark.seq
	if newer && m.Phase == PhaseServing {
		delete(p.seals, m.ID)
		return false
	}
	return true
}

// pruneSealsLocked forgets the seals of machines which are no more.
func (p *Proxy) pruneSealsLocked(machines map[volant.MachineID]bool, now time.Time) {
	for id, m := range p.seals {
		switch {
		case machines[id]:
			m.listed = now
			p.seals[id] = m
		case now.Sub(m.listed) > sealKept:
			delete(p.seals, id)
		}
	}
}

// Seal returns true if the machine holds no slot, and then gives it none until a Table with a newer Seq
// of it, or of a newer epoch, says that it serves. seq is that of the machine's Have.
func (p *Proxy) Seal(_ context.Context, id volant.MachineID, seq uint64) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.apps {
		if !a.seal(id) {
			return false, nil
		}
	}
	mark := sealMark{epoch: p.table.Epoch, seq: seq, listed: time.Now()}
	if old, ok := p.seals[id]; ok && old.epoch == mark.epoch {
		mark.seq = max(mark.seq, old.seq)
	}
	p.seals[id] = mark
	return true, nil
}

// Slots returns the slots held by each machine that holds any.
func (p *Proxy) Slots(context.Context) (map[volant.MachineID]int, error) {
	out := map[volant.MachineID]int{}
	for _, a := range p.allApps() {
		a.slotsByMachine(out)
	}
	return out, nil
}

// Query returns records of recent connections, refusals and wakes, newest first.
func (p *Proxy) Query(_ context.Context, q why.Query) ([]why.Record, error) {
	out := append(p.roads.query(q), p.reporter.notes.query(q)...)
	sortRecords(out)
	return out[:min(len(out), limit(q))], nil
}

func (p *Proxy) allApps() []*app {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]*app, 0, len(p.apps))
	for a := range maps.Values(p.apps) {
		out = append(out, a)
	}
	return out
}
