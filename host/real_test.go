package host_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cgroup"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/hostnet"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/internal/debimage"
	"github.com/volant-edge/volant/kernel/kerneltest"
	"github.com/volant-edge/volant/microvm/qemu"
	"github.com/volant-edge/volant/volanttest/need"
	"github.com/volant-edge/volant/why"
)

// realRig is a server with QEMU, real disks, taps and cgroups, and one host after the other on it.
type realRig struct {
	t      *testing.T
	cfg    host.Config
	deps   host.Deps
	image  volant.Digest
	node   volant.NodeID
	images *image.Store
	qemu   qemu.Config

	*host.Host
	epoch uint64
	stop  func()

	mu   sync.Mutex
	whys []why.Record
}

func newRealRig(t *testing.T) *realRig {
	kernel := kerneltest.Load(t)
	dir := t.TempDir()
	shm, err := os.MkdirTemp("/dev/shm", "volant-host-") //nolint:usetesting // memory lies in RAM
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(shm); err != nil {
			t.Error(err)
		}
	})
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	r := &realRig{t: t, node: volant.NodeID(fmt.Sprintf("%08x", os.Getpid()))}
	r.qemu = qemu.Config{Dir: filepath.Join(dir, "qemu"), ShmDir: shm, Accel: "tcg"}
	if r.images, err = image.Open(filepath.Join(dir, "images"), image.Config{}); err != nil {
		t.Fatal(err)
	}
	file, _, err := debimage.Builder{Cache: need.Cache(t, "debs"), Say: t.Logf}.Image(t.Context(), "nginx")
	if err != nil {
		need.Unmet(t, "machine", err.Error())
	}
	if r.image, err = r.images.Import(t.Context(), "oci-archive:"+file, nil); err != nil {
		t.Fatal(err)
	}
	netw, err := hostnet.New(hostnet.Config{Node: r.node, Pool4: netip.MustParsePrefix("172.28.77.0/24"), File: filepath.Join(dir, "net")})
	if err != nil {
		t.Fatal(err)
	}
	groups, err := cgroup.New(r.node, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.cfg = host.Config{
		Node: r.node, Dir: filepath.Join(dir, "host"), MemoryMB: 4096, ScratchMB: 1024,
		Kernel: host.Kernel{Vmlinux: kernel.Vmlinux, Initrd: kernel.Initrd, Sum: kernel.Sum},
	}
	r.deps = host.Deps{
		Images: realImages{r.images}, Net: realNet{netw}, Cgroups: groups, Why: r, Log: log,
	}
	t.Cleanup(func() {
		ctx := context.Background()
		if r.stop != nil {
			r.stop()
		}
		engine, err := qemu.New(r.qemu)
		if err != nil {
			t.Fatal(err)
		}
		_, err = engine.Sweep(ctx, func(string) bool { return false })
		_, gerr := cgroup.Cleanup(ctx, r.node)
		_, nerr := hostnet.Cleanup(ctx, r.node)
		if err := errors.Join(err, engine.Close(), gerr, netw.Close(), nerr); err != nil {
			t.Error(err)
		}
	})
	return r
}

type realImages struct{ *image.Store }

func (s realImages) Rootfs(ctx context.Context, d volant.Digest) (host.Rootfs, error) {
	r, err := s.Store.Rootfs(ctx, d)
	c := r.Config
	return host.Rootfs{
		Path: r.Path, Type: r.Type, Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, User: c.User,
		WorkDir: c.WorkingDir, StopSignal: c.StopSignal,
	}, err
}

type realNet struct{ *hostnet.Net }

func (n realNet) Attach(ctx context.Context, id volant.MachineID, org volant.OrgID) (host.Link, error) {
	l, err := n.Net.Attach(ctx, id, org)
	if err != nil {
		return host.Link{}, err
	}
	return host.Link{Tap: l.Tap, MAC: l.MAC, Net: guest.Net{
		Addr: netip.PrefixFrom(l.Addr, 32), Gateway: l.Gateway, Addr6: netip.PrefixFrom(l.Addr6, 128), Gateway6: l.Gateway6,
		MTU: l.MTU, DNS: l.DNS,
	}}, nil
}

// Add is why.Log.
func (r *realRig) Add(w why.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.whys = append(r.whys, w)
}

func (r *realRig) start() {
	r.t.Helper()
	r.epoch++
	cfg := r.cfg
	cfg.Epoch = r.epoch
	engine, err := qemu.New(r.qemu)
	if err != nil {
		r.t.Fatal(err)
	}
	r.deps.Engine = engine
	h, err := host.New(cfg, r.deps)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	r.Host = h
	r.stop = func() {
		r.stop = nil
		cancel()
		if err := errors.Join(<-done, engine.Close()); err != nil {
			r.t.Errorf("run: %v", err)
		}
	}
	select {
	case <-h.Ready():
	case err := <-done:
		r.t.Fatalf("run: %v", err)
	}
}

// await waits until the machine is as wanted.
func (r *realRig) await(id volant.MachineID, what string, ok func(v volant.Have) bool) volant.Have {
	r.t.Helper()
	var v volant.Have
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		for _, v = range r.Haves() {
			if v.Machine == id && ok(v) {
				return v
			}
		}
	}
	r.t.Fatalf("machine %s is not %s: %+v", id, what, v)
	return v
}

func (r *realRig) state(id volant.MachineID, s volant.State) volant.Have {
	r.t.Helper()
	return r.await(id, string(s), func(v volant.Have) bool { return v.State == s })
}

// get asks the machine's web server as a proxy would: as soon as the app runs, each 5 ms until it listens.
func (r *realRig) get(v volant.Have) string {
	r.t.Helper()
	addr := netip.AddrPortFrom(v.IP, 8080).String()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", addr, 50*time.Millisecond)
		if err != nil {
			continue
		}
		defer func() { _ = c.Close() }() // it was only read from
		if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			r.t.Fatal(err)
		}
		b, err := io.ReadAll(io.LimitReader(c, 1<<20))
		if err != nil {
			r.t.Fatal(err)
		}
		return string(b)
	}
	r.t.Fatalf("%s does not answer", addr)
	return ""
}

// processes are the command lines of processes that bear the machine's ID.
func processes(t *testing.T, id volant.MachineID) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ps", "-eo", "args").Output()
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(strings.Split(string(out), "\n"), func(s string) bool { return !strings.Contains(s, string(id)) })
}

func (r *realRig) wakeAndGet(id volant.MachineID) volant.Have {
	r.t.Helper()
	begun := time.Now()
	if err := r.Wake(r.t.Context(), id, "a connection"); err != nil {
		r.t.Fatalf("wake: %v", err)
	}
	starting := time.Since(begun)
	v := r.state(id, volant.StateStarted)
	started := time.Since(begun)
	if got := r.get(v); !strings.Contains(got, "200 OK") {
		r.t.Fatalf("got %q", got)
	}
	took := time.Since(begun)
	r.t.Logf("woken: starting on record after %v, app runs after %v, answer after %v", starting, started, took)
	return v
}

// TestRealMachine leads a real web server in a real microVM through its life.
func TestRealMachine(t *testing.T) {
	need.Machine(t)
	need.Tool(t, "machine", "mkfs.ext4")
	r := newRealRig(t)
	r.start()
	m := machine(os.Getpid(), func(m *volant.Machine) {
		m.Node, m.Image = r.node, r.image
		m.Config.Services[0].InternalPort = 8080
	})
	id := idOf(m)
	if err := r.SetWishes([]volant.Machine{m}); err != nil {
		t.Fatal(err)
	}
	v := r.wakeAndGet(id)
	if !v.Cold {
		t.Error("the first start was no boot")
	}

	var out bytes.Buffer
	exec := func(args ...string) string {
		t.Helper()
		out.Reset()
		exit, err := r.Exec(t.Context(), id, guest.Exec{Args: args, Stdout: &out})
		if err != nil || exit.Code != 0 {
			t.Fatalf("exec %v: %+v, %v", args, exit, err)
		}
		return strings.TrimSpace(out.String())
	}
	exec("sh", "-c", "echo kept > /kept; hostname")
	if got := strings.TrimSpace(out.String()); got != string(id) {
		t.Errorf("hostname %q", got)
	}
	boot := exec("cat", "/proc/sys/kernel/random/boot_id")

	for range 3 {
		if err := r.Sleep(t.Context(), id, host.Sleep{How: host.AskSuspend}); err != nil {
			t.Fatal(err)
		}
		r.state(id, volant.StateSuspended)
		if got := processes(t, id); len(got) != 0 {
			t.Errorf("a suspended machine has processes: %q", got)
		}
		if v = r.wakeAndGet(id); v.Cold {
			t.Error("the wake was a cold boot")
		}
	}
	if got := exec("cat", "/kept"); got != "kept" {
		t.Errorf("the file holds %q", got)
	}
	if got := exec("cat", "/proc/sys/kernel/random/boot_id"); got != boot {
		t.Error("the guest was booted anew")
	}

	r.stop()
	r.start()
	if got := r.get(r.state(id, volant.StateStarted)); !strings.Contains(got, "200 OK") {
		t.Errorf("after a restart of the server: %q", got)
	}
	r.await(id, "reached again", func(volant.Have) bool {
		_, err := r.Exec(t.Context(), id, guest.Exec{Args: []string{"true"}})
		return err == nil
	})
	if got := exec("cat", "/proc/sys/kernel/random/boot_id"); got != boot {
		t.Error("the guest was booted anew by a restart of the server")
	}

	if err := r.Sleep(t.Context(), id, host.Sleep{How: host.AskStop, Force: true}); err != nil {
		t.Fatal(err)
	}
	v = r.state(id, volant.StateStopped)
	if v.Exit == nil || v.Exit.Code != 0 || !v.Exit.Requested {
		t.Errorf("exit %+v", v.Exit)
	}
	r.wakeAndGet(id)
	if got := exec("sh", "-c", "ls /kept 2>/dev/null || echo gone"); got != "gone" {
		t.Errorf("after a stop the disk holds %q", got)
	}
	if err := r.SetWishes([]volant.Machine{changed(m, func(m *volant.Machine) { m.Run = volant.RunDestroyed })}); err != nil {
		t.Fatal(err)
	}
	r.state(id, volant.StateDestroyed)
	r.stop()
	for _, w := range r.whys {
		t.Logf("%s %s: %s", w.Kind, w.Rule, w.Text)
	}
}
