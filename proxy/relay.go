package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Times of closing.
const (
	lingerTime = 10 * time.Second // for the machine to close after its client is gone
	halfTime   = 10 * time.Minute // for a half-closed connection on which nothing moves
	farewellIn = time.Second      // for a refused client to see the FIN before a RST can overtake it
)

// relayBuf is the size of a copy's buffer.
const relayBuf = 32 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, relayBuf); return &b }}

// relay copies both ways until both sides have ended, or over is closed because the machine's guest is no more,
// and returns when the machine's side has closed.
// It is the road of connections that are not plain kernel sockets on both sides.
func relay(ctx context.Context, client, machine net.Conn, over <-chan struct{}, e early) (up, down int64, how end) {
	moved := make(chan struct{}, 1)
	r := &relaying{client: client, machine: machine, moved: moved}
	defer machine.Close() //nolint:errcheck // closed in order before, or reset
	ups, downs := make(chan copied, 1), make(chan copied, 1)
	go func() { ups <- r.upward(e, moved) }()
	go func() { downs <- r.copy(client, machine, &r.down, moved) }()
	how = r.judge(ctx, over, ups, downs)
	return r.up.Load(), r.down.Load(), how
}

type relaying struct {
	client, machine net.Conn
	up, down        atomic.Int64
	moved           chan struct{} // for judge, who makes it nil when it no longer cares
}

// copied tells how one direction's copy ended: both nil is the end of the source.
type copied struct{ read, write error }

func (r *relaying) upward(e early, moved chan<- struct{}) copied {
	if len(e.data) > 0 {
		n, err := r.machine.Write(e.data)
		r.up.Add(int64(n))
		if err != nil {
			return copied{write: err}
		}
	}
	if e.eof {
		return copied{}
	}
	return r.copy(r.machine, r.client, &r.up, moved)
}

func (r *relaying) copy(dst, src net.Conn, count *atomic.Int64, moved chan<- struct{}) copied {
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	for {
		n, err := src.Read(*bp)
		if n > 0 {
			m, werr := dst.Write((*bp)[:n])
			count.Add(int64(m))
			select {
			case moved <- struct{}{}:
			default:
			}
			if werr != nil {
				return copied{write: werr}
			}
		}
		if errors.Is(err, io.EOF) {
			return copied{}
		}
		if err != nil {
			return copied{read: err}
		}
	}
}

// judge applies the rules of closing until the connection is over.
func (r *relaying) judge(ctx context.Context, over <-chan struct{}, ups, downs <-chan copied) end {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	var upEnd, downEnd, gone bool
	for !upEnd || !downEnd {
		select {
		case c := <-ups:
			upEnd = true
			switch {
			case c.write != nil: // the machine is gone: its reading side will say so
			case c.read != nil && !downEnd:
				gone = true
			case c.read != nil:
				return endClientReset
			}
			if c.write == nil {
				closeWrite(r.machine)
			}
		case c := <-downs:
			downEnd = true
			switch {
			case c.read != nil:
				r.machineGone(ups, upEnd)
				return endMachineReset
			case c.write != nil:
				gone, downEnd = true, false
				closeWrite(r.machine)
				downs = r.discard()
			default:
				closeWrite(r.client)
			}
		case <-r.moved:
		case <-timer.C:
			return r.timeUp(gone)
		case <-over:
			r.machineGone(ups, upEnd)
			return endGuestGone
		case <-ctx.Done():
			abort(r.machine)
			abort(r.client)
			return endStopping
		}
		switch {
		case gone && r.moved != nil:
			timer.Reset(lingerTime)
			r.moved = nil
		case !gone && upEnd != downEnd:
			timer.Reset(halfTime)
		}
	}
	if gone {
		return endClientReset
	}
	return endBoth
}

// discard reads what a machine still sends to a client that is gone, so that it comes to its end.
func (r *relaying) discard() <-chan copied {
	c := make(chan copied, 1)
	go func() {
		_, err := io.Copy(io.Discard, r.machine)
		c <- copied{read: err}
	}()
	return c
}

func (r *relaying) machineGone(ups <-chan copied, upEnd bool) {
	abort(r.client)
	abort(r.machine)
	if !upEnd {
		<-ups
	}
}

func (r *relaying) timeUp(gone bool) end {
	abort(r.machine)
	if gone {
		abort(r.client)
		return endLinger
	}
	r.client.Close() //nolint:errcheck // there is nothing left to do with it
	return endHalfClosed
}

// letGo ends a machine's connection that nobody wants, and returns when the machine's side has closed.
func letGo(c net.Conn) {
	closeWrite(c)
	c.SetReadDeadline(time.Now().Add(lingerTime)) //nolint:errcheck // then a read fails at once
	io.Copy(io.Discard, c)                        //nolint:errcheck // any end will do
	abort(c)
}

// closeWrite sends FIN, where the connection can.
func closeWrite(c net.Conn) {
	if cw, ok := c.(interface{ CloseWrite() error }); ok {
		cw.CloseWrite() //nolint:errcheck // a connection that cannot is gone, which its reader sees
		return
	}
	c.Close() //nolint:errcheck // the same
}

// abort closes with RST, where the connection can.
func abort(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		l.SetLinger(0) //nolint:errcheck // then it is closed with FIN
	}
	c.Close() //nolint:errcheck // there is nothing left to do with it
}

// sayFarewell closes a refused client with FIN. What it sends meanwhile is read for a moment, since closing
// over unread bytes would send RST.
func sayFarewell(ctx context.Context, c net.Conn) {
	closeWrite(c)
	defer context.AfterFunc(ctx, func() { c.Close() })() //nolint:errcheck // closed again by the session
	c.SetReadDeadline(time.Now().Add(farewellIn))        //nolint:errcheck // then a read fails at once
	io.Copy(io.Discard, io.LimitReader(c, 64<<10))       //nolint:errcheck // any end will do
}
