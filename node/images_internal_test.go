package node

import (
	"bytes"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/image"
)

// private is a registry on this machine that wants a password, with the image web:1 in it.
func private(t *testing.T, user, password string) (host string) {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	open := true
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); !open && (u != user || p != password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	host = strings.TrimPrefix(srv.URL, "http://")
	img, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c.OS, c.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(host + "/web:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	open = false
	return host
}

func testImages(t *testing.T, cfg ImageConfig) *images {
	t.Helper()
	dir := t.TempDir()
	s, err := image.Open(filepath.Join(dir, "images"), image.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return newImages(s, cfg, dir)
}

func TestServerPullsForOthersFromOutsideOnly(t *testing.T) {
	host := private(t, "ann", "right")
	s := testImages(t, ImageConfig{})
	p := control.Pull{Ref: host + "/web:1", Org: "acme", Auth: api.RegistryAuth{Username: "ann", Password: "right"}}
	_, err := s.Resolve(t.Context(), p, nil)
	if !errors.Is(err, volant.ErrForbidden) || !strings.Contains(err.Error(), "image.private_registries") {
		t.Errorf("a registry on the server's own address: %v, want it refused", err)
	}
	p.Anywhere = true
	d, err := s.Resolve(t.Context(), p, nil)
	if err != nil {
		t.Errorf("the operator's pull: %v", err)
	}
	if !s.Has("acme", d) || s.Has("other", d) {
		t.Errorf("acme has it %v, other %v, want true and false", s.Has("acme", d), s.Has("other", d))
	}
	s = testImages(t, ImageConfig{Private: []string{host}})
	p.Anywhere = false
	if _, err := s.Resolve(t.Context(), p, nil); err != nil {
		t.Errorf("a registry that the operator lists: %v", err)
	}
}

func TestAddressesOutside(t *testing.T) {
	for addr, want := range map[string]bool{
		"93.184.216.34": true, "2606:2800:220:1::1": true,
		"127.0.0.1": false, "::1": false, "10.0.0.1": false, "192.168.1.1": false, "172.27.0.5": false, "169.254.169.254": false,
		"fe80::1": false, "fd77::1": false, "100.64.0.1": false, "0.0.0.0": false, "::": false, "224.0.0.1": false, "255.255.255.255": false,
	} {
		if err := outside(netip.AddrPortFrom(netip.MustParseAddr(addr), 443)); (err == nil) != want {
			t.Errorf("%s: %v, want allowed %v", addr, err, want)
		}
	}
}

func TestCredentialsOfTheOperator(t *testing.T) {
	host := private(t, "ann", "right")
	s := testImages(t, ImageConfig{Private: []string{host}})
	p := control.Pull{Ref: host + "/web:1", Org: "acme"}
	if _, err := s.Resolve(t.Context(), p, nil); !errors.Is(err, volant.ErrForbidden) {
		t.Errorf("without credentials: %v, want it refused", err)
	}
	write := func(file, user, password string) {
		path := filepath.Join(s.data, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(`{"auths":{"`+host+`":{"username":"`+user+`","password":"`+password+`"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("registries.json", "ann", "right")
	if _, err := s.Resolve(t.Context(), p, nil); err != nil {
		t.Errorf("with registries.json: %v", err)
	}
	write("registries/other.json", "ann", "wrong")
	if _, err := s.Resolve(t.Context(), p, nil); err != nil {
		t.Errorf("with another organization's file: %v", err)
	}
	write("registries/acme.json", "ann", "wrong")
	if _, err := s.Resolve(t.Context(), p, nil); !errors.Is(err, volant.ErrForbidden) {
		t.Errorf("with a wrong password of its own: %v, want it refused", err)
	}
	if err := os.WriteFile(filepath.Join(s.data, "registries.json"), []byte("["), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Org = "other-still"
	if _, err := s.Resolve(t.Context(), p, nil); !errors.Is(err, volant.ErrUnavailable) {
		t.Errorf("with a file that cannot be read: %v", err)
	}
	a, err := s.credentials("../../etc", host)
	if a != (image.Auth{}) || err == nil {
		t.Errorf("an organization with a path for a name reads %v, %v", a, err)
	}
}

func TestQuotaOfAnOrganization(t *testing.T) {
	s := testImages(t, ImageConfig{QuotaMB: 1})
	put := func(org volant.OrgID, fill byte) error {
		b := bytes.Repeat([]byte{fill}, 700<<10)
		return s.Put(t.Context(), org, image.DigestOf(b), bytes.NewReader(b))
	}
	for _, fill := range []byte{1, 2} { // the second goes over it, which is seen then
		if err := put("acme", fill); err != nil {
			t.Fatal(err)
		}
	}
	if err := put("acme", 3); !errors.Is(err, volant.ErrNoCapacity) {
		t.Errorf("over the quota: %v, want it refused", err)
	}
	if _, err := s.Begin("acme"); !errors.Is(err, volant.ErrNoCapacity) {
		t.Errorf("an upload over the quota: %v, want it refused", err)
	}
	if err := put("acme", 1); err != nil {
		t.Errorf("what is there already: %v", err)
	}
	if err := put("other", 3); err != nil {
		t.Errorf("another organization: %v", err)
	}
	if err := put(image.AnyOrg, 4); err != nil {
		t.Errorf("root: %v", err)
	}
	// What nothing names, and is older than the grace time, makes room.
	s.keep = func(volant.Digest) bool { return false }
	old := time.Now().Add(-2 * time.Hour)
	marks, err := filepath.Glob(filepath.Join(s.data, "images", "orgs", "acme", "*"))
	if err != nil || len(marks) != 2 {
		t.Fatalf("marks: %v, %v", marks, err)
	}
	for _, m := range marks {
		if err := os.Chtimes(m, old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := put("acme", 3); err != nil {
		t.Errorf("after pruning: %v", err)
	}
}

func TestNamesOfTheOwnRegistry(t *testing.T) {
	s := testImages(t, ImageConfig{})
	s.listen = "10.0.0.1:4280"
	for name, want := range map[string]bool{
		"registry.volant": true, "10.0.0.1:4280": true, "localhost:4280": true, "127.0.0.1:4280": true, "[::1]:4280": true,
		"localhost:5000": false, "localhost": false, "ghcr.io": false, "10.0.0.1": false,
	} {
		if got := s.isOwn(name); got != want {
			t.Errorf("isOwn(%q) is %v, want %v", name, got, want)
		}
	}
	s.tag = func(org volant.OrgID, repository, tag string) (*volant.Image, bool) {
		b := []byte(`{}`)
		return &volant.Image{Digest: image.DigestOf(b)}, org == "acme" && repository == "web" && tag == "1"
	}
	for ref, p := range map[string]control.Pull{
		"another organization's": {Ref: "registry.volant/acme/web:1", Org: "evil"},
		"an unknown tag":         {Ref: "registry.volant/web:2", Org: "acme"},
		"an unknown digest":      {Ref: "registry.volant/web@" + string(image.DigestOf(nil)), Org: "acme"},
	} {
		if _, err := s.Resolve(t.Context(), p, nil); !errors.Is(err, volant.ErrNotFound) || !strings.Contains(err.Error(), "volant image list") {
			t.Errorf("%s: %v, want it not found", ref, err)
		}
	}
}
