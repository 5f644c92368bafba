package volanttest_test

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest"
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
