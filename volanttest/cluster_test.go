package volanttest_test

import (
	"context"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest"
	"github.com/volant-edge/volant/why"
)

// places counts an app's machines that are not destroyed by region and state, as a node's API shows them.
func places(p *volanttest.Platform, app string) map[string]int {
	out := map[string]int{}
	for _, m := range p.Machines(app) {
		if m.State != "destroyed" {
			out[m.Region+" "+m.State]++
		}
	}
	return out
}

func want(t *testing.T, what string, got map[string]int, pairs map[string]int) {
	t.Helper()
	for k, n := range pairs {
		if got[k] != n {
			t.Errorf("%s: got %v, want %v", what, got, pairs)
			return
		}
	}
	if len(got) != len(pairs) {
		t.Errorf("%s: got %v, want %v", what, got, pairs)
	}
}

// Machines that min keeps in a region are made on its hosts, one on each, and every node's API shows them and reaches
// into them.
func TestMachinesAreMadeInTheirRegions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := volanttest.NewCluster(t, "ams", "dfw", "dfw", "ord")
		defer c.Close()
		one := c.In("ord")
		_, r := one.Deploy("web", volanttest.Image, scaled(func(s *api.ScalePatch) {
			s.RegionMin = map[volant.Region]int{"dfw": 2, "ord": 1}
		}))
		if r.Status != "complete" {
			t.Fatalf("release is %s (%s)", r.Status, r.Reason)
		}
		time.Sleep(10 * time.Second)
		for _, p := range c.Nodes {
			want(t, "at "+string(p.Region), places(p, "web"), map[string]int{"dfw started": 2, "ord started": 1})
		}
		nodes := map[string]int{}
		for _, m := range one.Machines("web") {
			nodes[m.Node]++
			if len(m.Events) == 0 {
				t.Errorf("machine %s in %s shows no events", m.ID, m.Region)
			}
			var out strings.Builder
			res, err := c.In("ams").API.Exec(context.Background(), "web", m.ID, api.Exec{Command: []string{"echo", "hello"}}, &out, io.Discard)
			if err != nil || res.ExitCode != 0 {
				t.Errorf("exec in %s in %s: %v %v", m.ID, m.Region, res, err)
			}
		}
		if len(nodes) != 3 {
			t.Errorf("machines are on %v, want one on each host", nodes)
		}
	})
}

// nodeOf is the node that a machine is on.
func nodeOf(t *testing.T, c *volanttest.Cluster, m api.Machine) *volanttest.Platform {
	t.Helper()
	for _, p := range c.Nodes {
		if string(p.ID) == m.Node {
			return p
		}
	}
	t.Fatalf("machine %s is on node %s, which is none", m.ID, m.Node)
	return nil
}

// alive are an app's machines that are neither destroyed nor lost.
func alive(p *volanttest.Platform, app string) []api.Machine {
	var out []api.Machine
	for _, m := range p.Machines(app) {
		if rec, ok := p.Node.Catalog().Snapshot().Machine(volant.MachineID(m.ID)); ok && rec.Lost.IsZero() && m.State != "destroyed" {
			out = append(out, m)
		}
	}
	return out
}

// A machine whose host loses its power is replaced under another ID; when the host is back, it is destroyed there.
func TestAMachineIsLostWithItsHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := volanttest.NewCluster(t, "ams", "ord", "ord")
		defer c.Close()
		ams := c.In("ams")
		_, r := ams.Deploy("web", volanttest.Image, scaled(func(s *api.ScalePatch) {
			s.RegionMin = map[volant.Region]int{"ord": 1}
		}))
		if r.Status != "complete" {
			t.Fatalf("release is %s (%s)", r.Status, r.Reason)
		}
		old := alive(ams, "web")[0]
		host := nodeOf(t, c, old)
		c.PowerOff(host)
		time.Sleep(9 * time.Second)
		if got := alive(ams, "web"); len(got) != 1 || got[0].ID != old.ID || got[0].HostStatus != "unreachable" {
			t.Errorf("9 s after its host lost its power: %+v", got)
		}
		time.Sleep(21 * time.Second)
		now := alive(ams, "web")
		if len(now) != 1 || now[0].ID == old.ID || now[0].State != "started" || now[0].Node == old.Node {
			t.Fatalf("30 s after its host lost its power: %+v", now)
		}
		said(t, ams, old.ID, "host_lost")
		c.Boot(host)
		time.Sleep(time.Minute)
		if m, err := ams.API.Machine(context.Background(), "web", old.ID); err != nil || m.State != "destroyed" {
			t.Errorf("the lost machine is %s, %v, want it destroyed", m.State, err)
		}
		if got := alive(ams, "web"); len(got) != 1 || got[0].ID != now[0].ID {
			t.Errorf("after its host is back: %+v", got)
		}
	})
}

// said wants a reason with a rule about an app or machine.
func said(t *testing.T, p *volanttest.Platform, what, rule string) {
	t.Helper()
	recs, err := p.API.Why(context.Background(), what, nil, 200)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(recs, func(r why.Record) bool { return r.Rule == rule }) {
		t.Errorf("nothing says %s: %+v", rule, recs)
	}
}

// Only nodes with the control role act for apps; when one dies, another does within seconds.
func TestTermsMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := volanttest.NewClusterOf(t,
			volanttest.Site{Region: "ams", Roles: []string{volant.RoleEdge, volant.RoleHost}},
			volanttest.Site{Region: "dfw", Roles: []string{volant.RoleControl}},
			volanttest.Site{Region: "ord", Roles: []string{volant.RoleControl}},
			volanttest.Site{Region: "fra", Roles: []string{volant.RoleControl}},
		)
		defer c.Close()
		_, r := c.In("dfw").Deploy("web", volanttest.Image, scaled(func(s *api.ScalePatch) { one := 1; s.Min = &one }))
		if r.Status != "complete" {
			t.Fatalf("release is %s (%s)", r.Status, r.Reason)
		}
		for n := 2; n <= 3; n++ {
			holder := c.Node(c.Holder("web"))
			if holder == nil || holder.Region == "ams" {
				t.Fatalf("the term is held by %v", holder)
			}
			c.Kill(holder)
			var other *volanttest.Platform
			for _, p := range c.Nodes[1:] {
				if c.Up(p) {
					other = p
				}
			}
			if _, err := other.API.SetScale(context.Background(), "web", api.ScalePatch{Min: &n}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(12 * time.Second)
			want(t, "12 s after the scaler's node died", places(other, "web"), map[string]int{"ams started": n})
		}
	})
}
