// Package flood opens connections to the test server as fast as it can, and accounts for each.
//
// # Invariants
//
//   - Every attempt has one outcome.
//   - A served one checks its bytes and leaves in order.
package flood

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/volant-edge/volant/volanttest/testserver"
)

// Config of a flood.
type Config struct {
	Addr    string
	Sources []netip.Addr  // the clients' addresses, taken in turn
	N       int           // connections
	Hold    time.Duration // mean of a served one's exponential life
	Within  time.Duration // bounds each attempt
	// Dial connects the i-th client, in place of Addr and Sources.
	Dial func(ctx context.Context, i int) (net.Conn, error)
}

// Outcomes are how the attempts ended.
type Outcomes struct {
	Served  int // exchanged bytes, and left
	Refused int // closed before a byte came
	Lost    int // closed after a byte came
	Failed  int // not even connected
	Silent  int // neither served nor refused in time
	Errors  map[string]int
	// Opened is the time until the last of the connections was open.
	Opened time.Duration
}

// Run makes the flood and returns when all have ended.
func Run(ctx context.Context, cfg Config) Outcomes {
	f := &flood{cfg: cfg, begun: time.Now(), out: Outcomes{Errors: map[string]int{}}}
	var all sync.WaitGroup
	for i := range cfg.N {
		all.Go(func() { f.attempt(ctx, i) })
	}
	all.Wait()
	return f.out
}

type flood struct {
	cfg   Config
	begun time.Time

	mu  sync.Mutex // guards out
	out Outcomes
}

func (f *flood) attempt(ctx context.Context, i int) {
	conn, err := f.dial(ctx, i)
	if err != nil {
		f.note(&f.out.Failed, err)
		return
	}
	defer conn.Close() //nolint:errcheck // its outcome is known
	f.mu.Lock()
	f.out.Opened = max(f.out.Opened, time.Since(f.begun))
	f.mu.Unlock()
	if err := conn.SetDeadline(time.Now().Add(f.cfg.Within)); err != nil {
		f.note(&f.out.Failed, err)
		return
	}
	echo, err := testserver.StartEcho(conn, uint64(i))
	if err == nil {
		err = echo.Exchange(64)
	}
	if err != nil {
		f.note(f.early(err), err)
		return
	}
	end := time.NewTimer(time.Duration(rand.ExpFloat64() * float64(f.cfg.Hold)))
	defer end.Stop()
	select {
	case <-end.C:
	case <-ctx.Done():
	}
	if err := echo.Exchange(64); err != nil {
		f.note(&f.out.Lost, err)
		return
	}
	if err := testserver.Leave(conn); err != nil {
		f.note(&f.out.Lost, err)
		return
	}
	f.note(&f.out.Served, nil)
}

func (f *flood) dial(ctx context.Context, i int) (net.Conn, error) {
	if f.cfg.Dial != nil {
		ctx, cancel := context.WithTimeout(ctx, f.cfg.Within)
		defer cancel()
		return f.cfg.Dial(ctx, i)
	}
	d := net.Dialer{Timeout: f.cfg.Within}
	d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.cfg.Sources[i%len(f.cfg.Sources)], 0))
	return d.DialContext(ctx, "tcp", f.cfg.Addr)
}

// early says how an attempt without a byte of the app ended.
func (f *flood) early(err error) *int {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &f.out.Silent
	}
	return &f.out.Refused
}

func (f *flood) note(which *int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	*which++
	if err != nil && (len(f.out.Errors) < 20 || f.out.Errors[err.Error()] > 0) {
		f.out.Errors[err.Error()]++
	}
}
