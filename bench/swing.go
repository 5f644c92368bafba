package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/bench/crowd"
	"github.com/volant-edge/volant/volanttest/live"
)

// The load of the scaling and deploy measures: users beside those who never leave.
const (
	swingStay = 20
	swingLow  = 40
	swingHigh = 200
	// swingSoft is below the default of 20, so that a swing moves 16 machines instead of 8 and fifty
	// scale-ins take minutes, not a quarter of an hour.
	swingSoft, swingHard = 10, 13
)

// scaling swings the load of one app until it has scaled out and in fifty times.
func scaling(ctx context.Context, b *bench) ([]Row, error) {
	goal := b.size(50, 10)
	var c crowd.Counts
	var m moves
	var cycles int
	begun := time.Now()
	err := b.server(ctx, func(s *live.Server) error {
		ip, err := s.Deploy(ctx, "swing", b.archive("testserver"), config("swing", guestPort,
			concurrency(swingSoft, swingHard), "min = 0\nmax = 25\nidle_timeout = \"2s\""))
		if err != nil {
			return err
		}
		if err := templateReady(ctx, s); err != nil {
			return err
		}
		users := newCrowd(ip, 20*time.Second)
		return withCrowd(ctx, users, swingStay, func(ctx context.Context) error {
			defer func() { c = users.Counts() }()
			for cycles = 0; m.out < goal || m.in < goal; cycles++ {
				if m, err = swing(ctx, b, s, users, m); err != nil {
					return err
				}
				b.say("swing %d: %d scale-outs, %d scale-ins, %d lost, %d refused after %s", cycles+1, m.out, m.in,
					users.Counts().Lost, users.Counts().Refused, time.Since(begun).Round(time.Second))
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	note := fmt.Sprintf("%d users came, %d left by themselves, %d exchanges with every byte checked, in %d swings of %d to %d users in %s; soft limit %d, hard %d%s",
		c.Came, c.Left, c.Exchanges, cycles, swingLow, swingHigh, time.Since(begun).Round(time.Second), swingSoft, swingHard, errorsOf(c))
	return []Row{
		Row{Name: "scaling_closed_by_us", Value: float64(c.Lost), Unit: "connections", Note: note}.exactly(0),
		Row{Name: "scaling_refused", Value: float64(c.Refused), Unit: "connections"}.exactly(0),
		Row{Name: "scaling_outs", Value: float64(m.out), Unit: "machines"}.atLeast(float64(goal)),
		Row{Name: "scaling_ins", Value: float64(m.in), Unit: "machines"}.atLeast(float64(goal)),
	}, nil
}

func errorsOf(c crowd.Counts) string {
	if len(c.Errors) == 0 {
		return ""
	}
	return "; errors: " + strings.Join(c.Errors, " | ")
}

func newCrowd(ip string, life time.Duration) *crowd.Crowd {
	return crowd.New(crowd.Config{
		Addr: net.JoinHostPort(ip, strconv.Itoa(guestPort)), Sources: crowd.Loopback(24), Life: life, Pause: time.Second,
	})
}

// withCrowd runs fn while users come and go. In the end all leave in order.
func withCrowd(ctx context.Context, users *crowd.Crowd, stay int, fn func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := users.Stay(ctx, stay); err != nil {
		cancel()
		users.End()
		return fmt.Errorf("the first users: %w", err)
	}
	done := make(chan struct{})
	go func() { users.Run(ctx); close(done) }()
	err := fn(ctx)
	if err != nil {
		cancel()
	}
	users.End()
	<-done
	return err
}

// moves are an app's scale steps so far: each boot of a machine is one out, each sleep one in.
type moves struct{ out, in int }

func movesOf(ms []api.Machine) (m moves, awake int) {
	for _, x := range ms {
		m.out += int(x.Boots) //nolint:gosec // a few
		m.in += int(x.Boots)  //nolint:gosec // a few
		if x.State != "suspended" && x.State != "stopped" && x.Boots > 0 {
			m.in--
			awake++
		}
	}
	return m, awake
}

// swing lets users come until there are 200, and waits until 40 are left and their machines are awake alone.
func swing(ctx context.Context, b *bench, s *live.Server, users *crowd.Crowd, was moves) (moves, error) {
	users.Want(swingHigh - swingStay)
	err := level(ctx, b.size(90, 60), func() bool {
		ms, err := s.API.Machines(ctx, "swing")
		held := 0
		for _, m := range ms {
			held += m.Slots
		}
		return err == nil && held >= swingHigh-10
	})
	if err != nil {
		return was, err
	}
	if err := pause(ctx, 5*time.Second); err != nil {
		return was, err
	}
	users.Want(swingLow - swingStay)
	now := was
	err = level(ctx, b.size(100, 60), func() bool {
		ms, err := s.API.Machines(ctx, "swing")
		if err != nil {
			return false
		}
		m, awake := movesOf(ms)
		now = m
		return awake <= swingLow/swingSoft+2
	})
	return now, err
}

// level waits for a condition, at most some seconds: a swing that falls short goes on with the next one.
func level(ctx context.Context, seconds int, ok func() bool) error {
	for range seconds * 10 {
		if ok() {
			return nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
