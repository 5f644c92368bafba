package proxy

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant/backhaul"
)

// callStage says what a call's alarm is for.
type callStage uint8

const (
	callEarly  callStage = iota // the client's first bytes
	callHedge                   // a handshake
	callAnswer                  // the host's acknowledgement, or its answer
	callSent                    // nothing: it waits
)

// callSocks is how many connections there may be of a call.
const callSocks = 3

// callSock is one connection of a call: there is another where the first one's handshake takes long.
type callSock struct {
	call   *call
	sock   *sock
	sent   bool // the request is on the way
	early  int  // bytes of the client that went with it
	answer [backhaul.AnswerLen]byte
	got    int
}

// call sends a request to a host, when the client has spoken or a moment later.
func (f *flow) call(c *call) {
	c.flow = f
	c.alarm.ring = func() { f.callAlarm(c) }
	if c.req.Wait == 0 && f.silent() {
		f.loop.set(&c.alarm, f.loop.now.Add(earlyWithin))
		return
	}
	f.send(c)
}

// silent says that the client has sent nothing yet, and still may.
func (f *flow) silent() bool {
	if f.c.hup {
		return false
	}
	_, e := sysPeek(f.c.fd)
	return e == errAgain
}

// spokeEarly sends the request that only waits for the client's first bytes.
func (f *flow) spokeEarly() {
	if f.state != stateDialing || f.abroad == nil || f.abroad.call == nil {
		return
	}
	if c := f.abroad.call; c.flow == f && c.stage == callEarly && f.c.readable {
		f.send(c)
	}
}

func (f *flow) callAlarm(c *call) {
	l := f.loop
	switch c.stage {
	case callEarly:
		f.send(c)
	case callHedge:
		if f.acknowledged(c, false) {
			c.stage = callAnswer
			l.set(&c.alarm, c.began.Add(answerWithin))
			return
		}
		if c.tries < callSocks {
			f.connect(c)
			l.set(&c.alarm, l.now.Add(c.node.hedge()))
			return
		}
		c.stage = callAnswer
		l.set(&c.alarm, c.began.Add(answerWithin))
	case callAnswer:
		if c.req.Wait > 0 && f.acknowledged(c, true) {
			c.stage = callSent
			for _, cs := range c.socks {
				if cs != nil {
					sysKeepAlive(cs.sock.fd, &meshKeepAlive) //nolint:errcheck // then the live feed says that the host is lost
				}
			}
			return
		}
		f.callEnds(c, nil, errNoAnswer)
	default:
	}
}

// acknowledged says whether a handshake is over, and with sent whether the host has the request.
func (f *flow) acknowledged(c *call, sent bool) bool {
	for _, cs := range c.socks {
		if cs != nil && sysConnected(cs.sock.fd) && (!sent || sysUnsent(cs.sock.fd) == 0) {
			return true
		}
	}
	return false
}

// buryCalls ends the calls to a host whose proxy is no more.
func (f *flow) buryCalls() {
	if f.abroad == nil {
		return
	}
	for _, c := range [...]*call{f.abroad.ask, f.abroad.call} {
		if c != nil && c.won == nil && c.life.isOver() && f.state != stateOver {
			f.callEnds(c, nil, errHostLost)
		}
	}
}

// send begins to connect to the host.
func (f *flow) send(c *call) {
	l := f.loop
	c.stage = callHedge
	l.set(&c.alarm, l.now.Add(c.node.hedge()))
	f.connect(c)
}

// connect opens one of the call's connections.
func (f *flow) connect(c *call) {
	l, i := f.loop, c.tries
	c.tries++
	addr, _ := c.node.where()
	b, head := f.request(c)
	fd, n, e := sysReach(l.p.peering.Load().self, addr, b)
	if e != 0 {
		f.connectFailed(c, i, e)
		return
	}
	s, err := l.add(fd, epollBoth)
	if err != nil {
		sysClose(fd)
		f.connectFailed(c, i, syscall.ENOMEM)
		return
	}
	cs := &callSock{call: c, sock: s, sent: n >= head, early: max(n-head, 0)}
	s.flow, s.call = f, cs
	c.socks[i] = cs
}

// connectFailed tells of it after the round, so that a session's calls never nest.
func (f *flow) connectFailed(c *call, i int, e syscall.Errno) {
	if i > 0 {
		return // the first may still be answered
	}
	l := f.loop
	l.mu.Lock()
	l.inbox = append(l.inbox, func(*loop) {
		if c.flow == f && c.socks == [callSocks]*callSock{} {
			f.callEnds(c, nil, e)
		}
	})
	l.mu.Unlock()
}

// request is the frame and the client's first bytes, which stay in its socket; of those a request that waits has
// none, since it may be given up when it is granted.
func (f *flow) request(c *call) (b []byte, head int) {
	buf := f.loop.buf
	head = len(backhaul.AppendRequest(buf[:0], &c.req))
	if c.req.Wait > 0 || f.c == nil {
		return buf[:head], head
	}
	n, e := sysPeekAt(f.c.fd, buf[head:head+backhaul.EarlyMost])
	if e != 0 {
		n = 0
	}
	return buf[:head+n], head
}

// callEvent takes what epoll says of one of a call's connections.
func (f *flow) callEvent(cs *callSock, ev uint32) {
	if ev&unix.EPOLLOUT != 0 && ev&(unix.EPOLLERR|unix.EPOLLHUP) == 0 && !cs.sent {
		b, head := f.request(cs.call)
		n, e := sysSend(cs.sock.fd, b)
		if e != 0 || n < head {
			f.sockFailed(cs, syscall.ECONNRESET)
			return
		}
		cs.sent, cs.early = true, n-head
	}
	if ev&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLERR|unix.EPOLLHUP) == 0 {
		return
	}
	for cs.got < len(cs.answer) {
		n, e := sysRead(cs.sock.fd, cs.answer[cs.got:])
		switch {
		case e == errAgain:
			return
		case e != 0:
			f.sockFailed(cs, e)
			return
		case n == 0:
			f.sockFailed(cs, syscall.ECONNRESET)
			return
		}
		cs.got += n
	}
	var ans backhaul.Answer
	if err := backhaul.ParseAnswer(cs.answer[:], &ans); err != nil {
		f.sockFailed(cs, syscall.EPROTO)
		return
	}
	if ans.Code == backhaul.Seen && f.other(cs) != nil {
		f.closeSock(cs) // the one that came first will be answered
		return
	}
	if ans.Code == backhaul.OK {
		cs.call.won, cs.call.early = cs.sock, cs.early
		cs.sock.call = nil
		for i, o := range cs.call.socks {
			if o == cs {
				cs.call.socks[i] = nil
			}
		}
	}
	f.callEnds(cs.call, &ans, nil)
}

// other is the call's other connection.
func (f *flow) other(cs *callSock) *callSock {
	for _, o := range cs.call.socks {
		if o != nil && o != cs {
			return o
		}
	}
	return nil
}

func (f *flow) closeSock(cs *callSock) {
	for i, o := range cs.call.socks {
		if o == cs {
			cs.call.socks[i] = nil
			f.loop.drop(cs.sock, true)
		}
	}
}

func (f *flow) sockFailed(cs *callSock, e syscall.Errno) {
	c := cs.call
	f.closeSock(cs)
	if c.socks == [callSocks]*callSock{} {
		f.callEnds(c, nil, e)
	}
}

// callEnds closes what is not needed any more of a call, and tells its end.
func (f *flow) callEnds(c *call, ans *backhaul.Answer, err error) {
	f.closeLine(c)
	f.called(c, ans, err, f.loop.now)
}

func (f *flow) closeLine(c *call) {
	f.loop.cancel(&c.alarm)
	for _, cs := range c.socks {
		if cs != nil {
			f.closeSock(cs)
		}
	}
	c.flow = nil
}

// drop gives a call up.
func (f *flow) drop(c *call) {
	f.closeLine(c)
	if c.won != nil {
		f.loop.drop(c.won, true)
		c.won = nil
	}
}

// adopt makes the granted connection the machine's side.
func (f *flow) adopt(c *call) {
	s := c.won
	c.won = nil
	s.flow, s.machine, s.prompt, s.readable, s.writable = f, true, true, true, true
	f.m = s
	f.c.readable = true
	for left := c.early; left > 0; { // the host has them
		n, e := sysRead(f.c.fd, f.loop.buf[:left])
		if e != 0 || n == 0 {
			break // it was reset since, which the next read shows
		}
		left -= n
	}
	f.up.bytes += int64(c.early)
	f.loop.cancel(&f.due)
}

// hello reads the request of a stream as soon as all of it is there, and nothing of what follows.
func (f *flow) hello() {
	b := f.loop.buf[:backhaul.RequestMost]
	n, e := sysPeekAt(f.c.fd, b)
	if e == errAgain {
		return
	}
	if e != 0 || n == 0 {
		f.finish()
		return
	}
	var req backhaul.Request
	size, err := backhaul.ParseRequest(b[:n], &req)
	switch {
	case err == backhaul.ErrVersion: //nolint:errorlint // of our own package, as it is
		f.turnAway(backhaul.OtherVersion, ruleNone)
	case err != nil || size == 0 && (f.c.hup || f.c.failed):
		f.loop.drop(f.c, true)
		f.c = nil
		f.finish()
	case size > 0:
		f.loop.cancel(&f.due)
		if m, e := sysRead(f.c.fd, b[:size]); e != 0 || m != size {
			f.finish()
			return
		}
		f.open(&req, f.loop.now)
	}
}

// answer tells the edge what became of its stream. The socket has nothing to send before it, so it has room.
func (f *flow) answer(ans *backhaul.Answer) {
	var b [backhaul.AnswerLen]byte
	out := backhaul.AppendAnswer(b[:0], ans)
	sysSend(f.c.fd, out) //nolint:errcheck // who cannot be told is gone, which a read shows
	if ans.Code == backhaul.OK {
		f.stream.unheard = true // it may have come with the SYN, and the kernel's answer to that may be lost
		f.keep(out)
	}
}

// keptMost bounds what is kept of a stream while it is not known that the edge hears it: what a connection sends before
// it needs to hear of the other end.
const keptMost = 16 << 10

// keep keeps what is sent to an edge that is not heard yet.
func (f *flow) keep(b []byte) {
	st := f.stream
	if len(st.kept)+len(b) > keptMost || sysConnected(f.c.fd) {
		st.unheard, st.kept = false, nil // it will not go over to another connection
		return
	}
	st.kept = append(st.kept, b...)
}

// replace offers the connection of this flow to the stream that its request belongs to, which came before by another.
// It is taken if the edge has answered this one's handshake and not the other's, which came first.
func (f *flow) replace(st *stream) bool {
	if st == nil {
		return false
	}
	first, ok := st.drive.(*flow)
	if !ok || first == f {
		return false
	}
	f.state, f.stream.first = stateSecond, first
	f.stream.until = f.loop.now.Add(requestTime)
	f.second()
	return true
}

// secondEvery is how often the handshakes are looked at: it is also the time for what was sent first and comes second.
const secondEvery = 5 * time.Millisecond

// second looks whether the stream is to go over to this connection.
func (f *flow) second() {
	l, first := f.loop, f.stream.first
	switch heard := sysConnected(f.c.fd); {
	case f.c.hup || f.c.failed || !l.now.Before(f.stream.until):
		f.finish() // the edge has the other
	case !heard || !f.stream.heard:
		if heard && f.stream.next.IsZero() {
			f.stream.next = l.now.Add(secondEvery)
		}
		f.stream.heard = heard && !l.now.Before(f.stream.next)
		f.setAlarm(l.now.Add(secondEvery), forSecond)
	default:
		fd := f.c.fd
		l.socks[fd] = nil
		if err := sysEpollCtl(l.epfd, unix.EPOLL_CTL_DEL, fd, 0, 0); err != nil {
			l.p.log.Warn("epoll did not give a socket back", "err", err)
		}
		f.c = nil
		f.finish()
		if !first.loop.do(func(*loop) { first.goOver(fd) }) {
			sysReset(fd)
		}
	}
}

// goOver makes fd the client's side, if its edge cannot have heard anything on the one there is.
func (f *flow) goOver(fd int32) {
	l, st := f.loop, f.stream
	sending := f.state == stateRelaying
	if f.over || f.c == nil || f.gone || f.broken || f.state == stateOver || f.state == stateHello || f.state == stateSecond || f.down.piped > 0 || f.up.closed ||
		sysConnected(f.c.fd) || sending && !st.unheard {
		var b [backhaul.AnswerLen]byte
		sysSend(fd, backhaul.AppendAnswer(b[:0], &backhaul.Answer{Code: backhaul.Seen, Epoch: l.p.cfg.Epoch})) //nolint:errcheck // the same as in answer
		sysClose(fd)
		return
	}
	s, err := l.add(fd, epollBoth)
	if err != nil {
		sysReset(fd)
		return
	}
	l.drop(f.c, true)
	s.flow, s.readable, s.writable = f, true, true
	f.c = s
	if !sending {
		f.look()
		return
	}
	st.skip = int(f.up.bytes)
	f.down.rest = st.kept
	closed := f.down.closed
	if f.move(&f.down, nil, s); closed && f.down.empty() {
		sysShutdown(fd)
	}
	f.pumpBoth()
}

// skipped reads what the first connection of a stream has brought already; false as long as there is more of that.
func (f *flow) skipped() bool {
	st := f.stream
	for st != nil && st.skip > 0 {
		n, e := sysRead(f.c.fd, f.loop.buf[:min(st.skip, len(f.loop.buf))])
		if e == errAgain {
			f.c.readable = false
			return false
		}
		if e != 0 || n == 0 {
			st.skip = 0 // the next read shows it
			return true
		}
		st.skip -= n
	}
	return true
}

// lose ends a stream whose edge is lost: nothing that it still may send is to reach the machine.
func (f *flow) lose() {
	f.loop.do(func(l *loop) {
		f.stream.lost = true
		switch f.state {
		case stateRelaying:
			if f.over {
				return
			}
			f.how = endEdgeLost
			if f.m != nil && !f.isFree {
				f.isFree = true
				f.route.app.releaseLate(f.seat)
			}
			f.closeMachine(true)
			if f.c != nil {
				l.drop(f.c, true)
				f.c = nil
			}
			f.finish()
		case stateHello, stateSecond:
			f.finish()
		case stateOver:
		default:
			f.left(ruleClientGone, l.now)
		}
	})
}
