package proxy

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// latePacket makes sockets on which everything is heard that much later, for tests of what old facts do.
func latePacket(by time.Duration) func(ctx context.Context, addr netip.AddrPort) (net.PacketConn, error) {
	return func(ctx context.Context, addr netip.AddrPort) (net.PacketConn, error) {
		conn, err := listenPacket(ctx, addr)
		if err != nil {
			return nil, err
		}
		c := &lateConn{PacketConn: conn, due: make(chan latePart, 1<<14)}
		go c.hear(by)
		return c, nil
	}
}

type latePart struct {
	b    []byte
	from net.Addr
	at   time.Time
	err  error
}

type lateConn struct {
	net.PacketConn
	due chan latePart
}

// hear takes what comes, until the socket is closed.
func (c *lateConn) hear(by time.Duration) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.PacketConn.ReadFrom(buf)
		part := latePart{append([]byte(nil), buf[:n]...), from, time.Now().Add(by), err}
		if err != nil {
			part.at = time.Now()
		}
		select {
		case c.due <- part:
		default: // as on a socket without room
		}
		if err != nil {
			close(c.due)
			return
		}
	}
}

func (c *lateConn) ReadFrom(b []byte) (int, net.Addr, error) {
	part, ok := <-c.due
	if !ok {
		return 0, nil, net.ErrClosed
	}
	time.Sleep(time.Until(part.at))
	return copy(b, part.b), part.from, part.err
}
