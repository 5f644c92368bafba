package packaging_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/volant-edge/volant/node"
	"github.com/volant-edge/volant/volanttest/need"
)

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The configuration that the package brings names keys there are, with the values they have without it.
func TestConfigurationIsTheDefault(t *testing.T) {
	var got node.Config
	dec := toml.NewDecoder(strings.NewReader(read(t, "server.toml"))).DisallowUnknownFields()
	if err := dec.Decode(&got); err != nil {
		t.Fatal(err)
	}
	got = node.WithDefaults(got)
	want := node.WithDefaults(node.Config{})
	got.Image.Insecure, got.Image.Private = nil, nil // empty lists
	show := func(c node.Config) string {
		b, err := toml.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if diff := cmp.Diff(show(want), show(got)); diff != "" {
		t.Error(diff)
	}
}

// The unit must not end what outlives the server, nor take from it what machines need.
func TestUnit(t *testing.T) {
	unit := read(t, "volant.service")
	for _, want := range []string{"KillMode=process", "Delegate=yes", "Restart=always", "SendSIGKILL=no", "TasksMax=infinity", "WantedBy=multi-user.target"} {
		if !regexp.MustCompile(`(?m)^` + want + `$`).MatchString(unit) {
			t.Errorf("the unit has no line %s", want)
		}
	}
	for _, broken := range []string{"ProtectControlGroups", "PrivateDevices", "PrivateNetwork", "ProtectClock", "MemoryDenyWriteExecute", "RestrictNamespaces", "DevicePolicy", "ProtectKernelTunables", "User="} {
		if regexp.MustCompile(`(?m)^` + broken).MatchString(unit) {
			t.Errorf("the unit has %s, with which machines do not run", broken)
		}
	}
}

func TestScriptsParse(t *testing.T) {
	for _, s := range []string{"postinst", "prerm", "postrm"} {
		if out, err := exec.Command("sh", "-n", s).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", s, err, out)
		}
		if !strings.Contains(read(t, s), "set -e\n") {
			t.Errorf("%s goes on after an error", s)
		}
	}
}

// built is the package that `make deb` made.
func built(t *testing.T) string {
	t.Helper()
	need.Root(t)
	need.Tool(t, "package", "dpkg-deb")
	deb := os.Getenv("VOLANT_DEB")
	if deb == "" {
		need.Unmet(t, "package", "VOLANT_DEB names no package: see `make deb-test`")
	}
	return deb
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestPackageContents(t *testing.T) {
	deb := built(t)
	list := output(t, "dpkg-deb", "-c", deb)
	for _, want := range []string{
		`-rwxr-xr-x root/root +\d+ \S+ \S+ \./usr/bin/volant\n`,
		`-rw-r--r-- root/root +\d+ \S+ \S+ \./usr/lib/systemd/system/volant\.service\n`,
		`-rw-r--r-- root/root +\d+ \S+ \S+ \./etc/volant/server\.toml\n`,
		`\./usr/share/man/man1/volant\.1\.gz\n`, `\./usr/share/man/man1/volant-deploy\.1\.gz\n`, `\./usr/share/man/man1/volant-image-push\.1\.gz\n`,
		`\./usr/share/bash-completion/completions/volant\n`, `\./usr/share/zsh/vendor-completions/_volant\n`,
		`\./usr/share/fish/vendor_completions\.d/volant\.fish\n`, `\./usr/share/doc/volant/copyright\n`,
	} {
		if !regexp.MustCompile(want).MatchString(list) {
			t.Errorf("nothing in the package is %s", want)
		}
	}
	if strings.Contains(list, "/home/") || strings.Contains(list, "/root/") {
		t.Errorf("files of a builder are in it:\n%s", list)
	}
	info := output(t, "dpkg-deb", "-I", deb)
	for _, want := range []string{"Package: volant\n", "Architecture: amd64\n", "Depends: qemu-system-x86, e2fsprogs, ca-certificates\n"} {
		if !strings.Contains(info, want) {
			t.Errorf("the package's information has no %q:\n%s", want, info)
		}
	}
	if got := strings.TrimSpace(output(t, "dpkg-deb", "-I", deb, "conffiles")); got != "/etc/volant/server.toml" {
		t.Errorf("files of configuration: %q", got)
	}
}

// root is a directory below which the package is installed, with a package database of its own.
type root struct{ dir string }

func newRoot(t *testing.T) root {
	t.Helper()
	r := root{t.TempDir()}
	for _, d := range []string{"info", "updates"} {
		if err := os.MkdirAll(r.path("var/lib/dpkg", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(r.path("var/lib/dpkg/status"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r root) path(elem ...string) string { return filepath.Join(append([]string{r.dir}, elem...)...) }

// dpkg works on the root alone; the dependencies are those of this machine.
func (r root) dpkg(t *testing.T, args ...string) {
	t.Helper()
	output(t, "dpkg", append([]string{"--root=" + r.dir, "--log=/dev/null", "--force-depends", "--force-script-chrootless", "--force-confold"}, args...)...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func TestInstallRunUpgradeRemovePurge(t *testing.T) {
	deb := built(t)
	r := newRoot(t)
	r.dpkg(t, "-i", deb)
	if st, err := os.Stat(r.path("var/lib/volant")); err != nil || st.Mode().Perm() != 0o700 {
		t.Fatalf("the data directory: %v, %v; want it there with mode 0700", st, err)
	}
	r.verify(t)
	r.serve(t)
	conf := read(t, r.path("etc/volant/server.toml"))
	r.dpkg(t, "-i", deb)
	if got := read(t, r.path("etc/volant/server.toml")); got != conf {
		t.Error("an upgrade changed the administrator's configuration")
	}
	r.dpkg(t, "-r", "volant")
	if exists(r.path("usr/bin/volant")) || !exists(r.path("var/lib/volant/FORMAT")) || !exists(r.path("etc/volant/server.toml")) {
		t.Error("a removal leaves the program, or takes the data or the configuration")
	}
	r.dpkg(t, "-P", "volant")
	if exists(r.path("var/lib/volant")) || exists(r.path("etc/volant")) {
		t.Error("a purge leaves the data or the configuration")
	}
}

// verify asks systemd about the unit.
func (r root) verify(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Log("systemd-analyze is not here: the unit is not verified")
		return
	}
	unit := filepath.Join(t.TempDir(), "volant.service")
	text := strings.ReplaceAll(read(t, r.path("usr/lib/systemd/system/volant.service")), "/usr/bin/volant", r.path("usr/bin/volant"))
	if err := os.WriteFile(unit, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// serve runs what the unit runs, until the API answers, and ends it and all that it made.
func (r root) serve(t *testing.T) {
	t.Helper()
	n := os.Getpid() % 200
	conf := read(t, r.path("etc/volant/server.toml"))
	for from, to := range map[string]string{
		`"/var/lib/volant"`: fmt.Sprintf("%q", r.path("var/lib/volant")), `"127.0.0.1:4280"`: `"127.0.0.1:0"`,
		`"127.77.0.0/16"`: fmt.Sprintf(`"127.%d.9.0/24"`, 20+n%50), `"fd77::/64"`: fmt.Sprintf(`"fd77:0:0:9%02x::/64"`, n),
	} {
		if !strings.Contains(conf, from) {
			t.Fatalf("the configuration has no %s", from)
		}
		conf = strings.ReplaceAll(conf, from, to)
	}
	conf += fmt.Sprintf("\n[host]\nengine = \"fake\"\nfake_backend = \"127.0.0.1\"\nprivate4 = \"172.27.%d.0/24\"\n", n)
	if err := os.WriteFile(r.path("etc/volant/server.toml"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^ExecStart=(.*)$`).FindStringSubmatch(read(t, r.path("usr/lib/systemd/system/volant.service")))
	if line == nil {
		t.Fatal("the unit starts nothing")
	}
	args := strings.Fields(line[1])
	for i, a := range args {
		if strings.HasPrefix(a, "/") {
			args[i] = r.path(a)
		}
	}
	var log bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() { // once more, should something have gone wrong on the way
		_ = cmd.Process.Kill()
		_ = exec.Command(r.path("usr/bin/volant"), "cleanup", "--yes", "--data", r.path("var/lib/volant")).Run()
	})
	if !slices.Contains(args, "server") || !r.answers(t, exited) {
		t.Fatalf("%s: no API\n%s", strings.Join(args, " "), log.String())
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-exited; err != nil {
		t.Errorf("the server ends on SIGTERM with %v\n%s", err, log.String())
	}
	output(t, r.path("usr/bin/volant"), "cleanup", "--yes", "--data", r.path("var/lib/volant"))
}

func (r root) answers(t *testing.T, exited <-chan error) bool {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		select {
		case err := <-exited:
			t.Logf("the server ended: %v", err)
			return false
		case <-time.After(50 * time.Millisecond):
		}
		addr, err := os.ReadFile(r.path("var/lib/volant/api.addr"))
		if err != nil {
			continue
		}
		res, err := http.Get("http://" + strings.TrimSpace(string(addr)) + "/v1/health")
		if err != nil {
			continue
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	}
	return false
}
