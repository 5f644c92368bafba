package control_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest"
	"github.com/volant-edge/volant/why"
)

// ask sends a request as root and decodes its answer, whatever its status.
func ask[T any](t *testing.T, p *volanttest.Platform, method, path, body string) (int, T) {
	t.Helper()
	return askAs[T](t, p, p.Token(), method, path, body)
}

func askAs[T any](t *testing.T, p *volanttest.Platform, token, method, path, body string) (int, T) {
	t.Helper()
	req := httptest.NewRequest(method, path, strings.NewReader(body))
	req.Header.Set("Authorization", "Bearer "+token)
	rec := httptest.NewRecorder()
	p.Node.API().ServeHTTP(rec, req)
	var out T
	if rec.Body.Len() > 0 {
		if err := json.Unmarshal(rec.Body.Bytes(), &out); err != nil {
			t.Errorf("%s %s answers %d with %q: %v", method, path, rec.Code, rec.Body, err)
		}
	}
	return rec.Code, out
}

func newApp(t *testing.T, p *volanttest.Platform, name string) {
	t.Helper()
	if _, err := p.API.CreateApp(t.Context(), name, ""); err != nil {
		t.Fatal(err)
	}
}

func TestSecretsAreKeptAndNeverShown(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx := t.Context()
		newApp(t, p, "web")
		first, err := p.API.SetSecrets(ctx, "web", map[string]*string{"B": new("hunter2"), "A": new("")})
		if err != nil || first.Version != 1 || len(first.Secrets) != 2 || first.Secrets[0].Name != "A" {
			t.Fatalf("got %+v, %v", first, err)
		}
		again, err := p.API.SetSecrets(ctx, "web", map[string]*string{"B": new("hunter2"), "NONE": nil})
		if err != nil || again.Version != 1 {
			t.Errorf("setting the same value again: version %d, %v; want 1 still", again.Version, err)
		}
		code, one := ask[api.ChangedSecret](t, p, "POST", "/v1/apps/web/secrets/B", `{"value":"hunter3"}`)
		if code != 201 || one.Version != 2 || one.Digest == first.Secrets[1].Digest || !one.CreatedAt.Equal(first.Secrets[1].CreatedAt) {
			t.Errorf("a new value: %d %+v, before %+v", code, one, first.Secrets[1])
		}
		if code, got := ask[api.AppSecret](t, p, "GET", "/v1/apps/web/secrets/B", ""); code != 200 || got.Digest != one.Digest {
			t.Errorf("read back: %d %+v", code, got)
		}
		if code, got := ask[api.SecretsVersion](t, p, "DELETE", "/v1/apps/web/secrets/A", ""); code != 200 || got.Version != 3 {
			t.Errorf("unset: %d %+v", code, got)
		}
		for _, method := range []string{"GET", "DELETE"} {
			if code, _ := call(t, p, p.Token(), method, "/v1/apps/web/secrets/A", ""); code != 404 {
				t.Errorf("%s of an unset secret: %d, want 404", method, code)
			}
		}
		if code, e := call(t, p, p.Token(), "GET", "/v1/apps/web/secrets?show_secrets=true", ""); code != 403 || e.Remedy == "" {
			t.Errorf("asking for values: %d %+v, want 403", code, e)
		}
		a, _ := p.Node.Catalog().Snapshot().AppByName("web")
		rec, ok := p.Node.Catalog().Snapshot().Secrets(a.App)
		if !ok {
			t.Fatal("the catalog has no secrets")
		}
		if plain, err := p.Box().Open(string(a.App)+"/B", rec.Values["B"].Sealed); err != nil || string(plain) != "hunter3" {
			t.Errorf("the sealed value opens as %q, %v", plain, err)
		}
		entries, _, err := p.Store.List(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if bytes.Contains(e.Value, []byte("hunter")) {
				t.Errorf("record %s shows a value", e.Key)
			}
		}
		for _, r := range p.Why.Query(why.Query{Limit: 1000}) {
			if strings.Contains(fmt.Sprint(r), "hunter") {
				t.Errorf("the audit shows a value: %v", r)
			}
		}
		if err := p.API.DestroyApp(ctx, "web", true); err != nil {
			t.Fatal(err)
		}
		if _, ok := p.Node.Catalog().Snapshot().Secrets(a.App); ok {
			t.Error("a destroyed app's secrets are still there")
		}
	})
}

func TestAReadWaitsForTheVersionItAsksFor(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		newApp(t, p, "web")
		go func() {
			time.Sleep(2 * time.Second)
			_, _ = p.API.SetSecrets(t.Context(), "web", map[string]*string{"A": new("x")}) // seen below
		}()
		began := time.Now()
		code, got := ask[api.AppSecrets](t, p, "GET", "/v1/apps/web/secrets?min_version=1", "")
		if code != 200 || got.Version != 1 || time.Since(began) < time.Second {
			t.Errorf("%d %+v after %s, want version 1 once it is there", code, got, time.Since(began))
		}
		if code, e := call(t, p, p.Token(), "GET", "/v1/apps/web/secrets?min_version=9", ""); code != 412 || !strings.Contains(e.Error, "version 1") {
			t.Errorf("a version that does not come: %d %+v, want 412", code, e)
		}
		if code, _ := call(t, p, p.Token(), "GET", "/v1/apps/web/secrets?min_version=x", ""); code != 400 {
			t.Errorf("no version: %d, want 400", code)
		}
	})
}

func TestSecretsHaveBounds(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx := t.Context()
		newApp(t, p, "web")
		for name, values := range map[string]map[string]*string{
			"a name with a digit first": {"1A": new("x")},
			"a name with a dash":        {"A-B": new("x")},
			"a long name":               {strings.Repeat("A", 129): new("x")},
			"a zero byte":               {"A": new("a\x00b")},
			"a long value":              {"A": new(strings.Repeat("x", 64<<10+1))},
			"none":                      {},
		} {
			if _, err := p.API.SetSecrets(ctx, "web", values); !errors.Is(err, volant.ErrInvalid) {
				t.Errorf("%s: %v, want invalid", name, err)
			}
		}
		full := strings.Repeat("x", 64<<10)
		for i := range 7 {
			if _, err := p.API.SetSecrets(ctx, "web", map[string]*string{fmt.Sprintf("A%d", i): &full}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := p.API.SetSecrets(ctx, "web", map[string]*string{"B": &full}); !errors.Is(err, volant.ErrInvalid) || !strings.Contains(err.Error(), "in all") {
			t.Errorf("more than all may have: %v", err)
		}
		many := map[string]*string{}
		for i := range 501 {
			many[fmt.Sprintf("S%d", i)] = new("x")
		}
		newApp(t, p, "many")
		if _, err := p.API.SetSecrets(ctx, "many", many); !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("501 secrets: %v", err)
		}
		if got, err := p.API.Secrets(ctx, "many"); err != nil || got.Version != 0 || got.Secrets == nil {
			t.Errorf("after a refusal there are %+v, %v", got, err)
		}
	})
}

func TestAReleaseOfAnEarlierOne(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx := t.Context()
		_, first := p.Deploy("web", volanttest.Image, func(r *api.CreateRelease) { r.Config.Env = map[string]string{"A": "b"} })
		r, err := p.API.CreateRelease(ctx, "web", api.CreateRelease{FromRelease: first.Version})
		if err != nil || r.Version != first.Version+1 || r.Image != first.Image {
			t.Fatalf("got %+v, %v", r, err)
		}
		a, _ := p.Node.Catalog().Snapshot().AppByName("web")
		rec, _ := p.Node.Catalog().Snapshot().Release(a.App, r.Version)
		if rec.Config.Env["A"] != "b" || len(rec.Config.Services) != 1 {
			t.Errorf("its config is %+v", rec.Config)
		}
		if _, err := p.API.CreateRelease(ctx, "web", api.CreateRelease{FromRelease: 99}); !errors.Is(err, volant.ErrNotFound) {
			t.Errorf("of none: %v", err)
		}
		both := api.CreateRelease{FromRelease: 1, Image: string(volanttest.Image)}
		if _, err := p.API.CreateRelease(ctx, "web", both); !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("beside an image: %v", err)
		}
	})
}

func TestAReaderSeesNamesOfSecretsAndSetsNone(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		newApp(t, p, "web")
		reader := token(t, p, volant.OrgPersonal, time.Time{}, "read")
		if code, _ := askAs[api.AppSecrets](t, p, reader, http.MethodGet, "/v1/apps/web/secrets", ""); code != 200 {
			t.Errorf("a reader lists: %d", code)
		}
		for _, c := range [][2]string{{"POST", "/v1/apps/web/secrets"}, {"POST", "/v1/apps/web/secrets/A"}, {"DELETE", "/v1/apps/web/secrets/A"}} {
			if code, _ := call(t, p, reader, c[0], c[1], `{"value":"x","values":{"A":"x"}}`); code != 403 {
				t.Errorf("a reader's %s %s: %d, want 403", c[0], c[1], code)
			}
		}
	})
}
