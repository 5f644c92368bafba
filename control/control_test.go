package control_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/client"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/volanttest"
	"github.com/volant-edge/volant/why"
)

func bubble(t *testing.T, fn func(t *testing.T, p *volanttest.Platform)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		fn(t, p)
	})
}

// call sends a request with a token and returns the status and the error body, if it is one.
func call(t *testing.T, p *volanttest.Platform, token, method, path, body string) (int, api.Error) {
	t.Helper()
	req := httptest.NewRequest(method, path, strings.NewReader(body))
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	rec := httptest.NewRecorder()
	p.Handler().ServeHTTP(rec, req)
	var e api.Error
	if rec.Code >= 300 {
		if err := json.Unmarshal(rec.Body.Bytes(), &e); err != nil || e.Error == "" || e.Status == "" {
			t.Errorf("%s %s answers %d with %q, which is not the one error form", method, path, rec.Code, rec.Body)
		}
	}
	return rec.Code, e
}

func TestEveryRequestNeedsATokenButHealth(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		for _, path := range []string{
			"/v1/apps", "/v1/apps/web", "/v1/apps/web/machines", "/v1/nodes", "/v1/why/web", "/v1/blobs/" + string(volanttest.Image), "/", "/v2",
		} {
			for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete, http.MethodPut} {
				code, e := call(t, p, "", method, path, "")
				if code != http.StatusUnauthorized || e.Remedy == "" {
					t.Errorf("%s %s without a token: %d %+v, want 401 with a remedy", method, path, code, e)
				}
			}
		}
		if code, _ := call(t, p, "vol_wrong", http.MethodGet, "/v1/apps", ""); code != http.StatusUnauthorized {
			t.Errorf("a wrong token gets %d, want 401", code)
		}
		if code, _ := call(t, p, "", http.MethodGet, "/v1/health", ""); code != http.StatusOK {
			t.Errorf("health without a token: %d, want 200", code)
		}
	})
}

// token writes a token of an organization and returns it.
func token(t *testing.T, p *volanttest.Platform, org volant.OrgID, expires time.Time, scopes ...string) string {
	t.Helper()
	secret := control.NewToken()
	rec := &volant.Token{Name: string(org), Hash: control.HashToken(secret), Scopes: scopes, Expires: expires}
	rec.Meta = volant.Meta{Kind: volant.KindToken, Org: org, ID: rec.Hash[:16]}
	rev, err := store.Create(context.Background(), p.Store, "test", rec)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Node.Catalog().Wait(context.Background(), rev); err != nil {
		t.Fatal(err)
	}
	return secret
}

func TestATokenActsForItsOrganizationAndScopeOnly(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		p.Deploy("web", volanttest.Image)
		other := token(t, p, "other", time.Time{}, "admin")
		reader := token(t, p, volant.OrgPersonal, time.Time{}, "read")
		late := token(t, p, volant.OrgPersonal, time.Now().Add(time.Hour), "admin")
		for _, c := range []struct {
			name, token, method, path, body string
			want                            int
		}{
			{"another organization's app is not there", other, "GET", "/v1/apps/web", "", 404},
			{"nor can it be destroyed", other, "DELETE", "/v1/apps/web", "", 404},
			{"nor can one be made in it", other, "POST", "/v1/apps", `{"name":"x","org_slug":"personal"}`, 403},
			{"a reader reads", reader, "GET", "/v1/apps/web", "", 200},
			{"a reader does not change", reader, "PATCH", "/v1/apps/web/scale", `{"min":1}`, 403},
			{"a reader does not upload", reader, "PUT", "/v1/blobs/" + string(volanttest.Image), "", 403},
			{"before it expires a token works", late, "GET", "/v1/apps/web", "", 200},
		} {
			if code, e := call(t, p, c.token, c.method, c.path, c.body); code != c.want {
				t.Errorf("%s: %d (%s), want %d", c.name, code, e.Error, c.want)
			}
		}
		time.Sleep(2 * time.Hour)
		if code, _ := call(t, p, late, "GET", "/v1/apps/web", ""); code != 401 {
			t.Errorf("an expired token gets %d, want 401", code)
		}
		apps, err := client.NewTransport("http://test", other, p.Transport()).Apps(t.Context())
		if err != nil || len(apps) != 0 {
			t.Errorf("another organization lists %d apps (%v), want none", len(apps), err)
		}
	})
}

func TestBadInputNamesCauseAndCure(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx := t.Context()
		if _, err := p.API.CreateApp(ctx, "web", ""); err != nil {
			t.Fatal(err)
		}
		release := func(change func(*api.CreateRelease)) error {
			r := api.CreateRelease{Image: string(volanttest.Image)}
			change(&r)
			_, err := p.API.CreateRelease(ctx, "web", r)
			return err
		}
		service := volant.Service{Protocol: "tcp", InternalPort: 80, Ports: []volant.Port{{Port: 80}}}
		for _, c := range []struct {
			name string
			err  error
			kind error
			text string
		}{
			{"an app's name", second(p.API.CreateApp(ctx, "Not A Name", "")), volant.ErrInvalid, "lower-case"},
			{"a taken name", second(p.API.CreateApp(ctx, "web", "")), volant.ErrExists, "taken"},
			{"an unknown organization", second(p.API.CreateApp(ctx, "x", "nobody")), volant.ErrNotFound, "personal"},
			{"an unknown app", second(p.API.App(ctx, "none")), volant.ErrNotFound, "volant apps create none"},
			{"an unknown machine", second(p.API.Machine(ctx, "web", "0123456789abcd")), volant.ErrNotFound, "machine list"},
			{"an image not uploaded", release(func(r *api.CreateRelease) { r.Image = "sha256:" + strings.Repeat("0", 64) }), volant.ErrNotFound, "upload"},
			{"a file's name", release(func(r *api.CreateRelease) { r.Image = "oci-archive:web.tar" }), volant.ErrInvalid, "digest"},
			{"a strategy", release(func(r *api.CreateRelease) { r.Strategy = "purple" }), volant.ErrInvalid, "bluegreen"},
			{"a part of a machine", release(func(r *api.CreateRelease) { r.MaxUnavailable = 1.5 }), volant.ErrInvalid, "fraction"},
			{"a release command without words", release(func(r *api.CreateRelease) { r.ReleaseCommand = &volant.ReleaseCommand{} }), volant.ErrInvalid, "name a program"},
			{"a group's name", release(func(r *api.CreateRelease) { r.Others = []volant.Group{{Name: "Work_er"}} }), volant.ErrInvalid, "process group"},
			{"a group twice", release(func(r *api.CreateRelease) { r.Others = []volant.Group{{Name: "app"}} }), volant.ErrInvalid, "twice"},
			{"a port of two groups", release(func(r *api.CreateRelease) {
				r.Config.Services = []volant.Service{service}
				r.Others = []volant.Group{{Name: "api", Config: volant.MachineConfig{Services: []volant.Service{service}}}}
			}), volant.ErrInvalid, "api"},
			{"the scale of no group", release(func(r *api.CreateRelease) { r.GroupScale = map[string]api.ScalePatch{"none": {}} }), volant.ErrInvalid, "use app"},
			{"a group's min over max", release(func(r *api.CreateRelease) {
				r.Others = []volant.Group{{Name: "worker"}}
				r.GroupScale = map[string]api.ScalePatch{"worker": {Min: new(11)}}
			}), volant.ErrInvalid, "worker"},
			{"a primary region without a server", release(func(r *api.CreateRelease) { r.PrimaryRegion = "ams" }), volant.ErrInvalid, "local"},
			{"memory", release(func(r *api.CreateRelease) { r.Config.Guest.MemoryMB = 1 }), volant.ErrInvalid, "128 to"},
			{"cpus", release(func(r *api.CreateRelease) { r.Config.Guest.CPUs = 3 }), volant.ErrInvalid, "even"},
			{"a doubled port", release(func(r *api.CreateRelease) { r.Config.Services = []volant.Service{service, service} }), volant.ErrInvalid, "two services"},
			{"a handler", release(func(r *api.CreateRelease) {
				r.Config.Services = []volant.Service{{Protocol: "tcp", InternalPort: 80, Ports: []volant.Port{{Port: 80, Handlers: []string{"quic"}}}}}
			}), volant.ErrInvalid, "raw TCP"},
			{"a variable's name", release(func(r *api.CreateRelease) { r.Config.Env = map[string]string{"A=B": "c"} }), volant.ErrInvalid, "A=B"},
			{"a zero byte", release(func(r *api.CreateRelease) { r.Config.Env = map[string]string{"A": "b\x00c"} }), volant.ErrInvalid, "zero byte"},
			{"a long argument", release(func(r *api.CreateRelease) { r.Config.Init.Cmd = []string{strings.Repeat("x", 200<<10)} }), volant.ErrInvalid, "too long"},
			{"thousands of ports", release(func(r *api.CreateRelease) {
				for n := range 10 {
					s := service
					s.Ports = []volant.Port{{StartPort: 1000 + 200*n, EndPort: 1199 + 200*n}}
					r.Config.Services = append(r.Config.Services, s)
				}
			}), volant.ErrInvalid, "at most 1000"},
			{"a check without a pause", release(func(r *api.CreateRelease) {
				s := service
				s.Checks = []volant.ServiceCheck{{Type: "tcp", Interval: 1}}
				r.Config.Services = []volant.Service{s}
			}), volant.ErrInvalid, "1s to 60s"},
			{"an http check without a path", release(func(r *api.CreateRelease) {
				s := service
				s.Checks = []volant.ServiceCheck{{Type: "http", Path: "health"}}
				r.Config.Services = []volant.Service{s}
			}), volant.ErrInvalid, "begins with"},
			{"a machine's check of no kind", release(func(r *api.CreateRelease) {
				r.Config.Checks = map[string]volant.MachineCheck{"a": {ServiceCheck: volant.ServiceCheck{Type: "tcp", Port: 1}, Kind: "bogus"}}
			}), volant.ErrInvalid, "readiness"},
			{"an idle timeout of a week", second(p.API.SetScale(ctx, "web", api.ScalePatch{IdleTimeout: new(volant.Duration(7 * 24 * time.Hour))})), volant.ErrInvalid, "24h"},
			{"a kind of reasons", second(p.API.Why(ctx, "web", []why.Kind{"bogus"}, 5)), volant.ErrInvalid, "refusal"},
			{"min over max", second(p.API.SetScale(ctx, "web", api.ScalePatch{Min: new(11)})), volant.ErrInvalid, "raise the other"},
			{"a region without a server", second(p.API.SetScale(ctx, "web", api.ScalePatch{RegionMin: map[volant.Region]int{"ams": 1}})), volant.ErrInvalid, "local"},
			{"on_idle", second(p.API.SetScale(ctx, "web", api.ScalePatch{OnIdle: new("nap")})), volant.ErrInvalid, "suspend, stop, off"},
		} {
			if !errors.Is(c.err, c.kind) || !strings.Contains(c.err.Error(), c.text) {
				t.Errorf("%s: got %v, want %v with %q in it", c.name, c.err, c.kind, c.text)
			}
		}
		big := `{"name":"` + strings.Repeat("x", 2<<20) + `"}`
		if code, e := call(t, p, p.Token(), "POST", "/v1/apps", big); code != 400 || !strings.Contains(e.Error, "bytes") {
			t.Errorf("a body of 2 MiB: %d %q, want 400", code, e.Error)
		}
		if code, _ := call(t, p, p.Token(), "POST", "/v1/apps", "{"); code != 400 {
			t.Errorf("half a body: %d, want 400", code)
		}
	})
}

func second[A any](_ A, err error) error { return err }

func TestMachinesLifeThroughTheAPI(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx := t.Context()
		addr, _ := p.Deploy("web", volanttest.Image)
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		m := p.Machines("web")[0]
		if m.State != "started" || m.Slots != 1 || !m.Managed {
			t.Errorf("machine is %s with %d slots, managed %v; want started, 1, true", m.State, m.Slots, m.Managed)
		}
		var out bytes.Buffer
		res, err := p.API.Exec(ctx, "web", m.ID, api.Exec{Command: []string{"echo", "hello"}}, &out, &out)
		if err != nil || res.ExitCode != 0 || strings.TrimSpace(out.String()) != "hello" {
			t.Errorf("exec: %+v %q %v", res, out.String(), err)
		}
		if err := p.API.DestroyMachine(ctx, "web", m.ID, false); !errors.Is(err, volant.ErrPrecondition) {
			t.Errorf("destroying a running machine without force: %v, want a precondition", err)
		}
		for _, step := range []struct{ action, state string }{{"suspend", "suspended"}, {"start", "started"}, {"stop", "stopped"}, {"stop", "stopped"}, {"start", "started"}, {"restart", "started"}} {
			if err := p.API.MachineAction(ctx, "web", m.ID, step.action); err != nil {
				t.Fatalf("%s: %v", step.action, err)
			}
			if err := p.API.Wait(ctx, "web", m.ID, step.state, time.Minute); err != nil {
				t.Fatalf("after %s: %v", step.action, err)
			}
		}
		if err := p.API.Wait(ctx, "web", m.ID, "suspended", time.Second); err == nil || !strings.Contains(err.Error(), "did not reach suspended") {
			t.Errorf("waiting for a state that does not come: %v", err)
		}
		if err := p.API.DestroyMachine(ctx, "web", m.ID, true); err != nil {
			t.Fatal(err)
		}
		if err := p.API.Wait(ctx, "web", m.ID, "destroyed", time.Minute); err != nil {
			t.Fatal(err)
		}
		if ms := p.Machines("web"); len(ms) != 0 {
			t.Errorf("a destroyed machine is listed: %+v", ms)
		}
		if _, err := p.API.Machine(ctx, "web", m.ID); err != nil {
			t.Errorf("a destroyed machine can still be read: %v", err)
		}
		recs, err := p.API.Why(ctx, m.ID, []why.Kind{why.Change}, 50)
		if err != nil || len(recs) < 6 {
			t.Errorf("the audit has %d changes of the machine (%v), want each of them", len(recs), err)
		}
	})
}

func TestDestroyedAppFreesNameAndAddress(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx := t.Context()
		addr, _ := p.Deploy("web", volanttest.Image)
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := p.API.DestroyApp(ctx, "web", false); !errors.Is(err, volant.ErrPrecondition) {
			t.Errorf("destroying an app with a running machine: %v, want a precondition", err)
		}
		if err := p.API.DestroyApp(ctx, "web", true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, err := p.API.App(ctx, "web"); !errors.Is(err, volant.ErrNotFound) {
			t.Errorf("a destroyed app: %v, want not found", err)
		}
		if _, err := p.Connect(addr); err == nil {
			t.Error("a destroyed app's address still answers")
		}
		again, r := p.Deploy("web", volanttest.Image)
		if again != addr || r.Version != 1 {
			t.Errorf("the name's new app has address %s and release %d, want %s and 1", again, r.Version, addr)
		}
		c2, err := p.Connect(again)
		if err != nil {
			t.Fatal(err)
		}
		c2.Close()
	})
}
