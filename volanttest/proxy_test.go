package volanttest_test

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/microvm/fake"
	"github.com/volant-edge/volant/volanttest"
)

// A proxy that is killed takes its connections with it. What it last said of slots must not keep an old
// release's machine, drained by a deploy, awake for good.
func TestMachinesDrainedByADeployEndThoughTheProxyIsKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		addr, _ := p.Deploy("web", volanttest.Image)
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, r := p.Deploy("web", volanttest.Image); r.Status != "complete" {
			t.Fatalf("second release is %s (%s), want complete", r.Status, r.Reason)
		}
		if err := volanttest.Echo(c); err != nil {
			t.Fatalf("the connection from before the deploy: %v", err)
		}
		p.KillProxy()
		time.Sleep(time.Minute)
		for _, m := range p.Machines("web") {
			if m.Release != 2 {
				t.Errorf("machine %s of release %d is %s a minute after its last connection ended, want it destroyed", m.ID, m.Release, m.State)
			}
		}
		c2, err := p.Connect(addr)
		if err != nil {
			t.Fatalf("through the new proxy: %v", err)
		}
		c2.Close()
	})
}

// Limits are exact for each machine: what a new release allows is not allowed on a machine of the one before.
func TestAReleaseWithHigherLimitsRaisesNoneOfTheOneBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		limit := func(soft, hard int) func(*api.CreateRelease) {
			return func(r *api.CreateRelease) {
				r.Config.Services[0].Concurrency = &volant.Concurrency{SoftLimit: soft, HardLimit: hard}
			}
		}
		addr, _ := p.Deploy("web", volanttest.Image, limit(4, 4))
		one := 1
		if _, err := p.API.SetScale(context.Background(), "web", api.ScalePatch{Max: &one}); err != nil {
			t.Fatal(err)
		}
		for range 10 { // 4 are served, 6 wait
			c, err := p.Net.Dial(context.Background(), addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		time.Sleep(5 * time.Second)
		old := p.Guests()
		if len(old) != 1 {
			t.Fatalf("%d machines, want 1", len(old))
		}
		if _, r := p.Deploy("web", volanttest.Image, limit(50, 60)); r.Status != "complete" {
			t.Fatalf("second release is %s (%s), want complete", r.Status, r.Reason)
		}
		for id, g := range old {
			if _, most, _ := g.Counts(); most > 4 {
				t.Errorf("machine %s held %d connections at once, its hard limit is 4", id, most)
			}
		}
		total := 0
		for _, g := range p.Guests() {
			open, _, _ := g.Counts()
			total += open
		}
		if total != 10 {
			t.Errorf("%d of 10 connections are served after the deploy", total)
		}
	})
}

// A server that starts finds its machines again before it tells the proxy of them and scales: what it has not
// found yet is no reason to leave a machine out or to make another.
func TestAServerThatIsSlowToFindItsMachinesMakesNoOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		addr, _ := p.Deploy("web", volanttest.Image)
		var conns []net.Conn
		for range 30 {
			c, err := p.Connect(addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conns = append(conns, c)
			time.Sleep(time.Second)
		}
		before := len(p.Machines("web"))
		p.Stop()
		p.Hook = func(op fake.Op) fake.Fault {
			if op.Name == "adopt" {
				return fake.Fault{Delay: 5 * time.Second}
			}
			return fake.Fault{}
		}
		p.Start()
		time.Sleep(100 * time.Millisecond)
		began := time.Now()
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatalf("while the server finds its machines: %v", err)
		}
		defer c.Close()
		if took := time.Since(began); took > time.Second {
			t.Errorf("a connection took %s while the server found its machines, though two serve", took)
		}
		time.Sleep(time.Minute)
		if after := len(p.Machines("web")); after != before {
			t.Errorf("%d machines, and %d before the server's restart", after, before)
		}
		for _, c := range conns {
			if err := volanttest.Echo(c); err != nil {
				t.Errorf("a connection was lost: %v", err)
			}
		}
	})
}
