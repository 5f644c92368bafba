package e2e_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest/need"
)

// skopeo is a stock client of registries.
func skopeo(t *testing.T, args ...string) string {
	t.Helper()
	need.Tool(t, "machine", "skopeo")
	cmd := exec.Command("skopeo", append([]string{"--insecure-policy"}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// private is a registry on this machine that wants ann's password.
func private(t *testing.T) string {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "ann" || password != "right" {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// login writes Docker's file of credentials into a home of the test's own.
func login(t *testing.T, host, user, password string) {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", filepath.Join(home, ".docker"))
	if err := os.Mkdir(filepath.Join(home, ".docker"), 0o700); err != nil {
		t.Fatal(err)
	}
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	text := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, auth)
	if err := os.WriteFile(filepath.Join(home, ".docker", "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Images reach machines out of a registry with a password, and by the server's own registry, which a stock
// client pushes to and pulls from.
func TestImagesOfRegistries(t *testing.T) {
	s := common(t)
	file := archive(t, "testserver")
	addr, err := s.APIAddr()
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(s.Data, "root.token"))
	if err != nil {
		t.Fatal(err)
	}
	creds := "x:" + strings.TrimSpace(string(token))
	own := "docker://" + addr.String() + "/web:1"
	skopeo(t, "copy", "--dest-tls-verify=false", "--dest-creds", creds, file, own)
	digest := skopeo(t, "inspect", "--tls-verify=false", "--creds", creds, "--format", "{{.Digest}}", own)
	if !volant.Digest(digest).Valid() {
		t.Fatalf("skopeo inspect says %q", digest)
	}
	back := filepath.Join(t.TempDir(), "back.tar")
	skopeo(t, "copy", "--src-tls-verify=false", "--src-creds", creds, own, "docker-archive:"+back+":back:1")
	if out, err := s.Volant(t.Context(), "image", "push", "docker-archive:"+back+":back:1", "web:2"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := s.Volant(t.Context(), "image", "list")
	if err != nil || !strings.Contains(out, "personal/web") || !strings.Contains(out, digest[:19]) {
		t.Errorf("image list: %v\n%s", err, out)
	}
	for i, ref := range []string{"registry.volant/web:1", addr.String() + "/web:2"} {
		serves(t, fmt.Sprintf("own-%d", i), ref)
	}

	host := private(t)
	skopeo(t, "copy", "--dest-tls-verify=false", "--dest-creds", "ann:right", file, "docker://"+host+"/team/web:1")
	login(t, host, "ann", "wrong")
	if out, err := s.Volant(t.Context(), "image", "push", host+"/team/web:1", "web:3"); err == nil || !strings.Contains(out+err.Error(), "does not take the credentials of ann") {
		t.Errorf("a wrong password: %v\n%s", err, out)
	}
	login(t, host, "ann", "right")
	serves(t, "private", host+"/team/web:1")

	// The API takes a reference as well; root's server may pull from its own machine, with credentials of its own.
	text := fmt.Sprintf(`{"auths":{%q:{"username":"ann","password":"right"}}}`, host)
	if err := os.WriteFile(filepath.Join(s.Data, "registries.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := s.API.CreateMachine(t.Context(), "private", api.CreateMachine{Config: volant.MachineConfig{Image: host + "/team/web:1"}, SkipLaunch: true})
	if err != nil {
		t.Fatal(err)
	}
	if want := (api.ImageRef{Registry: host, Repository: "team/web", Tag: "1", Digest: digest}); m.ImageRef != want {
		t.Errorf("image_ref is %+v, want %+v", m.ImageRef, want)
	}
	for _, app := range []string{"own-0", "own-1", "private"} {
		if err := s.API.DestroyApp(t.Context(), app, true); err != nil {
			t.Error(err)
		}
	}
}

// serves deploys an image of the test server and connects to it.
func serves(t *testing.T, app, ref string) {
	t.Helper()
	s := common(t)
	ip, err := s.Deploy(t.Context(), app, ref, config(app, 8080, "max = 1"))
	if err != nil {
		t.Fatalf("deploy %s: %v", ref, s.WithLog(err))
	}
	ask(t, net.JoinHostPort(ip, "8080"), "count")
}
