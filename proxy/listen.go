package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/why"
)

const (
	listenAgain = time.Second            // after an address could not be listened on
	acceptFirst = 5 * time.Millisecond   // after accept failed; doubles
	acceptMost  = 500 * time.Millisecond // at most
)

// listener accepts on one address.
type listener struct {
	addr   netip.AddrPort
	stop   func() error // nil while it is not open
	failed bool         // it could not be listened on, and that was said
}

func (p *Proxy) ringWanted() {
	select {
	case p.wanted <- struct{}{}:
	default:
	}
}

// serve keeps the listeners as the table wants them until ctx ends.
func (p *Proxy) serve(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	p.mu.Lock()
	p.serving = ctx
	p.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			p.closeListeners()
			return
		case <-p.wanted:
		case <-timer.C:
		}
		if p.adjust(ctx) {
			timer.Reset(listenAgain)
		}
	}
}

func (p *Proxy) closeListeners() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopping = true
	for ap, l := range p.listeners {
		p.closeListener(l)
		delete(p.listeners, ap)
	}
}

func (p *Proxy) closeListener(l *listener) {
	if l.stop == nil {
		return
	}
	if err := l.stop(); err != nil {
		p.log.Warn("listener did not close", "addr", l.addr, "err", err)
	}
}

// adjust opens and closes listeners; true if some address failed and is to be tried again.
func (p *Proxy) adjust(ctx context.Context) (again bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.adjustLocked(ctx)
}

func (p *Proxy) adjustLocked(ctx context.Context) (again bool) {
	routes := *p.routes.Load()
	for ap, l := range p.listeners {
		if routes[ap] == nil || p.stopping {
			p.closeListener(l)
			delete(p.listeners, ap)
		}
	}
	if p.stopping {
		return false
	}
	for ap, r := range routes {
		l := p.listeners[ap]
		if l == nil {
			l = &listener{addr: ap}
			p.listeners[ap] = l
		}
		if l.stop != nil {
			continue
		}
		if !p.openListener(ctx, l, r) {
			again = true
		}
	}
	return again
}

func (p *Proxy) openListener(ctx context.Context, l *listener, r *route) bool {
	listen := p.listenNet
	if p.fast {
		listen = p.listenLoops
	}
	stop, err := listen(ctx, l.addr)
	if err != nil {
		if !l.failed {
			l.failed = true
			p.log.Error("could not listen", "addr", l.addr, "app", r.name, "err", err)
			p.note(why.Record{
				Time: time.Now(), Kind: why.Refusal, Org: r.org, App: r.id, Rule: "listen",
				Text: "cannot listen on " + l.addr.String() + ": " + err.Error() + "; tried again every second",
			})
		}
		return false
	}
	l.stop, l.failed = stop, false
	return true
}

// listenNet accepts on a net.Listener.
func (p *Proxy) listenNet(ctx context.Context, addr netip.AddrPort) (stop func() error, err error) {
	n, err := p.cfg.Listen(ctx, addr)
	if err != nil {
		return nil, err
	}
	p.sessions.Go(func() { p.accept(ctx, addr, n) })
	return n.Close, nil
}

// listenLoops accepts on a socket which all loops share.
func (p *Proxy) listenLoops(_ context.Context, addr netip.AddrPort) (stop func() error, err error) {
	fd, err := sysListen(addr, p.route(addr).backhaul)
	if err != nil {
		return nil, err
	}
	left := atomic.Int32{}
	left.Store(int32(len(p.loops)))
	done := func() {
		if left.Add(-1) == 0 {
			sysClose(int32(fd))
		}
	}
	lls := make([]*loopListener, len(p.loops))
	for i, l := range p.loops {
		l.do(func(l *loop) {
			var err error
			if lls[i], err = l.listen(int32(fd), addr); err != nil {
				p.log.Error("could not accept", "addr", addr, "err", err)
			}
		})
	}
	return func() error {
		for i, l := range p.loops {
			ran := l.do(func(l *loop) {
				if lls[i] != nil {
					l.unlisten(lls[i])
				}
				done()
			})
			if !ran {
				done()
			}
		}
		return nil
	}, nil
}

// accept takes connections until the listener is closed. Want of files or memory only slows it down.
func (p *Proxy) accept(ctx context.Context, at netip.AddrPort, n net.Listener) {
	wait := time.Duration(0)
	for {
		c, err := n.Accept()
		if err == nil {
			wait = 0
			p.begin(ctx, at, c)
			continue
		}
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return
		}
		if errors.Is(err, syscall.ECONNABORTED) {
			continue
		}
		wait = min(max(2*wait, acceptFirst), acceptMost)
		p.log.Warn("accept failed", "addr", at, "err", err, "wait", wait)
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// begin starts the road of one connection.
func (p *Proxy) begin(ctx context.Context, at netip.AddrPort, c net.Conn) {
	switch r := p.route(at); {
	case r.backhaul:
		p.beginStream(ctx, at, c)
		return
	case r.port != nil:
		p.handle(ctx, at, c)
		return
	}
	d := newNetRoad(ctx, p, p.route(at), at, clientOf(c), &tcpCaller{conn: c})
	p.sessions.Go(func() {
		defer p.open.Add(-1)
		defer c.Close() //nolint:errcheck // closed before in every orderly end
		d.run()
	})
}

// route is where connections to an address and port go now.
func (p *Proxy) route(at netip.AddrPort) *route {
	if r := (*p.routes.Load())[at]; r != nil {
		return r
	}
	return &route{refusal: ruleNoRoute} // the table changed since the handshake
}

// prepare fills in what every new session has, and counts it as open.
func (p *Proxy) prepare(s *session, r *route, at, client netip.AddrPort, now time.Time) {
	p.open.Add(1)
	s.p, s.route, s.svc, s.region = p, r, r.svc, r.region
	s.peer = peerKey(client.Addr())
	s.road = road{id: p.lastID.Add(1), epoch: p.cfg.Epoch, start: now, route: r, client: client, local: at}
}

func unmapped(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// check bounds what a table may say.
func (t *Table) check() error {
	apps := map[appKey]bool{}
	for i := range t.Apps {
		a := &t.Apps[i]
		if k := (appKey{a.ID, a.Group}); a.ID == "" || apps[k] {
			return volant.Invalidf("table %d: group %q of app %q is listed twice, or the app has no ID", t.Version, a.Group, a.ID)
		} else {
			apps[k] = true
		}
		ids := map[volant.MachineID]bool{}
		for _, m := range a.Machines {
			if m.ID == "" || ids[m.ID] {
				return volant.Invalidf("table %d: machine %q of app %s is listed twice or has no ID", t.Version, m.ID, a.ID)
			}
			ids[m.ID] = true
		}
		for _, s := range a.Services {
			if s.InternalPort == 0 || s.Hard < 1 {
				return volant.Invalidf("table %d: service of app %s has internal port %d and hard limit %d", t.Version, a.ID, s.InternalPort, s.Hard)
			}
		}
	}
	return nil
}

// withDefaults returns a copy of t in which zero limits of queues have their defaults.
func (t Table) withDefaults() Table {
	t.Apps = slices.Clone(t.Apps)
	for i := range t.Apps {
		a := &t.Apps[i]
		if a.MaxQueue <= 0 {
			a.MaxQueue = 1024
		}
		if a.QueueTime <= 0 {
			a.QueueTime = volant.Duration(30 * time.Second)
		}
		if a.SpillRTT <= 0 {
			a.SpillRTT = volant.Duration(50 * time.Millisecond)
		}
		if a.MaxPerPeer <= 0 {
			a.MaxPerPeer = 64
		}
	}
	return t
}

func sortRecords(rs []why.Record) {
	slices.SortStableFunc(rs, func(x, y why.Record) int { return y.Time.Compare(x.Time) })
}

// listenTCP listens on an address which need not be on a link yet.
func listenTCP(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	lc := net.ListenConfig{
		KeepAliveConfig: keepAlive,
		Control: func(_, _ string, rc syscall.RawConn) error {
			var err error
			cerr := rc.Control(func(fd uintptr) { err = listenOptions(int(fd), addr.Addr().Is6()) })
			return errors.Join(cerr, err)
		},
	}
	lc.SetMultipathTCP(false)
	return lc.Listen(ctx, "tcp", addr.String())
}

func listenOptions(fd int, v6 bool) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	return freeBind(fd, v6)
}

// freeBind lets a socket have an address which is not on a link yet.
func freeBind(fd int, v6 bool) error {
	if v6 {
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
	}
	return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1)
}

// keepAlive finds dead peers on both sides: 60 s of silence, then 3 probes 10 s apart.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 10 * time.Second, Count: 3}

// dialMesh connects to another node from this one's mesh address.
func dialMesh(ctx context.Context, from netip.Addr, addr netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{
		KeepAliveConfig: meshKeepAlive, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)),
		Control: func(_, _ string, rc syscall.RawConn) error {
			return rc.Control(func(fd uintptr) { sysFastConnect(int32(fd)) })
		},
	}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, "tcp", addr.String())
}

// meshKeepAlive finds dead hosts and edges where the node itself still is there, or is not heard by others.
var meshKeepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}

func dialTCP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, "tcp", addr.String())
}
