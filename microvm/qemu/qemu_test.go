package qemu_test

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
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/kernel"
	"github.com/volant-edge/volant/kernel/kerneltest"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/microvm/microvmtest"
	"github.com/volant-edge/volant/microvm/qemu"
	"github.com/volant-edge/volant/volanttest/need"
)

// gateway is the host's address on every tap.
var gateway = netip.MustParseAddr("172.30.255.255")

// rig is what engines of one server share, and what their guests need.
type rig struct {
	dir, shm string
	kernel   kernel.Kernel
	app      string // the guests' program

	mu    sync.Mutex
	specs map[string]microvm.Spec // guarded by mu
}

func newRig(t *testing.T) *rig {
	need.Machine(t)
	need.Tool(t, "machine", "mkfs.erofs")
	shm, err := os.MkdirTemp("/dev/shm", "volant-test-") //nolint:usetesting // memory lies in RAM
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), strings.Repeat("long-", 30)) // longer than a socket's name may be
	r := &rig{dir: dir, shm: shm, kernel: kerneltest.Load(t), specs: map[string]microvm.Spec{}}
	t.Cleanup(func() {
		if err := os.RemoveAll(shm); err != nil {
			t.Error(err)
		}
	})
	r.app = filepath.Join(t.TempDir(), "app")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", r.app, "./testdata/app")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the app: %v\n%s", err, out)
	}
	return r
}

func (r *rig) open(t testing.TB) *qemu.Engine {
	t.Helper()
	e, err := qemu.New(qemu.Config{Dir: r.dir, ShmDir: r.shm, Accel: "tcg"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// spec returns a VM with a disk that knows its ID and a tap of its own.
func (r *rig) spec(t *testing.T, id string) microvm.Spec {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if s, ok := r.specs[id]; ok {
		return s
	}
	n := len(r.specs) + 2
	tap := fmt.Sprintf("vmt%d.%d", os.Getpid()%100_000, n)
	addr := r.addr(n)
	mac := net.HardwareAddr{0x52, 0x54, 0, 0x77, 1, 2}
	run(t, "ip", "tuntap", "add", tap, "mode", "tap")
	t.Cleanup(func() { run(t, "ip", "link", "del", tap) })
	run(t, "ip", "addr", "add", gateway.String()+"/32", "dev", tap)
	run(t, "ip", "link", "set", tap, "up")
	run(t, "ip", "route", "add", addr.String(), "dev", tap)
	run(t, "ip", "neigh", "replace", addr.String(), "lladdr", mac.String(), "dev", tap, "nud", "permanent")
	s := microvm.Spec{
		ID: id, VCPUs: 1, MemoryMiB: 256, Kernel: r.kernel.Vmlinux, Initrd: r.kernel.Initrd, KernelSum: r.kernel.Sum,
		Drives: []microvm.Drive{{Path: r.disk(t, id), ReadOnly: true}, {Path: r.scratch(t)}},
		NICs:   []microvm.NIC{{Tap: tap, MAC: mac, MTU: 1400}},
	}
	r.specs[id] = s
	return s
}

// addr returns a guest's address; two runs at once have others.
func (r *rig) addr(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 30, byte(os.Getpid()), byte(n)})
}

func (r *rig) disk(t *testing.T, id string) string {
	t.Helper()
	root, disk := t.TempDir(), filepath.Join(t.TempDir(), "root,"+filepath.Base(id)+".erofs") // a comma is QEMU's trap
	if err := errors.Join(os.Link(r.app, filepath.Join(root, "app")), os.WriteFile(filepath.Join(root, "name"), []byte(id), 0o600)); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.erofs", "--quiet", disk, root)
	return disk
}

func (r *rig) scratch(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "scratch")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 64<<20)); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", "-F", "-m", "0", path)
	return path
}

func run(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// config is what the guest of a spec is told.
func (r *rig) config(s microvm.Spec) guest.Config {
	var n int
	if _, err := fmt.Sscanf(s.NICs[0].Tap[strings.Index(s.NICs[0].Tap, "."):], ".%d", &n); err != nil {
		panic("tap " + s.NICs[0].Tap + " is not of this rig")
	}
	return guest.Config{
		Hostname: s.ID, RootFS: "erofs", Scratch: true, Args: []string{"/app", "serve"},
		Net: guest.Net{Addr: netip.PrefixFrom(r.addr(n), 32), Gateway: gateway, MTU: 1400},
	}
}

// serves checks that the guest's app answers over the spec's tap.
func (r *rig) serves(t testing.TB, s microvm.Spec) {
	t.Helper()
	addr := netip.AddrPortFrom(r.config(s).Net.Addr.Addr(), 80).String()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		c, err := (&net.Dialer{Timeout: 100 * time.Millisecond}).DialContext(ctx, "tcp", addr)
		if err != nil && ctx.Err() == nil {
			continue
		}
		var b []byte
		if err == nil {
			b, err = io.ReadAll(c)
			err = errors.Join(err, c.Close())
		}
		if err != nil || string(b) != s.ID {
			t.Errorf("over its tap the guest says %q, %v; want %q", b, err, s.ID)
		}
		return
	}
}

// left lists the engine's processes, files and memory.
func (r *rig) left(t testing.TB) []string {
	var left []string
	for _, pattern := range []string{r.dir + "/vms/*", r.shm + "/*"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, names...)
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if cmd, err := os.ReadFile(p); err == nil && strings.Contains(string(cmd), r.shm) {
			left = append(left, p)
		}
	}
	return left
}

func TestProbeDoesNotTrustTheDevice(t *testing.T) {
	r := newRig(t)
	for _, accel := range []string{"", "kvm"} {
		e, err := qemu.New(qemu.Config{
			Dir: r.dir, ShmDir: r.shm, Accel: accel, CanaryTime: 3 * time.Second,
			Kernel: r.kernel.Vmlinux, Initrd: r.kernel.Initrd, KernelSum: r.kernel.Sum,
		})
		if err != nil {
			t.Fatal(err)
		}
		c, err := e.Probe(t.Context())
		t.Logf("accelerator %q: %+v, %v", accel, c, err)
		switch {
		case accel == "kvm" && err != nil:
			if !errors.Is(err, volant.ErrUnavailable) || c.Accel != "none" || c.Why == "" {
				t.Errorf("Probe of KVM = %+v, %v", c, err)
			}
		case err != nil:
			t.Errorf("Probe: %v", err)
		case c.Accel != "kvm" && c.Accel != "tcg", c.Build == "", c.Why == "", !c.Snapshots, c.OverheadMiB == 0:
			t.Errorf("Probe = %+v", c)
		}
		if left := r.left(t); len(left) > 0 {
			t.Errorf("Probe left %q", left)
		}
	}
}

func TestProcessHasNoPowerAndNothingOfOurs(t *testing.T) {
	r := newRig(t)
	vm, err := r.open(t).Create(t.Context(), r.spec(t, "process"))
	if err != nil {
		t.Fatal(err)
	}
	proc := fmt.Sprintf("/proc/%d/", vm.Handle().PID)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(status), "\n"+want+"\n") {
			t.Errorf("its status lacks %q:\n%s", want, status)
		}
	}
	if strings.Contains(string(status), "Uid:\t0") || strings.Contains(string(status), "Gid:\t0") {
		t.Errorf("it runs as root:\n%s", status)
	}
	if sid, err := unix.Getsid(vm.Handle().PID); err != nil || sid != vm.Handle().PID {
		t.Errorf("its session is %d, %v", sid, err)
	}
	fds, err := filepath.Glob(proc + "fd/*")
	if err != nil || len(fds) == 0 {
		t.Fatalf("descriptors: %v, %v", fds, err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "pipe:") {
			t.Errorf("it holds a pipe: %s", fd)
		}
	}
	if err := errors.Join(vm.Kill(t.Context()), vm.Remove(t.Context())); err != nil {
		t.Error(err)
	}
}

func TestConformance(t *testing.T) {
	r := newRig(t)
	microvmtest.Run(t, microvmtest.Fixture{
		Open:   func(testing.TB) microvm.Engine { return r.open(t) },
		Spec:   func(_ testing.TB, id string) microvm.Spec { return r.spec(t, id) },
		Config: r.config,
		Count:  []string{"/app", "count"},
		Name:   []string{"/app", "name"},
		Serves: r.serves,
		Die: func(t testing.TB, vm microvm.VM) {
			if err := syscall.Kill(vm.Handle().PID, syscall.SIGABRT); err != nil {
				t.Error(err)
			}
		},
		Left: r.left,
	})
}
