package proxy

import (
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// outcome of moving bytes along a lane.
type outcome uint8

const (
	moveBlocked  outcome = iota // until the next event
	moveMore                    // its turn is over and there is more
	moveEnd                     // the source has ended and all of it was handed on
	moveSrcError                // the source was reset
	moveDstError                // the destination was
)

// pumpBoth moves what can be moved, both ways, and applies the rules of closing.
func (f *flow) pumpBoth() {
	f.listed = false
	if f.state != stateRelaying || f.over {
		return
	}
	switch {
	case f.gone:
		f.discard()
		return
	case f.broken:
		f.flushBroken()
		return
	}
	if !f.up.closed && f.skipped() {
		f.upMoved(f.move(&f.up, f.c, f.m))
	}
	if !f.gone && !f.down.closed {
		f.downMoved(f.move(&f.down, f.m, f.c))
	}
	f.settle()
}

// settle does what follows from both lanes together.
func (f *flow) settle() {
	if f.over || f.gone || f.broken {
		return
	}
	if f.c.failed && f.up.closed {
		f.clientGone()
		return
	}
	if f.m != nil {
		if f.m.failed || f.m.hup && f.up.closed {
			f.freeSlot() // its side is closed, whatever the client has still to get
		}
		if f.m.eof && f.up.closed {
			f.closeMachine(false)
		}
	}
	if f.up.closed && f.down.closed {
		f.how = endBoth
		f.finish()
	}
}

func (f *flow) upMoved(o outcome) {
	switch o {
	case moveEnd:
		f.up.closed = true
		f.lastMoved = f.loop.now
		if !f.m.eof {
			sysShutdown(f.m.fd)
		}
	case moveSrcError:
		f.clientGone()
	case moveDstError:
		// What it sent before is still to be read, and then its reset.
		f.up.closed = true
		f.dropLane(&f.up)
		f.m.failed, f.m.readable = true, true
	case moveMore:
		f.relist()
	case moveBlocked:
		if f.c.failed {
			f.clientGone() // the machine does not take what the client sent before it vanished
		}
	}
}

func (f *flow) downMoved(o outcome) {
	switch o {
	case moveEnd:
		f.down.closed = true
		f.lastMoved = f.loop.now
		if !f.up.closed {
			sysShutdown(f.c.fd)
		}
	case moveSrcError:
		f.machineGone(endMachineReset)
	case moveDstError:
		f.clientGone()
	case moveMore:
		f.relist()
	case moveBlocked:
	}
}

func (f *flow) relist() {
	if !f.listed {
		f.listed = true
		f.loop.again = append(f.loop.again, f)
	}
}

// clientGone begins the end of a connection whose client was reset or vanished: the machine gets FIN, and
// time to close.
func (f *flow) clientGone() {
	if f.gone {
		return
	}
	l := f.loop
	f.gone, f.how = true, endClientReset
	l.drop(f.c, false)
	f.c = nil
	f.dropLane(&f.down)
	f.dropLane(&f.up)
	if f.m == nil {
		f.finish()
		return
	}
	if !f.up.closed {
		f.up.closed = true
		sysShutdown(f.m.fd)
	}
	f.setAlarm(l.now.Add(l.times.linger), forLinger)
	f.discard()
}

// discard reads what a machine still sends to a client that is gone, so that it comes to its end.
func (f *flow) discard() {
	if f.over || f.m == nil {
		return
	}
	if f.m.eof || f.m.failed { // its side was closed before
		f.closeMachine(false)
		f.finish()
		return
	}
	for range rounds {
		if !f.m.readable {
			return
		}
		n, e := sysRead(f.m.fd, f.loop.buf)
		if e == errAgain {
			f.m.readable = false
			return
		}
		if e != 0 || n == 0 {
			f.closeMachine(false)
			f.finish()
			return
		}
	}
	f.relist()
}

// machineGone begins the end of a connection whose machine has none any more: the client is reset as well, when
// it has what the machine sent before.
func (f *flow) machineGone(how end) {
	f.broken, f.how = true, how
	f.closeMachine(true)
	f.dropLane(&f.up)
	f.flushBroken()
}

// bury ends a connection whose machine's guest is no more, and so will never close it.
func (f *flow) bury() {
	if f.m != nil {
		f.m.readable = true // its last words may have come after the last event
	}
	f.pumpBoth() // what it has sent is still the client's
	switch {
	case f.over, f.broken, f.m == nil:
	case f.gone:
		f.closeMachine(true)
		f.finish()
	default:
		how := endGuestGone
		if f.seat.node != nil {
			how = endHostLost
		}
		f.machineGone(how)
	}
}

func (f *flow) flushBroken() {
	if f.over {
		return
	}
	if !f.down.empty() {
		switch f.move(&f.down, nil, f.c) {
		case moveBlocked:
			return
		case moveMore:
			f.relist()
			return
		default:
		}
	}
	f.resetClient(f.loop.now)
}

// resetClient resets the client once its kernel has what was sent, since RST would overtake it.
func (f *flow) resetClient(now time.Time) {
	if sysUnsent(f.c.fd) > 0 && now.Sub(f.lastMoved) < f.loop.times.linger {
		f.setAlarm(now.Add(20*time.Millisecond), forReset)
		return
	}
	f.loop.drop(f.c, true)
	f.c = nil
	f.finish()
}

// move moves bytes from src to dst until one of them blocks. A nil src only hands on what is on the way.
func (f *flow) move(ln *lane, src, dst *sock) outcome {
	for range rounds {
		if !ln.empty() {
			if o, ok := f.push(ln, dst); !ok {
				return o
			}
		}
		if src == nil {
			return moveEnd
		}
		if src.eof {
			f.freePipe(ln)
			return moveEnd
		}
		if !src.readable || !dst.writable {
			f.freePipe(ln)
			return moveBlocked
		}
		if o, ok := f.pull(ln, src, dst); !ok {
			f.freePipe(ln)
			return o
		}
	}
	return moveMore
}

// pull reads once; ok to go on.
func (f *flow) pull(ln *lane, src, dst *sock) (outcome, bool) {
	if dst.machine && ln.bytes > 0 && !dst.prompt {
		dst.prompt = true // the first bytes are never held back, so one request alone saves the call
		sysNoDelay(dst.fd)
	}
	if ln.splice {
		if o, ok, done := f.pullPages(ln, src); done {
			return o, ok
		}
	}
	buf := f.loop.buf
	n, e := sysRead(src.fd, buf)
	switch {
	case e == errAgain:
		src.readable = false
		return moveBlocked, false
	case e != 0:
		src.eof = true
		return moveSrcError, false
	case n == 0:
		return src.end()
	case n < len(buf) && !src.urgent && !src.failed:
		// All there was: what comes later makes a new event, and a FIN was announced.
		src.eof, src.readable = src.hup, false
	}
	if n >= spliceFrom {
		ln.splice = true
	}
	ln.bytes += int64(n)
	f.lastMoved = f.loop.now
	if f.stream != nil && f.stream.unheard && dst == f.c {
		f.keep(buf[:n])
	}
	m, e := sysSend(dst.fd, buf[:n])
	switch e {
	case 0:
	case errAgain:
		m = 0
	default:
		return moveDstError, false
	}
	if m < n {
		ln.rest = slices.Clone(buf[m:n])
		f.blocked(dst)
	}
	return moveBlocked, true
}

// end notes that a read came to the end. After a reset that a write has seen, a read sees an end only.
func (s *sock) end() (outcome, bool) {
	s.eof = true
	if s.failed {
		return moveSrcError, false
	}
	return moveEnd, true // move sees eof
}

// pullPages moves pages into the lane's pipe; done is false when there is no pipe to be had.
func (f *flow) pullPages(ln *lane, src *sock) (o outcome, ok, done bool) {
	if ln.pipe.size == 0 {
		p, err := f.loop.pipes.get()
		if err != nil {
			ln.splice = false
			return 0, false, false
		}
		ln.pipe = p
	}
	n, e := sysSplice(src.fd, ln.pipe.w, ln.pipe.size)
	switch {
	case e == errAgain:
		src.readable = false
		return moveBlocked, false, true
	case e == syscall.EINVAL:
		ln.splice = false
		return 0, false, false
	case e != 0:
		src.eof = true
		return moveSrcError, false, true
	case n == 0:
		o, ok := src.end()
		return o, ok, true
	}
	ln.piped += n
	ln.bytes += int64(n)
	f.lastMoved = f.loop.now
	return moveBlocked, true, true
}

// push hands on what is on the way; ok when all of it is.
func (f *flow) push(ln *lane, dst *sock) (outcome, bool) {
	for !ln.empty() {
		if !dst.writable {
			return moveBlocked, false
		}
		var n int
		var e syscall.Errno
		if len(ln.rest) > 0 {
			n, e = sysSend(dst.fd, ln.rest)
		} else {
			n, e = sysSplice(ln.pipe.r, dst.fd, ln.piped)
		}
		if e == errAgain {
			f.blocked(dst)
			return moveBlocked, false
		}
		if e != 0 {
			return moveDstError, false
		}
		f.lastMoved = f.loop.now
		if len(ln.rest) > 0 {
			if ln.rest = ln.rest[n:]; len(ln.rest) == 0 {
				ln.rest = nil
			}
		} else {
			ln.piped -= n
		}
	}
	return 0, true
}

// blocked notes that a socket takes no more, and asks to be told when it does.
func (f *flow) blocked(s *sock) {
	s.writable = false
	if s.wantsOut {
		return
	}
	s.wantsOut = true
	err := sysEpollCtl(f.loop.epfd, unix.EPOLL_CTL_MOD, s.fd, epollBoth, s.gen)
	if err != nil {
		f.loop.p.log.Error("epoll did not take a socket's change", "err", err)
	}
}

// freePipe gives an empty pipe back.
func (f *flow) freePipe(ln *lane) {
	if ln.pipe.size > 0 && ln.piped == 0 {
		f.loop.pipes.put(ln.pipe)
		ln.pipe = pipe{}
	}
}
