package volanttest_test

import (
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/volanttest"
)

// Clients enter at edges alone, machines run on hosts alone, and a control node may do neither.
func TestEachNodeDoesWhatItsRolesSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := volanttest.NewClusterOf(t,
			volanttest.Site{Region: "ams", Roles: []string{volant.RoleControl}},
			volanttest.Site{Region: "ams", Roles: []string{volant.RoleEdge}},
			volanttest.Site{Region: "ams", Roles: []string{volant.RoleHost}})
		defer c.Close()
		control, edge, host := c.Nodes[0], c.Nodes[1], c.Nodes[2]
		addr, r := control.Deploy("web", volanttest.Image)
		if r.Status != "complete" {
			t.Fatalf("release is %s (%s)", r.Status, r.Reason)
		}
		conn, err := edge.Connect(addr)
		if err != nil {
			t.Fatalf("at the edge: %v", err)
		}
		defer conn.Close()
		for name, p := range map[string]*volanttest.Platform{"control node": control, "host": host} {
			if _, err := p.Net.Dial(t.Context(), addr); err == nil {
				t.Errorf("a client is accepted at the %s", name)
			}
		}
		for _, m := range control.Machines("web") {
			if m.Node != string(host.ID) {
				t.Errorf("machine %s is on node %s, want the host %s", m.ID, m.Node, host.ID)
			}
		}
	})
}

// A node that drains has its machines replaced elsewhere, and then can be removed as nothing is lost by it.
func TestNodeIsDrainedAndRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := volanttest.NewClusterOf(t,
			volanttest.Site{Region: "ams"},
			volanttest.Site{Region: "ord", Roles: []string{volant.RoleEdge, volant.RoleHost}})
		defer c.Close()
		first, second := c.Nodes[0], c.Nodes[1]
		addr, _ := first.Deploy("web", volanttest.Image)
		conn, err := second.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		id := string(second.ID)
		if n, err := first.API.Node(ctx, id); err != nil || n.Machines != 1 {
			t.Fatalf("the machine is not on the node that is to drain: %+v, %v", n, err)
		}
		if _, err := first.API.RemoveNode(ctx, id, false); err == nil {
			t.Fatal("a node that is alive and has a machine is removed")
		}
		if _, err := first.API.ChangeNode(ctx, id, "drain"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if err := volanttest.Echo(conn); err != nil {
			t.Errorf("a connection to a machine that drains: %v", err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n, err := first.API.Node(ctx, id); err != nil || n.Machines != 0 || !n.Draining {
			t.Errorf("after its connections ended: %+v, %v", n, err)
		}
		if _, err := first.API.RemoveNode(ctx, id, false); err != nil {
			t.Errorf("remove it: %v", err)
		}
		if err := second.Ended(); err == nil {
			t.Error("its server does not say that it was removed")
		}
		conn, err = first.Connect(addr)
		if err != nil {
			t.Fatalf("at the other: %v", err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
