package volanttest_test

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/client"
	"github.com/volant-edge/volant/volanttest"
)

var noHost = []string{volant.RoleEdge, volant.RoleControl}

var noControl = []string{volant.RoleEdge, volant.RoleHost}

// open opens n connections at a node.
func open(t *testing.T, p *volanttest.Platform, addr netip.AddrPort, n int) []net.Conn {
	t.Helper()
	return connect(t, p, n, func() (net.Conn, error) { return p.Connect(addr) })
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		c.Close()
	}
}

func perRegion(ms []api.Machine) map[string]int {
	out := map[string]int{}
	for _, m := range ms {
		out[m.Region]++
	}
	return out
}

// A client whose region runs no machines is served by the nearest that does, and the first connection makes one there.
func TestAConnectionIsServedElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := volanttest.NewClusterOf(t,
			volanttest.Site{Region: "ams", Roles: noHost},
			volanttest.Site{Region: "syd"},
			volanttest.Site{Region: "fra"},
		)
		defer c.Close()
		c.SetDelay("ams", "syd", 120*time.Millisecond)
		c.SetDelay("fra", "syd", 120*time.Millisecond)
		time.Sleep(30 * time.Second) // round trips are measured
		ams := c.In("ams")
		addr, r := ams.Deploy("web", volanttest.Image)
		if r.Status != "complete" {
			t.Fatalf("release is %s (%s)", r.Status, r.Reason)
		}
		conns := open(t, ams, addr, 5)
		defer closeAll(conns)
		want(t, "machines", places(ams, "web"), map[string]int{"fra started": 1})
		began := time.Now()
		closeAll(open(t, ams, addr, 1))
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("a connection to fra, 20 ms away, took %s", took)
		}
		time.Sleep(5 * time.Second)
		if got := ams.Machines("web")[0].Slots; got != 5 {
			t.Errorf("ams sees %d connections on the machine in fra, want 5", got)
		}
		if got := c.In("syd").Machines("web")[0].Slots; got != 5 {
			t.Errorf("syd sees %d connections on the machine in fra, want 5", got)
		}
	})
}

// Machines are made where most connections enter.
func TestTheBusiestRegionFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := volanttest.NewCluster(t, "ams", "dfw", "ord")
		defer c.Close()
		addr, _ := c.In("ams").Deploy("web", volanttest.Image)
		var conns []net.Conn
		defer func() { closeAll(conns) }()
		conns = append(conns, open(t, c.In("dfw"), addr, 30)...)
		conns = append(conns, open(t, c.In("ord"), addr, 5)...)
		time.Sleep(5 * time.Second)
		got := perRegion(alive(c.In("ams"), "web"))
		if got["dfw"] < 2 || got["ams"] > 0 {
			t.Errorf("30 connections in dfw, 5 in ord: machines are %v", got)
		}
	})
}

// Max per region sends what is too much to the next nearest, and max in all is never passed.
func TestMaxPerRegion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := volanttest.NewCluster(t, "ams", "dfw", "ord")
		defer c.Close()
		three := 3
		addr, _ := c.In("ams").Deploy("web", volanttest.Image, scaled(func(s *api.ScalePatch) {
			s.Max, s.RegionMax = &three, map[volant.Region]int{"dfw": 1}
		}))
		conns := open(t, c.In("dfw"), addr, 50)
		defer closeAll(conns)
		time.Sleep(5 * time.Second)
		got := perRegion(alive(c.In("ams"), "web"))
		if got["dfw"] != 1 || got["dfw"]+got["ord"]+got["ams"] != 3 {
			t.Errorf("50 connections in dfw, of which it may take one machine: %v", got)
		}
		limits(t, c)
	})
}

// limits wants that no app ever had more connections at once than its hard limit.
func limits(t *testing.T, c *volanttest.Cluster) {
	t.Helper()
	for id, g := range c.Guests() {
		if _, most, _ := g.Counts(); most > 25 {
			t.Errorf("machine %s had %d connections at once, and its hard limit is 25", id, most)
		}
	}
}

// When a host falls off the net with all that runs on it, new connections succeed within seconds.
func TestAHostFallsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := volanttest.NewClusterOf(t,
			volanttest.Site{Region: "ams", Roles: noHost}, // who scales lives on: else its term has to run out first
			volanttest.Site{Region: "ord", Roles: noControl}, volanttest.Site{Region: "ord", Roles: noControl},
			volanttest.Site{Region: "dfw", Roles: noControl},
		)
		defer c.Close()
		ams := c.In("ams")
		addr, _ := ams.Deploy("web", volanttest.Image)
		conns := open(t, ams, addr, 1)
		defer closeAll(conns)
		host := nodeOf(t, c, alive(ams, "web")[0])
		c.PowerOff(host)
		began := time.Now()
		closeAll(open(t, ams, addr, 1))
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("the first connection after the host fell off took %s", took)
		}
		began = time.Now()
		closeAll(open(t, ams, addr, 3))
		if took := time.Since(began); took > time.Second {
			t.Errorf("the next three took %s", took)
		}
		limits(t, c)
	})
}

// A region that is cut off from all control nodes and the store serves on, and wakes what sleeps there.
func TestARegionWithoutControl(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := volanttest.NewClusterOf(t,
			volanttest.Site{Region: "ams"},
			volanttest.Site{Region: "syd", Roles: noControl},
			volanttest.Site{Region: "fra"},
		)
		defer c.Close()
		ams, syd := c.In("ams"), c.In("syd")
		addr, _ := ams.Deploy("web", volanttest.Image)
		closeAll(open(t, syd, addr, 30))
		time.Sleep(5 * time.Minute)
		if got := places(ams, "web"); got["syd suspended"] != 2 {
			t.Fatalf("machines are %v, want 2 suspended in syd", got)
		}
		c.CutOff(syd)
		time.Sleep(10 * time.Second)
		conns := open(t, syd, addr, 40)
		defer closeAll(conns)
		if got := len(syd.World.Running()); got != 2 {
			t.Errorf("%d machines run in syd, want 2", got)
		}
		time.Sleep(time.Minute)
		if got := alive(ams, "web"); len(got) > 0 {
			t.Errorf("ams believes in machines of a region that is gone: %+v", perRegion(got))
		}
		for _, conn := range conns {
			if err := volanttest.Echo(conn); err != nil {
				t.Fatalf("a connection in the region that is cut off: %v", err)
			}
		}
		c.Heal()
		time.Sleep(30 * time.Second)
		for _, conn := range conns {
			if err := volanttest.Echo(conn); err != nil {
				t.Fatalf("a connection after the region is back: %v", err)
			}
		}
		closeAll(conns)
		time.Sleep(5 * time.Minute)
		if got := len(syd.World.Running()); got != 0 {
			t.Errorf("%d of the machines that were given up still run in syd", got)
		}
		agree(t, c, "web")
	})
}

// agree wants that all nodes show the same machines.
func agree(t *testing.T, c *volanttest.Cluster, app string) {
	t.Helper()
	first := places(c.Nodes[0], app)
	for _, p := range c.Nodes[1:] {
		want(t, "machines as "+string(p.Region)+" shows them", places(p, app), first)
	}
}

// A node that drains loses its machines and no connection; min is kept by another.
func TestANodeDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := volanttest.NewCluster(t, "ams", "ord", "ord")
		defer c.Close()
		ams := c.In("ams")
		addr, _ := ams.Deploy("web", volanttest.Image, scaled(func(s *api.ScalePatch) {
			s.RegionMin = map[volant.Region]int{"ord": 1}
		}))
		conns := open(t, c.In("ord"), addr, 3)
		old := alive(ams, "web")
		if len(old) != 1 {
			t.Fatalf("%d machines, want 1", len(old))
		}
		if _, err := ams.API.ChangeNode(context.Background(), old[0].Node, "drain"); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			time.Sleep(500 * time.Millisecond)
			if places(ams, "web")["ord started"] < 1 {
				t.Fatal("min is not kept while the node drains")
			}
		}
		for _, conn := range conns {
			if err := volanttest.Echo(conn); err != nil {
				t.Errorf("a connection on the node that drains: %v", err)
			}
		}
		more := open(t, c.In("ord"), addr, 3)
		closeAll(conns)
		time.Sleep(time.Minute)
		for _, m := range alive(ams, "web") {
			if m.Node == old[0].Node {
				t.Errorf("machine %s is still on the node that drains: %s", m.ID, m.State)
			}
		}
		for _, conn := range more {
			if err := volanttest.Echo(conn); err != nil {
				t.Errorf("a connection on the machine in its place: %v", err)
			}
		}
		closeAll(more)
	})
}

// A machine made by hand on a node without machines goes where there are hosts, and its log says where it is.
func TestAMachineByHandGoesToAHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := volanttest.NewClusterOf(t, volanttest.Site{Region: "ams", Roles: noHost}, volanttest.Site{Region: "ord"})
		defer c.Close()
		ams := c.In("ams")
		if _, err := ams.API.CreateApp(context.Background(), "web", ""); err != nil {
			t.Fatal(err)
		}
		m, err := ams.API.CreateMachine(context.Background(), "web", api.CreateMachine{Config: volant.MachineConfig{Image: string(volanttest.Image)}})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if got, err := ams.API.Machine(context.Background(), "web", m.ID); err != nil || got.Region != "ord" || got.State != "started" {
			t.Errorf("machine is %s in %s, %v", got.State, got.Region, err)
		}
		c.Guests()[m.ID].Print("stdout", "here I am")
		time.Sleep(time.Second)
		found := false
		err = ams.API.Logs(context.Background(), "web", client.Logs{Machine: m.ID, Tail: 10}, func(e api.LogEntry) error {
			found = found || e.Message == "here I am" && e.Region == "ord"
			return nil
		})
		if err != nil || !found {
			t.Errorf("its log in another region does not show what it said: %v", err)
		}
	})
}
