package node_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/volanttest"
)

// machineAt writes the record of a machine on another node.
func (c *cluster) machineAt(node volant.NodeID, app string) volant.MachineID {
	c.t.Helper()
	a, err := c.API.App(c.t.Context(), app)
	if err != nil {
		c.t.Fatal(err)
	}
	m := &volant.Machine{Name: "far", Node: node, Region: "ams", Run: volant.RunAuto, Image: volanttest.Image, Version: "v1"}
	m.Meta = volant.Meta{Kind: volant.KindMachine, Org: volant.OrgPersonal, App: volant.AppID(a.ID), ID: string(volant.NewMachineID())}
	if _, err := store.Create(c.t.Context(), c.Store, "test", m); err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
	return volant.MachineID(m.ID)
}

// What a node that is removed leaves on record goes with it: its own host cannot say any more that it is gone.
func TestMachinesGoWithTheirNode(t *testing.T) {
	inCluster(t, func(c *cluster) {
		addr, _ := c.Deploy("web", volanttest.Image)
		conn, err := c.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c.letIn(c.token(api.CreateJoinToken{}))
		id := c.machineAt("beef0001", "web")
		_, err = c.API.RemoveNode(c.t.Context(), "beef0001", false)
		if !errors.Is(err, volant.ErrPrecondition) {
			t.Fatalf("a node with machines, of which nobody knows that it is dead: %v", err)
		}
		gone, err := c.API.RemoveNode(c.t.Context(), "beef0001", true)
		if err != nil || gone.Machines != 1 || len(gone.Apps) != 1 || gone.Apps[0] != "web" {
			t.Fatalf("%+v, %v", gone, err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		m, ok := c.Node.Catalog().Snapshot().Machine(id)
		if !ok || !m.Tombstone || m.Run != volant.RunDestroyed {
			t.Errorf("the machine of the removed node: %+v", m)
		}
		if left := c.Machines("web"); len(left) == 0 {
			t.Error("the machines of other nodes went too")
		}
	})
}

// A node that was removed accepts no clients any more, and its server ends with the reason.
func TestRemovedNodeTakesPartNoLonger(t *testing.T) {
	inCluster(t, func(c *cluster) {
		addr, _ := c.Deploy("web", volanttest.Image)
		conn, err := c.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := store.Delete(c.t.Context(), c.Store, "test", volant.RecordKey(volant.KindNode, "", "0a0b0c0d")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if err := c.Ended(); !errors.Is(err, volant.ErrPrecondition) {
			t.Fatalf("the server ended with %v", err)
		}
		if _, err := c.Connect(addr); err == nil {
			t.Error("it accepts clients")
		}
		if err := volanttest.Echo(conn); err != nil {
			t.Errorf("a connection from before: %v", err)
		}
	})
}
