package control_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest"
)

func TestRegionsAndPlacements(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		var regions api.Regions
		r.want(200, "GET", "/v1/platform/regions?memory_mb=1024", "", &regions)
		if len(regions.Regions) != 1 || regions.Nearest != "local" || regions.Regions[0].Code != "local" || regions.Regions[0].Capacity < 10 {
			t.Fatalf("regions %+v, want the one with its room", regions)
		}
		room := regions.Regions[0].Capacity
		r.want(400, "GET", "/v1/platform/regions?memory_mb=many", "", nil)
		plan := func(code int, fields string) (out api.Placements) {
			t.Helper()
			e := r.want(code, "POST", "/v1/platform/placements", `{"compute":{"memory_mb":1024},`+fields+`}`, &out)
			if code == 422 && e.Status != "insufficient_capacity" {
				t.Errorf("%s: %+v, want the one code for no room", fields, e)
			}
			return out
		}
		if got := plan(200, `"org_slug":"personal","count":3,"weights":{"spread":1}`); len(got.Regions) != 1 || got.Regions[0].Count != 3 {
			t.Errorf("3 machines go to %+v", got)
		}
		if got := plan(200, `"org_slug":"personal","region":"ams,any"`); len(got.Regions) != 1 || got.Regions[0].Count != room {
			t.Errorf("as many as there is room for go to %+v, want %d", got, room)
		}
		plan(422, fmt.Sprintf(`"org_slug":"personal","count":%d`, room+1))
		plan(422, `"org_slug":"personal","region":"ams"`)
		plan(400, `"org_slug":"personal","volume_name":"data"`)
		plan(400, `"count":1`)
		plan(404, `"org_slug":"nobody"`)
	})
}

func TestAnOrganizationsMachinesComeInParts(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		r.want(201, "POST", "/v1/apps", `{"app_name":"other","org_slug":"personal"}`, nil)
		for i := range 5 {
			r.create(fmt.Sprintf(`"metadata":{"n":"%d"}`, i), `"skip_launch":true`)
			time.Sleep(time.Second)
		}
		var m api.Machine
		r.want(200, "POST", "/v1/apps/other/machines", body("", `"skip_launch":true`), &m)
		const path = "/v1/orgs/personal/machines?"
		seen, cursor := map[string]bool{}, ""
		for range 3 {
			var part api.OrgMachines
			r.want(200, "GET", path+"limit=2&cursor="+cursor, "", &part)
			if len(part.Machines) != 2 || part.LastMachineID != part.Machines[1].ID {
				t.Fatalf("part %+v, want two machines", part)
			}
			for _, m := range part.Machines {
				seen[m.ID] = true
			}
			cursor = part.NextCursor
		}
		if len(seen) != 6 || cursor != "" {
			t.Errorf("three parts have %d machines and the cursor %q goes on, want 6 and none", len(seen), cursor)
		}
		var all, news api.OrgMachines
		r.want(200, "GET", path, "", &all)
		r.want(200, "GET", path+"updated_after="+url.QueryEscape(all.LastUpdatedAt), "", &news)
		if len(all.Machines) != 6 || len(news.Machines) != 0 || all.Machines[5].AppName != "other" || all.Machines[0].Config.Metadata["n"] != "0" {
			t.Errorf("all %+v, of them after the last %+v", all, news)
		}
		r.want(200, "POST", machines+"/"+all.Machines[0].ID+"/start", "", nil)
		r.wait(all.Machines[0].ID, "started")
		time.Sleep(time.Second)
		r.want(200, "GET", path+"updated_after="+url.QueryEscape(all.LastUpdatedAt), "", &news)
		if len(news.Machines) != 1 || news.Machines[0].State != "started" {
			t.Errorf("after a start %+v is news, want that machine", news)
		}
		var some api.OrgMachines
		r.want(200, "GET", path+"state=stopped&metadata.n=3&summary=true", "", &some)
		if len(some.Machines) != 1 || some.Machines[0].Config != nil {
			t.Errorf("filtered: %+v, want one without config", some)
		}
		r.want(400, "GET", path+"cursor=x", "", nil)
		r.want(400, "GET", path+"limit=1001", "", nil)
		r.want(404, "GET", "/v1/orgs/nobody/machines", "", nil)
	})
}

func TestLookingIntoAMachine(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		m := r.create(`"guest":{"memory_mb":256}`, "")
		path := machines + "/" + m.ID
		r.wait(m.ID, "started")
		for query, want := range map[string]string{"": "app helper", "?sort_by=rss&order=desc": "helper app", "?sort_by=cpu": "helper app", "?order=desc": "helper app"} {
			var ps []api.Process
			r.want(200, "GET", path+"/ps"+query, "", &ps)
			var names []string
			for _, p := range ps {
				names = append(names, p.Command)
			}
			if got := strings.Join(names, " "); got != want {
				t.Errorf("ps%s: %s, want %s", query, got, want)
			}
		}
		var ps []api.Process
		r.want(200, "GET", path+"/ps", "", &ps)
		if p := ps[0]; p.PID != 300 || len(p.ListenSockets) != 1 || p.ListenSockets[0].Proto != "tcp" || p.STime == 0 {
			t.Errorf("process %+v", p)
		}
		r.want(400, "GET", path+"/ps?sort_by=age", "", nil)
		r.want(400, "GET", path+"/ps?order=up", "", nil)
		var mem api.Memory
		r.want(200, "GET", path+"/memory", "", &mem)
		if mem.LimitMB != 256 || mem.AvailableMB != 128 {
			t.Errorf("memory %+v, want 128 of 256", mem)
		}
		var res api.ExecResult
		r.want(200, "POST", path+"/exec", `{"cmd":"echo a b"}`, &res)
		if res.Stdout != "a b\n" || res.ExitCode != 0 {
			t.Errorf("exec of cmd: %+v", res)
		}
		r.want(200, "POST", path+"/exec", `{"command":["cat"],"stdin":"in","timeout":5}`, &res)
		if res.Stdout != "in" {
			t.Errorf("exec with stdin: %+v", res)
		}
		r.want(400, "POST", path+"/exec", `{"command":["true"],"container":"side"}`, nil)
		r.want(400, "POST", path+"/exec", `{}`, nil)
		r.want(200, "POST", path+"/stop", "", nil)
		r.wait(m.ID, "stopped")
		r.want(412, "GET", path+"/ps", "", nil)
		r.want(412, "GET", path+"/memory", "", nil)
	})
}
