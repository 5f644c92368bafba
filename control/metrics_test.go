package control_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant/volanttest"
)

func scrape(t *testing.T, p *volanttest.Platform, token string) string {
	t.Helper()
	req := httptest.NewRequest(http.MethodGet, "/metrics", nil)
	req.Header.Set("Authorization", "Bearer "+token)
	rec := httptest.NewRecorder()
	p.Node.API().ServeHTTP(rec, req)
	if rec.Code != 200 || !strings.HasPrefix(rec.Header().Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("/metrics answers %d, %s", rec.Code, rec.Header().Get("Content-Type"))
	}
	return rec.Body.String()
}

func TestMetricsTellOfAppsThatTheTokenMayRead(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		addr, _ := p.Deploy("web", volanttest.Image)
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() // the test is over
		synctest.Wait()
		id := p.Machines("web")[0].ID
		got := scrape(t, p, p.Token())
		for _, want := range []string{
			`fly_app_concurrency{app="web",`, `fly_edge_tcp_connects_count{app="web",`, `fly_instance_memory_mem_total{app="web",`,
			`instance="` + id + `",region="local"} 1`, "volant_node_proxy_up{",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("no %s in\n%s", want, got)
			}
		}
		if got := scrape(t, p, token(t, p, "other", time.Time{}, "admin")); got != "" {
			t.Errorf("a token of another organization sees %s", got)
		}
		if got := scrape(t, p, token(t, p, "personal", time.Time{}, "read")); !strings.Contains(got, `app="web"`) || strings.Contains(got, "volant_node") {
			t.Errorf("a token of the organization sees %s", got)
		}
		before := p.States("web")
		p.KillProxy()
		if got := scrape(t, p, p.Token()); !strings.Contains(got, "fly_instance_up") {
			t.Errorf("without a proxy: %s", got)
		}
		if after := p.States("web"); len(after) != len(before) {
			t.Errorf("reading changed the machines: %v, then %v", before, after)
		}
	})
}
