package control_test

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest"
)

// rig speaks to the API as a stock client does: paths, bodies and headers.
type rig struct {
	t     *testing.T
	p     *volanttest.Platform
	token string
	nonce string
}

func newRig(t *testing.T, p *volanttest.Platform) *rig {
	t.Helper()
	r := &rig{t: t, p: p, token: p.Token()}
	r.want(201, "POST", "/v1/apps", `{"app_name":"web","org_slug":"personal"}`, nil)
	return r
}

// do returns the status, and reads the answer into out if there is one.
func (r *rig) do(method, path, body string, out any) (int, api.Error) {
	r.t.Helper()
	req := httptest.NewRequest(method, path, strings.NewReader(body))
	req.Header.Set("Authorization", "Bearer "+r.token)
	if r.nonce != "" {
		req.Header.Set("fly-machine-lease-nonce", r.nonce)
	}
	rec := httptest.NewRecorder()
	r.p.Handler().ServeHTTP(rec, req)
	var e api.Error
	if rec.Code >= 300 {
		if err := json.Unmarshal(rec.Body.Bytes(), &e); err != nil || e.Error == "" || e.Status == "" {
			r.t.Errorf("%s %s answers %d with %q, which is not the one error form", method, path, rec.Code, rec.Body)
		}
	} else if out != nil {
		if err := json.Unmarshal(rec.Body.Bytes(), out); err != nil {
			r.t.Fatalf("%s %s: %v in %q", method, path, err, rec.Body)
		}
	}
	return rec.Code, e
}

func (r *rig) want(code int, method, path, body string, out any) api.Error {
	r.t.Helper()
	got, e := r.do(method, path, body, out)
	if got != code {
		r.t.Fatalf("%s %s %s: %d %+v, want %d", method, path, body, got, e, code)
	}
	return e
}

const machines = "/v1/apps/web/machines"

// body is a create's or an update's, with a config that adds to the image, and fields beside the config.
func body(config, beside string) string {
	if config != "" {
		config = "," + config
	}
	if beside != "" {
		beside = "," + beside
	}
	return fmt.Sprintf(`{"config":{"image":%q%s}%s}`, string(volanttest.Image), config, beside)
}

func (r *rig) create(config, beside string) api.Machine {
	r.t.Helper()
	var m api.Machine
	r.want(200, "POST", machines, body(config, beside), &m)
	return m
}

func (r *rig) get(id string) api.Machine {
	r.t.Helper()
	var m api.Machine
	r.want(200, "GET", machines+"/"+id, "", &m)
	return m
}

func (r *rig) wait(id, state string) {
	r.t.Helper()
	r.want(200, "GET", machines+"/"+id+"/wait?state="+state, "", nil)
}

func TestAMachineIsLaunchedUnlessToldNotTo(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		service := fmt.Sprintf(`"services":[{"protocol":"tcp","internal_port":%d,"ports":[{"port":80}]}]`, volanttest.Port)
		for _, config := range []string{"", service} {
			m := r.create(config, "")
			r.wait(m.ID, "started")
			rests := r.create(config, `"skip_launch":true`)
			r.wait(rests.ID, "stopped")
			time.Sleep(time.Minute)
			if got := r.get(rests.ID).State; got != "stopped" {
				t.Errorf("a machine that was not to be launched is %s after a minute", got)
			}
			r.want(200, "POST", machines+"/"+rests.ID+"/start", "", nil)
			r.wait(rests.ID, "started")
		}
		m := r.create(service, `"skip_service_registration":true,"name":"apart"`)
		r.wait(m.ID, "started")
		if got := r.get(m.ID); !got.Cordoned || got.Name != "apart" || got.HostStatus != "ok" || got.InstanceID != got.Version {
			t.Errorf("machine %+v, want it cordoned, called apart, host_status ok, one version", got)
		}
		r.want(422, "POST", machines, body("", `"name":"apart"`), nil)
		r.want(412, "POST", machines, body("", `"min_secrets_version":3`), nil)
	})
}

func TestAnUpdateReplacesInPlace(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		m := r.create(`"env":{"A":"1"},"metadata":{"k":"v"}`, "")
		r.wait(m.ID, "started")
		boots := r.get(m.ID).Boots
		var next api.Machine
		r.want(200, "POST", machines+"/"+m.ID, body(`"env":{"A":"2"}`, fmt.Sprintf(`"current_version":%q`, m.Version)), &next)
		if next.ID != m.ID || next.Version == m.Version || next.Config.Env["A"] != "2" || len(next.Config.Metadata) != 0 {
			t.Errorf("updated to %+v, want the same ID, another version, and the whole new config", next)
		}
		time.Sleep(time.Second)
		r.wait(m.ID, "started")
		if got := r.get(m.ID); got.Boots != boots+1 {
			t.Errorf("it was booted %d times, want %d", got.Boots, boots+1)
		}
		if env := p.World.Guest(m.ID).Config().Env; env["A"] != "2" || env["FLY_MACHINE_VERSION"] != next.Version {
			t.Errorf("the guest has A=%q of version %q, want the new config", env["A"], env["FLY_MACHINE_VERSION"])
		}
		e := r.want(412, "POST", machines+"/"+m.ID, body("", fmt.Sprintf(`"current_version":%q`, m.Version)), nil)
		if e.Remedy == "" || !strings.Contains(e.Error, next.Version) {
			t.Errorf("a stale version: %+v, want the present one named, and a remedy", e)
		}
		r.want(200, "POST", machines+"/"+m.ID, body("", `"skip_launch":true`), nil)
		time.Sleep(time.Minute)
		if got := r.get(m.ID).State; got != "stopped" {
			t.Errorf("updated with skip_launch it is %s, want stopped", got)
		}
		r.want(200, "POST", machines+"/"+m.ID, body("", ""), nil)
		time.Sleep(time.Minute)
		if got := r.get(m.ID).State; got != "stopped" {
			t.Errorf("an update of a stopped machine leaves it %s, want stopped", got)
		}
		var vs []api.MachineVersion
		r.want(200, "GET", machines+"/"+m.ID+"/versions", "", &vs)
		if len(vs) != 4 || vs[3].Version != m.Version || vs[3].Config.Env["A"] != "1" || vs[2].Version != next.Version {
			t.Errorf("versions %+v, want all four, the newest first", vs)
		}
		r.want(400, "POST", machines+"/"+m.ID, body("", `"region":"ams"`), nil)
		r.want(400, "POST", machines+"/"+m.ID, `{}`, nil)
	})
}

func TestPatchChangesWhatItNames(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		m := r.create(`"env":{"A":"1","B":"2"},"guest":{"memory_mb":256},"restart":{"policy":"no"}`, `"skip_launch":true`)
		var got api.Machine
		r.want(200, "PATCH", machines+"/"+m.ID, fmt.Sprintf(`{"current_version":%q,"config":{"env":{"A":null,"C":"3"},"restart":null}}`, m.Version), &got)
		if e := got.Config.Env; len(e) != 2 || e["B"] != "2" || e["C"] != "3" {
			t.Errorf("env %v, want B and C", e)
		}
		if got.Config.Guest.MemoryMB != 256 || got.Config.Restart.Policy != "" || got.Config.Image != m.Config.Image {
			t.Errorf("config %+v, want memory and image kept, restart gone", got.Config)
		}
		r.want(412, "PATCH", machines+"/"+m.ID, fmt.Sprintf(`{"current_version":%q,"config":{}}`, m.Version), nil)
		r.want(400, "PATCH", machines+"/"+m.ID, `{"config":{"guest":{"gpus":1}}}`, nil)
		r.want(400, "PATCH", machines+"/"+m.ID, `{"config":7}`, nil)
		r.want(400, "PATCH", machines+"/"+m.ID, `{"config":{"image":null}}`, nil)
	})
}

func TestOfTwoWritersWithOneVersionOneWins(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		m := r.create("", `"skip_launch":true`)
		for round := range 5 {
			version := r.get(m.ID).Version
			codes := make([]int, 8)
			var wg sync.WaitGroup
			for i := range codes {
				wg.Go(func() {
					codes[i], _ = r.do("POST", machines+"/"+m.ID, body(fmt.Sprintf(`"env":{"W":"%d"}`, i), fmt.Sprintf(`"current_version":%q`, version)), nil)
				})
			}
			wg.Wait()
			won := -1
			for i, code := range codes {
				switch {
				case code == 200 && won < 0:
					won = i
				case code != 412:
					t.Errorf("round %d: codes %v, want one 200 and 412 for the others", round, codes)
				}
			}
			if got := r.get(m.ID).Config.Env["W"]; got != fmt.Sprint(won) {
				t.Errorf("round %d: the config is writer %s's, want %d's", round, got, won)
			}
		}
	})
}

func TestALeaseHoldsOthersOff(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		m := r.create("", "")
		r.wait(m.ID, "started")
		path := machines + "/" + m.ID
		r.want(404, "GET", path+"/lease", "", nil)
		var l api.Lease
		r.want(201, "POST", path+"/lease", `{"ttl":60,"description":"a deploy"}`, &l)
		if l.Status != "success" || l.Data.Nonce == "" || l.Data != l.LeaseData || l.ExpiresAt != time.Now().Unix()+60 || l.Version != m.Version {
			t.Errorf("lease %+v, want it in an envelope and flat, for 60 s", l)
		}
		var seen api.Lease
		r.want(200, "GET", path+"/lease", "", &seen)
		if seen.Nonce != "" || seen.Data.Nonce != "" || seen.Owner == "" || seen.Description != "a deploy" {
			t.Errorf("others see %+v, want who holds it, without the nonce", seen)
		}
		if r.get(m.ID).Nonce != "" {
			t.Error("the machine shows the nonce")
		}
		refused := []struct{ method, path, body string }{
			{"POST", "", body("", "")},
			{"PATCH", "", `{"config":{}}`},
			{"DELETE", "?force=true", ""},
			{"POST", "/start", ""},
			{"POST", "/stop", ""},
			{"POST", "/restart", ""},
			{"POST", "/suspend", ""},
			{"POST", "/cordon", ""},
			{"POST", "/uncordon", ""},
			{"POST", "/signal", `{"signal":9}`},
			{"PATCH", "/metadata", `{"metadata":{"a":"b"}}`},
			{"POST", "/lease", `{"ttl":5}`},
			{"DELETE", "/lease", ""},
		}
		for _, nonce := range []string{"", "wrong"} {
			r.nonce = nonce
			for _, c := range refused {
				e := r.want(409, c.method, path+c.path, c.body, nil)
				if e.Status != "leased" || e.Remedy == "" || !strings.Contains(e.Error, "a deploy") || strings.Contains(e.Error+e.Remedy, l.Nonce) {
					t.Errorf("%s %s: %+v, want who holds it until when, and never the nonce", c.method, c.path, e)
				}
			}
		}
		r.nonce = ""
		r.want(409, "DELETE", "/v1/apps/web?force=true", "", nil)
		r.nonce = l.Nonce
		r.want(200, "POST", path+"/cordon", "", nil)
		r.want(200, "POST", path, body("", ""), nil)
		time.Sleep(50 * time.Second)
		var again api.Lease
		r.want(201, "POST", path+"/lease?ttl=60", "", &again)
		if again.Nonce != l.Nonce || again.Description != "a deploy" || again.ExpiresAt != time.Now().Unix()+60 {
			t.Errorf("renewed to %+v, want the same nonce for 60 s more", again)
		}
		r.nonce = ""
		time.Sleep(59 * time.Second)
		r.want(409, "POST", path+"/uncordon", "", nil)
		time.Sleep(2 * time.Second)
		r.want(200, "POST", path+"/uncordon", "", nil)
		r.nonce = l.Nonce
		if e := r.want(409, "POST", path+"/cordon", "", nil); e.Status != "conflict" {
			t.Errorf("with the nonce of an ended lease: %+v, want a conflict", e)
		}
		r.nonce = ""
		r.want(201, "POST", path+"/lease", `{"ttl":60}`, &again)
		if again.Nonce == l.Nonce || again.Description != "" {
			t.Errorf("the next lease is %+v, want one of its own", again)
		}
		r.nonce = again.Nonce
		r.want(200, "DELETE", path+"/lease", "", nil)
		r.nonce = ""
		r.want(200, "DELETE", path+"?force=true", "", nil)
	})
}

func TestALeaseAtBirthAndWhoWinsOne(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		m := r.create("", `"lease_ttl":30,"skip_launch":true`)
		if m.Nonce == "" || r.get(m.ID).Nonce != "" {
			t.Errorf("nonce %q at birth, %q later: want one, then none", m.Nonce, r.get(m.ID).Nonce)
		}
		r.want(409, "POST", machines+"/"+m.ID+"/start", "", nil)
		time.Sleep(31 * time.Second)
		codes := make([]int, 8)
		var wg sync.WaitGroup
		for i := range codes {
			wg.Go(func() { codes[i], _ = r.do("POST", machines+"/"+m.ID+"/lease", `{"ttl":5}`, nil) })
		}
		wg.Wait()
		won := 0
		for _, code := range codes {
			if code == 201 {
				won++
			} else if code != 409 {
				t.Errorf("codes %v, want 201 and 409", codes)
			}
		}
		if won != 1 {
			t.Errorf("%d took the lease at once, want one", won)
		}
	})
}

// A lease is about the API: connections wake a leased machine, and scaling puts it to sleep.
func TestALeaseHindersNoWakeAndNoSleepByScaling(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		addr, _ := p.Deploy("web", volanttest.Image)
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		m := p.Machines("web")[0]
		r := &rig{t: t, p: p, token: p.Token()}
		r.want(201, "POST", machines+"/"+m.ID+"/lease", `{"ttl":3600}`, nil)
		time.Sleep(3 * time.Minute)
		if got := r.get(m.ID).State; got != "suspended" {
			t.Errorf("a leased machine without users is %s, want suspended", got)
		}
		c, err = p.Connect(addr)
		if err != nil {
			t.Fatalf("a connection to a leased machine that sleeps: %v", err)
		}
		c.Close()
		if got := r.get(m.ID).State; got != "started" {
			t.Errorf("it is %s, want started", got)
		}
	})
}

// A deploy goes on beside a lease, but destroys no machine that is leased before the lease has ended.
func TestADeployWaitsForALease(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		addr, _ := p.Deploy("web", volanttest.Image)
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		old := p.Machines("web")[0]
		r := &rig{t: t, p: p, token: p.Token()}
		r.want(201, "POST", machines+"/"+old.ID+"/lease", `{"ttl":600}`, nil)
		p.Deploy("web", volanttest.Image)
		time.Sleep(5 * time.Minute)
		if got := r.get(old.ID).State; got == "destroyed" {
			t.Error("a deploy destroyed a leased machine")
		}
		c, err = p.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		time.Sleep(10 * time.Minute)
		if got := r.get(old.ID).State; got != "destroyed" {
			t.Errorf("after the lease has ended the old machine is %s, want destroyed", got)
		}
	})
}

func TestMetadataNeitherRestartsNorMakesAVersion(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		m := r.create(`"metadata":{"a":"1","b":"2"}`, "")
		r.wait(m.ID, "started")
		m = r.get(m.ID)
		path := machines + "/" + m.ID + "/metadata"
		expect := func(want map[string]string) {
			t.Helper()
			var got map[string]string
			r.want(200, "GET", path, "", &got)
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("metadata %v, want %v", got, want)
			}
		}
		r.want(204, "PATCH", path, `{"metadata":{"a":null,"b":"","c":"3"}}`, nil)
		expect(map[string]string{"c": "3"})
		r.want(204, "POST", path+"/d", `{"value":"4"}`, nil)
		var v api.MetadataValue
		r.want(200, "GET", path+"/d", "", &v)
		if v.Value != "4" {
			t.Errorf("d is %q, want 4", v.Value)
		}
		r.want(204, "DELETE", path+"/d", "", nil)
		r.want(404, "GET", path+"/d", "", nil)
		r.want(204, "PUT", path, fmt.Sprintf(`{"metadata":{"e":"5"},"machine_version":%q}`, m.Version), nil)
		expect(map[string]string{"e": "5"})
		now := r.get(m.ID)
		if now.Version != m.Version || now.Boots != m.Boots || now.State != "started" {
			t.Errorf("version %s, %d boots, %s: want %s, %d, started", now.Version, now.Boots, now.State, m.Version, m.Boots)
		}
		r.want(412, "PUT", path, `{"metadata":{},"machine_version":"01ARZ3NDEKTSV4RRFFQ69G5FAV"}`, nil)
		updated := now.UpdatedAt.Format(time.RFC3339Nano)
		time.Sleep(time.Second)
		r.want(204, "POST", path+"/f", fmt.Sprintf(`{"value":"6","updated_at":%q}`, updated), nil)
		r.want(412, "POST", path+"/f", fmt.Sprintf(`{"value":"7","updated_at":%q}`, updated), nil)
		r.want(412, "PATCH", path, fmt.Sprintf(`{"metadata":{"f":"7"},"updated_at":%q}`, updated), nil)
		r.want(400, "PATCH", path, `{"metadata":{"f":"7"},"updated_at":"yesterday"}`, nil)
		expect(map[string]string{"e": "5", "f": "6"})
	})
}

func TestAConfigThatCannotComeTrueIsRefusedByName(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		r := newRig(t, p)
		for config, names := range map[string]string{
			`"mounts":[{"volume":"vol_1","path":"/data"}]`: "config.mounts",
			`"containers":[{"name":"a"}]`:                  "config.containers",
			`"processes":[{"cmd":["a"]}]`:                  "config.processes",
			`"standbys":["x"]`:                             "config.standbys",
			`"statics":[{"guest_path":"/a"}]`:              "config.statics",
			`"guest":{"gpus":1}`:                           "config.guest.gpus",
			`"guest":{"gpu_kind":"a10"}`:                   "config.guest.gpu_kind",
			`"init":{"swap_size_mb":512}`:                  "config.init.swap_size_mb",
			`"rootfs":{"persist":"always"}`:                "config.rootfs.persist",
		} {
			e := r.want(400, "POST", machines, body(config, ""), nil)
			if !strings.Contains(e.Error, names) || e.Remedy == "" || e.Status != "invalid_argument" {
				t.Errorf("%s: %+v, want %s named and a remedy", config, e, names)
			}
		}
		r.create(`"mounts":[],"processes":null,"containers":[],"guest":{"gpus":0,"cpu_kind":"shared"},"dns":{"skip_registration":true},`+
			`"init":{"tty":false},"rootfs":{"persist":"never"},"size":"shared-cpu-1x","disable_machine_autostart":false,"unknown":1`, `"skip_launch":true`)
	})
}
