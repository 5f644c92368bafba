package proxy

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// netRoad drives a session over net.Conns, with a goroutine of its own: in tests, and where a side is
// not a plain socket.
type netRoad struct {
	session
	ctx      context.Context
	client   net.Conn
	machine  net.Conn
	verdicts chan verdict
	dials    chan dialResult
	hang     context.CancelFunc // of the dial under way
	timer    *time.Timer
	watcher  *watcher
	data     <-chan struct{} // nil when the first byte was told
	gone     <-chan struct{}
	stop     <-chan struct{}
}

type dialResult struct {
	conn net.Conn
	err  error
}

func newNetRoad(ctx context.Context, p *Proxy, at netip.AddrPort, c net.Conn) *netRoad {
	d := &netRoad{ctx: ctx, client: c, verdicts: make(chan verdict, 1), timer: time.NewTimer(time.Hour), stop: ctx.Done()}
	d.timer.Stop()
	d.drive = d
	p.prepare(&d.session, at, clientOf(c), time.Now())
	return d
}

// run is the road's goroutine.
func (d *netRoad) run() {
	defer d.client.Close() //nolint:errcheck // closed before in every orderly end
	defer d.timer.Stop()
	d.begin(time.Now())
	for d.state != stateOver {
		select {
		case v := <-d.verdicts:
			d.decided(v, time.Now())
		case r := <-d.dials:
			d.dials, d.machine = nil, r.conn
			d.hang()
			d.dialed(r.err, false, time.Now())
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
	if d.watcher == nil {
		d.watcher = watch(d.client)
		d.data, d.gone = d.watcher.data, d.watcher.gone
	}
}

func (d *netRoad) unwatch() early {
	if d.watcher == nil {
		return early{}
	}
	return d.watcher.stop()
}

func (d *netRoad) dial() {
	ctx, cancel := context.WithTimeout(d.ctx, dialTimeout(d.attempt))
	results, addr := make(chan dialResult, 1), d.seat.addr
	d.dials, d.hang = results, cancel
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
			letGo(r.conn)
		}
		a.release(st)
	})
	return false
}

func (d *netRoad) alarm(at time.Time) { d.timer.Reset(max(time.Until(at), 0)) }

func (d *netRoad) relay() {
	up, down, how := relay(d.ctx, d.client, d.machine, d.seat.life.over, d.unwatch())
	d.freed()
	d.ended(how, up, down, time.Now())
}

func (d *netRoad) refuse(farewell bool) {
	d.unwatch()
	if farewell {
		sayFarewell(d.ctx, d.client)
	}
}

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
