package volanttest_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest"
)

// three makes a release of three process groups: app on port 80, api on port 81, and worker.
func three(r *api.CreateRelease) {
	r.Others = []volant.Group{
		{Name: "api", Config: volant.MachineConfig{
			Services: []volant.Service{{Protocol: "tcp", InternalPort: volanttest.Port, Ports: []volant.Port{{Port: 81}}}},
		}},
		{Name: "worker"},
	}
}

// byGroup counts an app's machines that are awake, by group.
func byGroup(p *volanttest.Platform, app string) map[string]int {
	out := map[string]int{}
	for _, m := range p.Machines(app) {
		if m.State == "started" {
			out[m.Config.Group()]++
		}
	}
	return out
}

func wantGroups(t *testing.T, p *volanttest.Platform, web, api, worker int) {
	t.Helper()
	if got := byGroup(p, "web"); got["app"] != web || got["api"] != api || got["worker"] != worker {
		t.Errorf("awake are %v, want app:%d api:%d worker:%d", got, web, api, worker)
	}
}

func TestGroupsScaleByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		ctx := context.Background()
		addr, r := p.Deploy("web", volanttest.Image, three, scaled(func(s *api.ScalePatch) { one := 1; s.Max = &one }))
		if r.Status != "complete" {
			t.Fatalf("release is %s (%s)", r.Status, r.Reason)
		}
		second := netip.AddrPortFrom(addr.Addr(), 81)
		wantGroups(t, p, 0, 0, 1)
		conns := connect(t, p, 25, func() (net.Conn, error) { return p.Connect(addr) })
		// The default group is full; that holds up nobody of the other.
		waits := make(chan error, 1)
		go func() {
			c, err := p.Connect(addr)
			if err == nil {
				c.Close()
			}
			waits <- err
		}()
		time.Sleep(time.Second)
		conns = append(conns, connect(t, p, 45, func() (net.Conn, error) { return p.Connect(second) })...)
		time.Sleep(5 * time.Second)
		wantGroups(t, p, 1, 3, 1)
		two, zero := 2, 0
		if _, err := p.API.SetGroupScale(ctx, "web", "worker", api.ScalePatch{Min: &two}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		wantGroups(t, p, 1, 3, 2)
		for _, c := range conns {
			c.Close()
		}
		if err := <-waits; err != nil {
			t.Errorf("who waited at the default group: %v", err)
		}
		time.Sleep(5 * time.Minute)
		wantGroups(t, p, 0, 0, 2)
		if _, err := p.API.SetGroupScale(ctx, "web", "worker", api.ScalePatch{Min: &zero}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		wantGroups(t, p, 0, 0, 0)
		if _, err := p.API.SetGroupScale(ctx, "web", "none", api.ScalePatch{Min: &zero}); !errors.Is(err, volant.ErrNotFound) {
			t.Errorf("a group that is none: %v", err)
		}
	})
}

func TestEveryStrategyKeepsConnections(t *testing.T) {
	for _, strategy := range []string{volant.StrategyRolling, volant.StrategyCanary, volant.StrategyBlueGreen, volant.StrategyImmediate} {
		t.Run(strategy, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := volanttest.New(t)
				defer p.Close()
				addr, _ := p.Deploy("web", volanttest.Image, three)
				conns := connect(t, p, 70, func() (net.Conn, error) { return p.Connect(addr) })
				conns = append(conns, connect(t, p, 30, func() (net.Conn, error) { return p.Connect(netip.AddrPortFrom(addr.Addr(), 81)) })...)
				time.Sleep(5 * time.Second)
				before := byGroup(p, "web")
				by := func(r *api.CreateRelease) { r.Strategy = strategy }
				if _, r := p.Deploy("web", volanttest.Image, three, by); r.Status != "complete" {
					t.Fatalf("release is %s (%s), want complete", r.Status, r.Reason)
				}
				for _, c := range conns {
					if err := volanttest.Echo(c); err != nil {
						t.Fatalf("a connection from before the deploy: %v", err)
					}
				}
				c, err := p.Connect(addr)
				if err != nil {
					t.Fatal(err)
				}
				conns = append(conns, c)
				if strategy != volant.StrategyImmediate {
					if _, r := p.Deploy("web", volanttest.Broken, three, by); r.Status != "failed" || r.Reason == "" {
						t.Errorf("a broken release is %s (%q), want failed with a reason", r.Status, r.Reason)
					}
				}
				for _, c := range conns {
					if err := volanttest.Echo(c); err != nil {
						t.Fatalf("a connection from before the broken deploy: %v", err)
					}
					c.Close()
				}
				time.Sleep(time.Minute)
				for _, m := range p.Machines("web") {
					if m.Release != 2 {
						t.Errorf("machine %s of release %d is left, %s", m.ID, m.Release, m.State)
					}
				}
				if after := byGroup(p, "web"); after["worker"] != before["worker"] {
					t.Errorf("%d workers, want %d", after["worker"], before["worker"])
				}
			})
		})
	}
}

func TestAReleaseThatFailsLaterIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		addr, _ := p.Deploy("web", volanttest.Image)
		conns := connect(t, p, 70, func() (net.Conn, error) { return p.Connect(addr) })
		time.Sleep(5 * time.Second)
		_, r := p.Deploy("web", volanttest.Image, func(r *api.CreateRelease) { r.Config.Env = map[string]string{"GOOD": "2"} })
		if r.Status != "failed" || !strings.Contains(r.Reason, "exit code 9") {
			t.Fatalf("release is %s (%q), want failed with its exit", r.Status, r.Reason)
		}
		for range 30 { // connections come all the while
			c, err := p.Connect(addr)
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
			time.Sleep(2 * time.Second)
		}
		for _, c := range conns {
			if err := volanttest.Echo(c); err != nil {
				t.Fatalf("a connection: %v", err)
			}
			c.Close()
		}
		time.Sleep(time.Minute)
		a, err := p.API.App(context.Background(), "web")
		if err != nil || a.Release != 1 {
			t.Errorf("release %d is current (%v), want 1", a.Release, err)
		}
		for _, m := range p.Machines("web") {
			if m.Release != 1 || m.Cordoned {
				t.Errorf("machine %s of release %d is left, %s, cordoned: %t", m.ID, m.Release, m.State, m.Cordoned)
			}
		}
	})
}

// ending is a release command that ends with a code.
func ending(code string) func(*api.CreateRelease) {
	return func(r *api.CreateRelease) {
		r.ReleaseCommand = &volant.ReleaseCommand{Cmd: []string{"exit", code}, Timeout: volant.Duration(20 * time.Second)}
	}
}

func TestReleaseCommandRunsOnceBeforeMachinesChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		addr, r := p.Deploy("web", volanttest.Image, ending("0"))
		if r.Status != "complete" || p.Left() != 1 {
			t.Fatalf("release is %s (%s), its command ran %d times", r.Status, r.Reason, p.Left())
		}
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, r = p.Deploy("web", volanttest.Image, ending("3"))
		if r.Status != "failed" || !strings.Contains(r.Reason, "exit code 3") || !strings.Contains(r.Reason, "leaving with 3") {
			t.Errorf("release is %s (%q), want failed with the exit code and the last line", r.Status, r.Reason)
		}
		began := time.Now()
		_, r = p.Deploy("web", volanttest.Image, ending("never"))
		if took := time.Since(began); r.Status != "failed" || took > 30*time.Second {
			t.Errorf("release is %s (%q) after %s, want failed after 20 s", r.Status, r.Reason, took)
		}
		if p.Left() != 2 {
			t.Errorf("commands ran %d times, want 2", p.Left())
		}
		time.Sleep(time.Minute)
		for _, m := range p.Machines("web") {
			if m.Release != 1 {
				t.Errorf("machine %s of release %d is left, %s", m.ID, m.Release, m.State)
			}
		}
		if err := volanttest.Echo(c); err != nil {
			t.Error(err)
		}
	})
}

func TestReleaseCommandGoesOnAfterARestart(t *testing.T) {
	for _, at := range []time.Duration{0, 100 * time.Millisecond, 500 * time.Millisecond, 1200 * time.Millisecond, 1500 * time.Millisecond} {
		t.Run(at.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := volanttest.New(t)
				defer p.Close()
				p.Deploy("web", volanttest.Image)
				ctx := context.Background()
				r := api.CreateRelease{Image: string(volanttest.Image), Config: volant.MachineConfig{
					Services: []volant.Service{{Protocol: "tcp", InternalPort: volanttest.Port, Ports: []volant.Port{{Port: 80}}}},
				}}
				ending("0")(&r)
				if _, err := p.API.CreateRelease(ctx, "web", r); err != nil {
					t.Fatal(err)
				}
				time.Sleep(at)
				p.Stop()
				time.Sleep(time.Second)
				p.Start()
				time.Sleep(time.Minute)
				if rel, err := p.API.Release(ctx, "web", 2); err != nil || rel.Status != "complete" {
					t.Errorf("release is %s (%s), %v", rel.Status, rel.Reason, err)
				}
				if p.Left() != 1 {
					t.Errorf("the command ran %d times", p.Left())
				}
			})
		})
	}
}

func TestAMachineWithAutoDestroyGoesWhenItsProgramHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		ctx := context.Background()
		p.Deploy("web", volanttest.Image)
		machine := func(destroy bool, schedule string) string {
			m, err := p.API.CreateMachine(ctx, "web", api.CreateMachine{Config: volant.MachineConfig{
				Image: string(volanttest.Image), Init: volant.Init{Cmd: []string{"exit", "0"}}, AutoDestroy: destroy, Schedule: schedule,
			}})
			if err != nil {
				t.Fatal(err)
			}
			return m.ID
		}
		gone, stays, hourly := machine(true, ""), machine(false, ""), machine(false, "hourly")
		time.Sleep(time.Minute)
		for id, want := range map[string]string{gone: "destroyed", stays: "stopped", hourly: "stopped"} {
			if m, err := p.API.Machine(ctx, "web", id); err == nil && m.State != want || err != nil && id != gone {
				t.Errorf("machine is %s (%v), want %s", m.State, err, want)
			}
		}
		before := p.Left()
		time.Sleep(3 * time.Hour)
		if n := p.Left() - before; n < 2 || n > 3 {
			t.Errorf("within 3 hours the hourly one ran %d times", n)
		}
	})
}
