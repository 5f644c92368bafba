package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest/live"
	"github.com/volant-edge/volant/volanttest/need"
	"github.com/volant-edge/volant/volanttest/testserver"
)

// built is a file that `make test` has built.
func built(t testing.TB, elem ...string) string {
	t.Helper()
	dir := os.Getenv("VOLANT_BUILD")
	if dir == "" {
		dir = "../build"
	}
	path, err := filepath.Abs(filepath.Join(append([]string{dir}, elem...)...))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		need.Unmet(t, "machine", err.Error()+"; run `make test`, which builds it")
	}
	return path
}

func archive(t testing.TB, image string) string {
	return "oci-archive:" + built(t, "images", image+".tar")
}

// start runs a server for one test. At the test's end nothing of it may be left.
func start(t testing.TB, change ...func(*live.Options)) *live.Server {
	t.Helper()
	need.Machine(t)
	o := live.Options{Bin: built(t, "volant"), Kernel: filepath.Dir(built(t, "kernel", "kernel.json"))}
	for _, f := range change {
		f(&o)
	}
	s, err := live.Start(t.Context(), o)
	if s != nil {
		t.Cleanup(func() {
			if t.Failed() {
				t.Log(s.WithLog(fmt.Errorf("the test failed")))
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// common is a server that the tests share which leave it as it was, each with apps of its own.
func common(t testing.TB) *live.Server {
	t.Helper()
	need.Machine(t)
	shared.once.Do(func() {
		o := live.Options{Bin: built(t, "volant"), Kernel: filepath.Dir(built(t, "kernel", "kernel.json"))}
		shared.server, shared.err = live.Start(context.Background(), o)
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}

var shared struct {
	once   sync.Once
	server *live.Server
	err    error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if s := shared.server; s != nil {
		if code != 0 {
			fmt.Fprintln(os.Stderr, s.WithLog(errors.New("a test on the common server failed")))
		}
		if err := s.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// config is a volant.toml of one TCP service, internal and external port alike, and a [scale] section.
func config(app string, port int, scale string) string {
	return fmt.Sprintf("app = %q\n[[services]]\ninternal_port = %d\nprotocol = \"tcp\"\n[[services.ports]]\nport = %d\n[scale]\n%s\n", app, port, port, scale)
}

// deploy brings an image into service and returns its address.
func deploy(t testing.TB, s *live.Server, app, image string, port int, scale string) string {
	t.Helper()
	ip, err := s.Deploy(t.Context(), app, archive(t, image), config(app, port, scale))
	if err != nil {
		t.Fatal(s.WithLog(err))
	}
	return net.JoinHostPort(ip, fmt.Sprint(port))
}

func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask sends a command to the test server on a connection of its own.
func ask(t testing.TB, addr, command string) string {
	t.Helper()
	c := dial(t, addr)
	defer c.Close()
	return askOn(t, c, command)
}

func askOn(t testing.TB, c net.Conn, command string) string {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	answer, err := testserver.Ask(c, command)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return answer
}

func machines(t testing.TB, s *live.Server, app string) []api.Machine {
	t.Helper()
	ms, err := s.API.Machines(context.Background(), app)
	if err != nil {
		t.Fatal(err)
	}
	return ms
}

// awake is how many of an app's machines serve.
func awake(t testing.TB, s *live.Server, app string) int {
	t.Helper()
	n := 0
	for _, m := range machines(t, s, app) {
		if m.State == "started" {
			n++
		}
	}
	return n
}

// eventually waits for a condition, generously: these machines may be busy.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !within(ok) {
		t.Fatalf("this did not happen: %s", what)
	}
}

// within says whether a condition comes to hold in a time that is generous even on a busy machine.
func within(ok func() bool) bool {
	for deadline := time.Now().Add(90 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// sleep puts all of an app's machines to sleep and waits until they are.
func sleep(t testing.TB, s *live.Server, app, how string) {
	t.Helper()
	want := map[string]string{"suspend": "suspended", "stop": "stopped"}[how]
	ids := map[string]bool{}
	for _, m := range machines(t, s, app) {
		ids[m.ID] = true
		if m.State == "started" {
			if err := s.API.MachineAction(context.Background(), app, m.ID, how); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "all machines of "+app+" are "+want, func() bool {
		return !slices.ContainsFunc(machines(t, s, app), func(m api.Machine) bool { return m.State != want })
	})
}

func whyText(t testing.TB, s *live.Server, what string) string {
	t.Helper()
	recs, err := s.API.Why(context.Background(), what, nil, 200)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, r := range recs {
		out = append(out, fmt.Sprintf("%s %s: %s", r.Kind, r.Rule, r.Text))
	}
	return strings.Join(out, "\n")
}
