package proxy

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/backhaul"
)

// Times of a request to another node.
const (
	earlyWithin  = 2 * time.Millisecond // for the client's first bytes, which go with it
	hedgeFirst   = 60 * time.Millisecond
	answerWithin = time.Second // for the host to acknowledge it, and to answer one that does not wait
	askAgain     = 100 * time.Millisecond
	askMost      = 2 * time.Second
	askLook      = 250 * time.Millisecond // while no other node is better than this one
	busyFirst    = 50 * time.Millisecond
	busyMost     = time.Second
	goneFor      = time.Second
)

// busiesMost is how many hosts may say that they have no slot before a connection waits at one.
const busiesMost = 3

// hedge is how long the handshake with a node may take before a second is begun.
func (n *node) hedge() time.Duration {
	return max(hedgeFirst, 3*time.Duration(n.rtt.Load()))
}

var (
	errNoAnswer = errors.New("no answer in time")
	errHostLost = errors.New("it was not heard any more")
)

// call is a request to a host that is under way, or was granted.
type call struct {
	node   *node
	req    backhaul.Request
	life   *life // of the host's proxy
	began  time.Time
	again  bool             // it was sent before, to an earlier boot or with a number that was taken
	answer *backhaul.Answer // OK, of one that waits and is not needed yet

	line // what the session's driver has of it
}

// abroad is what a session has that goes to other nodes.
type abroad struct {
	call    *call // for the seat, while dialing
	ask     *call // that waits at a host, besides the queue here
	busies  int
	next    time.Time     // not to ask before
	backoff time.Duration // between asks
	said    rule          // by the last host that was asked and refused
}

// far is what goes to other nodes.
func (s *session) far() *abroad {
	if s.abroad == nil {
		s.abroad = &abroad{}
	}
	return s.abroad
}

// newCall is a request of this session to a node.
func (s *session) newCall(n *node, wait time.Duration, m volant.MachineID) *call {
	epoch, life := n.now()
	c := &call{node: n, life: life, began: time.Now(), req: backhaul.Request{
		EdgeEpoch: s.p.cfg.Epoch, Stream: n.stream.Add(1), HostEpoch: epoch, Port: s.svc.port, Wait: wait,
		Quiet: s.quiet, Retry: s.far().busies > 0, Client: s.road.client, Local: s.road.local,
	}}
	c.req.App, _ = backhaul.AppOf(s.route.id)         // another form of ID, as in tests, is known to no host
	c.req.Group, _ = backhaul.NameOf(s.svc.app.group) // bounded where groups are made
	c.req.Region, _ = backhaul.NameOf(s.region)       // the same
	c.req.Machine, _ = backhaul.MachineOf(m)          // the same
	return c
}

// reachOut asks the host of the seat's machine for its slot. Any of the host's machines will do, unless the
// client named one.
func (s *session) reachOut() {
	var m volant.MachineID
	if s.wish != nil {
		m = s.seat.place.m.id
	}
	s.far().call = s.newCall(s.seat.node, 0, m)
	s.drive.call(s.abroad.call)
}

// called tells how a request ended: by an answer, or by an error when the host could not be reached. An answer OK
// means that the driver has a connection; it is dropped or adopted next.
func (s *session) called(c *call, ans *backhaul.Answer, err error, now time.Time) {
	switch {
	case ans != nil:
		c.node.answered(now)
		c.node.heard(ans.Epoch)
	case !ownFault(err) && c.node.heardAt.Load() < c.began.UnixNano(): // else it is this one that was lost
		c.node.avoid(err)
	}
	if ans != nil && (ans.Code == backhaul.WrongEpoch || ans.Code == backhaul.Seen) && !c.again {
		s.callAgain(c)
		return
	}
	if ans != nil && ans.Code == backhaul.OtherVersion {
		c.node.avoid(errors.New("it speaks another version of the backhaul"))
	}
	if c == s.abroad.ask {
		s.asked(c, ans, now)
		return
	}
	s.abroad.call = nil
	a := s.route.app
	if ans != nil && ans.Code == backhaul.OK {
		s.seat.life = c.life
		a.placedAt(&s.seat, &s.waiter, ans)
		s.throughTo(c, now)
		return
	}
	s.road.tries++
	if ans != nil {
		s.abroad.busies++
	}
	s.tried = nil
	if now.After(s.deadline) {
		a.release(s.seat)
		s.refuse(s.overdue(), now)
		return
	}
	s.decided(a.turned(s.seat, &s.waiter, ans, s.abroad.busies), now)
}

// callAgain sends a request again, with what the first answer has taught.
func (s *session) callAgain(c *call) {
	next := s.newCall(c.node, c.req.Wait, c.req.Machine.ID())
	next.again = true
	if c == s.abroad.ask {
		s.abroad.ask = next
	} else {
		s.abroad.call = next
	}
	s.drive.call(next)
}

// throughTo relays by a granted call.
func (s *session) throughTo(c *call, now time.Time) {
	if s.abroad.ask == c {
		s.abroad.ask = nil
		c.node.asks.Add(-1)
	}
	s.drive.adopt(c)
	s.reached(now)
}

// consult asks the best host for a slot that becomes free or a machine that wakes there, while the connection also
// waits here. It says when it is to be called again; the zero time for never.
func (s *session) consult(now time.Time) time.Time {
	if s.quiet || s.from != nil || !now.Before(s.deadline) || s.abroad != nil && s.abroad.ask != nil {
		return time.Time{}
	}
	if s.abroad != nil && now.Before(s.abroad.next) {
		return s.abroad.next
	}
	n, others := s.route.app.hostToAsk(&s.waiter)
	if n == nil {
		if !others {
			return time.Time{}
		}
		return now.Add(askLook)
	}
	var m volant.MachineID
	if s.wish != nil {
		m = s.wish.only
	}
	s.far().ask = s.newCall(n, max(s.deadline.Sub(now), time.Millisecond), m)
	n.asks.Add(1)
	s.drive.call(s.abroad.ask)
	return time.Time{}
}

// asked tells how a request that waits ended.
func (s *session) asked(c *call, ans *backhaul.Answer, now time.Time) {
	r := s.abroad
	if ans != nil && ans.Code == backhaul.OK {
		granted := *ans
		c.answer = &granted
		if s.state == stateWaiting && s.route.app.quit(&s.waiter, false) {
			s.useAsk(now)
		}
		return // else the seat's own road ends first, or a verdict is on the way
	}
	s.dropAsk(false)
	r.backoff = min(max(2*r.backoff, askAgain), askMost)
	r.next = now
	if ans != nil { // who does not answer is left out: another may be asked at once
		r.next = now.Add(r.backoff)
		if ans.Code == backhaul.Refused && int(ans.Rule) < len(ruleNames) {
			r.said = rule(ans.Rule)
		}
	}
	if s.state == stateWaiting {
		s.await(now)
	}
}

// useAsk goes by the slot that a host has granted while the connection waited. It is in no queue.
func (s *session) useAsk(now time.Time) {
	c := s.abroad.ask
	s.seat = s.route.app.seatAt(c, &s.waiter)
	s.throughTo(c, now)
}

// dropAsk gives up to wait at another node; with hangUp it is told.
func (s *session) dropAsk(hangUp bool) {
	if s.abroad == nil || s.abroad.ask == nil {
		return
	}
	c := s.abroad.ask
	s.abroad.ask = nil
	c.node.asks.Add(-1)
	if hangUp {
		s.drive.drop(c)
	}
}

// dropCall gives up the request for the seat; true if there was one.
func (s *session) dropCall() bool {
	if s.abroad == nil || s.abroad.call == nil {
		return false
	}
	c := s.abroad.call
	s.abroad.call = nil
	s.drive.drop(c)
	return true
}

// await waits in the queue, and where it is better at another node as well.
func (s *session) await(now time.Time) {
	s.state = stateWaiting
	at := s.deadline
	if next := s.consult(now); !next.IsZero() && next.Before(at) {
		at = next
	}
	s.drive.alarm(at)
}

// answerLate is how long after its time an answer of a host may come for which a connection waits: its machine is
// within the time its app has for its first accept.
func (s *session) answerLate(now time.Time) time.Duration {
	if s.abroad == nil || s.abroad.ask == nil {
		return 0
	}
	return s.deadline.Add(coldWithin).Sub(now)
}

// hostToAsk is the node at which w waits best besides here, nil for none; others says whether that may change.
func (a *app) hostToAsk(w *waiter) (n *node, others bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.present || w.svc.retired || w.svc.here == len(w.svc.places) {
		return nil, false
	}
	if m := a.bestToAsk(w.svc, w); m != nil {
		return m.node, true
	}
	return nil, true
}

// turned gives back a seat that its host did not grant, and says where the connection goes instead: to another
// machine, or into the queue.
func (a *app) turned(st seat, w *waiter, ans *backhaul.Answer, busies int) verdict {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := st.place.svc
	a.free(st)
	if ans != nil {
		a.busy(st, w, ans)
	}
	v := a.goElsewhere(w, busies < busiesMost)
	a.grant(s)
	return v
}

// goElsewhere looks for another seat for w if it may, else w waits; a.mu is held.
func (a *app) goElsewhere(w *waiter, more bool) verdict {
	s := w.svc
	if !a.present || s.retired {
		a.refused++
		return verdict{refusal: ruleAppGone}
	}
	if more {
		if c := s.choose(w); c.index >= 0 {
			return verdict{seat: a.seat(c, s.places[c.index], w)}
		}
	}
	if w.arrival == 0 {
		if r := a.mayWait(w); r != ruleNone {
			a.refused++
			return verdict{refusal: r}
		}
		a.arrivals++
		w.arrival = a.arrivals
	}
	a.enqueue(w)
	return verdict{}
}

// busy leaves out for a moment what a host has said to have no slot: the machine that was asked for, or all it has
// of the service; a.mu is held.
func (a *app) busy(st seat, w *waiter, ans *backhaul.Answer) {
	wait := time.Duration(0)
	if ans.Code == backhaul.Gone {
		wait = goneFor
	}
	for _, pl := range st.place.svc.places {
		switch {
		case pl.m.node != st.node || w.wish != nil && pl != st.place:
		case pl == st.place && ans.Machine != (backhaul.Machine{}) && pl.tell(int32(min(ans.Slots, slotsMost)), version(ans)):
			pl.rest(wait)
		default:
			if pl.told.Before(version(ans)) {
				pl.told = version(ans) // what was told before is no reason to try again
			}
			pl.rest(wait)
		}
	}
}

// rest leaves the place out for a moment; a.mu is held.
func (pl *place) rest(wait time.Duration) {
	if pl.mood&busy != 0 || pl.index < 0 {
		return
	}
	pl.backoff = min(max(2*pl.backoff, busyFirst), busyMost)
	pl.setMood(pl.mood | busy)
	a := pl.svc.app
	pl.again = time.AfterFunc(max(wait, pl.backoff), func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		pl.rested()
		if !pl.svc.retired {
			a.grant(pl.svc)
		}
	})
}

// rested takes the place in again; a.mu is held.
func (pl *place) rested() {
	if pl.mood&busy != 0 {
		pl.mend(pl.mood &^ busy)
	}
}

// placedAt notes that a seat was granted, maybe at another machine of the same host.
func (a *app) placedAt(st *seat, w *waiter, ans *backhaul.Answer) {
	a.mu.Lock()
	if id := ans.Machine.ID(); id != "" && id != st.place.m.id {
		pl := a.placeOf(st.node, id, w)
		life := st.life
		a.free(*st)
		*st = a.seat(choice{rule: st.rule, far: st.far}, pl, w)
		st.life = life
	}
	a.mu.Unlock()
	a.grantedBy(st, ans)
}

// placeOf is the place of a machine that a host has named; a.mu is held.
func (a *app) placeOf(n *node, id volant.MachineID, w *waiter) *place {
	m := a.machines[id]
	if m == nil {
		m = &machine{id: id, node: n, life: newLife(0), leave: make(chan struct{})} // the table will have it
		a.machines[id] = m
	}
	return w.svc.place(m)
}

// seatAt is the seat of a slot that a host has granted to a request which waited.
func (a *app) seatAt(c *call, w *waiter) seat {
	a.mu.Lock()
	pl := a.placeOf(c.node, c.answer.Machine.ID(), w)
	st := a.seat(choice{rule: ruleWaited}, pl, w)
	st.life = c.life
	a.mu.Unlock()
	a.grantedBy(&st, c.answer)
	return st
}

// greet sees whether a node answers.
func (p *Proxy) greet(ctx context.Context, n *node) error {
	c := &call{node: n, req: backhaul.Request{EdgeEpoch: p.cfg.Epoch, Stream: n.stream.Add(1)}}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	conn, ans, err := p.oneCall(ctx, c, nil, func(net.Conn) {})
	if err != nil {
		return err
	}
	abort(conn)
	n.heard(ans.Epoch)
	if ans.Code == backhaul.OtherVersion {
		return errors.New("it speaks another version of the backhaul")
	}
	return nil
}
