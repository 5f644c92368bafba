package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/lab"
	"github.com/volant-edge/volant/volanttest/need"
)

// TestMain is also the process of the wires, which a lab starts as `volant lab wire`.
func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "lab" && os.Args[2] == "wire" {
		if err := lab.RunWires(context.Background(), os.Args[4]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// delay is of the one wire in these tests.
const delay = 10 * time.Millisecond

// up builds a lab of two regions without nodes, and fails at the end if anything of it is left.
func up(t *testing.T, name string) *lab.Lab {
	t.Helper()
	if testing.Short() {
		t.Skip("labs are left out of -short")
	}
	need.Lab(t)
	need.Tool(t, "lab", "nft")
	before := machine(t)
	dir := filepath.Join(os.TempDir(), "vlab-test-"+name)
	t.Cleanup(func() {
		_, err := lab.Down(context.Background(), name, dir)
		if err != nil && !errors.Is(err, volant.ErrNotFound) {
			t.Error(err)
		}
		for _, left := range machine(t) {
			if !slices.Contains(before, left) && (strings.Contains(left, "vlab-"+name+"-") || strings.Contains(left, dir)) {
				t.Errorf("left behind: %s", left)
			}
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	})
	l, err := lab.Up(t.Context(), lab.Config{
		Name: name, Dir: dir, Regions: []string{"here", "there"}, Hosts: 2, Bare: true,
		Delays: map[string]time.Duration{"here-there": delay},
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// machine lists what of a lab could be left on this machine: namespaces, links of this one, processes.
func machine(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, args := range [][]string{{"netns", "list"}, {"-o", "link"}} {
		b, err := exec.Command("ip", args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, strings.Split(strings.TrimSpace(string(b)), "\n")...)
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err == nil && len(b) > 0 && filepath.Base(filepath.Dir(p)) != fmt.Sprint(os.Getpid()) {
			out = append(out, filepath.Base(filepath.Dir(p))+" "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}

// serve answers each connection on a server with the server's name and the client's address.
func serve(t *testing.T, l *lab.Lab, node, addr string) {
	t.Helper()
	var ln net.Listener
	err := l.Inside(node, func() (err error) {
		ln, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprint(c, node, " ", c.RemoteAddr().(*net.TCPAddr).IP)
				io.Copy(c, c)
			}()
		}
	}()
}

// ask connects as a client and returns the answer and the time until the connection was there.
func ask(t *testing.T, l *lab.Lab, region string, i int, addr string) (string, time.Duration, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	begun := time.Now()
	c, err := l.ClientDial(ctx, region, i, addr)
	took := time.Since(begun)
	if err != nil {
		return "", took, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", took, err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", took, err
	}
	b, err := io.ReadAll(c)
	return string(b), took, err
}

// hears fails the test unless the client hears that answer.
func hears(t *testing.T, l *lab.Lab, region string, i int, addr, want string) {
	t.Helper()
	got, _, err := ask(t, l, region, i, addr)
	if err != nil || got != want {
		t.Errorf("client %d of %s at %s: %q, %v; want %q", i, region, addr, got, err, want)
	}
}

// silent fails the test unless the client hears nothing at all: a refusal would be an answer.
func silent(t *testing.T, l *lab.Lab, region, addr string) {
	t.Helper()
	got, _, err := ask(t, l, region, 0, addr)
	if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
		t.Errorf("a client of %s at %s: %q, %v; want silence", region, addr, got, err)
	}
}

func at(n *lab.Node) string { return netip.AddrPortFrom(n.Addr4, 80).String() }

func TestLab(t *testing.T) {
	l := up(t, "net")
	here1, here2, there1 := l.Node(0), l.Node(1), l.Node(2)
	for _, n := range []*lab.Node{here1, here2, there1} {
		serve(t, l, n.Name, ":80")
	}
	hears(t, l, "here", 7, at(here1), "here-1 10.101.0.8")
	hears(t, l, "there", 7, at(here1), "here-1 10.102.0.8")
	hears(t, l, "there", 7, netip.AddrPortFrom(here1.Addr6, 80).String(), "here-1 fd00:c:2:7::1")

	t.Run("delay", func(t *testing.T) {
		quickest := func(region string) time.Duration {
			least := time.Hour
			for range 10 {
				if _, took, err := ask(t, l, region, 0, at(here1)); err != nil {
					t.Error(err)
				} else {
					least = min(least, took)
				}
			}
			return least
		}
		if got := quickest("there"); got < 2*delay {
			t.Errorf("over the wire: %s, sooner than light", got)
		}
		if got := quickest("here"); got >= 2*delay {
			t.Errorf("within a region: %s", got)
		}
		if err := l.Delay(t.Context(), "there", "here", 3*delay); err != nil {
			t.Fatal(err)
		}
		if got := quickest("there"); got < 6*delay || got > 12*delay {
			t.Errorf("over the longer wire: %s, want little more than %s", got, 6*delay)
		}
		if err := l.Delay(t.Context(), "here", "there", 0); err != nil {
			t.Fatal(err)
		}
		if got := quickest("there"); got >= 2*delay {
			t.Errorf("over a wire without delay: %s", got)
		}
	})
	t.Run("loss", func(t *testing.T) {
		if err := l.Loss(t.Context(), "here", "there", 1); err != nil {
			t.Fatal(err)
		}
		silent(t, l, "there", at(here1))
		hears(t, l, "here", 0, at(here1), "here-1 10.101.0.1")
		if err := l.Loss(t.Context(), "here", "there", 0); err != nil {
			t.Fatal(err)
		}
		hears(t, l, "there", 0, at(here1), "here-1 10.102.0.1")
	})
	t.Run("cut", func(t *testing.T) { cuts(t, l) })
	t.Run("kill", func(t *testing.T) { kills(t, l) })
	t.Run("wires", func(t *testing.T) { losesWires(t, l) })
}

func cuts(t *testing.T, l *lab.Lab) {
	here1, here2, there1 := at(l.Node(0)), at(l.Node(1)), at(l.Node(2))
	cut := func(a, b string) {
		if err := l.Cut(t.Context(), a, b); err != nil {
			t.Fatal(err)
		}
	}
	heal := func(a, b string) {
		if err := l.Heal(t.Context(), a, b); err != nil {
			t.Fatal(err)
		}
	}
	cut("here", "there")
	silent(t, l, "there", here1)
	silent(t, l, "here", there1)
	hears(t, l, "here", 0, here1, "here-1 10.101.0.1")
	heal("there", "here")
	hears(t, l, "there", 0, here1, "here-1 10.102.0.1")

	cut("here-1", "there")
	silent(t, l, "there", here1)
	hears(t, l, "there", 0, here2, "here-2 10.102.0.1")
	hears(t, l, "here", 0, here1, "here-1 10.101.0.1")

	cut("here-2", "")
	silent(t, l, "there", here2)
	silent(t, l, "here", here2)
	heal("", "")
	hears(t, l, "there", 0, here1, "here-1 10.102.0.1")
	hears(t, l, "there", 0, here2, "here-2 10.102.0.1")
	if err := l.Heal(t.Context(), "here", "there"); !errors.Is(err, volant.ErrNotFound) {
		t.Errorf("heal what is whole: %v", err)
	}
}

// kills checks that a dead server is silent and its clients are sent elsewhere.
func kills(t *testing.T, l *lab.Lab) {
	const app = "198.51.100.9:81"
	for _, n := range []*lab.Node{l.Node(0), l.Node(2)} {
		cmd := exec.Command("ip", "route", "add", "local", "198.51.100.0/24", "dev", "lo")
		if err := l.Exec(t.Context(), n.Name, cmd); err != nil {
			t.Fatal(err)
		}
		serve(t, l, n.Name, app)
	}
	for _, other := range []string{"here-2", "there-2"} { // they have nothing at the address
		if err := l.Cut(t.Context(), other, ""); err != nil {
			t.Fatal(err)
		}
	}
	hears(t, l, "here", 0, app, "here-1 10.101.0.1")
	sleep := exec.Command("sleep", "600")
	err := l.Inside("here-1", sleep.Start)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- sleep.Wait() }()
	if err := l.Kill(t.Context(), "here-1"); err != nil {
		t.Fatal(err)
	}
	<-ended
	silent(t, l, "here", at(l.Node(0)))
	hears(t, l, "here", 0, app, "there-1 10.101.0.1")
	s, err := l.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Nodes[0].State; got != "killed" {
		t.Errorf("here-1 is %s", got)
	}
	if err := l.Heal(t.Context(), "", ""); err != nil {
		t.Fatal(err)
	}
}

// losesWires kills the process of the wires.
func losesWires(t *testing.T, l *lab.Lab) {
	there1 := at(l.Node(2))
	hears(t, l, "here", 0, there1, "there-1 10.101.0.1")
	for _, p := range machine(t) {
		pid := 0
		if _, err := fmt.Sscanf(p, "%d", &pid); err == nil && strings.Contains(p, "lab wire --dir "+l.Config().Dir) {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got, _, err := ask(t, l, "here", 0, there1); err == nil {
		t.Errorf("without wires: %q", got)
	}
	if err := l.Heal(t.Context(), "", ""); err != nil {
		t.Fatal(err)
	}
	hears(t, l, "here", 0, there1, "there-1 10.101.0.1")
}

func TestTwice(t *testing.T) {
	l := up(t, "twice")
	if _, err := lab.Up(t.Context(), l.Config()); !errors.Is(err, volant.ErrExists) {
		t.Errorf("a second time: %v", err)
	}
	other := l.Config()
	other.Dir = t.TempDir()
	if _, err := lab.Up(t.Context(), other); !errors.Is(err, volant.ErrExists) {
		t.Errorf("the same name in another directory: %v", err)
	}
	again, err := lab.Open(l.Config().Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := again.Down(t.Context()); !errors.Is(err, volant.ErrNotFound) {
		t.Errorf("down twice: %v", err)
	}
	up(t, "twice")
}

// TestHalfBuilt takes down a lab whose building was broken off, and one whose record is lost.
func TestHalfBuilt(t *testing.T) {
	l := up(t, "half")
	for _, args := range [][]string{{"netns", "del", "vlab-half-here-2"}, {"netns", "del", "vlab-half-there-c"}, {"-n", "vlab-half-here-r", "link", "del", "n1"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v %s", args, err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(l.Config().Dir, "lab.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	done, err := lab.Down(t.Context(), "half", l.Config().Dir)
	if err != nil {
		t.Fatal(err)
	}
	if want := "removed 6 namespaces"; !slices.Contains(done, want) {
		t.Errorf("down says %q, want %q too", done, want)
	}
}
