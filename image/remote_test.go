package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/image/imagetest"
	"github.com/volant-edge/volant/internal/ociarchive"
)

// shop is a registry in this process that can be made to misbehave.
type shop struct {
	*httptest.Server
	host string
	real http.Handler

	mu    sync.Mutex
	odd   func(w http.ResponseWriter, r *http.Request) bool // true: it answered
	paths []string                                          // asked for since the last reset
}

func newShop(t testing.TB) *shop {
	t.Helper()
	s := &shop{real: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	s.host = strings.TrimPrefix(s.URL, "http://")
	return s
}

func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	odd := s.odd
	s.paths = append(s.paths, r.Method+" "+r.URL.Path)
	s.mu.Unlock()
	if odd == nil || !odd(w, r) {
		s.real.ServeHTTP(w, r)
	}
}

func (s *shop) misbehave(odd func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.odd, s.paths = odd, nil
}

// blobs are the blobs that were asked for.
func (s *shop) blobs() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.paths {
		if strings.Contains(p, "GET") && strings.Contains(p, "/blobs/") {
			n++
		}
	}
	return n
}

func (s *shop) put(t testing.TB, path string, kind types.MediaType, body []byte) {
	t.Helper()
	method := http.MethodPost
	if strings.Contains(path, "/manifests/") {
		method = http.MethodPut
	}
	req := httptest.NewRequest(method, path, bytes.NewReader(body))
	req.Header.Set("Content-Type", string(kind))
	rec := httptest.NewRecorder()
	s.real.ServeHTTP(rec, req)
	if rec.Code != http.StatusCreated {
		t.Fatalf("%s %s: %d %s", method, path, rec.Code, rec.Body)
	}
}

// push puts an image's files under a name and tag.
func (s *shop) push(t testing.TB, name, tag string, files map[string][]byte, d volant.Digest) {
	t.Helper()
	for path, b := range files {
		if hex, ok := strings.CutPrefix(path, "blobs/sha256/"); ok && hex != d.Hex() {
			s.put(t, "/v2/"+name+"/blobs/uploads/?digest=sha256:"+hex, "application/octet-stream", b)
		}
	}
	raw := files["blobs/sha256/"+d.Hex()]
	s.put(t, "/v2/"+name+"/manifests/"+string(d), image.MediaType(raw, ""), raw)
	if tag != "" {
		s.put(t, "/v2/"+name+"/manifests/"+tag, image.MediaType(raw, ""), raw)
	}
}

// quick is a client that gives up soon.
func quick() image.Remote {
	return image.Remote{Stall: 300 * time.Millisecond, Retry: time.Millisecond, Within: 5 * time.Second}
}

func threeLayers(t testing.TB) (map[string][]byte, volant.Digest) {
	t.Helper()
	gz, err := ociarchive.Gzip(imagetest.Layer(t, imagetest.File("gzip", strings.Repeat("g", 5000))))
	if err != nil {
		t.Fatal(err)
	}
	zs, err := ociarchive.Zstd(imagetest.Layer(t, imagetest.File("zstd", strings.Repeat("z", 5000))))
	if err != nil {
		t.Fatal(err)
	}
	plain := ociarchive.Plain(imagetest.Layer(t, imagetest.File("plain", strings.Repeat("p", 200_000))))
	f, h, err := ociarchive.Image{Layers: []ociarchive.Layer{gz, zs, plain}, Config: v1.Config{Cmd: []string{"/plain"}}}.Files()
	if err != nil {
		t.Fatal(err)
	}
	return f, volant.Digest(h.String())
}

func store(t testing.TB) *image.Store {
	t.Helper()
	s, err := image.Open(t.TempDir(), image.Config{MaxBytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPullTakesWhatIsMissing(t *testing.T) {
	r, s, ctx := newShop(t), store(t), t.Context()
	f, d := threeLayers(t)
	r.push(t, "acme/web", "1", f, d)
	var last image.Progress
	var mu sync.Mutex
	tell := func(p image.Progress) { mu.Lock(); last = p; mu.Unlock() }
	for _, ref := range []string{"/acme/web:1", "/acme/web@" + string(d), "/acme/web:gone@" + string(d)} {
		got, err := s.Pull(ctx, "acme", r.host+ref, quick(), tell)
		if err != nil || got != d {
			t.Fatalf("pull %s: %v, %v, want %v", ref, got, err, d)
		}
	}
	if last.Done == 0 || last.Done != last.Total {
		t.Errorf("last progress is %d of %d", last.Done, last.Total)
	}
	if got := r.blobs(); got != 4+2 { // the config is read each time, to see what it is
		t.Errorf("%d blobs asked for, want 6", got)
	}
	root, err := s.Rootfs(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/plain"}, root.Config.Cmd); diff != "" {
		t.Error(diff)
	}
	names := tree(t, root.Path)
	for _, want := range []string{"gzip", "zstd", "plain"} {
		if !strings.Contains(fmt.Sprint(names), want) {
			t.Errorf("no file %s in the root disk: %v", want, names)
		}
	}
}

// A digest that a stranger's manifest names gives the stranger nothing that it cannot show itself.
func TestPullTakesNothingOfOthers(t *testing.T) {
	r, s, ctx := newShop(t), store(t), t.Context()
	f, d := threeLayers(t)
	r.push(t, "acme/web", "1", f, d)
	if _, err := s.Pull(ctx, "acme", r.host+"/acme/web:1", quick(), nil); err != nil {
		t.Fatal(err)
	}
	r.misbehave(func(w http.ResponseWriter, q *http.Request) bool {
		if !strings.Contains(q.URL.Path, "/blobs/") || strings.Contains(q.URL.Path, "/uploads/") {
			return false
		}
		for name, b := range f { // the config is all that the stranger has
			if strings.HasSuffix(name, strings.TrimPrefix(q.URL.Path[strings.LastIndex(q.URL.Path, "/")+1:], "sha256:")) && bytes.Contains(b, []byte("diff_ids")) {
				return false
			}
		}
		http.Error(w, "not here", http.StatusNotFound)
		return true
	})
	_, err := s.Pull(ctx, "evil", r.host+"/acme/web:1", quick(), nil)
	forPeople(t, err, "blobs")
	m, err := s.Manifest(d)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		if s.Owns("evil", l.Digest) {
			t.Errorf("layer %s is the stranger's now", l.Digest)
		}
		if !s.Owns("acme", l.Digest) || !s.Owns(image.AnyOrg, l.Digest) {
			t.Errorf("layer %s is not its owner's any more", l.Digest)
		}
	}
	r.misbehave(nil)
	if _, err := s.Pull(ctx, "evil", r.host+"/acme/web:1", quick(), nil); err != nil {
		t.Errorf("who can pull it all may have it: %v", err)
	}
	if !s.Owns("evil", d) {
		t.Error("pulled and not owned")
	}
}

func TestPullPicksThePlatform(t *testing.T) {
	r, s := newShop(t), store(t)
	amd, d := files(t, "amd64", "", "amd")
	arm, armD := files(t, "arm64", "", "arm")
	r.push(t, "web", "", amd, d)
	r.push(t, "web", "arm", arm, armD)
	for name, kind := range map[string]types.MediaType{"oci": types.OCIImageIndex, "docker": types.DockerManifestList} {
		entry := func(d volant.Digest, f map[string][]byte, arch string) v1.Descriptor {
			return v1.Descriptor{
				MediaType: types.OCIManifestSchema1, Digest: v1.Hash{Algorithm: "sha256", Hex: d.Hex()},
				Size: int64(len(f["blobs/sha256/"+d.Hex()])), Platform: &v1.Platform{OS: "linux", Architecture: arch},
			}
		}
		index := marshal(t, v1.IndexManifest{SchemaVersion: 2, MediaType: kind, Manifests: []v1.Descriptor{entry(armD, arm, "arm64"), entry(d, amd, "amd64")}})
		r.put(t, "/v2/web/manifests/"+name, kind, index)
		if got, err := s.Pull(t.Context(), "acme", r.host+"/web:"+name, quick(), nil); err != nil || got != d {
			t.Errorf("%s: pulled %v, %v, want %v", name, got, err, d)
		}
	}
	_, err := s.Pull(t.Context(), "acme", r.host+"/web:arm", quick(), nil)
	forPeople(t, err, "linux/arm64", "--platform linux/amd64")
}

func TestPullGoesOnAfterABrokenConnection(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		t.Run(fmt.Sprintf("ranges %v", ranges), func(t *testing.T) {
			r, s := newShop(t), store(t)
			f, d := threeLayers(t)
			r.push(t, "web", "1", f, d)
			asked := map[string]int{}
			var mu sync.Mutex
			r.misbehave(func(w http.ResponseWriter, q *http.Request) bool {
				i := strings.Index(q.URL.Path, "/blobs/sha256:")
				if i < 0 {
					return false
				}
				hex := q.URL.Path[i+len("/blobs/sha256:"):]
				b := f["blobs/sha256/"+hex]
				mu.Lock()
				asked[hex]++
				n := asked[hex]
				mu.Unlock()
				from := 0
				if h := q.Header.Get("Range"); ranges && h != "" {
					if _, err := fmt.Sscanf(h, "bytes=%d-", &from); err != nil {
						t.Error(err)
					}
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(b)-1, len(b)))
					w.Header().Set("Content-Length", fmt.Sprint(len(b)-from))
					w.WriteHeader(http.StatusPartialContent)
				} else {
					w.Header().Set("Content-Length", fmt.Sprint(len(b)))
				}
				if n < 3 && len(b) > 100_000 { // half of what is left, then the connection breaks
					_, _ = w.Write(b[from : from+(len(b)-from)/2])
					panic(http.ErrAbortHandler)
				}
				_, _ = w.Write(b[from:])
				return true
			})
			r.Config.ErrorLog = log.New(io.Discard, "", 0)
			if got, err := s.Pull(t.Context(), "acme", r.host+"/web:1", quick(), nil); err != nil || got != d {
				t.Errorf("pulled %v, %v, want %v", got, err, d)
			}
		})
	}
}

// Every way a registry can fail, and what people read then.
func TestErrorsOfRegistries(t *testing.T) {
	f, d := threeLayers(t)
	blob := func(r *http.Request) bool {
		return strings.Contains(r.URL.Path, "/blobs/") && !strings.Contains(r.URL.Path, "/uploads/")
	}
	manifest := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }
	big := func(r *http.Request) []byte {
		if b := f["blobs/sha256/"+r.URL.Path[len(r.URL.Path)-64:]]; len(b) > 100_000 {
			return b
		}
		return nil
	}
	answer := func(when func(*http.Request) bool, code int, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if when(r) {
				w.WriteHeader(code)
				_, _ = io.WriteString(w, body)
				return true
			}
			return false
		}
	}
	always := func(*http.Request) bool { return true }
	fail := func(code string) string { return `{"errors":[{"code":"` + code + `","message":"it says"}]}` }
	user := func(r *image.Remote) { r.Auth = image.Auth{Username: "ann", Password: "secret-password"} }
	challenge := func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="shop"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	cases := []struct {
		name string
		odd  func(w http.ResponseWriter, r *http.Request) bool
		ref  string
		with func(*image.Remote)
	}{
		{name: "a vanished tag", ref: "web:2"},
		{name: "a vanished digest", ref: "web@sha256:" + strings.Repeat("0", 64)},
		{name: "an unknown name", ref: "nothing:1"},
		{name: "a name that is none", ref: "Web/Front"},
		{name: "private, without a password", odd: challenge},
		{name: "private, with a wrong password", odd: challenge, with: user},
		{name: "private, and forbidden", odd: answer(manifest, 403, fail("DENIED")), with: user},
		{name: "a token server that refuses", odd: func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/token" {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="shop"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}, with: user},
		{name: "rate limit", odd: answer(manifest, 429, fail("TOOMANYREQUESTS"))},
		{name: "rate limit for a user", odd: answer(manifest, 429, ""), with: user},
		{name: "rate limit of an hour", odd: func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Retry-After", "3600")
			return answer(manifest, 429, "")(w, r)
		}},
		{name: "trouble of its own", odd: answer(manifest, 503, fail("UNAVAILABLE"))},
		{name: "no registry", odd: answer(always, 404, "<html>")},
		{name: "silent from the start", odd: func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }},
		{name: "silent in a layer", odd: func(w http.ResponseWriter, r *http.Request) bool {
			if !blob(r) || big(r) == nil {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(big(r))))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}},
		{name: "a truncated layer", odd: func(w http.ResponseWriter, r *http.Request) bool {
			if !blob(r) || big(r) == nil {
				return false
			}
			if r.Header.Get("Range") == "" {
				_, _ = w.Write(big(r)[:1000])
			} else {
				w.Header().Set("Content-Range", "bytes 1000-1000/1001")
				w.WriteHeader(http.StatusPartialContent)
			}
			return true
		}},
		{name: "a layer of other content", odd: func(w http.ResponseWriter, r *http.Request) bool {
			if !blob(r) || big(r) == nil {
				return false
			}
			_, _ = w.Write(bytes.Repeat([]byte{1}, len(big(r))))
			return true
		}},
		{name: "a missing layer", odd: func(w http.ResponseWriter, r *http.Request) bool {
			return blob(r) && big(r) != nil && answer(always, 404, fail("BLOB_UNKNOWN"))(w, r)
		}},
		{name: "a manifest of another digest", ref: "web@" + string(d), odd: answer(manifest, 200, `{"schemaVersion":2}`)},
		{name: "a manifest that is too large", odd: func(w http.ResponseWriter, r *http.Request) bool {
			if manifest(r) {
				_, _ = w.Write(bytes.Repeat([]byte{' '}, 5<<20))
			}
			return manifest(r)
		}},
		{name: "a manifest that is none", odd: answer(manifest, 200, "<html>")},
		{name: "schema 1", odd: answer(manifest, 200, `{"schemaVersion":1,"fsLayers":[]}`)},
		{name: "an artifact that is no image", odd: answer(manifest, 200,
			`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"sha256:`+d.Hex()+`"},"layers":[{"mediaType":"application/vnd.cncf.helm.chart.content.v1.tar+gzip"}]}`)},
		{name: "too large an image", odd: func(w http.ResponseWriter, r *http.Request) bool {
			if !manifest(r) {
				return false
			}
			raw := f["blobs/sha256/"+d.Hex()]
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			_, _ = w.Write(bytes.ReplaceAll(raw, []byte(`"size":2`), []byte(`"size":222222`)))
			return true
		}},
		{name: "an address that may not be reached", with: func(r *image.Remote) {
			r.Base = image.NewTransport(func(a netip.AddrPort) error {
				return volant.Errorf(volant.ErrForbidden, "%s is an address inside", a.Addr()).WithRemedy("ask the operator")
			})
		}},
	}
	var out strings.Builder
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r, s := newShop(t), store(t)
			r.push(t, "web", "1", f, d)
			r.misbehave(c.odd)
			remote := quick()
			if c.with != nil {
				c.with(&remote)
			}
			ref := c.ref
			if ref == "" {
				ref = "web:1"
			}
			_, err := s.Pull(t.Context(), "acme", r.host+"/"+ref, remote, nil)
			note(t, &out, c.name, err, strings.NewReplacer(r.host, "REGISTRY"))
		})
	}
	t.Run("nothing listens", func(t *testing.T) {
		r := newShop(t)
		r.Close()
		_, err := store(t).Pull(t.Context(), "acme", r.host+"/web:1", quick(), nil)
		note(t, &out, "nothing listens", err, strings.NewReplacer(r.host, "REGISTRY"))
	})
	t.Run("an unknown host", func(t *testing.T) {
		remote := quick()
		remote.Base = deaf{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "registry.invalid", IsNotFound: true}}}
		_, err := store(t).Pull(t.Context(), "acme", "registry.invalid/web:1", remote, nil)
		note(t, &out, "an unknown host", err, nil)
	})
	for _, c := range [][2]string{{"TLS by an unknown authority", "example.com"}, {"TLS for another name", "registry.test"}} {
		name, host := c[0], c[1]
		t.Run(name, func(t *testing.T) {
			secure := httptest.NewUnstartedServer(http.NotFoundHandler())
			secure.Config.ErrorLog = log.New(io.Discard, "", 0)
			secure.StartTLS()
			defer secure.Close()
			to := strings.TrimPrefix(secure.URL, "https://")
			_, err := store(t).Pull(t.Context(), "acme", host+"/web:1", through(to), nil)
			note(t, &out, name, err, strings.NewReplacer(to, "REGISTRY"))
		})
	}
	t.Run("no TLS", func(t *testing.T) {
		r := newShop(t)
		_, err := store(t).Pull(t.Context(), "acme", "registry.test/web:1", through(r.host), nil)
		note(t, &out, "no TLS", err, nil)
	})
	t.Run("no TLS in a private network", func(t *testing.T) {
		r := newShop(t)
		_, err := store(t).Pull(t.Context(), "acme", "10.1.2.3:5000/web:1", through(r.host), nil)
		note(t, &out, "no TLS in a private network", err, nil)
	})
	golden(t, "registry-errors.golden", out.String())
}

// deaf is a network that fails.
type deaf struct{ err error }

func (d deaf) RoundTrip(*http.Request) (*http.Response, error) { return nil, d.err }

// through leads all connections to one address.
func through(addr string) image.Remote {
	r := quick()
	tr := image.NewTransport(nil)
	dial := tr.DialContext
	tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) { return dial(ctx, network, addr) }
	r.Base = tr
	return r
}

// note writes down an error for people.
func note(t *testing.T, out *strings.Builder, name string, err error, hide *strings.Replacer) {
	t.Helper()
	var e *volant.Error
	if !errors.As(err, &e) || e.Remedy == "" {
		t.Errorf("error %v: not one for people with a cure", err)
		return
	}
	text := err.Error()
	if hide != nil {
		text = hide.Replace(text)
	}
	if strings.Contains(text, "secret-password") {
		t.Errorf("the password is in %q", text)
	}
	fmt.Fprintf(out, "%s (%v)\n    %s\n", name, e.Kind, strings.ReplaceAll(text, "; ", ";\n    "))
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (UPDATE=1 rewrites it):\n%s", path, diff)
	}
}

func TestRegistryPasswordsAndPlainHTTP(t *testing.T) {
	r, s := newShop(t), store(t)
	f, d := threeLayers(t)
	r.push(t, "web", "1", f, d)
	var seen []string
	var mu sync.Mutex
	r.misbehave(func(w http.ResponseWriter, q *http.Request) bool {
		if q.URL.Path == "/token" {
			u, p, _ := q.BasicAuth()
			if u != "ann" || p != "right" {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			_, _ = io.WriteString(w, `{"token":"tk"}`)
			return true
		}
		mu.Lock()
		seen = append(seen, q.Header.Get("Authorization"))
		mu.Unlock()
		if q.Header.Get("Authorization") != "Bearer tk" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+q.Host+`/token",service="shop"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	})
	remote := quick()
	remote.Auth = image.Auth{Username: "ann", Password: "right"}
	if _, err := s.Pull(t.Context(), "acme", r.host+"/web:1", remote, nil); err != nil {
		t.Fatal(err)
	}
	for _, a := range seen {
		if strings.HasPrefix(a, "Basic") {
			t.Errorf("the password was sent to the registry itself, which wanted a token: %q", seen)
		}
	}
	if text := fmt.Sprintf("%v %+v %#v", remote.Auth, remote.Auth, remote.Auth); strings.Contains(text, "right") {
		t.Errorf("the password prints: %s", text)
	}
}

func TestParseRef(t *testing.T) {
	zero := strings.Repeat("0", 64)
	for in, want := range map[string]string{
		"nginx":                      "docker.io/library/nginx:latest",
		"acme/web:1.2":               "docker.io/acme/web:1.2",
		"docker://ghcr.io/a/b/c:x":   "ghcr.io/a/b/c:x",
		"localhost:5000/web":         "localhost:5000/web:latest",
		"[::1]:5000/web":             "[::1]:5000/web:latest",
		"web@sha256:" + zero:         "docker.io/library/web@sha256:" + zero,
		"ghcr.io/a:1@sha256:" + zero: "ghcr.io/a:1@sha256:" + zero,
	} {
		got, err := image.ParseRef(in)
		if err != nil || got.String() != want {
			t.Errorf("ParseRef(%q) is %v, %v, want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "Nginx", "a b", "web@sha256:12", "web@sha512:" + zero, "web:", "http://x/y", "web:a:b", "../etc", strings.Repeat("a", 5000)} {
		if _, err := image.ParseRef(in); !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("ParseRef(%q): %v, want it refused", in, err)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"nginx", "a/b:c", "h:1/x@sha256:" + strings.Repeat("0", 64), "docker://x", "@", ":"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := image.ParseRef(s)
		if err != nil {
			return
		}
		again, err := image.ParseRef(r.String())
		if err != nil || again != r {
			t.Errorf("%q is %v, and that is %v, %v", s, r, again, err)
		}
	})
}

func TestDockerArchives(t *testing.T) {
	f, d := files(t, "", "", "one")
	two, _ := files(t, "", "", "two")
	type saved struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	// parts gives an image's files the names of `docker save`.
	all := map[string][]byte{}
	parts := func(f map[string][]byte, dir string, tags ...string) saved {
		s := saved{Config: dir + ".json", RepoTags: tags}
		for _, name := range slices.Sorted(maps.Keys(f)) {
			b := f[name]
			switch {
			case !strings.HasPrefix(name, "blobs/"):
			case bytes.Contains(b, []byte("diff_ids")):
				all[s.Config] = b
			case !bytes.Contains(b, []byte("mediaType")):
				all[dir+"/layer.tar"] = b
				s.Layers = append(s.Layers, dir+"/layer.tar")
			}
		}
		return s
	}
	list := []saved{parts(f, "1", "acme/web:1", "acme/web:latest"), parts(two, "2", "redis:7")}
	all["manifest.json"] = marshal(t, list)
	file := archive(t, all)
	for _, tt := range []struct{ ref, cmd string }{
		{"acme/web:1", "one"}, {"latest", "one"}, {"redis:7", "two"}, {"docker.io/library/redis:7", "two"},
	} {
		s := store(t)
		got, err := s.Import(t.Context(), "docker-archive:"+file+":"+tt.ref, nil)
		if err != nil {
			t.Errorf("%s: %v", tt.ref, err)
			continue
		}
		if got == d {
			t.Errorf("%s: the digest is that of another form of the image", tt.ref)
		}
		root, err := s.Rootfs(t.Context(), got)
		if err != nil {
			t.Errorf("%s: %v", tt.ref, err)
			continue
		}
		b, err := os.ReadFile(root.Path)
		if err != nil || !bytes.Contains(b, []byte(tt.cmd)) {
			t.Errorf("%s: the root disk has not the right content (%v)", tt.ref, err)
		}
	}
	for ref, want := range map[string]string{
		file:            "acme/web:1, acme/web:latest, redis:7",
		file + ":gone":  "it has: acme/web:1",
		file + "x:gone": "does not exist",
	} {
		_, err := image.OpenSource("docker-archive:" + ref)
		forPeople(t, err, want)
	}
	_, err := image.OpenSource("docker-archive:" + archive(t, f))
	forPeople(t, err, "oci-archive:")
	delete(all, "2/layer.tar")
	_, err = image.OpenSource("docker-archive:" + archive(t, all) + ":7")
	forPeople(t, err, "2/layer.tar", "missing")
}
