package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/bench/crowd"
	"github.com/volant-edge/volant/volanttest/live"
	"github.com/volant-edge/volant/volanttest/testserver"
)

// version is the variable that tells a release's machines from others.
const version = "BENCH_VERSION"

// deployer deploys releases of one app under load.
type deployer struct {
	s           *live.Server
	addr        string
	config      volant.MachineConfig
	good, wrong string // image digests
	serving     string // the version that should answer
	mistakes    []string
}

// deploys makes releases under load, every other one broken.
func deploys(ctx context.Context, b *bench) ([]Row, error) {
	n := b.size(20, 4)
	var c crowd.Counts
	var d *deployer
	begun := time.Now()
	err := b.server(ctx, func(s *live.Server) (err error) {
		if d, err = newDeployer(ctx, b, s); err != nil {
			return err
		}
		host, _, err := net.SplitHostPort(d.addr)
		if err != nil {
			return err
		}
		users := newCrowd(host, 5*time.Second)
		users.Want(30)
		return withCrowd(ctx, users, 10, func(ctx context.Context) error {
			defer func() { c = users.Counts() }()
			for i := 1; i <= n; i++ {
				if err := d.release(ctx, i); err != nil {
					return fmt.Errorf("deploy %d: %w", i, err)
				}
				b.say("deploy %d: %d lost, %d refused after %s", i, users.Counts().Lost, users.Counts().Refused, time.Since(begun).Round(time.Second))
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	note := fmt.Sprintf("%d deploys in %s, every other one broken, under 10 users who stay and 30 of a mean life of 5 s: %d came, %d left by themselves, %d exchanges%s",
		n, time.Since(begun).Round(time.Second), c.Came, c.Left, c.Exchanges, errorsOf(c))
	wrong := Row{Name: "deploys_wrong_release_served", Value: float64(len(d.mistakes)), Unit: "deploys"}
	if len(d.mistakes) > 0 {
		wrong.Note = fmt.Sprint(d.mistakes)
	}
	return []Row{
		Row{Name: "deploys_closed_by_us", Value: float64(c.Lost), Unit: "connections", Note: note}.exactly(0),
		Row{Name: "deploys_refused", Value: float64(c.Refused), Unit: "connections"}.exactly(0),
		wrong.exactly(0),
	}, nil
}

func newDeployer(ctx context.Context, b *bench, s *live.Server) (*deployer, error) {
	d := &deployer{s: s, serving: ""}
	// redis listens on another port than the service says: a release of it never serves.
	if _, err := s.Deploy(ctx, "wrong", b.archive("redis"), config("wrong", 6379, "", "min = 0")); err != nil {
		return nil, err
	}
	ip, err := s.Deploy(ctx, "deploys", b.archive("testserver"), config("deploys", guestPort, concurrency(20, 25), "min = 0\nidle_timeout = \"10s\""))
	if err != nil {
		return nil, err
	}
	d.addr = net.JoinHostPort(ip, strconv.Itoa(guestPort))
	for app, digest := range map[string]*string{"wrong": &d.wrong, "deploys": &d.good} {
		r, err := s.API.Release(ctx, app, 1)
		if err != nil {
			return nil, err
		}
		*digest = r.Image
	}
	if err := templateReady(ctx, s); err != nil {
		return nil, err
	}
	if _, err := d.answers(ctx); err != nil { // makes a machine, which has the config
		return nil, err
	}
	ms, err := s.API.Machines(ctx, "deploys")
	if err != nil {
		return nil, err
	}
	d.config = ms[0].Config
	return d, nil
}

// release makes one release and checks which one serves then.
func (d *deployer) release(ctx context.Context, i int) error {
	r := api.CreateRelease{Image: d.good, Config: d.config, WaitTimeout: volant.Duration(time.Minute)}
	r.Config.Env = map[string]string{version: strconv.Itoa(i)}
	want := "complete"
	if i%2 == 0 {
		want, r.WaitTimeout = "failed", volant.Duration(8*time.Second)
		switch i / 2 % 3 {
		case 0:
			r.Config.Env["TESTSERVER_EXIT"] = "3"
		case 1:
			r.Config.Env["TESTSERVER_DEAF"] = "1"
		default:
			r.Image = d.wrong
		}
	}
	made, err := d.s.API.CreateRelease(ctx, "deploys", r)
	if err != nil {
		return err
	}
	for made.Status == "pending" || made.Status == "running" {
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
		if made, err = d.s.API.Release(ctx, "deploys", made.Version); err != nil {
			return err
		}
	}
	if made.Status == "complete" {
		d.serving = strconv.Itoa(i)
	}
	got, err := d.answers(ctx)
	if err != nil {
		return err
	}
	if made.Status != want || got != d.serving {
		d.mistakes = append(d.mistakes, fmt.Sprintf("deploy %d is %s (%s), want %s; release %q answers, want %q", i, made.Status, made.Reason, want, got, d.serving))
	}
	return nil
}

// answers is the version that a new connection gets to.
func (d *deployer) answers(ctx context.Context) (string, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", d.addr)
	if err != nil {
		return "", err
	}
	defer c.Close() //nolint:errcheck // the answer is here
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	return testserver.Ask(c, "env "+version)
}
