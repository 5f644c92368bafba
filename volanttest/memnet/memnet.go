// Package memnet is a network in memory, for tests of whole platforms under testing/synctest: TCP with half-close,
// reset, refusal, bounded buffers and deadlines as the kernel has them, UDP in any weather, and no file descriptor.
package memnet

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// bufferMost is what one direction of a connection holds before a writer waits.
const bufferMost = 64 << 10

// Network connects those who Dial with those who Listen. Its zero value is ready for use.
type Network struct {
	mu        sync.Mutex
	listeners map[netip.AddrPort]*listener
	lastPort  uint16
	packets   map[netip.AddrPort]*PacketConn
	weather   Weather // of datagrams
	wire      func(from, to netip.Addr) Wire
}

// Listen listens on an address, which needs no set-up.
func (n *Network) Listen(_ context.Context, addr netip.AddrPort) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[addr] != nil {
		return nil, opError("listen", addr, syscall.EADDRINUSE)
	}
	if n.listeners == nil {
		n.listeners = map[netip.AddrPort]*listener{}
	}
	l := &listener{network: n, addr: addr, backlog: make(chan *Conn, 4096), closed: make(chan struct{})}
	n.listeners[addr] = l
	return l, nil
}

// Dial connects to an address on which somebody listens; else the connection is refused.
func (n *Network) Dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	return n.DialFrom(ctx, netip.AddrFrom4([4]byte{192, 0, 2, 1}), addr)
}

// DialFrom is Dial with the client's address given.
func (n *Network) DialFrom(ctx context.Context, from netip.Addr, addr netip.AddrPort) (net.Conn, error) {
	if ctx.Err() != nil {
		return nil, opError("dial", addr, ctx.Err())
	}
	n.mu.Lock()
	n.lastPort++
	source := netip.AddrPortFrom(from, 1024+n.lastPort%60000)
	wire := n.wire
	n.mu.Unlock()
	var there, back func() Wire
	if wire != nil {
		there = func() Wire { return wire(from, addr.Addr()) }
		back = func() Wire { return wire(addr.Addr(), from) }
		if err := passes(ctx, there); err != nil {
			return nil, opError("dial", addr, err)
		}
	}
	n.mu.Lock()
	l := n.listeners[addr]
	n.mu.Unlock()
	if l == nil {
		if wire != nil {
			if err := passes(ctx, back); err != nil {
				return nil, opError("dial", addr, err)
			}
		}
		return nil, opError("dial", addr, syscall.ECONNREFUSED)
	}
	client, server := pair(source, addr, there, back)
	select {
	case l.backlog <- server:
		if wire != nil {
			if err := passes(ctx, back); err != nil {
				client.reset()
				return nil, opError("dial", addr, err)
			}
		}
		return client, nil
	case <-l.closed:
		return nil, opError("dial", addr, syscall.ECONNREFUSED)
	case <-ctx.Done():
		return nil, opError("dial", addr, ctx.Err())
	}
}

func opError(op string, addr netip.AddrPort, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Addr: net.TCPAddrFromAddrPort(addr), Err: err}
}

type listener struct {
	network *Network
	addr    netip.AddrPort
	backlog chan *Conn
	once    sync.Once
	closed  chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.backlog:
		return c, nil
	case <-l.closed:
		return nil, opError("accept", l.addr, net.ErrClosed)
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		l.network.mu.Lock()
		delete(l.network.listeners, l.addr)
		l.network.mu.Unlock()
		close(l.closed)
		for {
			select {
			case c := <-l.backlog:
				c.reset()
			default:
				return
			}
		}
	})
	return nil
}

func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

// Conn is one end of a connection.
type Conn struct {
	in, out       *half
	local, remote netip.AddrPort
	mu            sync.Mutex
	linger        bool // Close resets
}

// pair is both ends of a connection; there and back are the ways between them, nil for none.
func pair(client, server netip.AddrPort, there, back func() Wire) (c, s *Conn) {
	up, down := newHalf(there), newHalf(back)
	up.back, down.back = down, up
	return &Conn{in: down, out: up, local: client, remote: server}, &Conn{in: up, out: down, local: server, remote: client}
}

// Read reads what the other end wrote.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.in.read(b)
	return n, c.wrap("read", err)
}

// Write waits for room in the other end's buffer.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.out.write(b)
	return n, c.wrap("write", err)
}

func (c *Conn) wrap(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return opError(op, c.remote, err)
}

// CloseWrite ends this direction; the other end reads io.EOF after what was written.
func (c *Conn) CloseWrite() error {
	c.out.finish()
	return nil
}

// SetLinger with 0 makes Close reset the connection.
func (c *Conn) SetLinger(sec int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.linger = sec == 0
	return nil
}

// Close closes both directions. It resets the connection if something received was not read.
func (c *Conn) Close() error {
	c.mu.Lock()
	linger := c.linger
	c.mu.Unlock()
	if c.in.abandon() || linger {
		c.reset()
		return nil
	}
	c.out.finish()
	c.out.closeLocal()
	return nil
}

func (c *Conn) reset() {
	c.in.abandon()
	c.out.closeLocal()
	if c.out.wire != nil {
		c.out.answer()
		return
	}
	c.out.sever(syscall.ECONNRESET)
	c.in.sever(syscall.EPIPE)
}

// LocalAddr is this end's address.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr is the other end's address.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline makes reads fail from t on.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.readBy, t)
	return nil
}

// SetWriteDeadline makes writes fail from t on.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(&c.out.writeBy, t)
	return nil
}

// half is one direction.
type half struct {
	mu      sync.Mutex
	changed *sync.Cond
	buf     []byte
	fin     bool  // the writer is done
	err     error // the reader's error, once buf is empty
	werr    error // the writer's
	unread  bool  // the reader has closed
	unwrite bool  // the writer has closed
	readBy  deadline
	writeBy deadline

	wire   func() Wire // nil: what is written is there
	back   *half       // the other direction
	way    []piece     // what is on its way
	flying int         // bytes of it
	closed bool        // the writer has sent its end
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) over() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func newHalf(wire func() Wire) *half {
	h := &half{wire: wire}
	h.changed = sync.NewCond(&h.mu)
	return h
}

func (h *half) read(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.unread:
			return 0, net.ErrClosed
		case h.readBy.over():
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			return 0, nil
		case len(h.buf) > 0:
			n := copy(b, h.buf)
			h.buf = h.buf[n:]
			h.changed.Broadcast()
			return n, nil
		case h.err != nil:
			return 0, h.err
		case h.fin:
			return 0, io.EOF
		}
		h.changed.Wait()
	}
}

func (h *half) write(b []byte) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.unwrite:
			return n, net.ErrClosed
		case h.writeBy.over():
			return n, os.ErrDeadlineExceeded
		case h.werr != nil:
			return n, h.werr
		case h.fin || h.closed:
			return n, syscall.EPIPE
		case h.unread && h.wire == nil: // the kernel's answer to bytes for nobody is RST
			h.werr = syscall.EPIPE
			return n, syscall.ECONNRESET
		case len(b) == 0:
			return n, nil
		}
		if room := bufferMost - len(h.buf) - h.flying; room > 0 {
			m := min(room, len(b))
			if h.wire != nil {
				h.sendLocked(piece{data: append([]byte(nil), b[:m]...)})
			} else {
				h.buf = append(h.buf, b[:m]...)
			}
			b, n = b[m:], n+m
			h.changed.Broadcast()
			continue
		}
		h.changed.Wait()
	}
}

func (h *half) finish() {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.wire == nil:
		h.fin = true
	case !h.closed:
		h.closed = true
		h.sendLocked(piece{fin: true})
	}
	h.changed.Broadcast()
}

// abandon is the reader's close; true if bytes were left unread.
func (h *half) abandon() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	left := len(h.buf) > 0 && !h.unread
	h.unread, h.buf = true, nil
	h.changed.Broadcast()
	return left
}

func (h *half) closeLocal() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unwrite = true
	h.changed.Broadcast()
}

// sever ends the direction with an error on either end. What has arrived can still be read, as with Linux.
func (h *half) sever(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil && !h.fin || errors.Is(err, syscall.ECONNRESET) {
		h.err = err
	}
	h.werr = syscall.ECONNRESET
	h.changed.Broadcast()
}

func (h *half) setDeadline(d *deadline, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d.at = t
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		d.timer = time.AfterFunc(wait, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.changed.Broadcast()
		})
	}
	h.changed.Broadcast()
}
