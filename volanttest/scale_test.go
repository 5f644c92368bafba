package volanttest_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest"
	"github.com/volant-edge/volant/why"
)

func scaled(f func(*api.ScalePatch)) func(*api.CreateRelease) {
	return func(r *api.CreateRelease) {
		r.Scale = &api.ScalePatch{}
		f(r.Scale)
	}
}

func connect(t *testing.T, p *volanttest.Platform, n int, dial func() (net.Conn, error)) []net.Conn {
	t.Helper()
	var conns []net.Conn
	for i := range n {
		c, err := dial()
		if err != nil {
			t.Fatalf("connection %d: %v; machines %v", i+1, err, p.States("web"))
		}
		conns = append(conns, c)
	}
	return conns
}

// Asleep for keep, machines made by scaling are destroyed, and the next connection creates one.
func TestMachinesAreKeptForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		addr, _ := p.Deploy("web", volanttest.Image, scaled(func(s *api.ScalePatch) {
			keep := volant.Duration(10 * time.Minute)
			s.Keep = &keep
		}))
		dial := func() (net.Conn, error) { return p.Connect(addr) }
		for _, c := range connect(t, p, 45, dial) {
			c.Close()
		}
		time.Sleep(8 * time.Minute)
		if got := p.States("web"); got["suspended"] < 1 || len(got) != 1 {
			t.Fatalf("before keep is over machines are %v, want some suspended", got)
		}
		time.Sleep(10 * time.Minute)
		for state, n := range p.States("web") {
			if state != "destroyed" {
				t.Errorf("after keep %d machines are %s, want none", n, state)
			}
		}
		for _, c := range connect(t, p, 1, dial) {
			c.Close()
		}
	})
}

// A deploy boots one machine to prove the release though nothing serves, and takes sleeping old ones away.
func TestADeployReplacesSleepingMachines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		addr, _ := p.Deploy("web", volanttest.Image)
		for _, c := range connect(t, p, 1, func() (net.Conn, error) { return p.Connect(addr) }) {
			c.Close()
		}
		time.Sleep(5 * time.Minute)
		if got := p.States("web"); got["suspended"] != 1 {
			t.Fatalf("machines are %v, want 1 suspended", got)
		}
		_, r := p.Deploy("web", volanttest.Image)
		if r.Status != "complete" {
			t.Fatalf("release is %s (%s)", r.Status, r.Reason)
		}
		time.Sleep(5 * time.Minute)
		ms, err := p.API.Machines(context.Background(), "web")
		if err != nil {
			t.Fatal(err)
		}
		left := 0
		for _, m := range ms {
			if m.State != "destroyed" {
				left++
				if m.State != "suspended" {
					t.Errorf("machine %s is %s, want suspended", m.ID, m.State)
				}
			}
		}
		if left != 1 {
			t.Errorf("%d machines are left, want the new one", left)
		}
	})
}

// With min the app is awake before anybody comes, and stays so.
func TestMinIsAwake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		two := 2
		_, r := p.Deploy("web", volanttest.Image, scaled(func(s *api.ScalePatch) { s.Min = &two }))
		if r.Status != "complete" {
			t.Fatalf("release is %s (%s)", r.Status, r.Reason)
		}
		for range 3 {
			if got := p.States("web"); got["started"] != 2 {
				t.Fatalf("machines are %v, want 2 started", got)
			}
			time.Sleep(time.Hour)
		}
	})
}

// Each step of scaling has its reason.
func TestScalingIsExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		addr, _ := p.Deploy("web", volanttest.Image)
		conns := connect(t, p, 21, func() (net.Conn, error) { return p.Connect(addr) })
		time.Sleep(5 * time.Second)
		for _, c := range conns {
			c.Close()
		}
		time.Sleep(5 * time.Minute)
		recs, err := p.API.Why(context.Background(), "web", []why.Kind{why.Scale}, 100)
		if err != nil {
			t.Fatal(err)
		}
		var rules []string
		for _, r := range recs {
			rules = append(rules, r.Rule)
		}
		if got, want := strings.Join(rules, " "), "idle idle demand demand"; got != want {
			t.Errorf("reasons, newest first: %s, want %s", got, want)
		}
	})
}
