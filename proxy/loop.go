package proxy

import (
	"container/heap"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// times are the waits of closing, short in tests.
type times struct{ linger, half, farewell, sweep time.Duration }

func defaultTimes() times {
	return times{linger: lingerTime, half: halfTime, farewell: farewellIn, sweep: time.Second}
}

// loop serves connections whose both sides are sockets: one epoll instance and the goroutine that runs it.
// All of a flow happens on its loop; others reach it by post. It waits in Go's own poller (an epoll
// instance can be polled itself), so an idle loop holds no thread.
type loop struct {
	p         *Proxy
	times     times
	epoll     *os.File
	epfd      int
	bell      int32 // eventfd
	socks     []*sock
	gen       uint32
	now       time.Time
	alarms    alarms
	timer     *time.Timer // rings the bell for the first alarm
	due       time.Time   // when timer fires; zero if not set
	flows     flowList
	ghosts    map[*ghost]bool
	farewells int     // refused clients that are waited for
	again     []*flow // have more to do though no event will say so
	pipes     pipes
	buf       []byte
	sweep     alarm
	events    [256]unix.EpollEvent

	sleeping atomic.Bool
	mu       sync.Mutex
	inbox    []func(*loop)
	verdicts []flowVerdict
	closed   bool
}

type flowVerdict struct {
	f *flow
	v verdict
}

// sock is one descriptor in the epoll instance.
type sock struct {
	fd       int32
	gen      uint32 // events of an earlier user of the descriptor do not match
	flow     *flow  // nil for a listener
	listener *loopListener
	ghost    *ghost
	call     *callSock
	machine  bool // the machine's side of the flow

	readable, writable bool
	wantsOut           bool // EPOLLOUT is asked for
	hup                bool // the peer's FIN was announced
	eof                bool // and read
	failed             bool // the socket was reset, or its peer is dead
	prompt             bool // TCP_NODELAY is set on a machine's socket
	urgent             bool // a short read does not mean that nothing is left
}

// loopListener is one listening socket in one loop.
type loopListener struct {
	addr  netip.AddrPort
	sock  *sock
	wait  time.Duration
	alarm alarm
}

func newLoop(p *Proxy, t times) (*loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	bell, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(epfd) //nolint:errcheck // nothing is in it
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	if err := unix.SetNonblock(epfd, true); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	l := &loop{p: p, times: t, epfd: epfd, bell: int32(bell), buf: make([]byte, 64<<10), ghosts: map[*ghost]bool{}}
	l.epoll = os.NewFile(uintptr(epfd), "epoll")
	l.timer = time.AfterFunc(time.Hour, l.ring)
	l.timer.Stop()
	l.sweep.ring = l.sweepFlows
	s, err := l.add(l.bell, unix.EPOLLIN|unix.EPOLLET)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	s.flow = nil
	return l, nil
}

// run serves until ctx ends; then it closes what is open.
func (l *loop) run(ctx context.Context) {
	defer context.AfterFunc(ctx, l.ring)()
	rc, err := l.epoll.SyscallConn()
	if err != nil {
		panic("proxy: the epoll file was closed while its loop runs")
	}
	n := 0
	for ctx.Err() == nil {
		err := rc.Read(func(fd uintptr) bool {
			n = sysEpollWait(fd, l.events[:])
			if n > 0 || len(l.again) > 0 {
				return true
			}
			l.sleeping.Store(true)
			if l.pending() || ctx.Err() != nil {
				l.sleeping.Store(false)
				return true
			}
			return false
		})
		l.sleeping.Store(false)
		if err != nil {
			l.p.log.Error("epoll wait failed", "err", err)
			break
		}
		l.now = time.Now()
		l.turn(l.events[:n])
		if n == len(l.events) || len(l.again) > 0 {
			runtime.Gosched()
		}
	}
	l.close()
}

// turn handles one round of events, messages and alarms.
func (l *loop) turn(events []unix.EpollEvent) {
	for i := range events {
		ev := &events[i]
		s := l.socks[ev.Fd]
		if s == nil || s.gen != uint32(ev.Pad) {
			continue
		}
		switch {
		case s.flow != nil:
			s.flow.event(s, ev.Events)
		case s.listener != nil:
			l.accept(s.listener)
		case s.ghost != nil:
			s.ghost.look()
		default: // the bell
			var b [8]byte
			sysRead(s.fd, b[:]) //nolint:errcheck // it is emptied; what was asked is looked at in any case
		}
	}
	again := l.again
	l.again = nil
	for _, f := range again {
		f.pumpBoth()
	}
	l.messages()
	l.ringAlarms()
}

// pending says whether messages wait.
func (l *loop) pending() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.inbox)+len(l.verdicts) > 0
}

func (l *loop) messages() {
	for l.pending() {
		l.mu.Lock()
		inbox, verdicts := l.inbox, l.verdicts
		l.inbox, l.verdicts = nil, nil
		l.mu.Unlock()
		for _, f := range inbox {
			f(l)
		}
		for _, fv := range verdicts {
			fv.f.decided(fv.v, l.now)
		}
	}
}

// do runs f on the loop. It returns false if the loop has ended.
func (l *loop) do(f func(*loop)) bool {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return false
	}
	l.inbox = append(l.inbox, f)
	l.mu.Unlock()
	l.wake()
	return true
}

// postVerdict is called with an app's lock held.
func (l *loop) postVerdict(f *flow, v verdict) {
	l.mu.Lock()
	l.verdicts = append(l.verdicts, flowVerdict{f, v})
	l.mu.Unlock()
	l.wake()
}

func (l *loop) wake() {
	if l.sleeping.CompareAndSwap(true, false) {
		l.ring()
	}
}

func (l *loop) ring() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return // the descriptor may be another's by now
	}
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], 1)
	syscall.Write(int(l.bell), b[:]) //nolint:errcheck // a full counter rings as well
}

// add puts a descriptor into the epoll instance.
func (l *loop) add(fd int32, events uint32) (*sock, error) {
	l.gen++
	s := &sock{fd: fd, gen: l.gen, wantsOut: events&unix.EPOLLOUT != 0}
	if err := sysEpollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, events, s.gen); err != nil {
		return nil, err
	}
	for int(fd) >= len(l.socks) {
		l.socks = append(l.socks, make([]*sock, max(64, len(l.socks)))...)
	}
	l.socks[fd] = s
	return s, nil
}

// drop closes a descriptor.
func (l *loop) drop(s *sock, reset bool) {
	l.socks[s.fd] = nil
	if reset {
		sysReset(s.fd)
	} else {
		sysClose(s.fd)
	}
}

// listen begins to accept from a listening socket, which other loops may share.
func (l *loop) listen(fd int32, addr netip.AddrPort) (*loopListener, error) {
	s, err := l.add(fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE)
	if err != nil {
		return nil, err
	}
	s.listener = &loopListener{addr: addr, sock: s}
	return s.listener, nil
}

// unlisten stops accepting; the descriptor stays open.
func (l *loop) unlisten(ll *loopListener) {
	for range backlog / acceptMany { // those whose handshake is over are not to be reset
		if !l.accept(ll) {
			break
		}
	}
	l.cancel(&ll.alarm)
	if l.socks[ll.sock.fd] == ll.sock {
		l.socks[ll.sock.fd] = nil
		sysEpollCtl(l.epfd, unix.EPOLL_CTL_DEL, ll.sock.fd, 0, 0) //nolint:errcheck // it is not there while accept backs off
	}
}

// acceptMany bounds the connections taken in one round, so that those which are open get their turn.
const acceptMany = 16

// accept takes what waits; true if there may be more.
func (l *loop) accept(ll *loopListener) bool {
	for range acceptMany {
		fd, client, e := sysAccept(ll.sock.fd)
		switch e {
		case 0:
			ll.wait = 0
			l.begin(fd, ll.addr, client)
		case errAgain:
			return false
		case syscall.ECONNABORTED, syscall.EINTR:
		default:
			l.acceptFailed(ll, e)
			return false
		}
	}
	return true
}

// acceptFailed stops accepting for a moment: the node lacks files or memory.
func (l *loop) acceptFailed(ll *loopListener, e syscall.Errno) {
	ll.wait = min(max(2*ll.wait, acceptFirst), acceptMost)
	l.p.log.Warn("accept failed", "addr", ll.addr, "err", e, "wait", ll.wait)
	s := ll.sock
	sysEpollCtl(l.epfd, unix.EPOLL_CTL_DEL, s.fd, 0, 0) //nolint:errcheck // it is there
	ll.alarm.ring = func() {
		err := sysEpollCtl(l.epfd, unix.EPOLL_CTL_ADD, s.fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, s.gen)
		if err != nil {
			l.set(&ll.alarm, l.now.Add(ll.wait))
		}
	}
	l.set(&ll.alarm, l.now.Add(ll.wait))
}

// begin starts the road of an accepted connection.
func (l *loop) begin(fd int32, at, client netip.AddrPort) {
	r := l.p.route(at)
	if r.port != nil {
		l.p.adopt(fd, at)
		return
	}
	var st *stream
	if r.backhaul {
		n := l.p.peerAt(client.Addr())
		if n == nil {
			sysReset(fd)
			return
		}
		st = &stream{node: n}
	}
	s, err := l.add(fd, epollClient)
	if err != nil {
		l.p.log.Warn("connection was dropped", "err", err)
		sysClose(fd)
		return
	}
	f := &flow{loop: l, c: s}
	s.flow, s.writable = f, true
	f.drive = f
	l.p.prepare(&f.session, r, at, client, l.now)
	l.flows.add(f)
	if l.sweep.index == 0 {
		l.set(&l.sweep, l.now.Add(l.times.sweep))
	}
	if st != nil {
		st.drive, f.stream, f.state = f, st, stateHello
		f.alarm(l.now.Add(requestTime))
		f.hello() // it came with the SYN
		return
	}
	f.begin(l.now)
}

// sweepFlows looks at all flows for what needs no exact time.
func (l *loop) sweepFlows() {
	for f := l.flows.first; f != nil; {
		next := f.nextFlow
		f.sweep()
		f = next
	}
	if l.flows.first != nil {
		l.set(&l.sweep, l.now.Add(l.times.sweep))
	}
}

// bury ends the connections to guests that are no more.
func (l *loop) bury() {
	for f := l.flows.first; f != nil; {
		next := f.nextFlow
		if f.state == stateRelaying && f.seat.life.isOver() {
			f.bury()
		}
		f.buryCalls()
		f = next
	}
	for g := range l.ghosts {
		if g.seat.life.isOver() {
			g.end()
		}
	}
}

// close ends all flows and frees the descriptors.
func (l *loop) close() {
	l.now = time.Now()
	l.messages()
	for l.flows.first != nil {
		l.flows.first.stop()
		l.messages()
	}
	for g := range l.ghosts {
		g.end()
	}
	l.timer.Stop()
	l.pipes.close()
	l.mu.Lock()
	l.closed = true
	late := l.inbox
	l.mu.Unlock()
	for _, f := range late { // listeners are given back
		f(l)
	}
	sysClose(l.bell)
	l.epoll.Close() //nolint:errcheck // nothing is in it
}

// alarm is one moment in a loop's time.
type alarm struct {
	at    time.Time
	index int // in the heap, from 1; 0 is not set
	ring  func()
}

// alarms is a heap by time.
type alarms []*alarm

func (h alarms) Len() int           { return len(h) }
func (h alarms) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h alarms) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i+1, j+1
}

// Push and Pop are for container/heap.
func (h *alarms) Push(x any) {
	a := x.(*alarm)
	*h = append(*h, a)
	a.index = len(*h)
}

// Pop takes the last.
func (h *alarms) Pop() any {
	old := *h
	a := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	a.index = 0
	return a
}

func (l *loop) set(a *alarm, at time.Time) {
	a.at = at
	if a.index > 0 {
		heap.Fix(&l.alarms, a.index-1)
	} else {
		heap.Push(&l.alarms, a)
	}
	l.arm()
}

func (l *loop) cancel(a *alarm) {
	if a.index > 0 {
		heap.Remove(&l.alarms, a.index-1)
	}
}

// arm sets the timer for the first alarm. One that would fire early is left: it costs one idle round.
func (l *loop) arm() {
	if len(l.alarms) == 0 {
		return
	}
	first := l.alarms[0].at
	if l.due.IsZero() || first.Before(l.due) {
		l.due = first
		l.timer.Reset(max(time.Until(first), 0))
	}
}

func (l *loop) ringAlarms() {
	if l.due.IsZero() || l.now.Before(l.due) {
		return
	}
	l.due = time.Time{}
	for len(l.alarms) > 0 && !l.alarms[0].at.After(l.now) {
		a := heap.Pop(&l.alarms).(*alarm)
		a.ring()
	}
	l.arm()
}
