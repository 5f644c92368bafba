package proxy

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// flow is a connection whose both sides are sockets; it drives its session on a loop.
type flow struct {
	session
	loop    *loop
	c, m    *sock // client and machine; nil when closed
	up      lane  // client to machine
	down    lane
	due     alarm
	purpose purpose
	how     end

	gone      bool // the client is: what the machine still sends is thrown away
	broken    bool // the machine is: the client is reset when it has what is on the way
	kept      bool // keep-alive of the machine's side is set
	over      bool
	isFree    bool // the slot was given back
	polite    bool // counted in loop.farewells
	listed    bool // in loop.again
	lastMoved time.Time

	nextFlow, prevFlow *flow
}

// purpose says what a flow's alarm is for.
type purpose uint8

const (
	forSession purpose = iota
	forDial
	forLinger
	forFarewell
	forReset
	forSecond
)

// lane is one direction. Bytes on the way are in rest, or in the pipe.
type lane struct {
	rest   []byte
	pipe   pipe
	piped  int  // bytes in the pipe
	splice bool // big reads: move pages instead of bytes
	closed bool // the end of the source was handed on
	bytes  int64
}

func (ln *lane) empty() bool { return len(ln.rest) == 0 && ln.piped == 0 }

// spliceFrom is the size of a read from which on a lane moves pages.
const spliceFrom = 32 << 10

// rounds bounds what one lane moves before others get their turn.
const rounds = 16

// What is asked for of a client's socket, and of a machine's or one that blocked.
const (
	epollClient = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET
	epollBoth   = epollClient | unix.EPOLLOUT
)

// farewellsMost bounds the refused clients of a loop that are waited for, in a flood of them.
const farewellsMost = 512

// event takes what epoll says of one side.
func (f *flow) event(s *sock, ev uint32) {
	if ev&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.readable = true
	}
	if ev&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.hup = true
	}
	if ev&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		s.writable = true
	}
	if ev&unix.EPOLLERR != 0 {
		s.failed = true
	}
	if ev&unix.EPOLLPRI != 0 && !s.urgent {
		s.urgent = true
		sysUrgentInline(s.fd)
	}
	if s.call != nil {
		f.callEvent(s.call, ev)
		return
	}
	switch f.state {
	case stateRelaying:
		f.pumpBoth()
	case stateHello:
		f.hello()
	case stateSecond:
		if s.hup || s.failed {
			f.second()
		}
	case stateDialing:
		if s.machine {
			f.connected(ev)
			return
		}
		f.look()
		f.spokeEarly()
	case stateWaiting, statePausing:
		f.look()
	case stateOver:
		f.bye()
	default:
	}
}

// look finds out whether a client that has no machine yet spoke or left. It consumes nothing.
func (f *flow) look() {
	if !f.quiet && !f.c.hup {
		return
	}
	if f.stream != nil { // no edge ends its side before it has an answer but to give up
		f.left(ruleClientGone, f.loop.now)
		return
	}
	n, e := sysPeek(f.c.fd)
	switch {
	case e == errAgain:
	case e != 0 || n == 0:
		f.left(ruleClientGone, f.loop.now)
	case f.state == stateWaiting:
		f.spoke() // its FIN after a request is no farewell: it may read the answer
	}
}

func (f *flow) watch() {
	if f.c.readable {
		f.look()
	}
}

func (f *flow) alarm(at time.Time) { f.setAlarm(at, forSession) }

func (f *flow) setAlarm(at time.Time, why purpose) {
	f.purpose = why
	if f.due.ring == nil {
		f.due.ring = f.ring
	}
	f.loop.set(&f.due, at)
}

func (f *flow) ring() {
	now := f.loop.now
	switch f.purpose {
	case forSession:
		f.alarmed(now)
	case forDial:
		if sysConnected(f.m.fd) {
			f.connected(unix.EPOLLOUT)
			return
		}
		f.dialed(syscall.ETIMEDOUT, !f.hangUp(), now)
	case forLinger:
		f.how = endLinger
		f.closeMachine(true)
		f.finish()
	case forFarewell:
		f.finish()
	case forReset:
		f.resetClient(now)
	case forSecond:
		f.second()
	}
}

func (f *flow) post(v verdict) { f.loop.postVerdict(f, v) }

// dial begins to connect to the machine.
func (f *flow) dial() {
	l := f.loop
	fd, e := sysConnect(f.seat.addr)
	if fd < 0 {
		l.later(f, e)
		return
	}
	s, err := l.add(fd, epollBoth)
	if err != nil {
		sysClose(fd)
		l.later(f, syscall.ENOMEM)
		return
	}
	s.flow, s.machine = f, true
	f.m = s
	f.setAlarm(l.now.Add(dialTimeout(f.attempt)), forDial)
}

// later tells a flow that its dial failed, after the round in which it began: so that a session's calls
// never nest.
func (l *loop) later(f *flow, e syscall.Errno) {
	l.mu.Lock()
	l.inbox = append(l.inbox, func(l *loop) {
		if f.state == stateDialing && f.m == nil {
			f.dialed(e, false, l.now)
		}
	})
	l.mu.Unlock()
}

func (f *flow) hangUp() bool {
	l := f.loop
	l.cancel(&f.due)
	m := f.m
	f.m = nil
	if m == nil {
		return true // the dial has failed, which is on its way to be told
	}
	if f.stream != nil && f.stream.lost {
		l.drop(m, true)
		f.route.app.releaseLate(f.seat)
		return false
	}
	if sysAbandon(m.fd) {
		l.drop(m, false)
		return true
	}
	st := f.seat
	st.probing = false // another may try
	l.haunt(m, f.route.app, st)
	return false
}

// connected takes the first event of the machine's socket.
func (f *flow) connected(ev uint32) {
	if ev&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		err := sysError(f.m.fd)
		if err == nil {
			err = syscall.ECONNRESET
		}
		f.loop.cancel(&f.due)
		f.loop.drop(f.m, false)
		f.m = nil
		f.dialed(err, false, f.loop.now)
		return
	}
	if ev&unix.EPOLLOUT != 0 {
		f.loop.cancel(&f.due)
		f.dialed(nil, false, f.loop.now)
	}
}

func (f *flow) relay() {
	f.lastMoved = f.loop.now
	f.pumpBoth()
}

// refuse closes a client that got no machine.
func (f *flow) refuse(farewell bool) {
	l := f.loop
	l.cancel(&f.due)
	if !farewell || l.farewells >= farewellsMost {
		f.finish()
		return
	}
	l.farewells++
	f.polite = true
	sysShutdown(f.c.fd)
	f.setAlarm(l.now.Add(l.times.farewell), forFarewell)
	f.bye()
}

// bye reads what a refused client still sends, until it has closed too: closing over unread bytes
// would reset it.
func (f *flow) bye() {
	if f.c == nil || !f.c.readable {
		return
	}
	for range rounds {
		n, e := sysRead(f.c.fd, f.loop.buf)
		if e == errAgain {
			f.c.readable = false
			return
		}
		if e != 0 || n == 0 {
			f.finish()
			return
		}
	}
}

// finish ends the flow; both sides are closed or no longer needed.
func (f *flow) finish() {
	if f.over {
		return
	}
	f.over = true
	l := f.loop
	l.cancel(&f.due)
	f.closeMachine(false)
	if f.c != nil {
		l.drop(f.c, false)
		f.c = nil
	}
	f.dropLane(&f.up)
	f.dropLane(&f.down)
	if f.state == stateHello {
		f.stream.over()
	}
	if f.state == stateRelaying {
		f.ended(f.how, f.up.bytes, f.down.bytes, l.now)
	}
	if f.polite {
		l.farewells--
	}
	l.flows.remove(f)
	l.p.open.Add(-1)
}

// closeMachine closes the machine's side and gives the slot back.
func (f *flow) closeMachine(reset bool) {
	if f.m == nil {
		return
	}
	f.loop.drop(f.m, reset)
	f.m = nil
	f.freeSlot()
}

func (f *flow) freeSlot() {
	if !f.isFree {
		f.isFree = true
		f.freed()
	}
}

func (f *flow) dropLane(ln *lane) {
	f.freePipe(ln)
	if ln.pipe.size > 0 {
		f.loop.pipes.drop(ln.pipe) // there are bytes in it
		ln.pipe, ln.piped = pipe{}, 0
	}
	ln.rest = nil
}

// stop ends the flow because the proxy stops.
func (f *flow) stop() {
	switch f.state {
	case stateRelaying:
		f.how = endStopping
		f.closeMachine(true)
		if f.c != nil {
			f.loop.drop(f.c, true)
			f.c = nil
		}
		f.finish()
	case stateOver, stateHello, stateSecond:
		f.finish()
	default:
		f.left(ruleStopping, f.loop.now)
		if f.state == stateOver {
			f.finish()
		}
	}
}

// sweep sets what short connections never need, and ends half-closed ones that are silent.
func (f *flow) sweep() {
	if f.state != stateRelaying {
		return
	}
	l := f.loop
	f.moved(f.up.bytes, f.down.bytes)
	if f.m != nil && !f.kept {
		f.kept = true
		k := &keepAlive
		if f.seat.node != nil {
			k = &meshKeepAlive
		}
		if err := sysKeepAlive(f.m.fd, k); err != nil {
			l.p.log.Warn("keep-alive was not set", "err", err)
		}
	}
	half := f.m == nil || f.up.closed != f.down.closed // without a machine the client has still to read
	if half && l.now.Sub(f.lastMoved) >= l.times.half {
		f.how = endHalfClosed
		f.closeMachine(true)
		f.finish()
	}
}

// flowList links the flows of a loop.
type flowList struct{ first *flow }

func (l *flowList) add(f *flow) {
	f.nextFlow = l.first
	if l.first != nil {
		l.first.prevFlow = f
	}
	l.first = f
}

func (l *flowList) remove(f *flow) {
	if f.prevFlow != nil {
		f.prevFlow.nextFlow = f.nextFlow
	} else {
		l.first = f.nextFlow
	}
	if f.nextFlow != nil {
		f.nextFlow.prevFlow = f.prevFlow
	}
	f.nextFlow, f.prevFlow = nil, nil
}
