package control_test

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/volanttest"
)

func contextWithTimeout(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(t.Context(), d)
}

// keyed sends a POST with a key.
func keyed(p *volanttest.Platform, token, key, path, body string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Idempotency-Key", key)
	rec := httptest.NewRecorder()
	p.Node.API().ServeHTTP(rec, req)
	return rec
}

func TestARequestWithAKeyIsCarriedOutOnce(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		const path, body = "/v1/tokens", `{"name":"ci"}`
		first := keyed(p, p.Token(), "k1", path, body)
		if first.Code != 201 || first.Header().Get("Idempotent-Replayed") != "" {
			t.Fatalf("the first: %d %s", first.Code, first.Body)
		}
		count := func() int {
			n := 0
			for range p.Node.Catalog().Snapshot().Tokens() {
				n++
			}
			return n
		}
		before := count()
		same := func(when string) {
			t.Helper()
			again := keyed(p, p.Token(), "k1", path, body)
			if again.Code != first.Code || !bytes.Equal(again.Body.Bytes(), first.Body.Bytes()) ||
				again.Header().Get("Idempotent-Replayed") != "true" || again.Header().Get("Content-Type") != first.Header().Get("Content-Type") {
				t.Errorf("%s: %d %q %v, want the first answer byte for byte", when, again.Code, again.Body, again.Header())
			}
			if n := count(); n != before {
				t.Errorf("%s: %d tokens, want %d", when, n, before)
			}
		}
		same("at once")
		p.Stop()
		p.Start()
		same("after the server started again")
		if rec := keyed(p, p.Token(), "k1", path, `{"name":"other"}`); rec.Code != 409 || !strings.Contains(rec.Body.String(), "another request") {
			t.Errorf("another body: %d %s, want 409", rec.Code, rec.Body)
		}
		other := token(t, p, volant.OrgPersonal, time.Time{}, "admin")
		if rec := keyed(p, other, "k1", path, body); rec.Code != 201 || bytes.Equal(rec.Body.Bytes(), first.Body.Bytes()) {
			t.Errorf("another token's key: %d %s, want a token of its own", rec.Code, rec.Body)
		}
		before = count()
		time.Sleep(25 * time.Hour)
		if rec := keyed(p, p.Token(), "k1", path, body); rec.Code != 201 || rec.Header().Get("Idempotent-Replayed") != "" {
			t.Errorf("a day later: %d %s, want it carried out anew", rec.Code, rec.Body)
		}
		for _, key := range []string{strings.Repeat("k", 256), "two words", "é"} {
			if rec := keyed(p, p.Token(), key, path, body); rec.Code != 400 {
				t.Errorf("key %q: %d, want 400", key, rec.Code)
			}
		}
		files, err := filepath.Glob(filepath.Join(p.Dir(), "answers", "*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no answer is on disk: %v", err)
		}
		for _, f := range files {
			if b, err := os.ReadFile(f); err != nil || bytes.Contains(b, []byte("vol_")) {
				t.Errorf("%s shows a token (%v)", f, err)
			}
		}
	})
}

func TestARefusedRequestMayBeSentAgainWithItsKey(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		if rec := keyed(p, p.Token(), "k", "/v1/apps/web/secrets", `{"values":{"A":"b"}}`); rec.Code != 404 {
			t.Fatalf("before the app is there: %d", rec.Code)
		}
		newApp(t, p, "web")
		if rec := keyed(p, p.Token(), "k", "/v1/apps/web/secrets", `{"values":{"A":"b"}}`); rec.Code != 200 || rec.Header().Get("Idempotent-Replayed") != "" {
			t.Errorf("after: %d %s", rec.Code, rec.Body)
		}
		if rec := keyed(p, "vol_wrong", "k", "/v1/apps/web/secrets", `{"values":{"A":"b"}}`); rec.Code != 401 {
			t.Errorf("without a good token: %d, want 401", rec.Code)
		}
	})
}

func TestAStreamIsNotCarriedOutTwice(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		path := "/v1/images/" + string(volanttest.Image) + "/prepare"
		if rec := keyed(p, p.Token(), "k", path, ""); rec.Code != 200 {
			t.Fatalf("the first: %d %s", rec.Code, rec.Body)
		}
		if rec := keyed(p, p.Token(), "k", path, ""); rec.Code != 409 || !strings.Contains(rec.Body.String(), "too long") {
			t.Errorf("the second: %d %s, want 409", rec.Code, rec.Body)
		}
	})
}

func TestTwoAtOnceWithOneKey(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		p.Store.SetSlow(time.Second)
		first := make(chan int, 1)
		go func() { first <- keyed(p, p.Token(), "k", "/v1/orgs", `{"slug":"team"}`).Code }()
		synctest.Wait()
		if rec := keyed(p, p.Token(), "k", "/v1/orgs", `{"slug":"team"}`); rec.Code != 409 || rec.Header().Get("Retry-After") == "" {
			t.Errorf("the second at once: %d %s, want 409", rec.Code, rec.Body)
		}
		if code := <-first; code != 201 {
			t.Errorf("the first: %d, want 201", code)
		}
		p.Store.SetSlow(0)
		if rec := keyed(p, p.Token(), "k", "/v1/orgs", `{"slug":"team"}`); rec.Code != 201 || rec.Header().Get("Idempotent-Replayed") != "true" {
			t.Errorf("the second later: %d %s, want the first's answer", rec.Code, rec.Body)
		}
	})
}
