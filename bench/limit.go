package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/bench/crowd"
	"github.com/volant-edge/volant/bench/flood"
	"github.com/volant-edge/volant/bench/sockdiag"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/volanttest/live"
	"github.com/volant-edge/volant/volanttest/testserver"
)

const (
	guestPort = 8080
	softLimit = 20
	hardLimit = 25
)

// limits floods an app twice: with the default queue, and with one that holds them all.
func limits(ctx context.Context, b *bench) ([]Row, error) {
	n := b.size(10_000, 1000)
	var sums []verdict
	for _, round := range []struct{ name, scale string }{
		{"defaults", "min = 0\nmax = 4\nidle_timeout = \"60s\""},
		{"all may wait", fmt.Sprintf("min = 0\nmax = 4\nidle_timeout = \"60s\"\nmax_queue = %d\nmax_per_client = %d\nqueue_timeout = \"60s\"", n, n)},
	} {
		var v verdict
		err := b.server(ctx, func(s *live.Server) (err error) {
			v, err = overLimit(ctx, b, s, n, round.scale)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", round.name, err)
		}
		v.note = round.name + ": " + v.note
		b.say("%s", v.note)
		sums = append(sums, v)
	}
	return limitRows(n, sums), nil
}

// verdict is what one flood showed.
type verdict struct {
	guest, sockets int // most at once in one machine, as the guest and as the kernel saw it
	unaccounted    int
	idle           int // samples where somebody waited while a slot was free
	samples        int
	note           string
}

func limitRows(n int, vs []verdict) []Row {
	var guest, sockets, unaccounted, idle, samples int
	var notes []string
	for _, v := range vs {
		guest, sockets = max(guest, v.guest-hardLimit), max(sockets, v.sockets-hardLimit)
		unaccounted, idle, samples = unaccounted+v.unaccounted, idle+v.idle, samples+v.samples
		notes = append(notes, v.note)
	}
	return []Row{
		Row{
			Name: "limit_over_guest", Value: float64(max(guest, 0)), Unit: "connections",
			Note: fmt.Sprintf("over the hard limit of %d, by the guest's own maximum, in floods of %d. %s", hardLimit, n, strings.Join(notes, ". ")),
		}.exactly(0),
		Row{Name: "limit_over_kernel", Value: float64(max(sockets, 0)), Unit: "connections", Note: "the same by the kernel's socket table"}.exactly(0),
		Row{Name: "limit_unaccounted", Value: float64(unaccounted), Unit: "attempts", Note: "whose end the clients, the proxy and the guests do not tell alike"}.exactly(0),
		Row{
			Name: "limit_waiting_beside_free_slot", Value: float64(idle), Unit: "samples",
			Note: fmt.Sprintf("of %d in which somebody waited", samples),
		}.exactly(0),
	}
}

// overLimit floods one app.
func overLimit(ctx context.Context, b *bench, s *live.Server, n int, scale string) (verdict, error) {
	ip, err := s.Deploy(ctx, "limit", b.archive("testserver"), config("limit", guestPort, concurrency(softLimit, hardLimit), scale))
	if err != nil {
		return verdict{}, err
	}
	app, err := s.API.App(ctx, "limit")
	if err != nil {
		return verdict{}, err
	}
	p, err := proxy.Dial(ctx, filepath.Join(s.Data, "run", "proxy.sock"))
	if err != nil {
		return verdict{}, err
	}
	defer p.Close() //nolint:errcheck // the proxy goes on
	w := watchLimit(ctx, p, volant.AppID(app.ID), s.Private)
	out := flood.Run(ctx, flood.Config{
		Addr: net.JoinHostPort(ip, strconv.Itoa(guestPort)), Sources: crowd.Loopback(40), N: n,
		Hold: 100 * time.Millisecond, Within: 2 * time.Minute,
	})
	seen, err := w.end()
	if err != nil {
		return verdict{}, err
	}
	pic, err := settled(ctx, p, volant.AppID(app.ID))
	if err != nil {
		return verdict{}, err
	}
	most, total, err := guests(ctx, s, "limit")
	if err != nil {
		return verdict{}, err
	}
	refused := 0
	for _, k := range pic.Refused {
		refused += int(k) //nolint:gosec // far below
	}
	served := int(pic.Served) //nolint:gosec // far below
	v := verdict{guest: most, sockets: seen.sockets, idle: seen.idle, samples: seen.waiting}
	v.unaccounted = abs(n-out.Served-out.Refused) + abs(served-out.Served) + abs(refused-out.Refused) + abs(total-out.Served)
	v.note = fmt.Sprintf("%d attempts, the last open after %s: %d served, %d refused (%s), %d lost, %d failed, %d silent; "+
		"most at once in a machine %d by the guest, %d by the kernel; guests accepted %d; %d samples of sockets, %d of the queue",
		n, out.Opened.Round(time.Millisecond), out.Served, out.Refused, rules(pic.Refused), out.Lost, out.Failed, out.Silent,
		most, seen.sockets, total, seen.socketSamples, seen.waiting)
	if out.Lost+out.Failed+out.Silent > 0 {
		v.note += fmt.Sprintf("; errors: %v", out.Errors)
	}
	return v, nil
}

func concurrency(soft, hard int) string {
	return fmt.Sprintf("[services.concurrency]\ntype = \"connections\"\nsoft_limit = %d\nhard_limit = %d", soft, hard)
}

func rules(m map[string]uint64) string {
	var out []string
	for _, r := range slices.Sorted(maps.Keys(m)) {
		out = append(out, fmt.Sprintf("%s %d", r, m[r]))
	}
	return strings.Join(out, ", ")
}

func abs(n int) int { return max(n, -n) }

// settled waits until no slot is held and nobody waits.
func settled(ctx context.Context, p *proxy.Client, app volant.AppID) (pic proxy.Picture, err error) {
	for range 3000 {
		if pic, err = p.Picture(ctx, app); err != nil {
			return pic, err
		}
		held := pic.Waiting
		for _, pl := range pic.Places {
			held += pl.Used
		}
		if held == 0 {
			return pic, nil
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return pic, err
		}
	}
	return pic, fmt.Errorf("slots are still held half a minute after the last client left: %+v", pic)
}

// guests asks each machine's test server directly, not through the proxy.
func guests(ctx context.Context, s *live.Server, app string) (most, total int, err error) {
	ms, err := s.API.Machines(ctx, app)
	if err != nil {
		return 0, 0, err
	}
	for _, m := range ms {
		if m.State != "started" {
			return 0, 0, fmt.Errorf("machine %s is %s and cannot be asked", m.ID, m.State)
		}
		a, b, err := guestCounts(ctx, m)
		if err != nil {
			return 0, 0, fmt.Errorf("ask machine %s: %w", m.ID, err)
		}
		most, total = max(most, a), total+b-1 // without this question
	}
	return most, total, nil
}

func guestCounts(ctx context.Context, m api.Machine) (most, total int, err error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(m.IP, strconv.Itoa(guestPort)))
	if err != nil {
		return 0, 0, err
	}
	defer c.Close() //nolint:errcheck // the answers are here
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return 0, 0, err
	}
	for _, q := range []struct {
		command string
		to      *int
	}{{"max", &most}, {"total", &total}} {
		answer, err := testserver.Ask(c, q.command)
		if err != nil {
			return 0, 0, err
		}
		if *q.to, err = strconv.Atoi(answer); err != nil {
			return 0, 0, err
		}
	}
	return most, total, nil
}

// limitWatch samples the kernel's sockets and the proxy's picture.
type limitWatch struct {
	cancel context.CancelFunc
	done   chan error
	seen   sightings
}

type sightings struct {
	sockets, socketSamples int // most to one machine at once
	waiting, idle          int // samples with somebody waiting; of those, with a free slot
}

func watchLimit(ctx context.Context, p *proxy.Client, app volant.AppID, private netip.Prefix) *limitWatch {
	ctx, cancel := context.WithCancel(ctx)
	w := &limitWatch{cancel: cancel, done: make(chan error, 1)}
	go func() { w.done <- w.run(ctx, p, app, private) }()
	return w
}

// end ends the sampling.
func (w *limitWatch) end() (sightings, error) {
	w.cancel()
	err := <-w.done
	return w.seen, err
}

func (w *limitWatch) run(ctx context.Context, p *proxy.Client, app volant.AppID, private netip.Prefix) error {
	for ctx.Err() == nil {
		most, err := busiest(private)
		if err != nil {
			return err
		}
		w.seen.sockets = max(w.seen.sockets, most)
		w.seen.socketSamples++
		pic, err := p.Picture(ctx, app)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // asked to end
		}
		if err != nil {
			return err
		}
		if pic.Waiting > 0 {
			w.seen.waiting++
			if slices.ContainsFunc(pic.Places, func(pl proxy.PlacePicture) bool { return pl.Ready && pl.Used < pl.Hard }) {
				w.seen.idle++
			}
		}
		if pause(ctx, 5*time.Millisecond) != nil {
			return nil //nolint:nilerr // asked to end
		}
	}
	return nil
}

// busiest is the number of connections to the machine that has most.
func busiest(private netip.Prefix) (int, error) {
	conns, err := sockdiag.Between(private)
	if err != nil {
		return 0, err
	}
	by, most := map[netip.AddrPort]int{}, 0
	for _, c := range conns {
		by[c.Remote]++
		most = max(most, by[c.Remote])
	}
	return most, nil
}
