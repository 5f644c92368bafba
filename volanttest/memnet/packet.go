package memnet

import (
	"container/heap"
	"context"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// packetsMost is what a socket holds of datagrams on their way to it, lost ones beyond that.
const packetsMost = 1 << 14

// Weather decides what becomes of a datagram: it arrives once after each of the delays. None: it is lost.
type Weather func(from, to netip.AddrPort, size int) []time.Duration

// SetWeather makes w decide on datagrams from now on; with nil all arrive at once.
func (n *Network) SetWeather(w Weather) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.weather = w
}

// ListenPacket opens a socket for datagrams at an address.
func (n *Network) ListenPacket(_ context.Context, addr netip.AddrPort) (net.PacketConn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.packets[addr] != nil {
		return nil, &net.OpError{Op: "listen", Net: "udp", Addr: net.UDPAddrFromAddrPort(addr), Err: syscall.EADDRINUSE}
	}
	if n.packets == nil {
		n.packets = map[netip.AddrPort]*PacketConn{}
	}
	c := &PacketConn{network: n, addr: addr, bell: make(chan struct{}, 1), closed: make(chan struct{})}
	n.packets[addr] = c
	return c, nil
}

// PacketConn is a socket for datagrams.
type PacketConn struct {
	network *Network
	addr    netip.AddrPort
	once    sync.Once
	closed  chan struct{}
	bell    chan struct{} // rung when what a reader waits for may have changed

	mu     sync.Mutex
	coming packets
	order  uint64
	readBy time.Time
}

type packet struct {
	at    time.Time
	order uint64
	from  netip.AddrPort
	data  []byte
}

// packets is a heap by time of arrival.
type packets []packet

func (p packets) Len() int { return len(p) }
func (p packets) Less(i, j int) bool {
	if p[i].at.Equal(p[j].at) {
		return p[i].order < p[j].order
	}
	return p[i].at.Before(p[j].at)
}
func (p packets) Swap(i, j int) { p[i], p[j] = p[j], p[i] }

// Push is for container/heap.
func (p *packets) Push(x any) { *p = append(*p, x.(packet)) } //nolint:forcetypeassert // nothing else is pushed

// Pop is for container/heap.
func (p *packets) Pop() any {
	last := len(*p) - 1
	x := (*p)[last]
	(*p)[last] = packet{}
	*p = (*p)[:last]
	return x
}

// ReadFromUDPAddrPort waits for a datagram to arrive.
func (c *PacketConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	for {
		c.mu.Lock()
		now := time.Now()
		wait := time.Duration(-1)
		late := !c.readBy.IsZero() && !now.Before(c.readBy)
		if !c.readBy.IsZero() {
			wait = c.readBy.Sub(now)
		}
		if len(c.coming) > 0 && !late {
			first := c.coming[0].at.Sub(now)
			if first <= 0 {
				p := heap.Pop(&c.coming).(packet) //nolint:forcetypeassert // nothing else is there
				c.mu.Unlock()
				return copy(b, p.data), p.from, nil
			}
			if wait < 0 || first < wait {
				wait = first
			}
		}
		c.mu.Unlock()
		if late {
			return 0, netip.AddrPort{}, c.wrap("read", os.ErrDeadlineExceeded)
		}
		if !c.wait(wait) {
			return 0, netip.AddrPort{}, c.wrap("read", net.ErrClosed)
		}
	}
}

// wait returns when something changed, or after d if that is not negative; false: the socket is closed.
func (c *PacketConn) wait(d time.Duration) bool {
	var tick <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		tick = t.C
	}
	select {
	case <-c.bell:
	case <-tick:
	case <-c.closed:
		return false
	}
	return true
}

// WriteToUDPAddrPort sends a datagram. Nobody tells when nobody listens.
func (c *PacketConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	select {
	case <-c.closed:
		return 0, c.wrap("write", net.ErrClosed)
	default:
	}
	c.network.mu.Lock()
	d, weather, wire := c.network.packets[to], c.network.weather, c.network.wire
	c.network.mu.Unlock()
	if d == nil {
		return len(b), nil
	}
	delays := []time.Duration{0}
	if wire != nil {
		w := wire(c.addr.Addr(), to.Addr())
		if delays[0] = w.Delay; w.Cut {
			return len(b), nil
		}
	}
	if weather != nil {
		delays = weather(c.addr, to, len(b))
	}
	if len(delays) == 0 {
		return len(b), nil
	}
	data := append([]byte(nil), b...)
	for _, delay := range delays {
		d.deliver(packet{at: time.Now().Add(delay), from: c.addr, data: data})
	}
	return len(b), nil
}

func (c *PacketConn) deliver(p packet) {
	c.mu.Lock()
	if len(c.coming) >= packetsMost {
		c.mu.Unlock()
		return
	}
	c.order++
	p.order = c.order
	heap.Push(&c.coming, p)
	first := c.coming[0].order == p.order
	c.mu.Unlock()
	if first {
		c.ring()
	}
}

func (c *PacketConn) ring() {
	select {
	case c.bell <- struct{}{}:
	default:
	}
}

func (c *PacketConn) wrap(op string, err error) error {
	return &net.OpError{Op: op, Net: "udp", Source: c.LocalAddr(), Err: err}
}

// ReadFrom is ReadFromUDPAddrPort for those who want a net.Addr.
func (c *PacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// WriteTo is WriteToUDPAddrPort for those who have a net.Addr.
func (c *PacketConn) WriteTo(b []byte, to net.Addr) (int, error) {
	u, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, c.wrap("write", syscall.EAFNOSUPPORT)
	}
	return c.WriteToUDPAddrPort(b, u.AddrPort())
}

// Close closes the socket; datagrams on their way to it are lost.
func (c *PacketConn) Close() error {
	c.once.Do(func() {
		c.network.mu.Lock()
		delete(c.network.packets, c.addr)
		c.network.mu.Unlock()
		close(c.closed)
	})
	return nil
}

// LocalAddr is the socket's address.
func (c *PacketConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.addr) }

// SetDeadline sets the read deadline; writes never wait.
func (c *PacketConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline makes reads fail from t on.
func (c *PacketConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.readBy = t
	c.mu.Unlock()
	c.ring()
	return nil
}

// SetWriteDeadline does nothing: writes never wait.
func (c *PacketConn) SetWriteDeadline(time.Time) error { return nil }
