package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/why"
)

const processEnv = "VOLANT_TEST_PROXY_DATA"

// TestMain is also the proxy process of the tests below.
func TestMain(m *testing.M) {
	data := os.Getenv(processEnv)
	if data == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := proxy.Main(ctx, proxy.Process{Data: data, Version: "test", Log: log, Grace: 5 * time.Second}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type process struct {
	t    *testing.T
	data *datadir.Dir
}

func newProcess(t *testing.T) *process {
	t.Helper()
	root, err := os.MkdirTemp("", "volant-proxy") //nolint:usetesting // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	d, err := datadir.Open(root + "/data")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	t.Setenv(processEnv, d.Root())
	return &process{t, d}
}

// ensure returns a client of the process and its hello. The process is killed when the test ends.
func (p *process) ensure() (*proxy.Client, proxy.Hello) {
	p.t.Helper()
	c, err := proxy.Ensure(p.t.Context(), proxy.Start{Data: p.data, Args: []string{os.Args[0]}})
	if err != nil {
		p.t.Fatal(err)
	}
	h, err := c.Hello(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close(); kill(h.PID) })
	return c, h
}

func kill(pid int) {
	_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	for syscall.Kill(pid, 0) == nil {
		time.Sleep(time.Millisecond)
	}
}

// echo sends back what it reads until the connection ends, however it does.
func echo(c net.Conn) {
	_, _ = io.Copy(c, c) // the client checks
	c.Close()
}

// echoServer is a machine's app on loopback.
func echoServer(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go echo(c)
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// freeAddr is a loopback address nobody listens on.
func freeAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func tableOf(version uint64, listen, machine netip.AddrPort) proxy.Table {
	return proxy.Table{Version: version, Epoch: 1, Region: "ams", Apps: []proxy.App{{
		ID: "app_1", Name: "web", Org: volant.OrgPersonal,
		Services: []proxy.Service{{Listen: []netip.AddrPort{listen}, InternalPort: machine.Port(), Soft: 20, Hard: 25}},
		Machines: []proxy.Machine{{ID: machineID(1), Seq: 1, Phase: proxy.PhaseServing, Addr: machine.Addr()}},
	}}}
}

// dialSoon connects as soon as somebody listens.
func dialSoon(t *testing.T, addr netip.AddrPort) net.Conn {
	t.Helper()
	for range 1000 {
		c, err := net.Dial("tcp", addr.String())
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return c
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("nobody listens on %v", addr)
	return nil
}

func TestProcessOutlivesItsStarterAndIsAdopted(t *testing.T) {
	p := newProcess(t)
	front, app := freeAddr(t), echoServer(t)
	c, h := p.ensure()
	if sid, err := sessionOf(h.PID); err != nil || sid != h.PID {
		t.Errorf("session %d, %v; want the process's own, %d", sid, err, h.PID)
	}
	if err := c.SetTable(t.Context(), tableOf(1, front, app)); err != nil {
		t.Fatal(err)
	}
	conn := dialSoon(t, front)
	if err := echoes(conn); err != nil {
		t.Fatal(err)
	}
	c.Close()
	c2, h2 := p.ensure()
	if h2.PID != h.PID || h2.Epoch != h.Epoch || h2.TableVersion != 1 {
		t.Errorf("adopted %+v, want the process of before, %+v", h2, h)
	}
	if err := echoes(conn); err != nil {
		t.Errorf("the connection did not survive: %v", err)
	}
	slots, err := c2.Slots(t.Context())
	if err != nil || slots[machineID(1)] != 1 {
		t.Errorf("slots %v, %v; want 1", slots, err)
	}
	if ok, err := c2.Seal(t.Context(), machineID(1), 1); ok || err != nil {
		t.Errorf("seal of a busy machine: %v, %v", ok, err)
	}
	if recs, err := c2.Query(t.Context(), why.Query{Machine: machineID(1)}); err != nil || len(recs) != 1 {
		t.Errorf("query: %v, %v; want the connection", recs, err)
	}
	err = c2.SetTable(t.Context(), proxy.Table{})
	if !errors.Is(err, volant.ErrConflict) {
		t.Errorf("older table over the socket: %v, want a conflict", err)
	}
}

func TestProcessStartsFromItsDiskUnderANewEpoch(t *testing.T) {
	p := newProcess(t)
	front, app := freeAddr(t), echoServer(t)
	c, h := p.ensure()
	if err := c.SetTable(t.Context(), tableOf(7, front, app)); err != nil {
		t.Fatal(err)
	}
	if err := echoes(dialSoon(t, front)); err != nil {
		t.Fatal(err)
	}
	for range 500 { // written a moment after it was taken
		if _, err := os.Stat(p.data.Path("proxy", "table")); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	kill(h.PID)
	_, h2 := p.ensure()
	if h2.Epoch != h.Epoch+1 || h2.TableVersion != 7 {
		t.Errorf("started as %+v, want epoch %d and table 7", h2, h.Epoch+1)
	}
	if err := echoes(dialSoon(t, front)); err != nil {
		t.Errorf("not served from the table on disk: %v", err)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	p := newProcess(t)
	_, h := p.ensure()
	err := proxy.Main(t.Context(), proxy.Process{Data: p.data.Root()})
	if !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("second proxy: %v, want a refusal which names process %d", err, h.PID)
	}
}

func TestWatchGetsEventsOverTheSocketAndIsReplaced(t *testing.T) {
	p := newProcess(t)
	front, app := freeAddr(t), echoServer(t)
	c, _ := p.ensure()
	table := tableOf(1, front, app)
	table.Apps[0].Machines[0].Phase = proxy.PhaseSuspended
	if err := c.SetTable(t.Context(), table); err != nil {
		t.Fatal(err)
	}
	dialSoon(t, front)
	for range 2 { // the second watcher is told again, as a server which comes back
		wakes := make(chan proxy.Wake, 8)
		//nolint:errcheck // ends with the test
		go c.Watch(t.Context(), proxy.Events{Wake: func(w proxy.Wake) { wakes <- w }})
		if w := <-wakes; w.App != "app_1" || w.Machine != machineID(1) {
			t.Errorf("wake %+v, want of the suspended machine", w)
		}
	}
}

func TestShutdownLetsConnectionsEnd(t *testing.T) {
	p := newProcess(t)
	front, app := freeAddr(t), echoServer(t)
	c, h := p.ensure()
	if err := c.SetTable(t.Context(), tableOf(1, front, app)); err != nil {
		t.Fatal(err)
	}
	conn := dialSoon(t, front)
	if err := echoes(conn); err != nil {
		t.Fatal(err)
	}
	if err := c.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		probe, err := net.Dial("tcp", front.String())
		if err != nil {
			break
		}
		probe.Close()
		time.Sleep(5 * time.Millisecond)
	}
	if err := echoes(conn); err != nil {
		t.Errorf("an open connection was cut: %v", err)
	}
	conn.Close()
	<-c.Done()
	for range 1000 {
		if syscall.Kill(h.PID, 0) != nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("the process did not end with its last connection")
}

func sessionOf(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	for i, c := range slices.Backward(b) {
		if c == ')' { // the name may hold spaces
			var state string
			var ppid, pgrp, sid int
			_, err := fmt.Sscan(string(b[i+1:]), &state, &ppid, &pgrp, &sid)
			return sid, err
		}
	}
	return 0, io.ErrUnexpectedEOF
}
