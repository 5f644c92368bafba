package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/volant-edge/volant/volanttest/live"
	"github.com/volant-edge/volant/volanttest/testserver"
)

// While a server runs, another one on its data directory and a cleanup are refused, with its process ID and what
// to do. Nothing of it is touched.
func TestDataDirectoryHasOneServer(t *testing.T) {
	t.Parallel()
	s := common(t)
	addr := deploy(t, s, "one", "testserver", 8080, "min = 0")
	held, err := testserver.StartEcho(dial(t, addr), 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"server", "--data", s.Data, "--listen", "127.0.0.1:0"}, {"cleanup", "--yes"}, {"control", "restore"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		out, err := s.Volant(ctx, args...)
		cancel()
		if want := fmt.Sprintf("process %d", s.PID()); err == nil || !strings.Contains(out, want) || !strings.Contains(out, "stop it first") {
			t.Errorf("volant %s beside a server: %v, want %q and a remedy in it", args[0], err, want)
		}
	}
	if err := held.Exchange(1000); err != nil {
		t.Error(err)
	}
	ask(t, addr, "count")
}

// After everything was killed, a cleanup takes all away that was made outside of the data directory, as often as
// it is called. The next start finds apps and suspended machines as they were.
func TestCleanup(t *testing.T) {
	t.Parallel()
	s := start(t)
	addr := deploy(t, s, "app", "testserver", 8080, "min = 0")
	asleep := deploy(t, s, "asleep", "testserver", 8080, "min = 0")
	ask(t, addr, "count")
	ask(t, asleep, "ram-counter")
	sleep(t, s, "asleep", "suspend")
	node := s.Node()
	if left := live.Leaks(s.Data, node); len(left) < 6 {
		t.Fatalf("a running node has made %q only: leaks would not be found", left)
	}
	for _, kill := range []struct {
		name string
		kill func()
	}{
		{"the server", s.Kill},
		{"everything", func() { killAll(t, s) }},
	} {
		kill.kill()
		for range 2 {
			if out, err := s.Volant(t.Context(), "cleanup", "--yes"); err != nil {
				t.Fatalf("cleanup after kill -9 of %s: %v\n%s", kill.name, err, out)
			}
			if left := live.Leaks(s.Data, node); len(left) > 0 {
				t.Errorf("cleanup after kill -9 of %s left %q", kill.name, left)
			}
		}
		if err := s.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the app is served again", func() bool { return askQuietly(addr) })
		sound(t, s)
	}
	if got := ask(t, asleep, "ram-counter"); got != "2" {
		t.Errorf("ram-counter of the machine that was suspended is %s, want 2", got)
	}
}

// Where the data directory is gone, a cleanup by the node's ID takes away what is left outside of it.
func TestCleanupWithoutTheData(t *testing.T) {
	t.Parallel()
	s := start(t)
	addr := deploy(t, s, "app", "testserver", 8080, "min = 0")
	ask(t, addr, "count")
	node := s.Node()
	killAll(t, s)
	if err := os.RemoveAll(s.Data); err != nil {
		t.Fatal(err)
	}
	if left := live.Leaks(s.Data, node); len(left) == 0 {
		t.Fatal("a node that was killed has left nothing: leaks would not be found")
	}
	if out, err := exec.CommandContext(t.Context(), s.Bin, "--data", s.Data, "cleanup", "--yes", "--node", node).CombinedOutput(); err != nil {
		t.Fatalf("cleanup by the node's ID: %v\n%s", err, out)
	}
	if left := live.Leaks(s.Data, node); len(left) > 0 {
		t.Errorf("cleanup by the node's ID left %q", left)
	}
}
