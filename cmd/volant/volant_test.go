package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// run executes the command line with args and returns what it printed and its error's text.
func run(t *testing.T, args ...string) (out, errText string) {
	t.Helper()
	root := newRoot(&globals{})
	var b bytes.Buffer
	root.SetOut(&b)
	root.SetErr(&b)
	root.SetArgs(args)
	if err := root.ExecuteContext(t.Context()); err != nil {
		errText = err.Error()
	}
	return b.String(), errText
}

func TestErrorsNameCauseAndCure(t *testing.T) {
	empty := t.TempDir()
	bad := filepath.Join(t.TempDir(), "bad.toml")
	if err := os.WriteFile(bad, []byte("region = \"ams\"\n[edge]\npool5 = \"x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"no server", []string{"apps", "list", "--data", empty}, []string{"no server has run", "volant server"}},
		{"a server that is away", []string{"apps", "list", "--addr", "127.0.0.1:1"}, []string{"no server answers", "--addr"}},
		{"an unknown key", []string{"server", "config", "--config", bad}, []string{"bad.toml:3:1", "edge.pool5", "volant server config"}},
		{"a missing file", []string{"server", "--config", empty + "/none"}, []string{"none", "no such file"}},
		{"a log level", []string{"server", "--data", empty, "--log-level", "loud"}, []string{"loud", "debug, info"}},
		{"which app", []string{"deploy", "--image", "oci:x", "--config", "/dev/null"}, []string{"which app"}},
		{"which image", []string{"deploy", "--app", "x", "--config", "/dev/null"}, []string{"which image"}},
		{"nothing to set", []string{"scale", "set", "web", "--data", empty}, []string{"nothing to set"}},
		{"cleanup asks", []string{"cleanup", "--data", empty}, []string{"--yes"}},
		{"an unknown verb", []string{"fly"}, []string{"unknown command"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, got := run(t, c.args...)
			for _, w := range c.want {
				if !strings.Contains(got, w) {
					t.Errorf("volant %s: error %q, want %q in it", strings.Join(c.args, " "), got, w)
				}
			}
		})
	}
}

func TestServerConfigPrintsItselfAgain(t *testing.T) {
	out, errText := run(t, "server", "config")
	if errText != "" {
		t.Fatal(errText)
	}
	file := filepath.Join(t.TempDir(), "server.toml")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	again, errText := run(t, "server", "config", "--config", file)
	if errText != "" || again != out {
		t.Errorf("what `server config` prints is not a config that prints the same: %s\n%s\n%s", errText, out, again)
	}
	if !strings.Contains(out, "127.77.0.0/16") {
		t.Errorf("the defaults are missing in %q", out)
	}
}

func TestCrashPointIsStrict(t *testing.T) {
	for _, s := range []string{"x", "x:during", "x:before:0", "x:before:y", "a:b:c:d"} {
		if _, err := crashPoint(s); err == nil {
			t.Errorf("VOLANT_CRASH=%q is taken, want an error", s)
		}
	}
	if f, err := crashPoint("boot.begin:after:2"); err != nil || f == nil {
		t.Errorf("a crash point is refused: %v", err)
	}
}

func TestEveryVerbHasHelp(t *testing.T) {
	for _, c := range newRoot(&globals{}).Commands() {
		if c.Short == "" {
			t.Errorf("volant %s has no short help", c.Name())
		}
		for _, sub := range c.Commands() {
			if sub.Short == "" {
				t.Errorf("volant %s %s has no short help", c.Name(), sub.Name())
			}
		}
	}
}
