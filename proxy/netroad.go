package proxy

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/volant-edge/volant/backhaul"
)

// netRoad drives a session over net.Conns, with a goroutine of its own: in tests, and where a side is
// not a plain socket.
type netRoad struct {
	session
	ctx      context.Context
	client   caller
	machine  net.Conn
	verdicts chan verdict
	dials    chan dialResult
	hang     context.CancelFunc // of the dial under way
	timer    *time.Timer
	watched  bool
	answers  chan callResult
	sent     int                // of the client's first bytes, with the request
	asked    *backhaul.Request  // of a stream
	lost     context.CancelFunc // ends a stream
	isLost   atomic.Bool
	data     <-chan struct{} // nil when the first byte was told
	gone     <-chan struct{}
	stop     <-chan struct{}
}

// caller is the client's side of a netRoad: a connection, or a request on one.
type caller interface {
	// watch returns what is closed when the client speaks first, and when it is gone. It is called once.
	watch() (data, gone <-chan struct{})
	// early returns what waits a moment for the first bytes that the client has for the machine, and gives them:
	// they are sent with a request to another node, and not again by relay.
	early(d *netRoad, most int) func() []byte
	// relay serves the client from the machine, until the machine's side has closed or, where linger is not nil,
	// until linger has returned.
	relay(d *netRoad) (up, down int64, how end, linger func())
	// refuse answers a client that got no machine; with farewell it is still there.
	refuse(d *netRoad, farewell bool)
}

type dialResult struct {
	conn net.Conn
	err  error
}

func newNetRoad(ctx context.Context, p *Proxy, r *route, at, from netip.AddrPort, client caller) *netRoad {
	d := &netRoad{ctx: ctx, client: client, verdicts: make(chan verdict, 1), answers: make(chan callResult), timer: time.NewTimer(time.Hour), stop: ctx.Done()}
	d.timer.Stop()
	d.drive = d
	p.prepare(&d.session, r, at, from, time.Now())
	return d
}

// run is the road's goroutine.
func (d *netRoad) run() {
	defer d.timer.Stop()
	if d.asked != nil {
		d.open(d.asked, time.Now())
	} else {
		d.begin(time.Now())
	}
	for d.state != stateOver {
		select {
		case v := <-d.verdicts:
			d.decided(v, time.Now())
		case r := <-d.dials:
			d.dials, d.machine = nil, r.conn
			d.hang()
			d.dialed(r.err, false, time.Now())
		case r := <-d.answers:
			d.answered(r)
		case <-d.data:
			d.data = nil
			d.spoke()
		case <-d.gone:
			d.gone = nil
			d.left(ruleClientGone, time.Now())
		case <-d.timer.C:
			d.alarmed(time.Now())
		case <-d.stop:
			d.stop = nil
			d.left(ruleStopping, time.Now())
		}
	}
}

func (d *netRoad) watch() {
	if !d.watched {
		d.watched = true
		d.data, d.gone = d.client.watch()
	}
}

func (d *netRoad) dial() {
	ctx, cancel := context.WithTimeout(d.ctx, dialTimeout(d.attempt))
	results, addr := make(chan dialResult, 1), d.seat.addr
	d.dials, d.hang = results, cancel
	if c := d.p.pool.take(d.seat); c != nil {
		results <- dialResult{conn: c}
		return
	}
	d.p.sessions.Go(func() {
		c, err := d.p.cfg.Dial(ctx, addr)
		results <- dialResult{c, err}
	})
}

func (d *netRoad) hangUp() bool {
	d.hang()
	results, a, st := d.dials, d.route.app, d.seat
	d.dials = nil
	st.probing = false // another may try
	d.p.sessions.Go(func() {
		if r := <-results; r.conn != nil {
			if d.isLost.Load() {
				abort(r.conn)
				a.releaseLate(st)
				return
			}
			letGo(r.conn)
		}
		a.release(st)
	})
	return false
}

func (d *netRoad) alarm(at time.Time) { d.timer.Reset(max(time.Until(at), 0)) }

func (d *netRoad) relay() {
	up, down, how, linger := d.client.relay(d)
	if d.isLost.Load() {
		how = endEdgeLost
	}
	if d.isLost.Load() {
		d.route.app.releaseLate(d.seat)
	} else if linger == nil {
		d.freed()
	} else {
		a, st := d.route.app, d.seat
		d.p.sessions.Go(func() {
			linger()
			a.release(st)
		})
	}
	d.ended(how, up, down, time.Now())
}

func (d *netRoad) refuse(farewell bool) { d.client.refuse(d, farewell) }

func (d *netRoad) post(v verdict) { d.verdicts <- v }

func clientOf(c net.Conn) netip.AddrPort {
	if t, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return unmapped(t.AddrPort())
	}
	ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.AddrPort{}
	}
	return ap
}

// tcpCaller is a client's connection whose bytes go to the machine as they are.
type tcpCaller struct {
	conn    net.Conn
	head    []byte // goes to the machine first
	watcher *watcher
}

func (g *tcpCaller) watch() (data, gone <-chan struct{}) {
	g.watcher = watch(g.conn)
	return g.watcher.data, g.watcher.gone
}

func (g *tcpCaller) early(d *netRoad, most int) func() []byte {
	d.watch()
	return func() []byte {
		t := time.NewTimer(earlyWithin)
		defer t.Stop()
		select {
		case <-g.watcher.data:
		case <-g.watcher.gone:
		case <-t.C:
		}
		b := append(slices.Clip(g.head), g.watcher.sofar()...)
		return b[:min(len(b), most)]
	}
}

func (g *tcpCaller) unwatch() early {
	if g.watcher == nil {
		return early{}
	}
	return g.watcher.stop()
}

func (g *tcpCaller) relay(d *netRoad) (up, down int64, how end, linger func()) {
	e := g.unwatch()
	e.data = append(slices.Clip(g.head), e.data...)[d.sent:]
	up, down, how = relay(d.ctx, g.conn, d.machine, d.seat.life.over, e)
	if how == endGuestGone && d.seat.node != nil {
		how = endHostLost
	}
	return up + int64(d.sent), down, how, nil
}

func (g *tcpCaller) refuse(d *netRoad, farewell bool) {
	g.unwatch()
	if farewell {
		sayFarewell(d.ctx, g.conn)
	}
}
