package control_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/volanttest"
	"github.com/volant-edge/volant/why"
)

// changes are bodies by which each route that changes something does so. A body of "-" is none; a query begins
// with "?".
var changes = map[string]string{
	"POST /v1/apps":                                        `{"name":"third"}`,
	"DELETE /v1/apps/{app}":                                "?force=true",
	"PATCH /v1/apps/{app}/scale":                           `{"max":7}`,
	"POST /v1/apps/{app}/releases":                         `{"from_release":1}`,
	"POST /v1/apps/{app}/machines":                         `{"config":{"image":"` + string(volanttest.Image) + `"}}`,
	"POST /v1/apps/{app}/machines/{id}":                    `{"config":{"image":"` + string(volanttest.Image) + `","env":{"A":"b"}}}`,
	"PATCH /v1/apps/{app}/machines/{id}":                   `{"config":{"env":{"A":"b"}}}`,
	"POST /v1/apps/{app}/machines/{id}/lease":              `{"ttl":60}`,
	"DELETE /v1/apps/{app}/machines/{id}/lease":            "-",
	"PUT /v1/apps/{app}/machines/{id}/metadata":            `{"metadata":{"a":"b"}}`,
	"PATCH /v1/apps/{app}/machines/{id}/metadata":          `{"metadata":{"a":"b"}}`,
	"POST /v1/apps/{app}/machines/{id}/metadata/{key}":     `{"value":"other"}`,
	"DELETE /v1/apps/{app}/machines/{id}/metadata/{key}":   "-",
	"DELETE /v1/apps/{app}/machines/{id}":                  "?force=true",
	"POST /v1/apps/{app}/machines/{id}/start":              "-",
	"POST /v1/apps/{app}/machines/{id}/stop":               "-",
	"POST /v1/apps/{app}/machines/{id}/suspend":            "-",
	"POST /v1/apps/{app}/machines/{id}/restart":            "-",
	"POST /v1/apps/{app}/machines/{id}/signal":             `{"signal":"SIGUSR1"}`,
	"POST /v1/apps/{app}/machines/{id}/cordon":             "-",
	"POST /v1/apps/{app}/machines/{id}/uncordon":           "-",
	"POST /v1/apps/{app}/machines/{id}/exec":               `{"command":["echo","x"]}`,
	"POST /v1/orgs":                                        `{"slug":"team"}`,
	"POST /v1/tokens":                                      `{"name":"ci"}`,
	"DELETE /v1/tokens/{token}":                            "-",
	"POST /v1/apps/{app}/deploy_token":                     `{}`,
	"POST /v1/apps/{app}/ip_assignments":                   `{"type":"v6"}`,
	"DELETE /v1/apps/{app}/ip_assignments/{ip}":            "-",
	"POST /v1/apps/{app}/secrets":                          `{"values":{"B":"c"}}`,
	"POST /v1/apps/{app}/secrets/{name}":                   `{"value":"other"}`,
	"DELETE /v1/apps/{app}/secrets/{name}":                 "-",
	"POST /v1/apps/{app}/certificates":                     `{"hostname":"new.example.com"}`,
	"POST /v1/apps/{app}/certificates/custom":              "",
	"DELETE /v1/apps/{app}/certificates/{hostname}":        "-",
	"DELETE /v1/apps/{app}/certificates/{hostname}/custom": "-",
	"POST /v1/apps/{app}/secretkeys/{name}":                `{"type":"hs256","value":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}`,
	"POST /v1/apps/{app}/secretkeys/{name}/generate":       `{"type":"es256"}`,
	"DELETE /v1/apps/{app}/secretkeys/{name}":              "-",
	"POST /v1/nodes/{node}/drain":                          "-",
	"POST /v1/nodes/{node}/undrain":                        "-",
	"POST /v1/nodes/{node}/promote":                        "-",
	"POST /v1/nodes/{node}/demote":                         "-",
	"POST /v1/nodes/{node}/rotate-key":                     "-",
	"DELETE /v1/nodes/{node}":                              "-",
	"PUT /v1/platform/regions/{region}":                    `{"name":"Home","latitude":1,"longitude":2}`,
	"DELETE /v1/platform/regions/{region}":                 "-",
	"POST /v1/join-tokens":                                 `{"roles":["edge"]}`,
	"DELETE /v1/join-tokens/{token}":                       "-",
}

// unaudited are the routes that change nothing of what users have, though they are no reads.
var unaudited = map[string]string{
	"POST /v1/tokens/authenticate":                      "a question",
	"POST /v1/tokens/authorize":                         "a question",
	"POST /v1/platform/placements":                      "a question",
	"POST /v1/apps/{app}/certificates/acme":             "refused",
	"POST /v1/apps/{app}/certificates/{hostname}/check": "a question",
	"POST /v1/apps/{app}/secretkeys/{name}/encrypt":     "uses a key",
	"POST /v1/apps/{app}/secretkeys/{name}/decrypt":     "uses a key",
	"POST /v1/apps/{app}/secretkeys/{name}/sign":        "uses a key",
	"POST /v1/apps/{app}/secretkeys/{name}/verify":      "uses a key",
	"PUT /v1/blobs/{digest}":                            "content of an image, which a release names",
	"POST /v1/images/resolve":                           "work ahead of a release",
	"POST /v1/images/{digest}/prepare":                  "work ahead of a release",
}

// subject is an app that has one of everything.
func subject(t *testing.T, p *volanttest.Platform) (path *strings.Replacer, chain, key string) {
	t.Helper()
	ctx := t.Context()
	addr, _ := p.Deploy("web", volanttest.Image)
	c, err := p.Connect(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	m := p.Machines("web")[0]
	chain, key = pair(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), "www.example.com")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err = p.API.AddCertificate(ctx, "web", api.CreateCustomCertificate{Hostname: "www.example.com", Fullchain: chain, PrivateKey: key})
	must(err)
	_, err = p.API.SetSecrets(ctx, "web", map[string]*string{"A": new("b")})
	must(err)
	ip, err := p.API.AssignAddress(ctx, "web", api.AssignIP{Type: "v6"})
	must(err)
	tok, err := p.API.CreateToken(ctx, api.CreateToken{AppName: "web"})
	must(err)
	return strings.NewReplacer("{app}", "web", "{id}", m.ID, "{name}", "A", "{hostname}", "www.example.com",
		"{ip}", ip.IP, "{token}", tok.ID, "{key}", "k", "{node}", "deadbeef", "{region}", "local"), chain, key
}

// Each route that changes something says so in why, with who asked. A new one needs a line in changes.
func TestEveryChangeIsOnRecordWithItsActor(t *testing.T) {
	for _, r := range (*control.Server)(nil).Routes() {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			continue
		}
		name := r.Method + " " + r.Path
		body, known := changes[name]
		if _, exempt := unaudited[name]; exempt == known {
			t.Errorf("%s: say in changes what it takes, or in unaudited why it is not on record", name)
			continue
		}
		if !known {
			continue
		}
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, p *volanttest.Platform) {
				path, chain, key := subject(t, p)
				if strings.HasPrefix(r.Path, "/v1/join-tokens/") {
					tok, err := p.API.CreateJoinToken(t.Context(), api.CreateJoinToken{})
					if err != nil {
						t.Fatal(err)
					}
					path = strings.NewReplacer("{token}", tok.ID)
				}
				url, header := path.Replace(r.Path), http.Header{}
				switch {
				case body == "-":
					body = ""
				case strings.HasPrefix(body, "?"):
					url, body = url+body, ""
				case strings.HasSuffix(r.Path, "/custom"):
					b, err := json.Marshal(api.CreateCustomCertificate{Hostname: "www.example.com", Fullchain: chain, PrivateKey: key})
					if err != nil {
						t.Fatal(err)
					}
					body = string(b)
				}
				prepareRoute(t, p, name, path, header)
				before := len(p.Why.Query(why.Query{Kinds: []why.Kind{why.Change}, Limit: 1000}))
				req := httptest.NewRequest(r.Method, url, strings.NewReader(body))
				req.Header = header
				req.Header.Set("Authorization", "Bearer "+p.Token())
				rec := httptest.NewRecorder()
				p.Node.API().ServeHTTP(rec, req)
				if rec.Code > 299 {
					t.Fatalf("%d %s", rec.Code, rec.Body)
				}
				recs := p.Why.Query(why.Query{Kinds: []why.Kind{why.Change}, Limit: 1000})
				if len(recs) <= before || recs[0].Attrs["actor"] != "root" || recs[0].Text == "" || recs[0].Org == "" && recs[0].App == "" {
					t.Errorf("it left %d records, the newest %+v", len(recs)-before, recs[0])
				}
			})
		})
	}
}

// prepareRoute brings about what a route needs beyond the subject.
func prepareRoute(t *testing.T, p *volanttest.Platform, name string, path *strings.Replacer, header http.Header) {
	t.Helper()
	switch {
	case name == "DELETE /v1/apps/{app}/machines/{id}/lease":
		_, l := ask[api.Lease](t, p, "POST", path.Replace("/v1/apps/{app}/machines/{id}/lease"), `{"ttl":60}`)
		header.Set("fly-machine-lease-nonce", l.Data.Nonce)
	case strings.HasSuffix(name, "/metadata/{key}"):
		ask[any](t, p, "POST", path.Replace("/v1/apps/{app}/machines/{id}/metadata/{key}"), `{"value":"v"}`)
	case strings.Contains(name, "/v1/nodes/"):
		n := &volant.Node{Name: "other", Region: "local", Roles: []string{"edge", "control"}, Mesh: volant.Mesh{Key: "k"}}
		if strings.HasPrefix(name, "DELETE") {
			n.Roles = []string{"edge"}
		}
		n.Meta = volant.Meta{Kind: volant.KindNode, ID: "deadbeef"}
		rev, err := store.Create(t.Context(), p.Store, "test", n)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Node.Catalog().Wait(t.Context(), rev); err != nil {
			t.Fatal(err)
		}
	case name == "DELETE /v1/platform/regions/{region}":
		ask[any](t, p, "PUT", "/v1/platform/regions/local", `{"latitude":1,"longitude":1}`)
	case name == "DELETE /v1/apps/{app}/secretkeys/{name}":
		ask[any](t, p, "POST", path.Replace("/v1/apps/{app}/secretkeys/{name}/generate"), `{"type":"hs256"}`)
	}
}
