package debimage

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/volanttest/need"
)

func TestParseURIs(t *testing.T) {
	got, err := parseURIs([]byte(`Reading package lists...
'http://deb.debian.org/debian/pool/main/r/redis/redis-server_7.0.15-1_amd64.deb' redis-server_5%3a7.0.15-1_amd64.deb 73908 MD5Sum:x
'http://deb.debian.org/debian/pool/main/l/lzf/liblzf1_3.6-3_amd64.deb' liblzf1_3.6-3_amd64.deb 10192 MD5Sum:y
'http://deb.debian.org/debian/pool/main/a/adduser/adduser_3.134_all.deb' adduser_3.134_all.deb 183272 MD5Sum:z
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []deb{
		{Name: "liblzf1", Version: "3.6-3", File: "liblzf1_3.6-3_amd64.deb", Size: 10192},
		{Name: "redis-server", Version: "5:7.0.15-1", File: "redis-server_5%3a7.0.15-1_amd64.deb", Size: 73908},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("parseURIs() (-want +got):\n%s", diff)
	}
	if _, err := parseURIs([]byte("'u' ../../x_1_all.deb 5 h")); err == nil {
		t.Error("a file name with a slash was taken")
	}
}

func TestPruneKeepsWhatIsNeeded(t *testing.T) {
	all := []pkg{
		{name: "app", needs: []string{"liba.so.1"}},
		{name: "liba", needs: []string{"libb.so.2"}, offers: map[string]bool{"liba.so.1": true}},
		{name: "libb", offers: map[string]bool{"libb.so.2": true}},
		{name: "libc-of-something-left-out", needs: []string{"nowhere.so"}, offers: map[string]bool{"libc.so": true}},
	}
	kept, err := prune(all, map[string]bool{"app": true})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range kept {
		names = append(names, p.name)
	}
	if diff := cmp.Diff([]string{"app", "liba", "libb"}, names); diff != "" {
		t.Errorf("kept (-want +got):\n%s", diff)
	}
	if _, err := prune(all[:2], map[string]bool{"app": true}); err == nil || !strings.Contains(err.Error(), "libb.so.2") {
		t.Errorf("prune() without a needed library: %v", err)
	}
}

func TestLayerIsSortedAndHasLinksLast(t *testing.T) {
	lay := tree{
		"b": text(0o644, "b"), "a": {Header: tar.Header{Typeflag: tar.TypeLink, Linkname: "b"}}, "d/e": text(0o644, ""), "d": dir(0o700, 1, 2),
	}
	stream, err := lay.tar()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for tr := tar.NewReader(bytes.NewReader(stream)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %o %d:%d", h.Name, h.Mode, h.Uid, h.Gid))
	}
	want := []string{"b 644 0:0", "d/ 700 1:2", "d/e 644 0:0", "a 0 0:0"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("layer (-want +got):\n%s", diff)
	}
}

func TestTreeRefusesAFileOfTwoPackages(t *testing.T) {
	a := tree{"d": dir(0o755, 0, 0), "f": text(0o644, "")}
	if err := a.add(tree{"d": dir(0o700, 0, 0)}); err != nil {
		t.Errorf("a directory of two packages: %v", err)
	}
	if err := a.add(tree{"f": text(0o644, "")}); err == nil {
		t.Error("a file of two packages was taken")
	}
}

func TestKeysAreReadByOthers(t *testing.T) {
	got, err := ssh.ParseRawPrivateKey([]byte(privateKey(ClientKey())))
	if err != nil {
		t.Fatal(err)
	}
	if k, ok := got.(*ed25519.PrivateKey); !ok || !k.Equal(ClientKey()) {
		t.Errorf("private key %T is another", got)
	}
	signer, err := ssh.NewSignerFromKey(ClientKey())
	if err != nil {
		t.Fatal(err)
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey([]byte(publicKey(ClientKey())))
	if err != nil || !bytes.Equal(pub.Marshal(), signer.PublicKey().Marshal()) {
		t.Errorf("public key is another, or %v", err)
	}
	if ClientKey().Equal(HostKey()) {
		t.Error("host and client have one key")
	}
}

func TestUnknownImageNamesTheKnown(t *testing.T) {
	_, _, err := Builder{Cache: t.TempDir()}.Image(t.Context(), "apache")
	if err == nil || !strings.Contains(err.Error(), "nginx") {
		t.Errorf("error %v", err)
	}
}

// TestTestserverImage needs only Go: the image without Debian packages.
func TestTestserverImage(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles a program")
	}
	b := Builder{Cache: t.TempDir()}
	file, digest, err := b.Image(t.Context(), "testserver")
	if err != nil {
		t.Fatal(err)
	}
	again, digest2, err := b.Image(t.Context(), "testserver")
	if err != nil || again != file || digest2 != digest {
		t.Errorf("the second time: %s %s, %v; want %s %s", again, digest2, err, file, digest)
	}
	r := convert(t, file)
	if !slices.Equal(r.Config.Cmd, []string{"/usr/bin/testserver"}) || r.Digest != digest {
		t.Errorf("root disk %+v", r)
	}
}

func convert(t *testing.T, file string) image.Rootfs {
	t.Helper()
	s, err := image.Open(t.TempDir(), image.Config{})
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Import(t.Context(), "oci-archive:"+file, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Rootfs(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestServersStart runs each Debian server in its image, in namespaces of its own, and speaks with it.
func TestServersStart(t *testing.T) {
	need.Machine(t)
	for _, program := range []string{"apt-get", "dpkg-deb", "fsck.erofs", "unshare"} {
		need.Tool(t, "machine", program)
	}
	tests := map[string]struct{ ask, want string }{
		"nginx":     {`wget -qO- http://127.0.0.1:8080/`, "It flies."},
		"redis":     {`(echo PING; sleep 0.2) | nc 127.0.0.1 6379`, "+PONG"},
		"sshd":      {`sleep 0.2 | nc 127.0.0.1 22`, "SSH-2.0-OpenSSH"},
		"mosquitto": {`(printf '\020\014\000\004MQTT\004\002\000\074\000\000'; sleep 0.2) | nc 127.0.0.1 1883 | grep -q ' ' && echo connected`, "connected"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file, digest, err := Builder{Cache: need.Cache(t, "debs"), Say: t.Logf}.Image(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			r := convert(t, file)
			if r.Digest != digest || r.Bytes > 60<<20 {
				t.Errorf("root disk of %s has %d bytes, want %s with at most 60 MiB", r.Digest, r.Bytes, digest)
			}
			root := filepath.Join(t.TempDir(), "root")
			if out, err := exec.Command("fsck.erofs", "--extract="+root, r.Path).CombinedOutput(); err != nil {
				t.Fatalf("fsck.erofs: %v\n%s", err, out)
			}
			out := runIn(t, root, r.Config.Env, strings.Join(r.Config.Cmd, " "), tt.ask)
			if !strings.Contains(out, tt.want) {
				t.Errorf("%s: %q is not in:\n%s", tt.ask, tt.want, out)
			}
		})
	}
}

// runIn starts a server in a root of its own and asks it until it answers.
func runIn(t *testing.T, root string, env []string, server, ask string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	inside := fmt.Sprintf(`ifconfig lo up; (%s) & i=0; while [ $i -lt 100 ]; do i=$((i+1)); { %s; } && exit; sleep 0.1; done`, server, ask)
	script := `mount --bind /dev "$0/dev" && mount -t proc proc "$0/proc" && exec chroot "$0" /bin/sh -c "$1"`
	cmd := exec.CommandContext(ctx, "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, root, inside)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Logf("%s: %v", server, err)
	}
	return string(out)
}

func TestKeyChangesWithWhatGoesIn(t *testing.T) {
	p := parts{debs: []string{"/x/a_1_all.deb"}}
	first, err := p.key(nginx())
	if err != nil {
		t.Fatal(err)
	}
	p.debs = []string{"/x/a_2_all.deb"}
	second, err := p.key(nginx())
	if err != nil {
		t.Fatal(err)
	}
	third, err := p.key(redis())
	if err != nil {
		t.Fatal(err)
	}
	if first == second || second == third {
		t.Errorf("keys %s, %s, %s", first, second, third)
	}
}

func TestPackageListIsKept(t *testing.T) {
	cache := t.TempDir()
	if err := os.Mkdir(filepath.Join(cache, "debs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cache, "debs", "app_1_all.deb"), []byte("deb"), 0o644); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal([]deb{{Name: "app", Version: "1", File: "app_1_all.deb", Size: 3}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cache, "img.packages.json"), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", "") // neither apt nor a network is needed
	b := Builder{Cache: cache, Say: t.Logf}
	for range 2 {
		got, err := b.packages(t.Context(), "img", []string{"app"})
		if err != nil || len(got) != 1 {
			t.Fatalf("packages() = %v, %v", got, err)
		}
	}
	if err := os.WriteFile(filepath.Join(cache, "debs", "app_1_all.deb"), []byte("dab"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := b.packages(t.Context(), "img", []string{"app"}); err == nil {
		t.Error("a damaged package was taken from the cache")
	}
}
