package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/volant-edge/volant/volanttest/live"
	"github.com/volant-edge/volant/volanttest/need"
	"github.com/volant-edge/volant/volanttest/testserver"
)

// 200 connections from many client addresses outlive ten kills of the server. New connections are served while it
// is dead, and what the proxy counts is what the kernel and the guests count.
func TestConnectionsOutliveKillsOfTheServer(t *testing.T) {
	t.Parallel()
	s := start(t)
	need.Tool(t, "machine", "ss")
	text := config("app", 8080, "min = 4\nmax = 4\nidle_timeout = \"1h\"")
	text = strings.Replace(text, "[[services.ports]]", "[services.concurrency]\nsoft_limit = 50\nhard_limit = 60\n[[services.ports]]", 1)
	ip, err := s.Deploy(t.Context(), "app", archive(t, "testserver"), text)
	if err != nil {
		t.Fatal(s.WithLog(err))
	}
	addr := net.JoinHostPort(ip, "8080")
	eventually(t, "four machines serve", func() bool { return awake(t, s, "app") == 4 })
	conns := make([]*testserver.Echo, 200)
	for i := range conns {
		from := &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%25))}
		c, err := (&net.Dialer{LocalAddr: from, Timeout: time.Minute}).Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(5 * time.Minute)); err != nil {
			t.Fatal(err)
		}
		if conns[i], err = testserver.StartEcho(c, uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	exchange(t, conns)
	for range 10 {
		s.Kill()
		exchange(t, conns)
		ask(t, addr, "count")
		if err := s.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		exchange(t, conns)
		if !within(func() bool { return counts(t, s, "app") == [3]int{200, 200, 200} }) {
			t.Fatalf("slots, sockets of the proxy, and connections counted by the guests are %v, want 200 each", counts(t, s, "app"))
		}
	}
	sound(t, s)
}

// exchange sends bytes on all connections and checks that they come back.
func exchange(t *testing.T, conns []*testserver.Echo) {
	t.Helper()
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			if err := c.Exchange(500); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// counts are the connections to an app's machines: by the proxy's slots, by the kernel's sockets, and by the
// guests themselves.
func counts(t *testing.T, s *live.Server, app string) (n [3]int) {
	t.Helper()
	for _, m := range machines(t, s, app) {
		if m.State != "started" {
			continue
		}
		to := netip.AddrPortFrom(netip.MustParseAddr(m.IP), 8080)
		out, err := exec.Command("ss", "-Htn", "state", "established", "dst", to.String()).Output()
		if err != nil {
			t.Fatal(err)
		}
		var guests int
		if _, err := fmt.Sscan(ask(t, to.String(), "count"), &guests); err != nil {
			t.Fatal(err)
		}
		n[0] += m.Slots
		n[1] += strings.Count(string(out), "\n")
		n[2] += guests - 1 // the one that asks
	}
	return n
}

// Everything of the node is killed at once, at several moments of a machine's life. The next start brings it back:
// the next connection is served, and nothing is left over.
func TestEverythingKilledAtOnce(t *testing.T) {
	t.Parallel()
	s := start(t)
	addr := deploy(t, s, "app", "testserver", 8080, "min = 0\nidle_timeout = \"1h\"")
	connect := func() { go askQuietly(addr) }
	act := func(what string) func() {
		return func() {
			id := machines(t, s, "app")[0].ID
			go s.API.MachineAction(context.WithoutCancel(t.Context()), "app", id, what) //nolint:errcheck // the server is killed meanwhile
		}
	}
	for _, d := range []struct {
		name, point, when string
		before            string // "", suspend or stop: what to do with the machine first
		act               func()
	}{
		{"serving", "", "", "", nil},
		{"while it boots", "boot-made", "after", "stop", connect},
		{"while it wakes", "boot-made", "after", "suspend", connect},
		{"while it is suspended", "suspend-begin", "after", "", act("suspend")},
		{"when its snapshot is taken", "suspend-taken", "after", "", act("suspend")},
		{"while it stops", "stop-begin", "after", "", act("stop")},
	} {
		t.Run(d.name, func(t *testing.T) {
			ask(t, addr, "count")
			if d.before != "" {
				sleep(t, s, "app", d.before)
			}
			if d.act != nil {
				if err := s.Arm(d.point, d.when, live.Hold); err != nil {
					t.Fatal(err)
				}
				d.act()
				eventually(t, "the point is reached", s.Reached)
			}
			killAll(t, s)
			if err := s.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "a new proxy listens", func() bool { return askQuietly(addr) })
			ask(t, addr, "count")
			sound(t, s)
		})
	}
}

// killAll ends all processes of a node with SIGKILL.
func killAll(t *testing.T, s *live.Server) {
	t.Helper()
	s.Kill()
	if err := s.KillProxy(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.KillVMMs(""); err != nil {
		t.Fatal(err)
	}
	if err := s.Release(); err != nil {
		t.Fatal(err)
	}
}

// askQuietly says whether a connection was served.
func askQuietly(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Minute)
	if err != nil {
		return false
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return false
	}
	_, err = testserver.Ask(c, "count")
	return err == nil
}

// A server that hangs keeps nobody from an awake machine, and a proxy that hangs does not keep the server from
// starting, which says so.
func TestProcessesThatHang(t *testing.T) {
	t.Parallel()
	s := start(t)
	addr := deploy(t, s, "app", "testserver", 8080, "min = 0\nidle_timeout = \"1h\"")
	held, err := testserver.StartEcho(dial(t, addr), 1)
	if err != nil {
		t.Fatal(err)
	}
	signal := func(pid int, sig syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	exchanges := func(when string) {
		t.Helper()
		if err := held.Exchange(1000); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		ask(t, addr, "count")
	}
	exchanges("before")
	signal(s.PID(), syscall.SIGSTOP)
	exchanges("while the server hangs")
	signal(s.PID(), syscall.SIGCONT)
	sound(t, s)

	proxy := s.ProxyPID()
	signal(proxy, syscall.SIGSTOP)
	s.Kill()
	err = s.Run(t.Context())
	if err == nil {
		eventually(t, "the server says that its proxy does not answer", func() bool {
			nodes, err := s.API.Nodes(t.Context())
			return err == nil && strings.Contains(nodes[0].Proxy, "does not answer")
		})
	}
	signal(proxy, syscall.SIGCONT)
	if err != nil {
		t.Fatalf("a start beside a proxy that hangs: %v", err)
	}
	exchanges("after the proxy hung")
	sound(t, s)
	if s.ProxyPID() != proxy {
		t.Error("the proxy that hung was replaced")
	}
}

// A guest that is gone can close nothing. Its connections are ended for it, long before keep-alive would notice.
func TestConnectionsEndWithTheirMachine(t *testing.T) {
	t.Parallel()
	s := common(t)
	addr := deploy(t, s, "ended", "testserver", 8080, "min = 0")
	for _, d := range []struct {
		name string
		end  func(id string) error
	}{
		{"its VMM is killed", func(id string) error { _, err := s.KillVMMs(id); return err }},
		{"it is destroyed", func(id string) error { return s.API.DestroyMachine(t.Context(), "ended", id, true) }},
	} {
		t.Run(d.name, func(t *testing.T) {
			c := dial(t, addr)
			askOn(t, c, "count")
			if err := d.end(machines(t, s, "ended")[0].ID); err != nil {
				t.Fatal(err)
			}
			if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the connection was not ended: %v", err)
			}
			ask(t, addr, "count")
		})
	}
}
