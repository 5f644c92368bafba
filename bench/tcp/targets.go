package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"time"

	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/proxy"
)

// target is a proxy under test.
type target struct {
	name, kind string
	front      netip.AddrPort
	pid        int
}

// bench is the app, and the proxies before it.
type bench struct {
	app      *app
	targets  []target // Volant first
	dir      string
	realtime bool // load and proxies run before all else
	ends     []func()
}

func newBench(realtime bool) (*bench, error) {
	dir, err := os.MkdirTemp("", "volant-bench")
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, realtime: realtime}
	b.ends = append(b.ends, func() { os.RemoveAll(dir) }) //nolint:errcheck // litter in a temporary directory
	if b.app, err = newApp(); err != nil {
		return nil, err
	}
	for _, start := range []func(netip.AddrPort) (target, error){b.startVolant, b.startHAProxy, b.startBare} {
		t, err := b.start(start)
		if err != nil {
			b.close()
			return nil, err
		}
		b.targets = append(b.targets, t)
	}
	return b, nil
}

func (b *bench) start(start func(netip.AddrPort) (target, error)) (target, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return target{}, err
	}
	front := l.Addr().(*net.TCPAddr).AddrPort()
	if err := l.Close(); err != nil {
		return target{}, err
	}
	t, err := start(front)
	if err != nil {
		return t, err
	}
	t.front = front
	for range 500 {
		var c net.Conn
		if c, err = net.Dial("tcp", front.String()); err == nil {
			return t, c.Close()
		}
		time.Sleep(10 * time.Millisecond)
	}
	return t, fmt.Errorf("%s does not listen: %w", t.name, err)
}

func (b *bench) close() {
	for _, end := range b.ends {
		end()
	}
}

func (b *bench) kill(pid int) {
	b.ends = append([]func(){func() {
		if p, err := os.FindProcess(pid); err == nil {
			p.Kill() //nolint:errcheck // it may have ended
		}
	}}, b.ends...)
}

// startVolant runs the proxy as in production: a process of its own with its control socket, slots,
// records and a watcher.
func (b *bench) startVolant(front netip.AddrPort) (target, error) {
	self, err := os.Executable()
	if err != nil {
		return target{}, err
	}
	d, err := datadir.Open(b.dir + "/data")
	if err != nil {
		return target{}, err
	}
	ctx := context.Background()
	c, err := proxy.Ensure(ctx, proxy.Start{
		Data: d, Args: b.pinned(self, "role-volant", d.Root()).Args,
	})
	if err != nil {
		return target{}, err
	}
	h, err := c.Hello(ctx)
	if err != nil {
		return target{}, err
	}
	b.kill(h.PID)
	table := proxy.Table{Version: 1, Epoch: 1, Region: "dev", Apps: []proxy.App{{
		ID: "app_bench", Name: "bench",
		Services: []proxy.Service{{Listen: []netip.AddrPort{front}, InternalPort: b.app.addr.Port(), Soft: 800, Hard: 1000}},
		Machines: []proxy.Machine{{ID: "00000000000001", Seq: 1, Phase: proxy.PhaseServing, Addr: b.app.addr.Addr()}},
	}}}
	if err := c.SetTable(ctx, table); err != nil {
		return target{}, err
	}
	go c.Watch(ctx, proxy.Events{Load: func(proxy.Load) {}}) //nolint:errcheck // ends with the process
	return target{name: "volant", kind: "volant", pid: h.PID}, nil
}

func (b *bench) startHAProxy(front netip.AddrPort) (target, error) {
	conf := fmt.Sprintf(`global
    maxconn 4000
    nbthread 1
    tune.pipesize 1048576
defaults
    mode tcp
    option splice-request
    option splice-response
    timeout connect 5s
    timeout client 1m
    timeout server 1m
frontend f
    bind %s
    default_backend b
backend b
    server s %s
`, front, b.app.addr)
	path := b.dir + "/haproxy.cfg"
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		return target{}, err
	}
	version := "haproxy"
	out, err := exec.Command("haproxy", "-v").Output()
	if err != nil {
		return target{}, fmt.Errorf("haproxy: %w", err)
	}
	fmt.Sscanf(string(out), "HAProxy version %s", &version) //nolint:errcheck // for the row's name only
	cmd := b.pinned("haproxy", "-db", "-f", path)
	if err := cmd.Start(); err != nil {
		return target{}, err
	}
	b.kill(cmd.Process.Pid)
	return target{name: "haproxy " + version, kind: "haproxy", pid: cmd.Process.Pid}, nil
}

func (b *bench) startBare(front netip.AddrPort) (target, error) {
	self, err := os.Executable()
	if err != nil {
		return target{}, err
	}
	cmd := b.pinned(self, "role-bare", front.String(), b.app.addr.String())
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return target{}, err
	}
	b.kill(cmd.Process.Pid)
	return target{name: "bare Go splice loop", kind: "bare", pid: cmd.Process.Pid}, nil
}

// runBare is the least a Go proxy does: two copies, which splice.
func runBare(front, back string) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", front)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			if err := relayBare(c.(*net.TCPConn), back); err != nil {
				fmt.Fprintln(os.Stderr, "bare:", err)
			}
		}()
	}
}

func relayBare(c *net.TCPConn, back string) error {
	defer c.Close() //nolint:errcheck // a bench
	b, err := net.Dial("tcp", back)
	if err != nil {
		return err
	}
	m := b.(*net.TCPConn)
	defer m.Close() //nolint:errcheck // a bench
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(m, c)
		done <- errors.Join(err, m.CloseWrite())
	}()
	io.Copy(c, m)  //nolint:errcheck // the load counts
	c.CloseWrite() //nolint:errcheck // the load counts
	<-done
	return nil
}
