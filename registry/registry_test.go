package registry_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/registry"
)

// blobs is a store without quotas.
type blobs struct{ *image.Store }

func (b blobs) Begin(volant.OrgID) (*image.Upload, error) { return b.Store.Begin() }

// tags keeps tags in memory.
type tags struct {
	mu  sync.Mutex
	all map[string]*volant.Image
}

func (t *tags) Tag(org volant.OrgID, repo, tag string) (*volant.Image, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, ok := t.all[volant.ImageID(org, repo, tag)]
	return i, ok
}

func (t *tags) Tags(org volant.OrgID) (out []*volant.Image) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, i := range t.all {
		if i.Org == org {
			out = append(out, i)
		}
	}
	return out
}

func (t *tags) SetTag(_ context.Context, _ string, i volant.Image) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all[i.ID] = &i
	return nil
}

func (t *tags) RemoveTag(_ context.Context, _ string, i *volant.Image) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, i.ID)
	return nil
}

// world is a registry with three users: acme and evil with organizations of those names, root with all,
// and one who may only read acme's.
type world struct {
	*httptest.Server
	host  string
	store *image.Store
	tags  *tags
}

func open(t testing.TB) *world {
	t.Helper()
	s, err := image.Open(t.TempDir(), image.Config{MaxBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{store: s, tags: &tags{all: make(map[string]*volant.Image)}}
	g := registry.New(blobs{s}, w.tags, nil)
	users := map[string]registry.Caller{
		"acme": {Org: "acme", Push: true, Name: "acme"}, "evil": {Org: "evil", Push: true, Name: "evil"},
		"root": {Org: image.AnyOrg, Any: true, Push: true, Name: "root"}, "reader": {Org: "acme", Name: "reader"},
		"app": {Org: "acme", Only: "web", Push: true, Name: "app"},
	}
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, password, _ := r.BasicAuth()
		who, ok := users[password]
		if !ok {
			g.Unauthorized(rw, nil)
			return
		}
		g.Serve(rw, r, who)
	}))
	t.Cleanup(w.Close)
	w.host = strings.TrimPrefix(w.URL, "http://")
	return w
}

func as(user string) remote.Option {
	return remote.WithAuth(&authn.Basic{Username: "x", Password: user})
}

func (w *world) ref(t testing.TB, s string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(w.host + "/" + s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// do sends one request and returns the answer with its body.
func (w *world) do(t testing.TB, user, method, path string, body []byte, head ...string) (*http.Response, string) {
	t.Helper()
	if !strings.HasPrefix(path, "http") {
		path = w.URL + path
	}
	req, err := http.NewRequest(method, path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("x", user)
	for i := 0; i < len(head); i += 2 {
		req.Header.Set(head[i], head[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func sha(b []byte) string {
	s := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(s[:])
}

func img(t testing.TB, layers int64) v1.Image {
	t.Helper()
	i, err := random.Image(20_000, layers)
	if err != nil {
		t.Fatal(err)
	}
	c, err := i.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c.OS, c.Architecture = "linux", "amd64"
	if i, err = mutate.ConfigFile(i, c); err != nil {
		t.Fatal(err)
	}
	return i
}

func digest(t testing.TB, i interface{ Digest() (v1.Hash, error) }) volant.Digest {
	t.Helper()
	h, err := i.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return volant.Digest(h.String())
}

func TestPushAndPull(t *testing.T) {
	w, i := open(t), img(t, 3)
	ref := w.ref(t, "acme/web:1")
	for range 2 { // the second time all of it is there
		if err := remote.Write(ref, i, as("acme")); err != nil {
			t.Fatal(err)
		}
	}
	if err := remote.Tag(ref.Context().Tag("latest"), i, as("acme")); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"acme/web:1", "web:latest", "acme/web@" + string(digest(t, i))} {
		got, err := remote.Image(w.ref(t, from), as("reader"))
		if err != nil {
			t.Fatalf("%s: %v", from, err)
		}
		if d := digest(t, got); d != digest(t, i) {
			t.Errorf("%s is %s, want %s", from, d, digest(t, i))
		}
		layers, err := got.Layers()
		if err != nil || len(layers) != 3 {
			t.Fatalf("%s: %d layers, %v", from, len(layers), err)
		}
		for _, l := range layers {
			r, err := l.Compressed() // verifies the digest
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Errorf("%s: %v", from, err)
			}
		}
	}
	names, err := remote.List(ref.Context(), as("reader"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	if diff := cmp.Diff([]string{"1", "latest"}, names); diff != "" {
		t.Error(diff)
	}
	repos, err := remote.Catalog(t.Context(), ref.Context().Registry, as("acme"))
	if diff := cmp.Diff([]string{"acme/web"}, repos); err != nil || diff != "" {
		t.Errorf("catalog: %v %s", err, diff)
	}
	if _, err := w.store.Manifest(digest(t, i)); err != nil {
		t.Errorf("the image is not one that machines can run: %v", err)
	}
	if err := remote.Delete(ref, as("acme")); err != nil {
		t.Errorf("remove the tag 1: %v", err)
	}
	if _, err := remote.Get(ref, as("acme")); err == nil {
		t.Error("the removed tag is still there")
	}
	if err := remote.Delete(w.ref(t, "acme/web@"+string(digest(t, i))), as("acme")); err != nil {
		t.Errorf("remove by digest: %v", err)
	}
	if got := w.tags.Tags("acme"); len(got) != 0 {
		t.Errorf("tags left: %v", got)
	}
}

func TestPushAnIndexOfPlatforms(t *testing.T) {
	w := open(t)
	amd, arm := img(t, 1), img(t, 1)
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	if err := remote.WriteIndex(w.ref(t, "acme/web:1"), index, as("acme")); err != nil {
		t.Fatal(err)
	}
	tag, ok := w.tags.Tag("acme", "web", "1")
	if !ok || tag.Digest != digest(t, index) {
		t.Fatalf("the tag is %+v, want %s", tag, digest(t, index))
	}
	if got, err := w.store.ForPlatform(tag.Digest); err != nil || got != digest(t, amd) {
		t.Errorf("the image for machines is %v, %v, want %s", got, err, digest(t, amd))
	}
	if err := w.store.Grant("other", tag.Digest); err != nil || !w.store.Owns("other", digest(t, amd)) {
		t.Errorf("granted to another organization: %v", err)
	}
}

// What one organization has, another can neither have nor find out.
func TestOrganizationsAreApart(t *testing.T) {
	w, i := open(t), img(t, 2)
	if err := remote.Write(w.ref(t, "acme/web:1"), i, as("acme")); err != nil {
		t.Fatal(err)
	}
	raw, err := i.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	m, err := i.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	layer, there := m.Layers[0].Digest.String(), digest(t, i)
	absent := sha([]byte("no such blob"))
	// Every question is asked of what is there and of what is not; the answers are the same.
	for _, q := range []struct{ method, there, absent string }{
		{"HEAD", "/v2/evil/x/blobs/" + layer, "/v2/evil/x/blobs/" + absent},
		{"GET", "/v2/evil/x/blobs/" + layer, "/v2/evil/x/blobs/" + absent},
		{"GET", "/v2/evil/x/manifests/" + string(there), "/v2/evil/x/manifests/" + absent},
		{"POST", "/v2/evil/x/blobs/uploads/?from=acme/web&mount=" + layer, "/v2/evil/x/blobs/uploads/?from=acme/web&mount=" + absent},
		{"GET", "/v2/acme/web/manifests/1", "/v2/acme/none/manifests/1"},
		{"HEAD", "/v2/acme/web/blobs/" + layer, "/v2/acme/none/blobs/" + layer},
		{"GET", "/v2/acme/web/tags/list", "/v2/acme/none/tags/list"},
		{"PUT", "/v2/acme/web/manifests/1", "/v2/acme/none/manifests/1"},
		{"DELETE", "/v2/acme/web/manifests/1", "/v2/acme/none/manifests/1"},
	} {
		a, bodyA := w.do(t, "evil", q.method, q.there, nil)
		b, bodyB := w.do(t, "evil", q.method, q.absent, nil)
		hide := strings.NewReplacer(string(there), "D", absent, "D", layer[:19], "D", absent[:19], "D", "acme/web", "N", "acme/none", "N")
		if a.StatusCode != b.StatusCode || hide.Replace(bodyA) != hide.Replace(bodyB) || a.StatusCode < 202 {
			t.Errorf("%s %s: %d %q\nand what is not there: %d %q", q.method, q.there, a.StatusCode, bodyA, b.StatusCode, bodyB)
		}
	}
	res, body := w.do(t, "evil", "PUT", "/v2/evil/x/manifests/1", raw, "Content-Type", string(m.MediaType))
	if res.StatusCode != http.StatusBadRequest || !strings.Contains(body, "MANIFEST_BLOB_UNKNOWN") {
		t.Errorf("a manifest of another's blobs: %d %s", res.StatusCode, body)
	}
	if _, ok := w.tags.Tag("acme", "web", "1"); !ok {
		t.Error("another organization removed the tag")
	}
	// Who has the content itself may push it.
	if err := remote.Write(w.ref(t, "evil/copy:1"), i, as("evil")); err != nil {
		t.Errorf("push the same content: %v", err)
	}
	if err := remote.Write(w.ref(t, "mine:1"), img(t, 1), as("root")); err != nil {
		t.Errorf("root pushes to personal: %v", err)
	}
	if _, ok := w.tags.Tag(volant.OrgPersonal, "mine", "1"); !ok {
		t.Error("root's push without an organization is not personal's")
	}
	if err := remote.Write(w.ref(t, "third/copy:1"), i, as("root")); err != nil {
		t.Errorf("root pushes for another: %v", err)
	}
	if !w.store.Owns("third", volant.Digest(layer)) {
		t.Error("what root pushed for an organization is not that one's")
	}
}

func TestWhoMayNot(t *testing.T) {
	w := open(t)
	for _, q := range []struct {
		user, method, path string
		code               int
		text               string
	}{
		{"nobody", "GET", "/v2/", 401, "UNAUTHORIZED"},
		{"reader", "GET", "/v2/", 200, ""},
		{"reader", "POST", "/v2/acme/web/blobs/uploads/", 403, "DENIED"},
		{"reader", "DELETE", "/v2/acme/web/manifests/1", 403, "DENIED"},
		{"app", "POST", "/v2/acme/web/blobs/uploads/", 202, ""},
		{"app", "POST", "/v2/acme/db/blobs/uploads/", 403, "web alone"},
		{"acme", "GET", "/v2/acme/web/manifests/none", 404, "MANIFEST_UNKNOWN"},
		{"acme", "GET", "/v2/acme/web/manifests/.bad", 400, "TAG_INVALID"},
		{"acme", "GET", "/v2/acme/web/blobs/sha256:12", 400, "DIGEST_INVALID"},
		{"acme", "GET", "/v2/Acme/web/tags/list", 400, "NAME_INVALID"},
		{"acme", "GET", "/v2/acme/none/tags/list", 404, "NAME_UNKNOWN"},
		{"acme", "GET", "/v2/nothing", 404, "NAME_UNKNOWN"},
		{"acme", "PATCH", "/v2/acme/web/blobs/uploads/0123", 404, "BLOB_UPLOAD_UNKNOWN"},
		{"acme", "DELETE", "/v2/acme/web/blobs/" + sha(nil), 405, "UNSUPPORTED"},
		{"acme", "GET", "/v2/acme/web/tags/list?n=x", 404, "NAME_UNKNOWN"},
	} {
		res, body := w.do(t, q.user, q.method, q.path, nil)
		if res.StatusCode != q.code || !strings.Contains(body, q.text) {
			t.Errorf("%s: %s %s: %d %s, want %d with %q", q.user, q.method, q.path, res.StatusCode, body, q.code, q.text)
		}
		var e struct {
			Errors []struct{ Code, Message string }
			Error  string
			Remedy string
		}
		if q.code >= 400 && q.method != "HEAD" {
			if err := json.Unmarshal([]byte(body), &e); err != nil || len(e.Errors) != 1 || e.Errors[0].Code == "" || e.Error == "" || e.Remedy == "" {
				t.Errorf("%s %s: %s is not in both forms of errors", q.method, q.path, body)
			}
		}
		if q.code == 401 && res.Header.Get("WWW-Authenticate") == "" {
			t.Error("401 without a challenge")
		}
	}
}

func TestUploadsInPieces(t *testing.T) {
	w := open(t)
	all := make([]byte, 300_000)
	for i := range all {
		all[i] = byte(rand.Uint32())
	}
	res, _ := w.do(t, "acme", "POST", "/v2/acme/web/blobs/uploads/", nil)
	at := res.Header.Get("Location")
	for from := 0; from < 200_000; from += 100_000 {
		res, body := w.do(t, "acme", "PATCH", at, all[from:from+100_000], "Content-Range", fmt.Sprintf("%d-%d", from, from+99_999))
		if res.StatusCode != http.StatusAccepted || res.Header.Get("Range") != fmt.Sprintf("0-%d", from+99_999) {
			t.Fatalf("piece at %d: %d %s %s", from, res.StatusCode, res.Header.Get("Range"), body)
		}
	}
	if res, body := w.do(t, "acme", "PATCH", at, all[:10], "Content-Range", "0-9"); res.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("a piece that was sent already: %d %s", res.StatusCode, body)
	}
	if res, _ := w.do(t, "acme", "GET", at, nil); res.StatusCode != http.StatusNoContent || res.Header.Get("Range") != "0-199999" {
		t.Errorf("where it is: %d %s", res.StatusCode, res.Header.Get("Range"))
	}
	if res, _ := w.do(t, "acme", "PATCH", strings.Replace(at, "acme/web", "acme/other", 1), all[:10]); res.StatusCode != http.StatusNotFound {
		t.Errorf("another repository goes on with it: %d", res.StatusCode)
	}
	if res, body := w.do(t, "acme", "PUT", at+"?digest="+sha(all), all[200_000:]); res.StatusCode != http.StatusCreated {
		t.Fatalf("the last piece: %d %s", res.StatusCode, body)
	}
	res, body := w.do(t, "acme", "GET", "/v2/acme/web/blobs/"+sha(all), nil)
	if res.StatusCode != http.StatusOK || body != string(all) {
		t.Errorf("the blob comes back as %d with %d bytes", res.StatusCode, len(body))
	}
	res, body = w.do(t, "acme", "GET", "/v2/acme/web/blobs/"+sha(all), nil, "Range", "bytes=299990-")
	if res.StatusCode != http.StatusPartialContent || body != string(all[299_990:]) {
		t.Errorf("its end comes back as %d %q", res.StatusCode, body)
	}
	// In one request, with the right and the wrong digest; and mounted.
	if res, body := w.do(t, "acme", "POST", "/v2/acme/web/blobs/uploads/?digest="+sha(all[:5]), all[:5]); res.StatusCode != http.StatusCreated {
		t.Errorf("in one request: %d %s", res.StatusCode, body)
	}
	if res, body := w.do(t, "acme", "POST", "/v2/acme/web/blobs/uploads/?digest="+sha(all[:6]), all[:5]); res.StatusCode != http.StatusBadRequest || !strings.Contains(body, "DIGEST_INVALID") {
		t.Errorf("of another digest: %d %s", res.StatusCode, body)
	}
	if res, _ := w.do(t, "acme", "POST", "/v2/acme/other/blobs/uploads/?from=acme/web&mount="+sha(all), nil); res.StatusCode != http.StatusCreated {
		t.Errorf("mounted from a repository of one's own: %d", res.StatusCode)
	}
	// Too large a blob ends its upload.
	res, _ = w.do(t, "acme", "POST", "/v2/acme/web/blobs/uploads/", nil)
	at = res.Header.Get("Location")
	if res, body := w.do(t, "acme", "PATCH", at, make([]byte, 9<<20)); res.StatusCode != http.StatusBadRequest || !strings.Contains(body, "larger") {
		t.Errorf("too large: %d %s", res.StatusCode, body)
	}
	if res, _ := w.do(t, "acme", "GET", at, nil); res.StatusCode != http.StatusNotFound {
		t.Errorf("afterwards it is still there: %d", res.StatusCode)
	}
	// And uploads are bounded in number.
	last := 0
	for range 70 {
		res, _ := w.do(t, "acme", "POST", "/v2/acme/web/blobs/uploads/", nil)
		last = res.StatusCode
	}
	if last != http.StatusTooManyRequests {
		t.Errorf("the 70th upload at a time: %d, want 429", last)
	}
	if res, _ := w.do(t, "evil", "POST", "/v2/evil/web/blobs/uploads/", nil); res.StatusCode != http.StatusAccepted {
		t.Errorf("others wait for it: %d", res.StatusCode)
	}
}

func TestManifestsAreChecked(t *testing.T) {
	w := open(t)
	const oci = "application/vnd.oci.image.manifest.v1+json"
	blob := []byte("{}")
	if res, _ := w.do(t, "acme", "POST", "/v2/acme/web/blobs/uploads/?digest="+sha(blob), blob); res.StatusCode != http.StatusCreated {
		t.Fatal(res.Status)
	}
	good := `{"schemaVersion":2,"mediaType":"` + oci + `","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"` + sha(blob) + `","size":2},"layers":[]}`
	for name, c := range map[string]struct {
		ref, body, code string
		status          int
	}{
		"good":            {"1", good, "", 201},
		"by digest":       {sha([]byte(good)), good, "", 201},
		"a wrong digest":  {sha([]byte("x")), good, "DIGEST_INVALID", 400},
		"no JSON":         {"1", "<html>", "MANIFEST_INVALID", 400},
		"an empty object": {"1", "{}", "MANIFEST_INVALID", 400},
		"schema 1":        {"1", `{"schemaVersion":1,"fsLayers":[]}`, "MANIFEST_INVALID", 400},
		"too large":       {"1", good + strings.Repeat(" ", 5<<20), "MANIFEST_INVALID", 413},
		"a missing blob":  {"1", strings.ReplaceAll(good, sha(blob), sha([]byte("y"))), "MANIFEST_BLOB_UNKNOWN", 400},
	} {
		res, body := w.do(t, "acme", "PUT", "/v2/acme/web/manifests/"+c.ref, []byte(c.body), "Content-Type", oci)
		if res.StatusCode != c.status || !strings.Contains(body, c.code) {
			t.Errorf("%s: %d %s, want %d %s", name, res.StatusCode, body, c.status, c.code)
		}
	}
	if res, _ := w.do(t, "acme", "GET", "/v2/acme/web/manifests/"+sha(blob), nil); res.StatusCode != http.StatusNotFound {
		t.Errorf("a blob as a manifest: %d", res.StatusCode)
	}
}

func TestTagsArePaged(t *testing.T) {
	w := open(t)
	for i := range 5 {
		tag := fmt.Sprintf("t%d", i)
		if err := w.tags.SetTag(t.Context(), "", volant.Image{Meta: volant.Meta{Org: "acme", ID: tag}, Repository: "web", Tag: tag}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	next := "/v2/acme/web/tags/list?n=2"
	for n := 0; next != "" && n < 10; n++ {
		res, body := w.do(t, "acme", "GET", next, nil)
		var out struct{ Tags []string }
		if err := json.Unmarshal([]byte(body), &out); err != nil {
			t.Fatal(err)
		}
		got = append(got, out.Tags...)
		next, _, _ = strings.Cut(strings.TrimPrefix(res.Header.Get("Link"), "<"), ">")
	}
	if diff := cmp.Diff([]string{"t0", "t1", "t2", "t3", "t4"}, got); diff != "" {
		t.Error(diff)
	}
}

// FuzzPaths asks for any path: no answer is an internal error, and nothing of another organization is reached.
func FuzzPaths(f *testing.F) {
	w := open(f)
	for _, p := range []string{"", "x/blobs/uploads/", "acme/web/manifests/1", "acme/../evil/blobs/" + sha(nil), "a/blobs/b/manifests/c", "_catalog?n=1", "evil/x/tags/list"} {
		f.Add("GET", p)
	}
	g := registry.New(blobs{w.store}, w.tags, nil)
	f.Fuzz(func(t *testing.T, method, path string) {
		req, err := http.NewRequest(method, "http://h/v2/"+path, strings.NewReader("{}"))
		if err != nil {
			return
		}
		rec := httptest.NewRecorder()
		g.Serve(rec, req, registry.Caller{Org: "acme", Push: true})
		if rec.Code >= 500 {
			t.Errorf("%s %q: %d %s", method, path, rec.Code, rec.Body)
		}
	})
}
