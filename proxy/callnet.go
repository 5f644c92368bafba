package proxy

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/volant-edge/volant/backhaul"
)

// line is what a driver has of a call: a netRoad a connection, a flow sockets.
type line struct {
	cancel context.CancelFunc
	conn   net.Conn
	early  int // bytes of the client that went with the request

	flow  *flow
	socks [callSocks]*callSock
	tries int
	alarm alarm
	stage callStage
	won   *sock
}

// callResult is how a netRoad's call ended.
type callResult struct {
	c    *call
	conn net.Conn
	ans  backhaul.Answer
	err  error
}

// call sends a request to a host, in a goroutine of its own.
func (d *netRoad) call(c *call) {
	ctx, cancel := context.WithCancel(d.ctx)
	c.cancel = cancel
	early := func() []byte { return nil }
	if c.req.Wait == 0 {
		early = d.client.early(d, backhaul.EarlyMost)
	}
	d.p.sessions.Go(func() {
		head := early()
		c.early = len(head)
		alive, lost := context.WithCancelCause(ctx)
		defer lost(nil)
		go func() {
			select {
			case <-c.life.over:
				lost(errHostLost)
			case <-alive.Done():
			}
		}()
		conn, ans, err := d.p.hedged(alive, c, head)
		if err != nil && ctx.Err() == nil && alive.Err() != nil {
			err = errHostLost
		}
		select {
		case d.answers <- callResult{c, conn, ans, err}:
		case <-ctx.Done():
			if conn != nil {
				abort(conn)
			}
		}
	})
}

func (d *netRoad) drop(c *call) {
	c.cancel()
	if c.conn != nil {
		abort(c.conn)
	}
}

func (d *netRoad) adopt(c *call) {
	d.machine, d.sent = c.conn, c.early
	c.cancel()
}

// answered takes the end of a call.
func (d *netRoad) answered(r callResult) {
	if d.abroad == nil || r.c != d.abroad.call && r.c != d.abroad.ask { // it was given up meanwhile
		if r.conn != nil {
			abort(r.conn)
		}
		return
	}
	if r.err != nil {
		d.called(r.c, nil, r.err, time.Now())
		return
	}
	if r.ans.Code == backhaul.OK {
		r.c.conn = r.conn
	} else {
		abort(r.conn)
	}
	d.called(r.c, &r.ans, nil, time.Now())
}

func (d *netRoad) answer(ans *backhaul.Answer) {
	var b [backhaul.AnswerLen]byte
	if g, ok := d.client.(*tcpCaller); ok { // streams have no other
		g.conn.Write(backhaul.AppendAnswer(b[:0], ans)) //nolint:errcheck // who cannot be told is gone, which a read shows
	}
}

// replace does nothing: what a netRoad listens on has no handshakes that are lost.
func (d *netRoad) replace(*stream) bool { return false }

// lose ends a stream whose edge is lost.
func (d *netRoad) lose() {
	d.isLost.Store(true)
	d.lost()
}

// hedged makes a call, and where the handshake takes long others with the same number: a lost SYN, or the answer to
// it, is sent again by the kernel after a second only. The host acts on the one that comes first.
func (p *Proxy) hedged(ctx context.Context, c *call, early []byte) (net.Conn, backhaul.Answer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan callResult, callSocks)
	dialed := make(chan net.Conn, callSocks)
	begin := func() {
		go func() {
			conn, ans, err := p.oneCall(ctx, c, early, func(conn net.Conn) { dialed <- conn })
			results <- callResult{c, conn, ans, err}
		}()
	}
	begin()
	under, begun := 1, 1
	timer := time.NewTimer(c.node.hedge())
	defer timer.Stop()
	var first net.Conn
	var last callResult
	for under > 0 {
		select {
		case conn := <-dialed:
			if first == nil {
				first = conn
			}
		case <-timer.C:
			if first == nil || !connectedTCP(first) {
				under++
				begin()
				if begun++; begun < callSocks {
					timer.Reset(c.node.hedge())
				}
			}
		case last = <-results:
			under--
			if last.err == nil && (last.ans.Code != backhaul.Seen || under == 0) {
				cancel()
				for ; under > 0; under-- {
					go func() { // it ends at once, since its context has
						if r := <-results; r.conn != nil {
							abort(r.conn)
						}
					}()
				}
				return last.conn, last.ans, nil
			}
			if last.conn != nil {
				abort(last.conn)
			}
		}
	}
	if last.err == nil {
		last.err = errNoAnswer
	}
	return nil, backhaul.Answer{}, last.err
}

// connectedTCP says whether the handshake of a connection is over, as far as that is to be known.
func connectedTCP(c net.Conn) bool {
	t, ok := c.(syscall.Conn)
	if !ok {
		return true
	}
	rc, err := t.SyscallConn()
	if err != nil {
		return false
	}
	connected := false
	err = rc.Control(func(fd uintptr) { connected = sysConnected(int32(fd)) })
	return err == nil && connected
}

// oneCall connects to the host, sends the request with the client's first bytes and reads the answer.
func (p *Proxy) oneCall(ctx context.Context, c *call, early []byte, dialed func(net.Conn)) (net.Conn, backhaul.Answer, error) {
	var ans backhaul.Answer
	addr, _ := c.node.where()
	bound, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	conn, err := p.cfg.DialFrom(bound, p.peering.Load().self, addr)
	if err != nil {
		return nil, ans, err
	}
	dialed(conn)
	if err = p.exchangeFrames(ctx, conn, c, early, &ans); err != nil {
		abort(conn)
		return nil, ans, err
	}
	return conn, ans, nil
}

func (p *Proxy) exchangeFrames(ctx context.Context, conn net.Conn, c *call, early []byte, ans *backhaul.Answer) error {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // it is closed next
	b := slices.Grow([]byte(nil), backhaul.RequestMost+len(early))
	b = append(backhaul.AppendRequest(b, &c.req), early...)
	conn.SetDeadline(time.Now().Add(answerWithin)) //nolint:errcheck // then writing fails
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, err := conn.Write(b); err != nil {
		return fmt.Errorf("request: %w", err)
	}
	if c.req.Wait > 0 {
		defer watchAcks(conn)()
		conn.SetDeadline(time.Now().Add(c.req.Wait + coldWithin + answerWithin)) //nolint:errcheck // the same
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	_, err := io.ReadFull(conn, b[:backhaul.AnswerLen:backhaul.AnswerLen])
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if !stop() {
		return ctx.Err()
	}
	conn.SetDeadline(time.Time{}) //nolint:errcheck // a connection that cannot is gone
	return backhaul.ParseAnswer(b[:backhaul.AnswerLen], ans)
}

// watchAcks ends the wait for an answer where the host has not even acknowledged the request in time.
func watchAcks(conn net.Conn) (stop func() bool) {
	t, ok := conn.(syscall.Conn)
	if !ok {
		return func() bool { return true }
	}
	return time.AfterFunc(answerWithin, func() {
		rc, err := t.SyscallConn()
		if err != nil {
			return
		}
		heard := true
		err = rc.Control(func(fd uintptr) { heard = sysConnected(int32(fd)) && sysUnsent(int32(fd)) == 0 })
		if err == nil && !heard {
			conn.SetDeadline(time.Unix(1, 0)) //nolint:errcheck // it is closed next
		}
	}).Stop
}
