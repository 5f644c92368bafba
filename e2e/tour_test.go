package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestReadme runs the lines of the README's first app as they are written, one shell for each. The image comes
// from a file in place of the Internet, and the app's address is that of this server's pool.
func TestReadme(t *testing.T) {
	lines := readmeLines(t)
	s := start(t)
	dir, bin := t.TempDir(), t.TempDir()
	stub(t, filepath.Join(bin, "skopeo"), `cp "`+built(t, "images", "nginx.tar")+`" "${3#oci-archive:}"`)
	stub(t, filepath.Join(bin, "volant"), `exec "`+s.Bin+`" "$@"`)
	ip := ""                   // the app's, once it has one
	want := map[string]string{ // what some lines print, beside their exit code 0
		"volant launch": "Release 1 of shop is complete.",
		"curl":          "html",
		"volant status": "started",
		"volant scale":  "min",
		"volant deploy": "Release 2 of shop is complete.",
		"volant why":    "wake",
	}
	for _, line := range lines {
		cmd := exec.CommandContext(t.Context(), "sh", "-ec", strings.ReplaceAll(line, "127.77.0.1", ip))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "VOLANT_DATA="+s.Data)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		t.Logf("$ %s\n%s", line, out)
		for begin, text := range want {
			if strings.HasPrefix(line, begin) {
				delete(want, begin)
				if !strings.Contains(string(out), text) {
					t.Errorf("%s: printed\n%s\nwant %q in it", line, out, text)
				}
			}
		}
		if ip == "" && strings.HasPrefix(line, "volant launch") {
			a, err := s.API.App(t.Context(), "shop")
			if err != nil || len(a.Addresses) == 0 {
				t.Fatalf("app %+v, %v", a, err)
			}
			ip = a.Addresses[0]
		}
	}
	for begin := range want {
		t.Errorf("the README has no line %q any more", begin)
	}
}

var readmeBlock = regexp.MustCompile("(?s)\n## Your first app\n.*?\n```sh\n(.*?)```")

func readmeLines(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	m := readmeBlock.FindSubmatch(b)
	if m == nil {
		t.Fatal("README.md has no commands under \"Your first app\"")
	}
	return strings.Split(strings.TrimSpace(string(m[1])), "\n")
}

func stub(t *testing.T, path, script string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
}
