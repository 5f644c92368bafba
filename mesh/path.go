package mesh

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
)

const (
	lookEvery   = time.Second            // at peers that are new or have moved, and at what the kernel has learned of paths
	mendEvery   = 30 * time.Second       // what others may have taken away
	callEvery   = 100 * time.Millisecond // to look who has not answered
	callFirst   = 500 * time.Millisecond // until one that has not is called again, and then twice as long
	callLast    = 4 * time.Second
	probeAgain  = 10 * time.Minute // a path that was measured
	probeSooner = 10 * time.Second // one that did not answer
	probeTries  = 3                // of one size
	probeWait   = 700 * time.Millisecond
	probeAtOnce = 16 // peers
)

// pathState is what is known of the way to a peer.
type pathState struct {
	endpoint netip.AddrPort // that it was found for
	mtu      int            // largest packet of the mesh that came through; 0: not known
	learned  int            // what the kernel knew of the path then
	next     time.Time      // when to look again
}

// call is a handshake that was begun and shall be soon over.
type call struct {
	since time.Time
	wait  time.Duration // after the last
	next  time.Time
}

// route is the MTU of the route to the peer.
func (p pathState) route(link int) int {
	if p.mtu == 0 {
		return link
	}
	return min(link, p.mtu)
}

// inside is the largest packet of the mesh on a path of which the kernel has learned that it carries so much; 0 if it
// has not.
func inside(learned int) int {
	if learned == 0 {
		return 0
	}
	return max((learned-Overhead)/16*16, MinMTU)
}

// Run is Device's: it looks after paths and calls, and repairs what others have taken away.
func (l *Local) Run(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { l.lookAfter(ctx); return nil })
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		if err := l.look(ctx); err != nil && ctx.Err() == nil {
			l.log.Warn("paths of the mesh not measured", "err", err)
		}
		select {
		case <-ctx.Done():
			return g.Wait()
		case <-l.wake:
		case <-look.C:
		}
	}
}

// lookAfter does what must not wait for a path that is slow to measure.
func (l *Local) lookAfter(ctx context.Context) {
	mend, call := time.NewTicker(mendEvery), time.NewTicker(callEvery)
	defer mend.Stop()
	defer call.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-mend.C:
			l.mend()
		case <-call.C:
			l.callAgain(time.Now())
		}
	}
}

// callAgain calls those again who were called a moment ago and have not answered: one lost packet must not cost
// the 5 s after which WireGuard tries again. Who does not answer for long is left to WireGuard.
func (l *Local) callAgain(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.eng == nil || len(l.calls) == 0 {
		return
	}
	ss, err := l.eng.sessions()
	if err != nil {
		return // as the next look says
	}
	left := map[Key]call{}
	for _, s := range ss {
		c, called := l.calls[s.key]
		if !called || !s.handshake.Before(c.since) || c.wait > callLast || !s.endpoint.IsValid() {
			continue
		}
		if !now.Before(c.next) {
			l.eng.call(s.key)
			c.wait *= 2 // an answer that is on its way is lost with each call
			c.next = now.Add(c.wait)
		}
		left[s.key] = c
	}
	l.calls = left
}

func (l *Local) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.eng == nil {
		return
	}
	l.mtu = l.wantMTU(l.cfg)
	err := l.link.up(l.cfg.Addr, l.mtu)
	if err == nil {
		err = l.routesLocked()
	}
	if err != nil {
		l.log.Error("mesh interface not mended", "err", err)
	}
}

// probe is a path to measure.
type probe struct {
	node volant.NodeID
	addr netip.Addr
	top  int // size to begin with
	pathState
}

// look measures the paths that are due and sets their routes.
func (l *Local) look(ctx context.Context) error {
	due, own, err := l.due(time.Now())
	if err != nil || len(due) == 0 {
		return err
	}
	e, err := openEcho(ctx, own)
	if err != nil {
		return err
	}
	defer e.close()
	var g errgroup.Group
	g.SetLimit(probeAtOnce)
	for i := range due {
		g.Go(func() error {
			due[i].mtu = e.measure(ctx, due[i].addr, due[i].top)
			return nil
		})
	}
	if err := g.Wait(); err != nil || ctx.Err() != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.eng == nil {
		return nil
	}
	l.paths = maps.Clone(l.paths)
	for _, p := range due {
		l.learnLocked(p)
	}
	return l.routesLocked()
}

// due are the paths to measure now. A path of which the kernel has learned something smaller is bounded by that at once.
func (l *Local) due(now time.Time) (due []probe, own netip.Addr, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.eng == nil {
		return nil, own, nil
	}
	ss, err := l.eng.sessions()
	if err != nil {
		return nil, own, err
	}
	of := map[netip.Addr]volant.NodeID{}
	for _, p := range l.cfg.Peers {
		of[p.Addr] = p.Node
	}
	maps.DeleteFunc(l.paths, func(a netip.Addr, _ pathState) bool { _, ok := of[a]; return !ok })
	for _, s := range ss {
		if !s.allowed.IsValid() || s.handshake.IsZero() || !s.endpoint.IsValid() {
			continue
		}
		st := l.paths[s.allowed]
		learned := l.link.pathMTU(s.endpoint)
		if st.endpoint == s.endpoint && st.learned == learned && now.Before(st.next) {
			continue
		}
		p := probe{node: of[s.allowed], addr: s.allowed, top: l.mtu, pathState: pathState{endpoint: s.endpoint, learned: learned}}
		if in := inside(learned); in > 0 {
			p.top = min(p.top, in)
		}
		due = append(due, p)
	}
	return due, l.cfg.Addr, nil
}

// learnLocked takes what was measured. While a large probe goes out the kernel may learn that the path is smaller, and
// send the next one in pieces: WireGuard's bundles of packets it does not, so what it learned bounds the rest.
func (l *Local) learnLocked(p probe) {
	now := time.Now()
	p.next = now.Add(probeAgain)
	if p.mtu == 0 { // nothing came back, and nothing is known
		p.next = now.Add(probeSooner)
	}
	if p.learned = l.link.pathMTU(p.endpoint); p.learned > 0 && p.mtu > 0 {
		p.mtu = min(p.mtu, inside(p.learned))
	}
	if old := l.paths[p.addr]; p.mtu != old.mtu && p.mtu > 0 {
		l.log.Info("mesh path measured", "node", p.node, "endpoint", p.endpoint, "mtu", p.mtu)
	}
	if p.mtu == 0 && p.learned > 0 {
		p.mtu = inside(p.learned)
	}
	l.paths[p.addr] = p.pathState
}

// echo asks peers by ICMPv6 for answers of a given size.
type echo struct {
	conn net.PacketConn
	id   uint16

	mu      sync.Mutex
	seq     uint16
	waiting map[uint16]chan struct{}
}

func openEcho(ctx context.Context, own netip.Addr) (*echo, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			// The interface's MTU bounds a probe, not the route's: that is what it is to find.
			if err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE); err == nil {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
			}
		})
		if cerr != nil {
			return cerr
		}
		return err
	}}
	c, err := lc.ListenPacket(ctx, "ip6:ipv6-icmp", own.String())
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	e := &echo{conn: c, id: uint16(time.Now().UnixNano() >> 10), waiting: map[uint16]chan struct{}{}}
	go e.read()
	return e, nil
}

func (e *echo) close() { _ = e.conn.Close() } // a raw socket

const (
	echoRequest = 128
	echoReply   = 129
	echoHeader  = 8
	ipv6Header  = 40
)

func (e *echo) read() {
	buf := make([]byte, 1<<16)
	for {
		n, _, err := e.conn.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		if n < echoHeader || buf[0] != echoReply || binary.BigEndian.Uint16(buf[4:]) != e.id {
			continue
		}
		e.mu.Lock()
		if c, ok := e.waiting[binary.BigEndian.Uint16(buf[6:])]; ok {
			select {
			case c <- struct{}{}:
			default: // it has an answer
			}
		}
		e.mu.Unlock()
	}
}

// measure is the largest size that the path carries, from top down; 0 if nothing comes back.
func (e *echo) measure(ctx context.Context, to netip.Addr, top int) int {
	if e.try(ctx, to, top) {
		return top
	}
	if top == MinMTU || !e.try(ctx, to, MinMTU) {
		return 0
	}
	sizes := ladder(top)
	lo, hi := 0, len(sizes)-1 // sizes[lo] does not come through, sizes[hi] does
	for hi-lo > 1 {
		mid := (lo + hi) / 2
		if e.try(ctx, to, sizes[mid]) {
			hi = mid
		} else {
			lo = mid
		}
	}
	return sizes[hi]
}

// try sends a packet of a size until an answer comes.
func (e *echo) try(ctx context.Context, to netip.Addr, size int) bool {
	for range probeTries {
		e.mu.Lock()
		e.seq++
		seq, got := e.seq, make(chan struct{}, 1)
		e.waiting[seq] = got
		e.mu.Unlock()
		p := make([]byte, size-ipv6Header)
		p[0] = echoRequest // the kernel adds the checksum
		binary.BigEndian.PutUint16(p[4:], e.id)
		binary.BigEndian.PutUint16(p[6:], seq)
		_, err := e.conn.WriteTo(p, &net.IPAddr{IP: to.AsSlice()})
		answered := err == nil && e.await(ctx, got)
		e.mu.Lock()
		delete(e.waiting, seq)
		e.mu.Unlock()
		if answered {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
	}
	return false
}

func (e *echo) await(ctx context.Context, got <-chan struct{}) bool {
	t := time.NewTimer(probeWait)
	defer t.Stop()
	select {
	case <-got:
		return true
	case <-ctx.Done():
	case <-t.C:
	}
	return false
}
