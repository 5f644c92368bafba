package control_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/client"
	"github.com/volant-edge/volant/volanttest"
	"github.com/volant-edge/volant/why"
)

// as is a client with another token.
func as(p *volanttest.Platform, token string) *client.Client {
	return client.NewTransport("http://test", token, p.Transport())
}

func TestTokensAreMadeListedAndRevoked(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx := t.Context()
		made, err := p.API.CreateToken(ctx, api.CreateToken{Name: "ci", Scopes: []string{"admin", "admin"}, Expiry: "2h"})
		if err != nil || made.OrgSlug != "personal" || len(made.Scopes) != 1 || made.Secret == "" {
			t.Fatalf("got %+v, %v", made, err)
		}
		ci := as(p, made.Secret)
		cur, err := ci.CurrentToken(ctx)
		if err != nil || len(cur.Tokens) != 1 || cur.Tokens[0].TokenID != made.ID || cur.Tokens[0].Organization != "Personal" {
			t.Errorf("current: %+v, %v", cur, err)
		}
		list, err := ci.Tokens(ctx)
		if err != nil || len(list) != 1 || !list[0].Current || list[0].CreatedBy != "root" {
			t.Errorf("an organization's admin lists %+v, %v; want its own", list, err)
		}
		if all, err := p.API.Tokens(ctx); err != nil || len(all) != 2 {
			t.Errorf("root lists %+v, %v", all, err)
		}
		time.Sleep(3 * time.Hour)
		if _, err := ci.Apps(ctx); !errors.Is(err, volant.ErrUnauthorized) {
			t.Errorf("an expired token: %v", err)
		}
		again, err := p.API.CreateToken(ctx, api.CreateToken{Scopes: []string{"read"}, Expiry: "0s"})
		if err != nil || !again.ExpiresAt.IsZero() {
			t.Fatalf("got %+v, %v", again, err)
		}
		reader := as(p, again.Secret)
		if _, err := reader.CreateToken(ctx, api.CreateToken{}); !errors.Is(err, volant.ErrForbidden) {
			t.Errorf("a reader makes a token: %v", err)
		}
		if err := reader.RevokeToken(ctx, made.ID); !errors.Is(err, volant.ErrNotFound) {
			t.Errorf("a reader revokes another's token: %v", err)
		}
		if err := reader.RevokeToken(ctx, again.ID); err != nil {
			t.Errorf("a token revokes itself: %v", err)
		}
		if _, err := reader.Apps(ctx); !errors.Is(err, volant.ErrUnauthorized) {
			t.Errorf("a revoked token: %v", err)
		}
		root, err := p.API.CurrentToken(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.API.RevokeToken(ctx, root.Tokens[0].TokenID); !errors.Is(err, volant.ErrPrecondition) {
			t.Errorf("the root token revokes itself: %v", err)
		}
		for _, in := range []api.CreateToken{
			{Scopes: []string{"write"}}, {Expiry: "soon"}, {Expiry: "1s"}, {Expiry: "-1h"}, {Expiry: "999999h"}, {Name: "a\nb"},
		} {
			if _, err := p.API.CreateToken(ctx, in); !errors.Is(err, volant.ErrInvalid) {
				t.Errorf("%+v: %v, want invalid", in, err)
			}
		}
		if _, err := p.API.CreateToken(ctx, api.CreateToken{OrgSlug: "none"}); !errors.Is(err, volant.ErrNotFound) {
			t.Errorf("of an organization that does not exist: %v", err)
		}
	})
}

func TestATokenOfOneAppActsOnThatAppAlone(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx := t.Context()
		p.Deploy("web", volanttest.Image)
		p.Deploy("other", volanttest.Image)
		code, made := ask[api.DeployToken](t, p, "POST", "/v1/apps/web/deploy_token", `{"expiry":"24h"}`)
		if code != 200 {
			t.Fatalf("deploy token: %d", code)
		}
		web := as(p, made.Token)
		if apps, err := web.Apps(ctx); err != nil || len(apps) != 1 || apps[0].Name != "web" {
			t.Errorf("it lists %+v, %v; want its app", apps, err)
		}
		if _, err := web.CreateRelease(ctx, "web", api.CreateRelease{FromRelease: 1}); err != nil {
			t.Errorf("it deploys its app: %v", err)
		}
		for _, c := range []struct {
			method, path, body string
			want               int
		}{
			{"GET", "/v1/apps/other", "", 404},
			{"DELETE", "/v1/apps/other?force=true", "", 404},
			{"GET", "/v1/apps/other/machines", "", 404},
			{"POST", "/v1/apps/other/secrets", `{"values":{"A":"b"}}`, 404},
			{"GET", "/v1/why/other", "", 404},
			{"POST", "/v1/apps", `{"name":"third"}`, 403},
			{"POST", "/v1/orgs", `{"slug":"third"}`, 403},
			{"GET", "/v1/tokens", "", 403},
			{"POST", "/v1/tokens", `{}`, 403},
			{"POST", "/v1/apps/web/deploy_token", `{}`, 403},
			{"GET", "/v1/nodes", "", 403},
		} {
			if code, e := call(t, p, made.Token, c.method, c.path, c.body); code != c.want {
				t.Errorf("%s %s: %d (%s), want %d", c.method, c.path, code, e.Error, c.want)
			}
		}
		if code, orgs := askAs[api.OrgList](t, p, made.Token, "GET", "/v1/orgs", ""); code != 200 || len(orgs.Organizations) != 1 || orgs.Organizations[0].AppCount != 1 {
			t.Errorf("its organizations: %d %+v", code, orgs)
		}
		recs, err := web.Why(ctx, "web", nil, 100)
		if err != nil || len(recs) == 0 {
			t.Fatalf("why: %v", err)
		}
		a, _ := p.Node.Catalog().Snapshot().AppByName("other")
		for _, r := range recs {
			if r.App == a.App {
				t.Errorf("it reads why of another app: %+v", r)
			}
		}
		admin, err := p.API.CreateToken(ctx, api.CreateToken{AppName: "web", Scopes: []string{"admin"}})
		if err != nil {
			t.Fatal(err)
		}
		sub, err := as(p, admin.Secret).CreateToken(ctx, api.CreateToken{Scopes: []string{"read"}})
		if err != nil || sub.AppName != "web" {
			t.Errorf("an app's admin makes a token %+v, %v; want one of its app", sub, err)
		}
		for _, in := range []api.CreateToken{{OrgSlug: "personal"}, {OrgSlug: "*"}} {
			if _, err := as(p, admin.Secret).CreateToken(ctx, in); !errors.Is(err, volant.ErrForbidden) {
				t.Errorf("an app's admin makes a token of %q: %v, want forbidden", in.OrgSlug, err)
			}
		}
		if _, err := as(p, admin.Secret).CreateToken(ctx, api.CreateToken{AppName: "other"}); !errors.Is(err, volant.ErrNotFound) {
			t.Errorf("an app's admin makes a token of another app: %v", err)
		}
		if err := p.API.DestroyApp(ctx, "web", true); err != nil {
			t.Fatal(err)
		}
		if _, err := web.Apps(ctx); !errors.Is(err, volant.ErrUnauthorized) {
			t.Errorf("the token of a destroyed app: %v, want unauthorized", err)
		}
	})
}

func TestFlyV1IsAcceptedBesideBearer(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		for header, want := range map[string]int{
			"Bearer " + p.Token(): 200, "bearer " + p.Token(): 200, "FlyV1 " + p.Token(): 200,
			"Basic " + p.Token(): 401, p.Token(): 401, "FlyV1 ": 401,
		} {
			req := httptest.NewRequest(http.MethodGet, "/v1/apps", nil)
			req.Header.Set("Authorization", header)
			rec := httptest.NewRecorder()
			p.Node.API().ServeHTTP(rec, req)
			if rec.Code != want {
				t.Errorf("%q: %d, want %d", header, rec.Code, want)
			}
		}
	})
}

func TestAskingWhatATokenMayDo(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		newApp(t, p, "web")
		newApp(t, p, "other")
		_, made := ask[api.DeployToken](t, p, "POST", "/v1/apps/web/deploy_token", `{}`)
		reader := token(t, p, volant.OrgPersonal, time.Time{}, "read")
		code, got := ask[[]api.VerifiedToken](t, p, "POST", "/v1/tokens/authenticate", fmt.Sprintf(`{"header":"FlyV1 %s"}`, made.Token))
		if code != 200 || len(got) != 1 || len(got[0].Apps) != 1 || got[0].Apps[0] != "web" {
			t.Errorf("authenticate: %d %+v", code, got)
		}
		if code, _ := call(t, p, reader, "POST", "/v1/tokens/authenticate", `{"header":"Bearer nothing"}`); code != 400 {
			t.Errorf("a bad token: %d, want 400", code)
		}
		for _, c := range []struct {
			token, access string
			want          int
		}{
			{made.Token, `{"app_name":"web","action":1}`, 200},
			{made.Token, `{"app_name":"web","action":"rw"}`, 200},
			{made.Token, `{"app_name":"web","org_slug":"personal","action":31}`, 200},
			{made.Token, `{"app_name":"other","action":1}`, 404},
			{made.Token, `{"org_slug":"personal","action":1}`, 403},
			{made.Token, `{"app_name":"web","action":32}`, 400},
			{made.Token, `{"app_name":"web","action":"x"}`, 400},
			{made.Token, `{"app_name":"web","volume_id":"vol_x"}`, 400},
			{made.Token, `{"app_name":"web","machine_id":"0123456789abcd"}`, 404},
			{made.Token, `{}`, 400},
			{reader, `{"app_name":"other","action":1}`, 200},
			{reader, `{"org_slug":"personal"}`, 200},
			{reader, `{"app_name":"other","action":2}`, 403},
			{reader, `{"org_slug":"another","action":1}`, 403},
		} {
			body := fmt.Sprintf(`{"header":"Bearer %s","access":%s}`, c.token, c.access)
			if code, e := call(t, p, p.Token(), "POST", "/v1/tokens/authorize", body); code != c.want {
				t.Errorf("%s: %d (%s), want %d", c.access, code, e.Error, c.want)
			}
		}
	})
}

func TestOrganizationsAreMadeByRootAndSeenByTheirOwn(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		ctx := t.Context()
		made, err := p.API.CreateOrg(ctx, api.CreateOrg{Slug: "team", Name: "The Team"})
		if err != nil || made.Name != "The Team" {
			t.Fatalf("got %+v, %v", made, err)
		}
		if _, err := p.API.CreateOrg(ctx, api.CreateOrg{Slug: "team"}); !errors.Is(err, volant.ErrExists) {
			t.Errorf("the same again: %v", err)
		}
		for _, slug := range []string{"*", "Team X", "", "a/b"} {
			if _, err := p.API.CreateOrg(ctx, api.CreateOrg{Slug: slug}); !errors.Is(err, volant.ErrInvalid) {
				t.Errorf("slug %q: %v, want invalid", slug, err)
			}
		}
		admin, err := p.API.CreateToken(ctx, api.CreateToken{OrgSlug: "team", Scopes: []string{"admin"}, Name: "lead"})
		if err != nil {
			t.Fatal(err)
		}
		team := as(p, admin.Secret)
		if _, err := team.CreateApp(ctx, "theirs", "team"); err != nil {
			t.Errorf("an admin makes an app in its organization: %v", err)
		}
		if orgs, err := team.Orgs(ctx); err != nil || len(orgs) != 1 || orgs[0].Slug != "team" || orgs[0].AppCount != 1 {
			t.Errorf("it sees %+v, %v", orgs, err)
		}
		if orgs, err := p.API.Orgs(ctx); err != nil || len(orgs) != 2 {
			t.Errorf("root sees %+v, %v", orgs, err)
		}
		if _, err := team.CreateOrg(ctx, api.CreateOrg{Slug: "more"}); !errors.Is(err, volant.ErrForbidden) {
			t.Errorf("it makes an organization: %v", err)
		}
		if code, _ := call(t, p, admin.Secret, "GET", "/v1/orgs/personal", ""); code != 404 {
			t.Errorf("another organization: %d, want 404", code)
		}
		if _, err := team.CreateToken(ctx, api.CreateToken{OrgSlug: "personal"}); !errors.Is(err, volant.ErrForbidden) {
			t.Errorf("a token of another organization: %v", err)
		}
		recs := p.Why.Query(why.Query{Kinds: []why.Kind{why.Change}, Org: "team"})
		if len(recs) != 3 || recs[0].Attrs["actor"] != "lead" {
			t.Errorf("the audit of the organization is %+v", recs)
		}
	})
}
