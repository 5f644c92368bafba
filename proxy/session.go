package proxy

import (
	"time"

	"github.com/volant-edge/volant/backhaul"
)

// session is the road of one client's connection to its machine. It is a state machine that its driver
// moves: one call at a time, and none of them blocks.
type session struct {
	waiter
	p     *Proxy
	route *route
	drive driver
	road  road

	state    state
	seat     seat      // held while pausing, dialing and relaying
	deadline time.Time // of the queue
	tried    *place    // the last one that did not accept
	attempt  int
	stream   *stream                  // of the other node where the client entered, if that is not this one
	abroad   *abroad                  // nil as long as nothing goes to other nodes
	counted  struct{ up, down int64 } // bytes
	leaving  rule                     // refuse as soon as the verdict that is on its way has come
}

// driver does for a session what depends on the kind of its connections.
type driver interface {
	watch() // tell spoke and left from now on
	dial()  // connect to seat.addr, then tell dialed; dialTimeout bounds it
	// hangUp gives the dial up. It returns false if the machine may have the connection already: then the
	// driver gives the slot back itself, when the machine's side has closed.
	hangUp() (free bool)
	alarm(at time.Time)   // tell alarmed then; there is one alarm
	relay()               // both sides are there; tell ended when the machine's side has closed
	refuse(farewell bool) // close the client with FIN, after a farewell or at once
	post(v verdict)       // tell decided soon; called from anywhere

	call(c *call)                // send a request to a host, then tell called; never before it returns
	drop(c *call)                // give a request up, or what was granted by it
	adopt(c *call)               // make what was granted the machine's side
	answer(ans *backhaul.Answer) // tell the edge of a stream
	replace(s *stream) bool      // give this connection to a stream whose own the edge may not hear; false if that cannot be
}

// state of a session.
type state uint8

const (
	stateNew    state = iota
	stateHello        // of a stream: its request has not come yet
	stateSecond       // of another connection of a stream: it is not known whether that needs it
	stateWaiting
	statePausing // has a seat whose app did not accept a moment ago
	stateDialing
	stateRelaying
	stateOver
)

// begin starts the road.
func (s *session) begin(now time.Time) {
	if s.route.refusal != ruleNone {
		s.refuse(s.route.refusal, now)
		return
	}
	s.deliver = s.drive.post
	s.quiet = s.route.onData
	s.deadline = now.Add(s.route.queueTime)
	s.decided(s.route.app.enter(&s.waiter), now)
}

// decided takes the app's verdict.
func (s *session) decided(v verdict, now time.Time) {
	if s.decidedElsewhere(v, now) {
		return
	}
	switch {
	case v.waits():
		s.await(now)
		s.drive.watch() // may end the session
	case v.refusal != ruleNone:
		s.refuse(v.refusal, now)
	case s.leaving != ruleNone:
		s.route.app.release(v.seat)
		s.refuse(s.leaving, now)
	case v.seat.place == s.tried && v.seat.node == nil:
		s.seat, s.state = v.seat, statePausing
		s.drive.alarm(now.Add(probeEvery))
		s.drive.watch()
	default:
		s.seat, s.attempt = v.seat, 0
		s.dial()
	}
}

// decidedElsewhere goes by the slot that a host has granted to a request which waited there, if one has: then it is
// no matter what the verdict here is.
func (s *session) decidedElsewhere(v verdict, now time.Time) bool {
	if s.abroad == nil || s.abroad.ask == nil || s.abroad.ask.answer == nil || s.leaving != ruleNone {
		return false
	}
	switch a := s.route.app; {
	case v.seat.place != nil:
		a.release(v.seat)
	case v.waits() && !a.quit(&s.waiter, false):
		return false // another verdict is on the way
	}
	s.useAsk(now)
	return true
}

func (s *session) dial() {
	s.state, s.tried = stateDialing, s.seat.place
	if s.seat.node != nil {
		s.reachOut()
		return
	}
	s.drive.dial()
}

// reached begins to relay: the machine has the connection.
func (s *session) reached(now time.Time) {
	a := s.route.app
	s.state = stateRelaying
	s.dropAsk(true)
	a.counts.served.Add(1)
	s.road.placed(s.seat, now)
	a.counts.connect.add(s.road.waited)
	s.p.roads.put(&s.road)
	if s.stream != nil {
		s.accepted()
	}
	s.drive.relay()
}

// dialed tells how a dial ended. held says of a failed one that the slot is not free yet, as with hangUp.
func (s *session) dialed(err error, held bool, now time.Time) {
	a := s.route.app
	if err == nil {
		if s.seat.life.isOver() {
			a.reborn(&s.seat)
		}
		if s.seat.probing {
			a.opened(&s.seat)
		}
		s.reached(now)
		return
	}
	s.attempt++
	s.road.tries++
	if ownFault(err) && now.After(s.deadline) {
		if !held {
			a.release(s.seat)
		}
		s.refuse(ruleNoFiles, now)
		return
	}
	s.decided(a.failed(s.seat, &s.waiter, err, held), now)
}

// spoke tells that the client sent its first byte.
func (s *session) spoke() {
	if s.quiet {
		s.route.app.speak(&s.waiter)
		if s.state == stateWaiting {
			s.await(time.Now())
		}
	}
}

// left tells that the client is gone, or with ruleStopping that the proxy stops.
func (s *session) left(r rule, now time.Time) {
	a := s.route.app
	switch s.state {
	case stateWaiting:
		if !a.quit(&s.waiter, r != ruleClientGone) {
			s.leaving = r // its verdict is on the way
			return
		}
	case stateDialing:
		if s.dropCall() || s.drive.hangUp() {
			a.release(s.seat)
		} else {
			a.yield(s.seat)
		}
	case statePausing:
		a.release(s.seat)
	default:
		return
	}
	s.refuse(r, now)
}

// alarmed tells that the time of the alarm has come.
func (s *session) alarmed(now time.Time) {
	a := s.route.app
	switch s.state {
	case stateHello:
		s.turnAway(backhaul.Refused, ruleClientGone)
	case statePausing:
		s.dial()
	case stateWaiting:
		if now.Before(s.deadline) {
			s.await(now)
			return
		}
		if more := s.answerLate(now); more > 0 {
			s.drive.alarm(now.Add(more))
			return
		}
		if more := a.extension(&s.waiter, now); more > 0 {
			s.drive.alarm(now.Add(more))
			return
		}
		if a.quit(&s.waiter, true) {
			s.refuse(s.overdue(), now)
		}
	default:
	}
}

// overdue names the rule by which a wait in the queue ended.
func (s *session) overdue() rule {
	switch {
	case s.abroad != nil && s.abroad.said != ruleNone:
		return s.abroad.said
	case s.tried != nil:
		return ruleConnectTime
	case s.quiet:
		return ruleNoData
	}
	return ruleQueueTime
}

// refuse closes the connection and leaves a record which says why.
func (s *session) refuse(r rule, now time.Time) {
	s.dropAsk(true)
	if s.stream != nil {
		s.turnAway(codeOf(r), r)
		return
	}
	s.state = stateOver
	if s.route.app != nil {
		s.route.app.counts.refused[r].Add(1)
	}
	s.road.refused(r, now)
	s.p.roads.put(&s.road)
	s.p.note(s.road.record())
	s.drive.refuse(r != ruleClientGone)
}

// freed gives the slot back: the machine's side has closed.
func (s *session) freed() { s.route.app.release(s.seat) }

// ended tells how a relayed connection ended.
func (s *session) ended(how end, up, down int64, now time.Time) {
	s.state = stateOver
	if s.stream != nil {
		s.stream.over()
	}
	s.moved(up, down)
	s.route.app.counts.ended.Add(1)
	s.road.over(how, up, down, now)
	s.p.roads.put(&s.road)
}

// moved tells how many bytes have gone each way so far.
func (s *session) moved(up, down int64) {
	c := &s.route.app.counts
	c.bytesIn.Add(up - s.counted.up)
	c.bytesOut.Add(down - s.counted.down)
	s.counted.up, s.counted.down = up, down
}
