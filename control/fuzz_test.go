package control_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/volanttest"
)

// FuzzRequests sends any path and body to each of the API's routes: none may fail inside, and what is refused
// has the one form.
func FuzzRequests(f *testing.F) {
	routes := (*control.Server)(nil).Routes()
	for i, seed := range []string{
		"", "{}", "[]", "null", `{"name":"x"}`, `{"config":{"image":"` + string(volanttest.Image) + `"}}`, `{"values":{"A":"b"}}`, `{"ttl":-1}`,
		`{"signal":1e99}`, `{"command":["\u0000"]}`, `{"metadata":{"":null}}`, `{"min":9223372036854775807}`, `{"type":"v4","ip":"::"}`,
	} {
		for n := range routes {
			if n%13 == i {
				f.Add(uint16(n), "web", "limit=1&timeout=1&state=settled", seed)
			}
		}
	}
	f.Fuzz(func(t *testing.T, n uint16, name, query, body string) {
		r := routes[int(n)%len(routes)]
		if strings.HasSuffix(r.Path, "/logs") {
			query = "" // which could follow for ever
		}
		synctest.Test(t, func(t *testing.T) {
			p := volanttest.New(t)
			defer p.Close()
			if _, err := p.API.CreateApp(t.Context(), "web", ""); err != nil {
				t.Fatal(err)
			}
			req := httptest.NewRequest(r.Method, "/", strings.NewReader(body))
			req.URL.Path = fill(r.Path, name)
			req.URL.RawQuery = query
			req.Header.Set("Authorization", "Bearer "+p.Token())
			rec := httptest.NewRecorder()
			p.Handler().ServeHTTP(rec, req)
			var e api.Error
			if rec.Code >= 500 && rec.Code != http.StatusServiceUnavailable && r.Served() {
				t.Errorf("%s %s?%s %q: %d %s", r.Method, req.URL.Path, query, body, rec.Code, rec.Body)
			}
			if rec.Code >= 400 && r.Method != http.MethodHead && (json.Unmarshal(rec.Body.Bytes(), &e) != nil || e.Error == "") {
				t.Errorf("%s %s: %d with %q, which is not the one error form", r.Method, req.URL.Path, rec.Code, rec.Body)
			}
		})
	})
}

// fill puts the app's name, and a word for what else there is, into a route's path.
func fill(path, word string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		switch {
		case p == "{app}":
			parts[i] = "web"
		case strings.HasPrefix(p, "{"):
			parts[i] = word
		}
	}
	return strings.Join(parts, "/")
}
