package proxy

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// session is the road of one client's connection.
type session struct {
	waiter
	p      *Proxy
	route  *route
	client net.Conn
	road   road
	watch  *watcher // while it waits; nil before
}

// run leads the connection to a machine, or refuses it.
func (s *session) run(ctx context.Context) {
	defer s.client.Close() //nolint:errcheck // closed before in every orderly end
	if s.route.refusal != ruleNone {
		s.refuse(ctx, s.route.refusal)
		return
	}
	a := s.route.app
	verdicts := make(chan verdict, 1)
	s.deliver = func(v verdict) { verdicts <- v }
	s.quiet = s.route.onData
	deadline := s.road.start.Add(s.route.queueTime)
	var tried *place
	v := a.enter(&s.waiter)
	for attempt := 0; ; attempt++ {
		if v.waits() {
			v = s.wait(ctx, verdicts, deadline, tried != nil)
		}
		if v.refusal != ruleNone {
			s.refuse(ctx, v.refusal)
			return
		}
		if v.seat.place == tried && !s.pause(ctx) {
			a.release(v.seat)
			s.gone(ctx)
			return
		}
		tried = v.seat.place
		machine, err := s.dial(ctx, v.seat, attempt)
		if err == nil {
			s.connected(ctx, v.seat, machine)
			return
		}
		if s.clientGone() || ctx.Err() != nil {
			a.release(v.seat)
			s.gone(ctx)
			return
		}
		s.road.tries++
		v = a.failed(v.seat, &s.waiter, err)
	}
}

// connected takes over when the machine has accepted.
func (s *session) connected(ctx context.Context, st seat, machine net.Conn) {
	a := s.route.app
	if st.probing {
		a.opened(st)
	}
	s.road.placed(st, time.Now())
	s.p.roads.put(&s.road)
	early := s.unwatch()
	up, down, how := relay(ctx, s.client, machine, early)
	a.release(st)
	s.road.over(how, up, down, time.Now())
	s.p.roads.put(&s.road)
}

// wait waits in the queue for a verdict, the client's end, its first byte, or the end of its time.
func (s *session) wait(ctx context.Context, verdicts <-chan verdict, deadline time.Time, failed bool) verdict {
	a := s.route.app
	w := s.watched()
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	data := w.data
	for {
		r := ruleNone
		select {
		case v := <-verdicts:
			return v
		case <-data:
			data = nil
			a.speak(&s.waiter)
			continue
		case <-w.gone:
			r = ruleClientGone
		case <-ctx.Done():
			r = ruleStopping
		case <-timer.C:
			if more := a.extension(&s.waiter, time.Now()); more > 0 {
				timer.Reset(more)
				continue
			}
			r = ruleQueueTime
			if failed {
				r = ruleConnectTime
			} else if s.quiet {
				r = ruleNoData
			}
		}
		if a.quit(&s.waiter, r != ruleClientGone) {
			return verdict{refusal: r}
		}
		v := <-verdicts // it came first
		if r != ruleClientGone || v.refusal != ruleNone {
			return v
		}
		a.release(v.seat)
		return verdict{refusal: r}
	}
}

// pause waits until the next probe; false if the client is gone.
func (s *session) pause(ctx context.Context) bool {
	t := time.NewTimer(probeEvery)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.watched().gone:
	case <-ctx.Done():
	}
	return false
}

func (s *session) dial(ctx context.Context, st seat, attempt int) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout(attempt))
	defer cancel()
	if s.watch != nil {
		defer context.AfterFunc(s.watch.ctx, cancel)()
	}
	return s.p.cfg.Dial(ctx, st.addr)
}

func (s *session) clientGone() bool {
	if s.watch == nil {
		return false
	}
	select {
	case <-s.watch.gone:
		return true
	default:
		return false
	}
}

func (s *session) gone(ctx context.Context) {
	if ctx.Err() != nil {
		s.refuse(ctx, ruleStopping)
		return
	}
	s.refuse(ctx, ruleClientGone)
}

// refuse closes the connection with FIN and leaves a record which says why.
func (s *session) refuse(ctx context.Context, r rule) {
	s.road.refused(r, time.Now())
	s.p.roads.put(&s.road)
	s.p.noteRefusal(s)
	s.unwatch()
	if r == ruleClientGone {
		return
	}
	farewell(ctx, s.client)
}

// watched begins to watch the client, for its first byte and its end.
func (s *session) watched() *watcher {
	if s.watch == nil {
		s.watch = watch(s.client)
	}
	return s.watch
}

// unwatch ends that and returns what was read.
func (s *session) unwatch() early {
	if s.watch == nil {
		return early{}
	}
	e := s.watch.stop()
	s.watch = nil
	return e
}

func clientOf(c net.Conn) netip.AddrPort {
	if t, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.AddrPort{}
	}
	return ap
}
