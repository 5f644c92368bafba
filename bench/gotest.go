package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// nobody's IDs.
const nobody = "65534"

// goTest times the tests of the whole repository as nobody, in a network namespace with a loopback only,
// after a run that filled the build cache and ran no test.
func goTest(ctx context.Context, b *bench) (rows []Row, err error) {
	root, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	err = temp(func(dir string) error {
		sand, err := newSandbox(ctx, root, dir)
		if err != nil {
			return err
		}
		if out, err := sand.run(ctx, "go", "test", "-short", "-run", "^$", "./..."); err != nil {
			return fmt.Errorf("build the tests: %w\n%s", err, out)
		}
		begun := time.Now()
		out, err := sand.run(ctx, "go", "test", "-short", "-count", "1", "./...")
		took := time.Since(begun)
		failed := strings.Count(out, "\nFAIL\t")
		note := fmt.Sprintf("go test -short -count 1 ./... of %d packages", strings.Count(out, "\nok ")+failed)
		if err != nil {
			if failed == 0 {
				return fmt.Errorf("go test: %w\n%s", err, out)
			}
			note += fmt.Sprintf("; %d FAILED:\n%s", failed, failures(out))
		}
		r := Row{Name: "go_test", Value: took.Seconds(), Unit: "s", Note: note}.atMost(60)
		r.OK = r.OK && failed == 0
		rows = []Row{r}
		return nil
	})
	return rows, err
}

// failures are the lines that tell what failed.
func failures(out string) string {
	var keep []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "FAIL") || strings.Contains(line, "panic:") {
			keep = append(keep, strings.TrimSpace(line))
		}
	}
	return strings.Join(keep[:min(len(keep), 20)], "\n")
}

// sandbox is a place where nobody can build and test: source and modules are bound into it.
type sandbox struct{ root, modules, dir string }

func newSandbox(ctx context.Context, root, dir string) (*sandbox, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMODCACHE").Output()
	if err != nil {
		return nil, fmt.Errorf("go env: %w", err)
	}
	s := &sandbox{root, strings.TrimSpace(string(out)), dir}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	for _, d := range []string{"src", "mod", "cache", "tmp", "home"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{"cache", "tmp", "home"} {
		if err := os.Chown(filepath.Join(dir, d), 65534, 65534); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// run runs a command as nobody in mount and network namespaces of its own, which end with it.
func (s *sandbox) run(ctx context.Context, args ...string) (string, error) {
	script := strings.Join([]string{
		"set -e",
		"mount --bind " + s.root + " " + s.dir + "/src",
		"mount --bind " + s.modules + " " + s.dir + "/mod",
		"ip link set lo up",
		"cd " + s.dir + "/src",
		`exec setpriv --reuid ` + nobody + ` --regid ` + nobody + ` --clear-groups env -i PATH="$PATH" HOME=` + s.dir + `/home GOMODCACHE=` + s.dir +
			`/mod GOCACHE=` + s.dir + `/cache GOTMPDIR=` + s.dir + `/tmp TMPDIR=` + s.dir + `/tmp GOFLAGS=-buildvcs=false GOPROXY=off CGO_ENABLED=0 "$@"`,
	}, "\n")
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "--net", "sh", "-c", script, "sh"}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
