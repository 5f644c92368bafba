package e2e_test

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/volant-edge/volant/api"
)

// A guest reaches neither the server it runs on, nor its API, nor other guests, nor link-local addresses. It
// answers those who connect to it, and reaches itself.
func TestGuestsAreShutIn(t *testing.T) {
	t.Parallel()
	s := common(t)
	addr := deploy(t, s, "iso", "testserver", 8080, "min = 0")
	other := deploy(t, s, "iso-other", "testserver", 8080, "min = 0")
	ask(t, other, "count")
	l, err := net.Listen("tcp", ":0") // what a service of the server is: on all its addresses
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	gateway := s.Private.Addr().Next().String()
	open := []string{net.JoinHostPort(gateway, port), net.JoinHostPort(machines(t, s, "iso-other")[0].IP, "8080")}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() && p.Addr().String() != gateway {
			open = append(open, net.JoinHostPort(p.Addr().String(), port))
			break
		}
	}
	for _, a := range open {
		dial(t, a) // so it is the guest that cannot
	}
	shut := append(open, "169.254.169.254:80", "[fe80::1%eth0]:"+port, net.JoinHostPort(machines(t, s, "iso-other")[0].PrivateIP, "8080"))
	apiAddr, err := s.APIAddr()
	if err != nil {
		t.Fatal(err)
	}
	shut = append(shut, netip.AddrPortFrom(s.Private.Addr().Next(), apiAddr.Port()).String())
	var wg sync.WaitGroup
	for _, a := range shut {
		c := dial(t, addr)
		wg.Go(func() {
			if got := askOn(t, c, "dial "+a); got == "connected" {
				t.Errorf("the guest connected to %s", a)
			}
		})
	}
	wg.Wait()
	if got := ask(t, addr, "dial 127.0.0.1:8080"); got != "connected" {
		t.Errorf("the guest does not reach itself: %s", got)
	}
}

// An app that ends is started again as its restart policy says, and its end is told; one that ends well
// stays stopped until the next connection.
func TestAppsThatEnd(t *testing.T) {
	t.Parallel()
	s := common(t)
	addr := deploy(t, s, "ends", "testserver", 8080, "min = 0")
	for _, d := range []struct {
		command string
		again   bool
		check   func(m api.Machine) bool
	}{
		{"exit 3", true, func(m api.Machine) bool { return m.Exit != nil && m.Exit.Code == 3 }},
		{"oom", true, func(m api.Machine) bool { return m.Exit != nil && m.Exit.OOM }},
		{"exit 0", false, func(m api.Machine) bool { return m.Exit != nil && m.Exit.Code == 0 && m.State == "stopped" }},
	} {
		t.Run(d.command, func(t *testing.T) {
			ask(t, addr, "ram-counter")
			id := machines(t, s, "ends")[0].ID
			end(t, addr, d.command)
			eventually(t, "the machine tells its app's end", func() bool { return d.check(machines(t, s, "ends")[0]) })
			if d.again {
				eventually(t, "the app runs again", func() bool { return awake(t, s, "ends") == 1 })
			}
			if got := ask(t, addr, "ram-counter"); got != "1" {
				t.Errorf("ram-counter is %s, want 1: a new process", got)
			}
			if got := machines(t, s, "ends"); len(got) != 1 || got[0].ID != id {
				t.Errorf("the machines are %v, want the one that was there", got)
			}
		})
	}
}

// end sends a command that ends the app, and returns when the connection is gone.
func end(t *testing.T, addr, command string) {
	t.Helper()
	c := dial(t, addr)
	if _, err := c.Write([]byte(command + "\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatalf("%s was answered", command)
	}
}

// exec streams what the command writes as it writes it, and ends with its code.
func TestExecStreamsAndTellsTheCode(t *testing.T) {
	t.Parallel()
	s := common(t)
	addr := deploy(t, s, "exec", "testserver", 8080, "min = 0")
	ask(t, addr, "count")
	id := machines(t, s, "exec")[0].ID
	cmd := exec.CommandContext(t.Context(), s.Bin, "--data", s.Data, "machine", "exec", id, "--", "/usr/bin/testserver", "await", "/tmp/go", "7")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n') // it is not over yet: it waits for the file
	if err != nil || line != "waiting\n" {
		t.Fatalf("exec wrote %q (%v, %s), want waiting", line, err, &errs)
	}
	if _, err := s.Volant(t.Context(), "machine", "exec", id, "--", "/usr/bin/testserver", "touch", "/tmp/go"); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 || errs.String() != "done\n" {
		t.Errorf("exec ended with %v and wrote %q to stderr, want code 7 and done", err, &errs)
	}
}

// logs -f shows what was said before and follows what comes.
func TestLogsFollow(t *testing.T) {
	t.Parallel()
	s := common(t)
	addr := deploy(t, s, "logs", "testserver", 8080, "min = 0")
	ask(t, addr, "log before")
	cmd := exec.CommandContext(t.Context(), s.Bin, "--data", s.Data, "logs", "logs", "-f")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	see := func(text string) {
		t.Helper()
		for lines.Scan() {
			if strings.HasSuffix(lines.Text(), text) {
				return
			}
		}
		t.Fatalf("the log ended without %q: %v", text, lines.Err())
	}
	see("stdout before")
	ask(t, addr, "log after")
	see("stdout after")
	sleep(t, s, "logs", "suspend")
	ask(t, addr, "log awake")
	see("stdout awake")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
}
