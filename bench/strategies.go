package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest/live"
	"github.com/volant-edge/volant/volanttest/testserver"
)

// webPort is where the app of the strategies speaks HTTP; guestPort is raw TCP.
const webPort = 80

// lasting are connections that live through a deploy, half of them websockets. Each exchanges something every
// second, and leaves in order.
type lasting struct {
	mu        sync.Mutex // guards lost
	lost      []string
	refused   []string
	exchanges atomic.Int64
	leave     chan struct{}
	all       sync.WaitGroup
}

// talk is one connection: exchange does something on it, end leaves in order.
type talk struct {
	conn     net.Conn
	exchange func() error
	end      func() error
}

func newTalk(ctx context.Context, ip string, web bool) (*talk, error) {
	port := guestPort
	if web {
		port = webPort
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(ip, strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	t := &talk{conn: c, end: c.Close}
	t.exchange = func() error {
		_, err := testserver.Ask(c, "total")
		return err
	}
	if web {
		ws, err := testserver.Upgrade(c, "deploys")
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		t.exchange, t.end = func() error { return ws.Exchange("still here") }, ws.Close
	}
	if err := t.exchange(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return t, nil
}

// come makes n connections, every other one a websocket, which talk until leave.
func (l *lasting) come(ctx context.Context, ip string, n int) error {
	l.leave = make(chan struct{})
	for i := range n {
		t, err := newTalk(ctx, ip, i%2 == 1)
		if err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		l.all.Go(func() { l.stay(ctx, t, i%2 == 1) })
	}
	return nil
}

func (l *lasting) stay(ctx context.Context, t *talk, web bool) {
	for {
		select {
		case <-ctx.Done():
			_ = t.conn.Close() // the bench ends
			return
		case <-l.leave:
			if err := t.end(); err != nil {
				l.miss(&l.lost, fmt.Sprintf("websocket %t, at its end: %v", web, err))
			}
			return
		case <-time.After(time.Second):
		}
		err := t.conn.SetDeadline(time.Now().Add(patience))
		if err == nil {
			err = t.exchange()
		}
		if err != nil {
			l.miss(&l.lost, fmt.Sprintf("websocket %t: %v", web, err))
			_ = t.conn.Close() // it is lost
			return
		}
		l.exchanges.Add(1)
	}
}

func (l *lasting) miss(list *[]string, what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*list = append(*list, what)
}

// knock connects all the while, in turn by TCP and to a websocket.
func (l *lasting) knock(ctx context.Context, ip string) {
	for i := 0; ctx.Err() == nil; i++ {
		t, err := newTalk(ctx, ip, i%2 == 1)
		if err == nil {
			err = t.end()
		}
		if err != nil && ctx.Err() == nil {
			l.miss(&l.refused, err.Error())
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			return
		}
	}
}

// strategies deploys by each strategy while 200 connections live.
func strategies(ctx context.Context, b *bench) ([]Row, error) {
	n := b.size(200, 40)
	var rows []Row
	err := b.server(ctx, func(s *live.Server) error {
		app := config("deploys", guestPort, concurrency(n/4, n/4+n/8), fmt.Sprintf("min = 0\nmax = 12\nmax_per_client = %d", 2*n))
		app = strings.Replace(app, "[scale]", fmt.Sprintf("[[services.ports]]\nport = %d\nhandlers = [\"http\"]\n[vm]\nmemory = \"256mb\"\n[scale]", webPort), 1)
		ip, err := s.Deploy(ctx, "deploys", b.archive("testserver"), app)
		if err != nil {
			return err
		}
		for _, strategy := range []string{volant.StrategyRolling, volant.StrategyCanary, volant.StrategyBlueGreen, volant.StrategyImmediate} {
			row, err := deployBy(ctx, b, s, ip, strategy, n)
			if err != nil {
				return fmt.Errorf("%s: %w", strategy, err)
			}
			rows = append(rows, row)
		}
		return nil
	})
	return rows, err
}

func deployBy(ctx context.Context, b *bench, s *live.Server, ip, strategy string, n int) (Row, error) {
	l := &lasting{}
	if err := l.come(ctx, ip, n); err != nil {
		return Row{}, err
	}
	if err := pause(ctx, 3*time.Second); err != nil {
		return Row{}, err
	}
	ms, err := s.API.Machines(ctx, "deploys")
	if err != nil || len(ms) == 0 {
		return Row{}, fmt.Errorf("%d machines: %w", len(ms), err)
	}
	cfg := ms[0].Config
	app, err := s.API.App(ctx, "deploys")
	if err != nil {
		return Row{}, err
	}
	current, err := s.API.Release(ctx, "deploys", app.Release)
	if err != nil {
		return Row{}, err
	}
	digest := current.Image
	kctx, stop := context.WithCancel(ctx)
	knocking := make(chan struct{})
	go func() { l.knock(kctx, ip); close(knocking) }()
	begun := time.Now()
	cfg.Env = map[string]string{version: strategy}
	cfg.Metadata = nil
	r, err := s.API.CreateRelease(ctx, "deploys", api.CreateRelease{Image: digest, Config: cfg, Strategy: strategy})
	for err == nil && (r.Status == "pending" || r.Status == "running") {
		if err = pause(ctx, 50*time.Millisecond); err == nil {
			r, err = s.API.Release(ctx, "deploys", r.Version)
		}
	}
	took := time.Since(begun)
	stop()
	<-knocking
	if err != nil {
		return Row{}, err
	}
	if r.Status != "complete" {
		return Row{}, fmt.Errorf("release %d is %s: %s", r.Version, r.Status, r.Reason)
	}
	if err := pause(ctx, 5*time.Second); err != nil { // all of them are heard again
		return Row{}, err
	}
	close(l.leave)
	l.all.Wait()
	b.say("%s: complete after %s, %d lost, %d refused", strategy, took.Round(10*time.Millisecond), len(l.lost), len(l.refused))
	note := fmt.Sprintf("%d live connections, half of them websockets, while %d machines were replaced within %s: %d exchanges, %d newcomers refused",
		n, len(ms), took.Round(100*time.Millisecond), l.exchanges.Load(), len(l.refused))
	if all := append(l.lost, l.refused...); len(all) > 0 {
		note += ": " + strings.Join(all[:min(len(all), 3)], "; ")
	}
	err = until(ctx, s, "deploys", "old machines are gone", func(ms []api.Machine) bool {
		for _, m := range ms {
			if m.Release != r.Version {
				return false
			}
		}
		return true
	})
	row := Row{Name: "deploy_" + strategy, Value: float64(len(l.lost) + len(l.refused)), Unit: "connections closed or refused", Note: note}
	return row.exactly(0), err
}
