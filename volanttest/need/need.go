// Package need lets a test say what it needs of the machine it runs on. Where the need is not met
// the test is skipped, unless VOLANT_REQUIRE names it: then it fails, so that CI never skips in silence.
package need

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Root needs to be root, for taps, rules and namespaces. VOLANT_REQUIRE word: root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Unmet(t, "root", "not root")
	}
}

// Machine needs QEMU, a guest kernel's making and root: real microVMs. VOLANT_REQUIRE word: machine.
func Machine(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("real microVMs are left out of -short")
	}
	if os.Geteuid() != 0 {
		Unmet(t, "machine", "not root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		Unmet(t, "machine", err.Error())
	}
	Tool(t, "machine", "qemu-system-x86_64")
}

// Lab needs root and network namespaces. VOLANT_REQUIRE word: lab.
func Lab(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Unmet(t, "lab", "not root")
	}
	Tool(t, "lab", "ip")
}

// Tool needs a program in PATH, as part of the given need.
func Tool(t testing.TB, word, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		Unmet(t, word, program+" is not installed")
	}
}

// Cache is a directory for what is costly to make: of the build that VOLANT_BUILD names, as `make test` sets
// it, else of this user.
func Cache(t testing.TB, name string) string {
	t.Helper()
	dir := filepath.Join(os.Getenv("VOLANT_BUILD"), name)
	if os.Getenv("VOLANT_BUILD") == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			cache = os.TempDir()
		}
		dir = filepath.Join(cache, "volant-test", name)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Unmet skips the test, or fails it where VOLANT_REQUIRE names the need.
func Unmet(t testing.TB, word, why string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("VOLANT_REQUIRE"), ","), word) {
		t.Fatalf("VOLANT_REQUIRE asks for %s: %s", word, why)
	}
	t.Skipf("needs %s: %s", word, why)
}
