package volanttest_test

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant/volanttest"
)

// The main job, in one process: first connection, 21st, 60th, idle, wake.
func TestMachinesComeAndGoWithConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		addr, r := p.Deploy("web", volanttest.Image)
		if r.Status != "complete" {
			t.Fatalf("release is %s (%s), want complete", r.Status, r.Reason)
		}
		if got := p.States("web"); len(got) != 0 {
			t.Fatalf("after the first deploy with min 0 there are machines %v, want none", got)
		}
		var conns []net.Conn
		open := func(n int) {
			t.Helper()
			for len(conns) < n {
				c, err := p.Connect(addr)
				if err != nil {
					t.Fatalf("connection %d: %v", len(conns)+1, err)
				}
				conns = append(conns, c)
			}
			time.Sleep(5 * time.Second)
		}
		for _, step := range []struct{ conns, machines int }{{1, 1}, {20, 1}, {21, 2}, {40, 2}, {60, 3}} {
			open(step.conns)
			if got := p.States("web")["started"]; got != step.machines {
				t.Fatalf("%d connections: %d machines serve, want %d", step.conns, got, step.machines)
			}
		}
		for _, c := range conns {
			if err := volanttest.Echo(c); err != nil {
				t.Errorf("a connection was lost: %v", err)
			}
			c.Close()
		}
		time.Sleep(5 * time.Minute)
		if got := p.States("web"); got["suspended"] != 3 {
			t.Fatalf("after 5 minutes without users machines are %v, want 3 suspended", got)
		}
		conns = nil
		open(1)
		if got := p.States("web"); got["started"] != 1 || got["suspended"] != 2 {
			t.Fatalf("one connection woke machines to %v, want 1 started and 2 suspended", got)
		}
		for id, g := range p.Guests() {
			if _, most, _ := g.Counts(); most > 25 {
				t.Errorf("machine %s held %d connections at once, its hard limit is 25", id, most)
			}
		}
		for _, c := range conns {
			c.Close()
		}
	})
}

func TestDeployKeepsConnectionsAndABrokenOneChangesNothing(t *testing.T) {
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
			t.Errorf("the connection from before the deploy: %v", err)
		}
		_, r := p.Deploy("web", volanttest.Broken)
		if r.Status != "failed" || r.Reason == "" {
			t.Errorf("broken release is %s (%q), want failed with a reason", r.Status, r.Reason)
		}
		if err := volanttest.Echo(c); err != nil {
			t.Errorf("the connection from before the broken deploy: %v", err)
		}
		c2, err := p.Connect(addr)
		if err != nil {
			t.Fatalf("after a broken deploy: %v", err)
		}
		c2.Close()
		a, err := p.API.App(context.Background(), "web")
		if err != nil {
			t.Fatal(err)
		}
		if a.Release != 2 {
			t.Errorf("release %d serves, want 2", a.Release)
		}
	})
}

func TestServerRestartClosesNoConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		addr, _ := p.Deploy("web", volanttest.Image)
		var conns []net.Conn
		for range 50 {
			c, err := p.Connect(addr)
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		time.Sleep(5 * time.Second) // the third machine comes: two are full with 50
		p.Stop()
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatalf("without a server: %v", err)
		}
		conns = append(conns, c)
		p.Start()
		time.Sleep(10 * time.Second)
		for _, c := range conns {
			if err := volanttest.Echo(c); err != nil {
				t.Errorf("a connection was lost: %v", err)
			}
			c.Close()
		}
	})
}
