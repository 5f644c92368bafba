package volanttest_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/volanttest"
)

// bubble runs fn with a platform whose app web is deployed.
func bubble(t *testing.T, fn func(t *testing.T, p *volanttest.Platform, addr netip.AddrPort)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		addr, r := p.Deploy("web", volanttest.Image)
		if r.Status != "complete" {
			t.Fatalf("release is %s (%s), want complete", r.Status, r.Reason)
		}
		fn(t, p, addr)
	})
}

func TestAConnectionThatWaitsWhileTheServerIsAwayIsServedWhenItIsBack(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform, addr netip.AddrPort) {
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		time.Sleep(5 * time.Minute)
		if got := p.States("web"); got["suspended"] != 1 {
			t.Fatalf("machines are %v, want one suspended", got)
		}
		p.Stop()
		if c, err = p.Net.Dial(context.Background(), addr); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		time.Sleep(10 * time.Second)
		p.Start()
		if err := volanttest.Echo(c); err != nil {
			t.Errorf("the connection that waited: %v", err)
		}
	})
}

func TestACordonedMachineSleepsOnAndAnotherServes(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform, addr netip.AddrPort) {
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		time.Sleep(5 * time.Minute)
		id := p.Machines("web")[0].ID
		m, _ := p.Node.Catalog().Snapshot().Machine(volant.MachineID(id))
		if _, _, err := store.Update(context.Background(), p.Store, "operator", m.Key(), func(m *volant.Machine) error {
			m.Cordoned = true
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if c, err = p.Connect(addr); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, m := range p.Machines("web") {
			if m.ID == id && m.State != "suspended" {
				t.Errorf("the cordoned machine is %s", m.State)
			}
		}
	})
}

func TestAReleaseOnAnotherPortKeepsConnectionsOfTheOldOne(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform, addr netip.AddrPort) {
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, r := p.Deploy("web", volanttest.Image, func(r *api.CreateRelease) {
			r.Config.Services[0].Ports = []volant.Port{{Port: 81}}
		}); r.Status != "complete" {
			t.Fatalf("release is %s (%s)", r.Status, r.Reason)
		}
		time.Sleep(5 * time.Minute)
		if err := volanttest.Echo(c); err != nil {
			t.Errorf("the connection to the old port: %v", err)
		}
		c2, err := p.Connect(netip.AddrPortFrom(addr.Addr(), 81))
		if err != nil {
			t.Fatalf("the new port: %v", err)
		}
		c2.Close()
		if c3, err := p.Net.Dial(context.Background(), addr); err == nil {
			c3.Close()
			t.Error("the old port is still listened on")
		}
	})
}

// With min, machines serve again after a restart of the server, and after the proxy was killed.
func TestMinHoldsThroughRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		p.Deploy("web", volanttest.Image, scaled(func(s *api.ScalePatch) { two := 2; s.Min = &two }))
		time.Sleep(time.Minute)
		for _, restart := range []struct {
			name string
			do   func()
		}{
			{"the server", func() { p.Stop(); p.Start() }},
			{"the proxy", p.KillProxy},
			{"host's machines", func() {
				p.Stop()
				p.Boot++
				p.World.Close()
				p.Start()
			}},
		} {
			restart.do()
			time.Sleep(5 * time.Minute)
			if got := p.States("web"); got["started"] != 2 {
				t.Errorf("5 minutes after a restart of %s machines are %v, want 2 started", restart.name, got)
			}
		}
	})
}

func TestAMaxOfZeroIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform, _ netip.AddrPort) {
		zero := 0
		if _, err := p.API.SetScale(context.Background(), "web", api.ScalePatch{Max: &zero}); !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("max 0 is answered with %v, want an error of what is allowed", err)
		}
	})
}
