package control_test

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest"
)

// many sends a request n times at once and counts the answers by status.
func many(p *volanttest.Platform, n int, token, method, path string) (map[int]int, string) {
	got, after := map[int]int{}, ""
	for range n {
		req := httptest.NewRequest(method, path, strings.NewReader(`{}`))
		req.Header.Set("Authorization", "Bearer "+token)
		rec := httptest.NewRecorder()
		p.Node.API().ServeHTTP(rec, req)
		got[rec.Code]++
		if a := rec.Header().Get("Retry-After"); a != "" {
			after = a
		}
	}
	return got, after
}

func TestATokenMayDoAThingSoOftenToOneTarget(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx := t.Context()
		p.Deploy("web", volanttest.Image)
		newApp(t, p, "other")
		one := token(t, p, volant.OrgPersonal, time.Time{}, "admin")
		two := token(t, p, volant.OrgPersonal, time.Time{}, "admin")
		got, after := many(p, 5, one, "POST", "/v1/apps/web/secrets/A")
		if got[429] != 2 || got[400] != 3 || after != "1" {
			t.Errorf("5 at once: %v, Retry-After %q; want 3 let through and 1 s", got, after)
		}
		if code, e := call(t, p, one, "POST", "/v1/apps/web/secrets/A", `{}`); code != 429 || e.Status != "rate_limited" || e.Remedy == "" {
			t.Errorf("the next: %d %+v", code, e)
		}
		for _, c := range []struct{ name, token, method, path string }{
			{"another token", two, "POST", "/v1/apps/web/secrets/A"},
			{"another app", one, "POST", "/v1/apps/other/secrets/A"},
			{"another action", one, "POST", "/v1/apps/web/machines"},
		} {
			if got, _ := many(p, 1, c.token, c.method, c.path); got[429] != 0 {
				t.Errorf("%s is limited too", c.name)
			}
		}
		time.Sleep(time.Second)
		if got, _ := many(p, 2, one, "POST", "/v1/apps/web/secrets/A"); got[429] != 1 {
			t.Errorf("a second later two: %v, want one let through", got)
		}
		if got, _ := many(p, 15, one, "GET", "/v1/apps/web"); got[429] != 5 {
			t.Errorf("15 reads at once: %v, want 10 let through", got)
		}
		if got, _ := many(p, 103, one, "DELETE", "/v1/apps/none"); got[429] != 3 {
			t.Errorf("103 destructions at once: %v, want 100 let through", got)
		}
		if got, _ := many(p, 200, p.Token(), "GET", "/v1/apps/web"); got[200] != 200 {
			t.Errorf("the root token: %v, want no limit", got)
		}
		if got, _ := many(p, 100, one, "GET", "/v1/health"); got[200] != 100 {
			t.Errorf("health: %v, want no limit", got)
		}
		began := time.Now()
		for range 20 { // the client waits as it is told
			if _, err := as(p, two).App(ctx, "web"); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took < 2*time.Second {
			t.Errorf("20 reads took %s, want the client to wait", took)
		}
	})
}

func TestTheClientGivesUpWaitingWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		newApp(t, p, "web")
		c := as(p, token(t, p, volant.OrgPersonal, time.Time{}, "admin"))
		for range 3 {
			if _, err := c.SetScale(t.Context(), "web", api.ScalePatch{}); err != nil {
				t.Fatal(err)
			}
		}
		req, cancel := contextWithTimeout(t, 10*time.Millisecond)
		defer cancel()
		if _, err := c.SetScale(req, "web", api.ScalePatch{}); !errors.Is(err, volant.ErrLimited) {
			t.Errorf("got %v, want the limit named", err)
		}
	})
}
