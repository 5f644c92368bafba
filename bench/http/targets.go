package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/proxy"
)

// target is a proxy under test.
type target struct {
	name  string
	front netip.AddrPort
	pid   int
}

// bench is the app, and the proxies before it.
type bench struct {
	app     netip.AddrPort
	targets []target // Volant first
	dir     string
	ends    []func()
}

func newBench() (b *bench, err error) {
	b = &bench{}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.dir, err = os.MkdirTemp("", "volant-bench"); err != nil {
		return b, err
	}
	b.ends = append(b.ends, func() { os.RemoveAll(b.dir) }) //nolint:errcheck // litter in a temporary directory
	var end func()
	if b.app, end, err = app(); err != nil {
		return b, err
	}
	b.ends = append(b.ends, end)
	for _, start := range []func(netip.AddrPort) (target, error){b.startVolant, b.startHAProxy} {
		t, err := b.start(start)
		if err != nil {
			return b, err
		}
		b.targets = append(b.targets, t)
	}
	return b, nil
}

// start starts a proxy at a free port and returns when it listens.
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
	for _, end := range slices.Backward(b.ends) {
		end()
	}
}

func (b *bench) kill(pid int) {
	b.ends = append(b.ends, func() {
		if p, err := os.FindProcess(pid); err == nil {
			p.Kill() //nolint:errcheck // it may have ended
		}
	})
}

// startVolant runs the proxy as in production: a process of its own with its control socket, slots, records and
// a watcher.
func (b *bench) startVolant(front netip.AddrPort) (target, error) {
	self, err := os.Executable()
	if err != nil {
		return target{}, err
	}
	d, err := datadir.Open(filepath.Join(b.dir, "data"))
	if err != nil {
		return target{}, err
	}
	ctx := context.Background()
	c, err := proxy.Ensure(ctx, proxy.Start{Data: d, Args: []string{"taskset", "-c", fmt.Sprint(proxyCore), self, "role-volant", d.Root()}})
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
		Services: []proxy.Service{{
			Ports:        []proxy.Port{{Listen: []netip.AddrPort{front}, Handlers: []string{"http"}}},
			InternalPort: b.app.Port(), Soft: 800, Hard: 1000, Requests: true,
		}},
		Machines: []proxy.Machine{{ID: "00000000000001", Seq: 1, Phase: proxy.PhaseServing, Addr: b.app.Addr()}},
	}}}
	if err := c.SetTable(ctx, table); err != nil {
		return target{}, err
	}
	go c.Watch(ctx, proxy.Events{Load: func(proxy.Load) {}}) //nolint:errcheck // ends with the process
	return target{name: "volant", pid: h.PID}, nil
}

// startHAProxy runs the peer with connections to the app that are used again, and headers as the proxy sets them.
func (b *bench) startHAProxy(front netip.AddrPort) (target, error) {
	conf := fmt.Sprintf(`global
    maxconn 4000
    nbthread 1
defaults
    mode http
    http-reuse always
    option forwardfor
    unique-id-format %%{+X}o\ %%ci:%%cp_%%Ts_%%rt:%%pid
    unique-id-header X-Request-Id
    timeout connect 5s
    timeout client 1m
    timeout server 1m
frontend f
    bind %s
    default_backend b
backend b
    http-response set-header Server bench
    server s %s maxconn 1000
`, front, b.app)
	path := filepath.Join(b.dir, "haproxy.cfg")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		return target{}, err
	}
	version := "unknown"
	out, err := exec.Command("haproxy", "-v").Output()
	if err != nil {
		return target{}, fmt.Errorf("haproxy: %w", err)
	}
	fmt.Sscanf(string(out), "HAProxy version %s", &version) //nolint:errcheck // for the row's name only
	cmd := exec.Command("taskset", "-c", fmt.Sprint(proxyCore), "haproxy", "-db", "-f", path)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return target{}, err
	}
	b.kill(cmd.Process.Pid)
	return target{name: "haproxy " + version, pid: cmd.Process.Pid}, nil
}
