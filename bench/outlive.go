package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/volant-edge/volant/bench/crowd"
	"github.com/volant-edge/volant/bench/sockdiag"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/volanttest/live"
)

// outlive kills the server under open connections, again and again.
func outlive(ctx context.Context, b *bench) ([]Row, error) {
	const n = 200
	kills := b.size(10, 2)
	var c crowd.Counts
	alive, apart := n, 0
	err := b.server(ctx, func(s *live.Server) error {
		ip, err := s.Deploy(ctx, "outlive", b.archive("testserver"), config("outlive", guestPort, concurrency(50, 60), "min = 0\nmax = 6"))
		if err != nil {
			return err
		}
		users := newCrowd(ip, time.Hour)
		return withCrowd(ctx, users, n, func(ctx context.Context) error {
			defer func() { c = users.Counts() }()
			for i := range kills {
				s.Kill()
				if err := pause(ctx, time.Second); err != nil {
					return err
				}
				if err := s.Run(ctx); err != nil {
					return fmt.Errorf("restart %d: %w", i+1, err)
				}
				got, err := exchanged(ctx, users, n)
				if err != nil {
					return err
				}
				off, err := slotsApart(ctx, s, n)
				if err != nil {
					return err
				}
				alive, apart = min(alive, got), max(apart, off)
				b.say("kill %d: %d of %d go on, %d slots apart from sockets", i+1, got, n, off)
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return []Row{
		Row{
			Name: "restart_survivors", Value: float64(alive), Unit: "connections",
			Note: fmt.Sprintf("of %d that exchanged bytes after each of %d kill -9 of the server; %d lost%s", n, kills, c.Lost, errorsOf(c)),
		}.exactly(n),
		Row{Name: "restart_slots_apart", Value: float64(apart), Unit: "slots", Note: "most by which slots differed from the proxy's sockets to machines"}.exactly(0),
	}, nil
}

// exchanged is how many of those who stay exchange bytes from now on.
func exchanged(ctx context.Context, users *crowd.Crowd, n int) (int, error) {
	since := users.Rounds()
	for range 600 {
		if users.Alive(since) == n {
			break
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return users.Alive(since), nil
}

// slotsApart is by how much the slots and the proxy's sockets to machines differ from n.
func slotsApart(ctx context.Context, s *live.Server, n int) (int, error) {
	p, err := proxy.Dial(ctx, filepath.Join(s.Data, "run", "proxy.sock"))
	if err != nil {
		return 0, err
	}
	defer p.Close() //nolint:errcheck // the proxy goes on
	slots, err := p.Slots(ctx)
	if err != nil {
		return 0, err
	}
	held := 0
	for _, k := range slots {
		held += k
	}
	socks, err := sockdiag.Between(s.Private)
	if err != nil {
		return 0, err
	}
	sockets := 0
	for _, c := range socks {
		if c.Remote.Port() == guestPort {
			sockets++
		}
	}
	return max(abs(held-sockets), abs(held-n)), nil
}
