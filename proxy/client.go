package proxy

import (
	"bufio"
	"context"
	"errors"
	"net"
	"sync"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
	"github.com/volant-edge/volant/why"
)

// Client has the methods of a Proxy which runs in another process. When the connection is lost, every
// call fails with volant.ErrUnavailable; to connect again is the caller's business.
type Client struct {
	path string
	conn net.Conn
	done chan struct{}

	write sync.Mutex // held while a frame is written

	mu    sync.Mutex
	last  uint64
	calls map[uint64]chan frame
	err   error // why the connection ended
}

// Dial connects to the control socket at path.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := dialControl(ctx, path)
	if err != nil {
		return nil, err
	}
	c := &Client{path: path, conn: conn, done: make(chan struct{}), calls: map[uint64]chan frame{}}
	go c.read()
	return c, nil
}

func dialControl(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, volant.Errorf(volant.ErrUnavailable, "connect to the proxy: %v", err)
	}
	return conn, nil
}

// Close ends the connection. The proxy goes on.
func (c *Client) Close() error { return c.conn.Close() }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Hello tells who the proxy is and which Table it has.
func (c *Client) Hello(ctx context.Context) (Hello, error) {
	var h Hello
	return h, c.call(ctx, opHello, nil, &h)
}

// SetTable is Proxy.SetTable.
func (c *Client) SetTable(ctx context.Context, t Table) error { return c.call(ctx, opSetTable, t, nil) }

// Seal is Proxy.Seal.
func (c *Client) Seal(ctx context.Context, id volant.MachineID, seq uint64) (bool, error) {
	var ok bool
	return ok, c.call(ctx, opSeal, sealRequest{Machine: id, Seq: seq}, &ok)
}

// Slots is Proxy.Slots.
func (c *Client) Slots(ctx context.Context) (map[volant.MachineID]int, error) {
	var s map[volant.MachineID]int
	return s, c.call(ctx, opSlots, nil, &s)
}

// Query is Proxy.Query.
func (c *Client) Query(ctx context.Context, q why.Query) ([]why.Record, error) {
	var rs []why.Record
	return rs, c.call(ctx, opQuery, q, &rs)
}

// Tell is Proxy.Tell.
func (c *Client) Tell(ctx context.Context, facts []live.Fact) error {
	return c.call(ctx, opTell, tellRequest{Facts: facts}, nil)
}

// TellAll is Proxy.TellAll.
func (c *Client) TellAll(ctx context.Context, kinds live.Kinds, facts []live.Fact) error {
	if kinds == 0 {
		return volant.Invalidf("all facts of no kinds")
	}
	return c.call(ctx, opTell, tellRequest{All: kinds, Facts: facts}, nil)
}

// Numbers is Proxy.Numbers.
func (c *Client) Numbers(ctx context.Context) (Numbers, error) {
	var n Numbers
	return n, c.call(ctx, opNumbers, nil, &n)
}

// Picture is Proxy.Picture.
func (c *Client) Picture(ctx context.Context, id volant.AppID) (Picture, error) {
	var p Picture
	return p, c.call(ctx, opPicture, id, &p)
}

// Shutdown asks the process to end: it stops accepting at once and ends with its last connection, or
// after its bound. It returns when that has begun.
func (c *Client) Shutdown(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	default:
	}
	err := c.call(ctx, opShutdown, nil, nil)
	if errors.Is(err, volant.ErrUnavailable) {
		select {
		case <-c.done: // it had nothing to wait for, and ended before it could answer
			return nil
		default:
		}
	}
	return err
}

// Watch is Proxy.Watch, on a connection of its own. It also returns, with volant.ErrUnavailable, when
// that is lost.
func (c *Client) Watch(ctx context.Context, ev Events) error {
	conn, err := dialControl(ctx, c.path)
	if err != nil {
		return err
	}
	defer conn.Close()                                      //nolint:errcheck // only read
	defer context.AfterFunc(ctx, func() { conn.Close() })() //nolint:errcheck // the read tells
	if err := send(conn, frame{Op: opWatch}); err != nil {
		return lost(err)
	}
	r := bufio.NewReader(conn)
	for {
		f, err := readFrame(r)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return lost(err)
		case f.Error != nil:
			return f.Error.Err()
		}
		if err := ev.take(f); err != nil {
			return err
		}
	}
}

// take calls the func an event is for. Events which this binary does not know are skipped.
func (ev *Events) take(f frame) error {
	switch f.Event {
	case eventLoad:
		return give(f, ev.Load)
	case eventWake:
		return give(f, ev.Wake)
	case eventWhy:
		return give(f, ev.Why)
	case eventPeer:
		return give(f, ev.Peer)
	case eventFacts:
		return give(f, func(fs []live.Fact) {
			for i := range fs {
				if ev.Fact != nil {
					ev.Fact(fs[i])
				}
			}
		})
	}
	return nil
}

func give[T any](f frame, to func(T)) error {
	var v T
	if err := unmarshal(f.Body, &v); err != nil {
		return err
	}
	if to != nil {
		to(v)
	}
	return nil
}

func lost(err error) error {
	return volant.Errorf(volant.ErrUnavailable, "the connection to the proxy was lost: %v", err)
}

func (c *Client) read() {
	r := bufio.NewReader(c.conn)
	for {
		f, err := readFrame(r)
		c.mu.Lock()
		if err != nil {
			c.err = lost(err)
			close(c.done)
			c.mu.Unlock()
			c.conn.Close() //nolint:errcheck // it is lost already
			return
		}
		answer := c.calls[f.ID]
		delete(c.calls, f.ID)
		c.mu.Unlock()
		if answer != nil {
			answer <- f
		}
	}
}

func (c *Client) call(ctx context.Context, op string, in, out any) error {
	f := frame{Op: op}
	if in != nil {
		var err error
		if f.Body, err = marshal(in); err != nil {
			return err
		}
	}
	answer := make(chan frame, 1)
	c.mu.Lock()
	c.last++
	f.ID = c.last
	c.calls[f.ID] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.calls, f.ID)
		c.mu.Unlock()
	}()
	c.write.Lock()
	err := send(c.conn, f)
	c.write.Unlock()
	if err != nil {
		return errors.Join(lost(err), c.conn.Close()) // half a frame may be out
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c.done:
		return c.err
	case f := <-answer:
		if f.Error != nil {
			return f.Error.Err()
		}
		if out == nil {
			return nil
		}
		return unmarshal(f.Body, out)
	}
}
