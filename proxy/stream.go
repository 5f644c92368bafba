package proxy

import (
	"context"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/backhaul"
)

// stream is a connection that the proxy of another node, where its client entered, has led here. It is an ordinary
// session whose client is the socket of the backhaul, and which is told by an answer what became of it.
type stream struct {
	node   *node
	number uint64
	drive  interface{ lose() } // end it, from anywhere, since its edge is lost
	lost   bool                // it was; of a flow's

	// Until it is known that the edge hears this connection, what was sent on it is kept for another of the same
	// stream; and of that other one, skip bytes were read from the first. Of a flow's.
	unheard bool
	kept    []byte
	skip    int

	// Of another connection of the same stream: whose it may become, and when.
	first       *flow
	heard       bool
	next, until time.Time
}

func (s *stream) lose() { s.drive.lose() }

// lostGrace is how long the slots of a lost edge stay held after their connections were reset: an app hears of a reset
// and of the next connection by two ways, and is not to count both.
const lostGrace = 100 * time.Millisecond

// releaseLate gives a slot back whose connection was reset a moment ago.
func (a *app) releaseLate(st seat) {
	time.AfterFunc(lostGrace, func() { a.release(st) })
}

// requestTime is how long an edge may take for its request.
const requestTime = 5 * time.Second

// peerAt is the node that may open streams from an address; nil if none may.
func (p *Proxy) peerAt(a netip.Addr) *node { return p.peering.Load().byAddr[a.Unmap()] }

// admit says whether a request is to be acted on, and then keeps its stream.
func (s *stream) admit(req *backhaul.Request) backhaul.Code {
	n := s.node
	if !n.heard(req.EdgeEpoch) || req.HostEpoch != 0 && req.HostEpoch != n.p.cfg.Epoch {
		return backhaul.WrongEpoch
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.epoch != req.EdgeEpoch:
		return backhaul.WrongEpoch
	case !n.seen.take(req.Stream):
		return backhaul.Seen
	}
	s.number = req.Stream
	n.streams[s.number] = s
	return backhaul.OK
}

// streamOf is the stream that was opened by an earlier frame of a request; nil if it is over.
func (n *node) streamOf(req *backhaul.Request) *stream {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.epoch != req.EdgeEpoch {
		return nil
	}
	return n.streams[req.Stream]
}

// over forgets the stream.
func (s *stream) over() {
	s.node.mu.Lock()
	defer s.node.mu.Unlock()
	if s.node.streams[s.number] == s {
		delete(s.node.streams, s.number)
	}
}

// open begins the road of a stream by its request.
func (s *session) open(req *backhaul.Request, now time.Time) {
	if code := s.stream.admit(req); code != backhaul.OK {
		if code == backhaul.Seen && s.drive.replace(s.stream.node.streamOf(req)) {
			return
		}
		s.turnAway(code, ruleNone)
		return
	}
	r := s.p.peering.Load().routes[hereKey{req.App, req.Group, req.Port}]
	if r == nil || r.svc == nil {
		s.turnAway(backhaul.Gone, ruleNoRoute)
		return
	}
	s.route, s.svc, s.region, s.from = r, r.svc, volant.Region(req.Region.String()), s.stream.node
	s.road = road{
		id: s.p.lastID.Add(1), epoch: s.p.cfg.Epoch, start: now, route: r, client: req.Client, local: req.Local,
		node: s.stream.node, came: true,
	}
	s.quiet, s.now = req.Quiet, req.Wait == 0
	if req.Machine != (backhaul.Machine{}) {
		s.wish = &wish{only: req.Machine.ID()}
	}
	s.deliver, s.deadline = s.drive.post, now.Add(req.Wait)
	s.decided(r.app.enter(&s.waiter), now)
}

// turnAway answers a stream that gets no machine, and ends it.
func (s *session) turnAway(code backhaul.Code, r rule) {
	s.state = stateOver
	s.stream.over()
	if r != ruleClientGone {
		ans := backhaul.Answer{Code: code, Rule: uint8(r), Epoch: s.p.cfg.Epoch}
		if s.route != nil && s.route.app != nil {
			s.route.app.answer(&ans, s.svc, s.wish)
		}
		s.drive.answer(&ans)
	}
	s.drive.refuse(r != ruleClientGone)
}

// codeOf is how a refusal is said to the edge.
func codeOf(r rule) backhaul.Code {
	switch r {
	case ruleBusy:
		return backhaul.Busy
	case ruleNoMachine, ruleNoInstance, ruleAppGone:
		return backhaul.Gone
	default:
		return backhaul.Refused
	}
}

// answer fills in what a refusal says of slots: of the one machine that was asked for, or of none by name.
func (a *app) answer(ans *backhaul.Answer, s *service, w *wish) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ans.Seq = a.p.slotSeq.Load()
	if w == nil {
		return
	}
	if pl := s.byID[w.only]; pl != nil {
		ans.Machine, _ = backhaul.MachineOf(pl.m.id)
		ans.Slots, ans.Seq = uint32(pl.used), pl.seq
	}
}

// accepted tells the edge that its stream has a machine.
func (s *session) accepted() {
	ans := backhaul.Answer{Code: backhaul.OK, Rule: uint8(s.seat.rule), Epoch: s.p.cfg.Epoch}
	ans.Machine, _ = backhaul.MachineOf(s.seat.place.m.id)
	a := s.route.app
	a.mu.Lock()
	ans.Slots, ans.Seq = uint32(s.seat.place.used), s.seat.place.seq
	a.mu.Unlock()
	s.drive.answer(&ans)
}

// beginStream starts the road of a stream that comes by a net.Conn.
func (p *Proxy) beginStream(ctx context.Context, at netip.AddrPort, c net.Conn) {
	n := p.peerAt(clientOf(c).Addr())
	if n == nil {
		abort(c)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	d := newNetRoad(ctx, p, &route{name: "backhaul", refusal: ruleNoRoute}, at, clientOf(c), &tcpCaller{conn: c})
	d.lost = cancel
	d.stream = &stream{node: n, drive: d}
	p.sessions.Go(func() {
		defer p.open.Add(-1)
		defer c.Close() //nolint:errcheck // closed before in every orderly end
		defer cancel()
		req, err := readRequest(ctx, c)
		if err != nil {
			d.stream.over()
			abort(c)
			return
		}
		d.asked = &req
		d.run()
	})
}

// readRequest reads exactly the frame of a request.
func readRequest(ctx context.Context, c net.Conn) (req backhaul.Request, err error) {
	defer context.AfterFunc(ctx, func() { abort(c) })()
	c.SetReadDeadline(time.Now().Add(requestTime)) //nolint:errcheck // then a read fails at once
	var b [backhaul.RequestMost]byte
	if _, err := io.ReadFull(c, b[:backhaul.RequestHead]); err != nil {
		return req, err
	}
	n, err := backhaul.RequestLen(b[:backhaul.RequestHead])
	if err != nil {
		return req, err
	}
	if _, err := io.ReadFull(c, b[backhaul.RequestHead:n]); err != nil {
		return req, err
	}
	c.SetReadDeadline(time.Time{}) //nolint:errcheck // the same
	_, err = backhaul.ParseRequest(b[:n], &req)
	return req, err
}
