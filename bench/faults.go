package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/bench/flood"
	"github.com/volant-edge/volant/bench/stat"
	"github.com/volant-edge/volant/lab"
	"github.com/volant-edge/volant/volanttest/planet"
	"github.com/volant-edge/volant/volanttest/testserver"
)

// hostCut kills the host that serves a region's clients, with all its processes and in silence, while they come.
func hostCut(ctx context.Context, b *bench) (rows []Row, err error) {
	const rate = 50
	seconds := b.size(20, 12)
	var worst []float64
	var notes strings.Builder
	for round := range b.size(3, 1) {
		err := b.planet(ctx, lab.Config{
			Regions: []string{"edge", "near", "next"}, Engine: "fake",
			Delays: map[string]time.Duration{"edge-near": 5 * time.Millisecond, "edge-next": 15 * time.Millisecond, "near-next": 10 * time.Millisecond},
			Roles: map[string][]string{
				"edge-1": {volant.RoleEdge, volant.RoleControl}, "near-1": {volant.RoleHost}, "next-1": {volant.RoleHost},
			},
		}, func(p *planet.Planet) error {
			addr, err := b.app(ctx, p, "cut", config("cut", guestPort, concurrency(softLimit, hardLimit), "min = 1\nmax = 10"), guestPort)
			if err != nil {
				return err
			}
			if err := p.Until(ctx, "cut", "a machine serves", inState("started")); err != nil {
				return err
			}
			if _, err := p.Ask(ctx, "edge", 0, addr, patience); err != nil {
				return err
			}
			ms, err := p.API.Machines(ctx, "cut")
			if err != nil {
				return err
			}
			victim := nodeOf(p, ms[0])
			if victim == nil {
				return fmt.Errorf("machine %s is in region %q", ms[0].ID, ms[0].Region)
			}
			var died atomic.Int64
			begun := time.Now()
			killed := make(chan error, 1)
			time.AfterFunc(3*time.Second, func() {
				died.Store(int64(time.Since(begun)))
				killed <- p.Kill(ctx, victim.Name)
			})
			vs := p.Visits(ctx, "edge", addr, rate, rate*seconds, false, 10*time.Second)
			if err := <-killed; err != nil {
				return err
			}
			until, note := recovery(vs, time.Duration(died.Load()))
			worst = append(worst, until.Seconds())
			fmt.Fprintf(&notes, " Round %d: %s of %s.", round+1, note, victim.Name)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return []Row{Row{
		Name: "host_cut", Value: slices.Max(worst), Unit: "s",
		Note: "from the silence of a host until every new connection is served within a second." + notes.String(),
	}.atMost(3)}, nil
}

// recovery is how long after the death the last visit began that failed or took more than a second.
func recovery(vs []planet.Visit, died time.Duration) (time.Duration, string) {
	var last time.Duration
	failed, slow, longest := 0, 0, time.Duration(0)
	for _, v := range vs {
		longest = max(longest, v.Took)
		switch {
		case v.Err != nil:
			failed++
		case v.Took > time.Second:
			slow++
		default:
			continue
		}
		last = max(last, v.At-died)
	}
	return last, fmt.Sprintf("%d connections, %d failed, %d took more than a second, the longest %s; death", len(vs), failed, slow, longest.Round(time.Millisecond))
}

// controlDead has clients come, machines sleep and wake and TLS handshakes be made, with every control node dead.
func controlDead(ctx context.Context, b *bench) (rows []Row, err error) {
	regions := []string{"dfw", "ord", "ams"}
	roles := map[string][]string{}
	for _, r := range regions {
		roles[r+"-1"] = []string{volant.RoleControl}
		roles[r+"-2"] = []string{volant.RoleEdge, volant.RoleHost}
	}
	err = b.planet(ctx, lab.Config{Regions: regions, Hosts: 2, Engine: "fake", Roles: roles}, func(p *planet.Planet) error {
		text := config("dead", guestPort, concurrency(softLimit, hardLimit), "min = 0\nmax = 6\nidle_timeout = \"2s\"") +
			"[[services]]\ninternal_port = 8080\nprotocol = \"tcp\"\n[[services.ports]]\nport = 443\nhandlers = [\"tls\"]\n"
		addr, err := b.app(ctx, p, "dead", text, guestPort)
		if err != nil {
			return err
		}
		for i, r := range regions { // a machine at least, and every edge knows it
			if _, err := p.Ask(ctx, r, i, addr, patience); err != nil {
				return fmt.Errorf("before: a client of %s: %w", r, err)
			}
		}
		for _, r := range regions {
			if err := p.Kill(ctx, r+"-1"); err != nil {
				return err
			}
		}
		begun := time.Now()
		var mu sync.Mutex
		var failures []string
		var connections, handshakes, wakes int
		note := func(n *int, err error) {
			mu.Lock()
			defer mu.Unlock()
			*n++
			if err != nil {
				failures = append(failures, err.Error())
			}
		}
		var all sync.WaitGroup
		for i, r := range regions {
			all.Go(func() {
				for k := range b.size(40, 8) {
					// Bursts with pauses in which the machines fall asleep: the first of each wakes one.
					_, err := p.Ask(ctx, r, i+10*k, addr, 10*time.Second)
					note(&wakes, err)
					for j := range 10 {
						_, err := p.Ask(ctx, r, i+10*k+j, addr, 10*time.Second)
						note(&connections, err)
						note(&handshakes, handshake(ctx, p, r, i+10*k+j, addr, "dead.localhost"))
					}
					if pause(ctx, 3*time.Second) != nil {
						return
					}
				}
			})
		}
		all.Wait()
		text = fmt.Sprintf("%d connections, %d after a pause in which machines sleep, %d TLS handshakes, all control nodes dead for %s",
			connections, wakes, handshakes, time.Since(begun).Round(time.Second))
		if len(failures) > 0 {
			text += fmt.Sprintf("; the first failure: %s", failures[0])
		}
		rows = []Row{Row{Name: "control_dead", Value: float64(len(failures)), Unit: "failures", Note: text}.exactly(0)}
		return ctx.Err()
	})
	return rows, err
}

// handshake makes a TLS handshake with an app and asks it something.
func handshake(ctx context.Context, p *planet.Planet, region string, i int, addr netip.AddrPort, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	raw, err := p.ClientDial(ctx, region, i, netip.AddrPortFrom(addr.Addr(), 443).String())
	if err != nil {
		return err
	}
	c := tls.Client(raw, &tls.Config{ServerName: name, InsecureSkipVerify: true}) //nolint:gosec // the handshake counts, not who signs
	defer c.Close()                                                               //nolint:errcheck // it has its answer
	if err := c.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	_, err = testserver.Ask(c, "hostname")
	return err
}

// burst has 200 clients come within a second in one region, to an app with one machine awake and others suspended.
func burst(ctx context.Context, b *bench) (rows []Row, err error) {
	const n, machines = 200, 10
	err = b.planet(ctx, lab.Config{
		Regions: []string{"dfw", "ord", "ams"}, Engine: "qemu",
	}, func(p *planet.Planet) error {
		text := config("burst", guestPort, concurrency(softLimit, hardLimit), fmt.Sprintf("min = 0\nmax = %d\nidle_timeout = \"5s\"", machines)) + "[[vm]]\nmemory = \"256mb\"\n"
		addr, err := b.app(ctx, p, "burst", text, guestPort)
		if err != nil {
			return err
		}
		if _, err := p.Volant(ctx, p.Node(0), "scale", "set", "--app", "burst", "--min", strconv.Itoa(machines)); err != nil {
			return err
		}
		long, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		if err := p.UntilDone(long, "burst", "all machines run", func(ms []api.Machine) bool { return planet.Count(ms, "started") == machines }); err != nil {
			return err
		}
		if _, err := p.Volant(ctx, p.Node(0), "scale", "set", "--app", "burst", "--min", "1"); err != nil {
			return err
		}
		if err := p.UntilDone(long, "burst", "all machines but one are suspended", func(ms []api.Machine) bool {
			return planet.Count(ms, "started") == 1 && planet.Count(ms, "suspended") == machines-1
		}); err != nil {
			return err
		}
		waits, failed, first := times(p.Visits(ctx, "dfw", addr, n, n, true, 30*time.Second))
		note := fmt.Sprintf("of %d connections within a second from as many addresses, one machine awake and %d suspended in three regions; waits in ms: %s", n, machines-1, quantiles(waits))
		if first != nil {
			note += fmt.Sprintf("; the first failure: %v", first)
		}
		rows = []Row{
			Row{Name: "burst_200", Value: float64(failed), Unit: "failed", Note: note}.exactly(0),
			Row{Name: "burst_200_p99", Value: stat.Quantile(waits, 0.99) / 1000, Unit: "s"}.atMost(3),
		}
		return nil
	})
	return rows, err
}

// floods sends 10,000 clients to an app with two machines through three edges that hear of them a second late, and looks at
// the most connections that a machine ever had, by its own count.
func floods(ctx context.Context, b *bench) (rows []Row, err error) {
	regions := []string{"host", "one", "two", "three"}
	roles := map[string][]string{"host-1": {volant.RoleHost, volant.RoleControl}}
	for _, r := range regions[1:] {
		roles[r+"-1"] = []string{volant.RoleEdge}
	}
	delays := map[string]time.Duration{}
	for i, r := range regions {
		for _, q := range regions[i+1:] {
			delays[r+"-"+q] = 5 * time.Millisecond
		}
	}
	n := b.size(10_000, 900)
	c := lab.Config{Regions: regions, Engine: "fake", Roles: roles, Delays: delays, Env: []string{"VOLANT_LATE=1s"}}
	err = b.planet(ctx, c, func(p *planet.Planet) error {
		addr, err := b.app(ctx, p, "over",
			config("over", guestPort, concurrency(softLimit, hardLimit), "min = 2\nmax = 2\nqueue_timeout = \"60s\""), guestPort)
		if err != nil {
			return err
		}
		if err := p.Until(ctx, "over", "the machines serve", func(ms []api.Machine) bool { return planet.Count(ms, "started") == 2 }); err != nil {
			return err
		}
		for _, r := range regions[1:] {
			if _, err := p.Ask(ctx, r, 0, addr, patience); err != nil {
				return err
			}
		}
		var out flood.Outcomes
		var mu sync.Mutex
		var all sync.WaitGroup
		for e, r := range regions[1:] {
			all.Go(func() {
				o := flow(ctx, p, r, addr, n/3, 400*(e+1))
				mu.Lock()
				defer mu.Unlock()
				out.Served, out.Refused, out.Lost, out.Failed, out.Silent = out.Served+o.Served, out.Refused+o.Refused, out.Lost+o.Lost, out.Failed+o.Failed, out.Silent+o.Silent
			})
		}
		all.Wait()
		most, total, err := labGuests(ctx, p, "over", "host-1")
		if err != nil {
			return err
		}
		all3 := n / 3 * 3
		note := fmt.Sprintf("of 25, by the machine's own maximum; %d attempts through three edges that hear a second late: %d served, %d refused, %d lost, %d failed, %d silent; the machines accepted %d",
			all3, out.Served, out.Refused, out.Lost, out.Failed, out.Silent, total)
		rows = []Row{
			Row{Name: "over_limit", Value: float64(max(0, most-hardLimit)), Unit: "connections", Note: note}.exactly(0),
			Row{Name: "over_limit_unaccounted", Value: float64(abs(all3-out.Served-out.Refused) + max(0, out.Served-total)), Unit: "attempts"}.exactly(0),
		}
		return nil
	})
	return rows, err
}

// flow is a flood through one edge, of a bounded number at once.
func flow(ctx context.Context, p *planet.Planet, region string, addr netip.AddrPort, n, atOnce int) flood.Outcomes {
	var sum flood.Outcomes
	for n > 0 {
		k := min(n, atOnce)
		n -= k
		o := flood.Run(ctx, flood.Config{N: k, Hold: 50 * time.Millisecond, Within: time.Minute, Dial: func(ctx context.Context, i int) (net.Conn, error) {
			return p.ClientDial(ctx, region, i, addr.String())
		}})
		sum.Served, sum.Refused, sum.Lost, sum.Failed, sum.Silent = sum.Served+o.Served, sum.Refused+o.Refused, sum.Lost+o.Lost, sum.Failed+o.Failed, sum.Silent+o.Silent
	}
	return sum
}

// labGuests asks each machine of a server for the most connections it ever had and for all, without this question.
func labGuests(ctx context.Context, p *planet.Planet, app, node string) (most, total int, err error) {
	ms, err := p.API.Machines(ctx, app)
	if err != nil {
		return 0, 0, err
	}
	for _, m := range ms {
		err := p.Inside(node, func() error {
			a, t, err := guestCounts(ctx, m)
			most, total = max(most, a), total+t-1
			return err
		})
		if err != nil {
			return 0, 0, fmt.Errorf("ask machine %s: %w", m.ID, err)
		}
	}
	return most, total, nil
}
