// Package crowd is users who come, exchange bytes with the test server, and go. Every byte is checked.
//
// # Invariants
//
//   - A user leaves in order: it ends its half and waits for the other's end.
//   - Lost is every connection that ended otherwise after a byte of the app had come: the app itself never
//     closes first. Refused is one that ended before.
//
// # Not here
//
// What the users connect to: package testserver.
package crowd

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/volant-edge/volant/volanttest/testserver"
)

// Config of a Crowd.
type Config struct {
	Addr    string
	Sources []netip.Addr  // the users' addresses, taken in turn
	Life    time.Duration // mean of a user's exponential life
	Pause   time.Duration // mean of the time between two exchanges
	Bytes   int           // most bytes of one exchange; 2000
}

// Counts are what became of the users so far.
type Counts struct {
	Open, Came, Left, Lost, Refused int
	Exchanges                       int64
	Errors                          []string // the first few
}

// Crowd is a number of users. Run keeps it at the number that Want says, by coming: nobody is sent away.
type Crowd struct {
	cfg  Config
	want atomic.Int64
	stop chan struct{} // closed when all shall leave
	all  sync.WaitGroup

	exchanges atomic.Int64
	mu        sync.Mutex // guards the following
	counts    Counts
	stayers   int
	rounds    map[int]int64 // exchanges of each stayer
}

// New makes a crowd of nobody.
func New(cfg Config) *Crowd {
	if cfg.Bytes == 0 {
		cfg.Bytes = 2000
	}
	return &Crowd{cfg: cfg, stop: make(chan struct{}), rounds: map[int]int64{}}
}

const (
	answerWithin = 60 * time.Second // an exchange, also the first one, which may have waited in the queue
	errorsMost   = 20
	comeEvery    = 20 * time.Millisecond
	comeAtOnce   = 10
)

// Want sets how many users there shall be beside those who stay.
func (c *Crowd) Want(n int) { c.want.Store(int64(n)) }

// Stay lets n more users come who stay until End. It returns when all of them have exchanged bytes.
func (c *Crowd) Stay(ctx context.Context, n int) error {
	ready := make(chan error, n)
	for range n {
		c.mu.Lock()
		id := c.stayers
		c.stayers++
		c.mu.Unlock()
		c.all.Go(func() { c.user(ctx, id, nil, ready) })
	}
	for range n {
		select {
		case err := <-ready:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Run lets users come until ctx ends or End is called.
func (c *Crowd) Run(ctx context.Context) {
	tick := time.NewTicker(comeEvery)
	defer tick.Stop()
	var passing atomic.Int64 // users who do not stay
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.stop:
			return
		case <-tick.C:
		}
		for range min(comeAtOnce, c.want.Load()-passing.Load()) {
			passing.Add(1)
			c.all.Go(func() {
				defer passing.Add(-1)
				life := time.NewTimer(time.Duration(rand.ExpFloat64() * float64(c.cfg.Life)))
				defer life.Stop()
				c.user(ctx, -1, life.C, nil)
			})
		}
	}
}

// End lets all leave and waits until they have.
func (c *Crowd) End() {
	close(c.stop)
	c.all.Wait()
}

// Counts are the counts now.
func (c *Crowd) Counts() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.counts
	n.Exchanges = c.exchanges.Load()
	n.Errors = append([]string(nil), n.Errors...)
	return n
}

// Alive is how many of those who stay have exchanged bytes since the Counts of rounds.
func (c *Crowd) Alive(since map[int]int64) int {
	n := 0
	for id, now := range c.Rounds() {
		if now > since[id] {
			n++
		}
	}
	return n
}

// Rounds are the exchanges of each who stays.
func (c *Crowd) Rounds() map[int]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.rounds)
}

// user is one user's visit.
func (c *Crowd) user(ctx context.Context, id int, life <-chan time.Time, ready chan<- error) {
	c.count(func(n *Counts) { n.Came++; n.Open++ })
	served, err := c.visit(ctx, id, life, ready)
	if err != nil && ready != nil && !served {
		ready <- err
	}
	c.count(func(n *Counts) {
		n.Open--
		switch {
		case err == nil:
			n.Left++
			return
		case ctx.Err() != nil:
			return // the measurement is over
		case served:
			n.Lost++
		default:
			n.Refused++
		}
		if len(n.Errors) < errorsMost {
			n.Errors = append(n.Errors, err.Error())
		}
	})
}

func (c *Crowd) count(fn func(*Counts)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fn(&c.counts)
}

// visit says whether a byte of the app came, and how the visit ended.
func (c *Crowd) visit(ctx context.Context, id int, life <-chan time.Time, ready chan<- error) (served bool, err error) {
	d := net.Dialer{Timeout: answerWithin}
	if k := len(c.cfg.Sources); k > 0 {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.cfg.Sources[rand.IntN(k)], 0))
	}
	conn, err := d.DialContext(ctx, "tcp", c.cfg.Addr)
	if err != nil {
		return false, err
	}
	defer conn.Close()                                          //nolint:errcheck // it has ended in order, or is counted
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // whoever reads is told
	begun := time.Now()
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s, %s after connect: %w", conn.LocalAddr(), time.Since(begun).Round(time.Millisecond), err)
		}
	}()
	echo, err := testserver.StartEcho(conn, rand.Uint64())
	if err != nil {
		return false, err
	}
	for {
		if err := conn.SetDeadline(time.Now().Add(answerWithin)); err != nil {
			return served, err
		}
		if err := echo.Exchange(1 + rand.IntN(c.cfg.Bytes)); err != nil {
			return served, err
		}
		c.exchanges.Add(1)
		if !served && ready != nil {
			ready <- nil
		}
		served = true
		if id >= 0 {
			c.mu.Lock()
			c.rounds[id]++
			c.mu.Unlock()
		}
		if c.rest(ctx, life) {
			return true, testserver.Leave(conn)
		}
	}
}

// rest waits until the next exchange; true says that the user's life is over.
func (c *Crowd) rest(ctx context.Context, life <-chan time.Time) bool {
	t := time.NewTimer(time.Duration(rand.ExpFloat64() * float64(c.cfg.Pause)))
	defer t.Stop()
	select {
	case <-t.C:
		return false
	case <-life:
	case <-c.stop:
	case <-ctx.Done():
	}
	return true
}

// Loopback are n addresses for users, of 127.0.0.0/8.
func Loopback(n int) []netip.Addr {
	var out []netip.Addr
	for i := range n {
		out = append(out, netip.AddrFrom4([4]byte{127, 0, byte(1 + i/250), byte(1 + i%250)}))
	}
	return out
}
