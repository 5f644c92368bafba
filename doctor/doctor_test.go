package doctor_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cgroup"
	"github.com/volant-edge/volant/doctor"
	"github.com/volant-edge/volant/hostnet"
	"github.com/volant-edge/volant/microvm"
)

// good is a server on which nothing is wrong.
func good() doctor.Facts {
	return doctor.Facts{
		Release: "6.1.0-57-amd64", Virtualization: "vmx", EngineAsked: true, GuestAsked: true, GuestKernel: "6.1.0-57-cloud-amd64",
		Engine:     microvm.Capabilities{Accel: "kvm", Version: "7.2", MultiTenant: true, Why: "a canary guest booted"},
		Forwarding: true, CgroupMode: cgroup.V2, MemoryMB: 64000, AvailableMB: 60000, ShmDir: "/dev/shm", ShmIsTmpfs: true, ShmMB: 60000,
		DataDir: "/var/lib/volant", DiskFreeMB: 1 << 20, NoFile: 1 << 20,
		Tools: map[string]string{"mkfs.ext4": "/usr/sbin/mkfs.ext4", "qemu-system-x86_64": "/usr/bin/qemu-system-x86_64"},
	}
}

func TestGoodServerHasNothingToMend(t *testing.T) {
	for _, f := range doctor.Judge(good()) {
		if f.Status != doctor.OK || f.Remedy != "" || f.Found == "" {
			t.Errorf("finding %+v, want ok", f)
		}
	}
}

func TestJudge(t *testing.T) {
	none := errors.New("no such device")
	for _, c := range []struct {
		name    string
		change  func(*doctor.Facts)
		finding string
		status  doctor.Status
		says    string // in what was found or what to do
	}{
		{"another user", func(f *doctor.Facts) { f.UID = 1000 }, "root", doctor.Fail, "run volant as root"},
		{"an ancient kernel", func(f *doctor.Facts) { f.Release = "4.19.0" }, "kernel", doctor.Fail, "6.1 or later"},
		{"an old kernel", func(f *doctor.Facts) { f.Release = "5.15.0-generic" }, "kernel", doctor.Warn, "6.1 and later"},
		{"an odd kernel", func(f *doctor.Facts) { f.Release = "six" }, "kernel", doctor.Warn, "not understood"},
		{"no KVM and no flag", func(f *doctor.Facts) { f.KVM, f.Virtualization = none, "" }, "kvm", doctor.Warn, "nested virtualization"},
		{"no KVM module", func(f *doctor.Facts) { f.KVM = none }, "kvm", doctor.Warn, "modprobe kvm_intel"},
		{"a KVM that may not work", func(f *doctor.Facts) { f.Virtualization = "" }, "kvm", doctor.Warn, "really boots"},
		{"no engine", func(f *doctor.Facts) {
			f.EngineErr = volant.Errorf(volant.ErrUnavailable, "qemu is not installed").WithRemedy("run: apt-get install qemu")
		}, "engine", doctor.Fail, "apt-get install qemu"},
		{"TCG is no wall between tenants", func(f *doctor.Facts) { f.Engine.MultiTenant = false }, "engine", doctor.Warn, "one organization"},
		{"no guest kernel", func(f *doctor.Facts) { f.GuestErr = none }, "guest-kernel", doctor.Fail, "volant setup kernel"},
		{"no tun", func(f *doctor.Facts) { f.Tun = none }, "tun", doctor.Fail, "modprobe tun"},
		{"a mesh in a process", func(f *doctor.Facts) { f.Mesh = &doctor.Mesh{Kernel: none, Running: true, Peers: 1} }, "wireguard", doctor.OK, "volant mesh"},
		{"no mesh at all", func(f *doctor.Facts) { f.Mesh, f.Tun = &doctor.Mesh{Kernel: none}, none }, "wireguard", doctor.Fail, "modprobe wireguard"},
		{"a port that is taken", func(f *doctor.Facts) { f.Mesh = &doctor.Mesh{Port: 4281, PortErr: none} }, "mesh", doctor.Fail, "mesh.listen"},
		{"a free port", func(f *doctor.Facts) { f.Mesh = &doctor.Mesh{Port: 4281} }, "mesh", doctor.OK, "4281 is free"},
		{"nobody answers", func(f *doctor.Facts) {
			f.Mesh = &doctor.Mesh{Running: true, Port: 4281, Peers: 2, Silent: []string{"a", "b"}}
		}, "mesh", doctor.Warn, "let UDP port 4281 in"},
		{"some do not answer", func(f *doctor.Facts) {
			f.Mesh = &doctor.Mesh{Running: true, Peers: 9, Silent: []string{"a", "b", "c", "d", "e", "f", "g"}}
		}, "mesh", doctor.Warn, "a, b, c, d, e and 2 more"},
		{"a narrow path", func(f *doctor.Facts) {
			f.Mesh = &doctor.Mesh{Running: true, Peers: 1, Narrow: []string{"a (1328)"}}
		}, "mesh-paths", doctor.OK, "a (1328)"},
		{"no nftables", func(f *doctor.Facts) { f.NetErr = none }, "network", doctor.Fail, "nf_tables"},
		{"Docker's firewall", func(f *doctor.Facts) {
			f.Net = []hostnet.Problem{{Found: "FORWARD drops", Remedy: "iptables -I DOCKER-USER", Serious: true}}
		}, "network", doctor.Fail, "DOCKER-USER"},
		{"a pool that overlaps", func(f *doctor.Facts) { f.Net = []hostnet.Problem{{Found: "pool overlaps", Remedy: "another pool"}} }, "network", doctor.Warn, "another pool"},
		{"forwarding is off", func(f *doctor.Facts) { f.Forwarding = false }, "ip_forward", doctor.OK, "switches it on"},
		{"a controller is missing", func(f *doctor.Facts) {
			f.CgroupMissing = []cgroup.Missing{{Controller: "memory", Why: "not mounted"}}
		}, "cgroups", doctor.Warn, "without memory (not mounted)"},
		{"little memory", func(f *doctor.Facts) { f.AvailableMB = 400 }, "memory", doctor.Warn, "free some memory"},
		{"a small tmpfs", func(f *doctor.Facts) { f.ShmMB = 32000 }, "machine-memory", doctor.Warn, "size=90%"},
		{"a disk as memory", func(f *doctor.Facts) { f.ShmIsTmpfs = false }, "machine-memory", doctor.Warn, "no tmpfs"},
		{"nowhere for memory", func(f *doctor.Facts) { f.ShmErr = none }, "machine-memory", doctor.Fail, "host.shm_dir"},
		{"a full disk", func(f *doctor.Facts) { f.DiskFreeMB = 900 }, "disk", doctor.Fail, "at least 2 GiB"},
		{"a rather full disk", func(f *doctor.Facts) { f.DiskFreeMB = 5000 }, "disk", doctor.Warn, "10 GiB"},
		{"a lost disk", func(f *doctor.Facts) { f.DiskErr = none }, "disk", doctor.Fail, "--data"},
		{"few open files", func(f *doctor.Facts) { f.NoFile = 1024 }, "open-files", doctor.Warn, "LimitNOFILE"},
		{"no mkfs", func(f *doctor.Facts) { delete(f.Tools, "mkfs.ext4") }, "mkfs.ext4", doctor.Fail, "e2fsprogs"},
		{"swap", func(f *doctor.Facts) { f.SwapMB = 1000 }, "swap", doctor.Warn, "swapoff"},
		{"shared pages", func(f *doctor.Facts) { f.KSM = true }, "ksm", doctor.Warn, "ksm/run"},
		{"a CPU that leaks", func(f *doctor.Facts) { f.Vulnerable = []string{"mds"} }, "cpu", doctor.Warn, "against mds"},
	} {
		f := good()
		c.change(&f)
		fs := doctor.Judge(f)
		i := slices.IndexFunc(fs, func(f doctor.Finding) bool { return f.Name == c.finding })
		if i < 0 {
			t.Errorf("%s: no finding %s in %+v", c.name, c.finding, fs)
			continue
		}
		if got := fs[i]; got.Status != c.status || !strings.Contains(got.Found+" "+got.Remedy, c.says) {
			t.Errorf("%s: got %+v, want %s that says %q", c.name, got, c.status, c.says)
		}
		if got, want := doctor.Failed(fs), c.status == doctor.Fail; got != want {
			t.Errorf("%s: failed is %v, want %v", c.name, got, want)
		}
	}
}

func TestEveryFindingThatIsNotOKHasARemedy(t *testing.T) {
	for _, f := range doctor.Judge(doctor.Facts{EngineAsked: true, GuestAsked: true}) {
		if f.Status != doctor.OK && f.Remedy == "" {
			t.Errorf("finding %+v has no remedy", f)
		}
	}
}

func TestLookWorksForAnyUserOnAnyServer(t *testing.T) {
	fs := doctor.Check(t.Context(), doctor.Config{
		Data: filepath.Join(t.TempDir(), "not", "there"), Shm: t.TempDir(),
		Engine: func(context.Context) (microvm.Capabilities, error) { return microvm.Capabilities{Accel: "tcg"}, nil },
		Kernel: func() (string, error) { return "", os.ErrNotExist },
	})
	var names []string
	for _, f := range fs {
		names = append(names, f.Name)
		if f.Found == "" || f.Status == "" {
			t.Errorf("empty finding %+v", f)
		}
	}
	for _, want := range []string{"kernel", "engine", "guest-kernel", "network", "cgroups", "disk"} {
		if !slices.Contains(names, want) {
			t.Errorf("findings are %v, want %s among them", names, want)
		}
	}
}

func TestFactsFromText(t *testing.T) {
	total, available, swap := doctor.Memory("MemTotal:       24684084 kB\nMemAvailable:   2048 kB\nSwapTotal: x kB\nnonsense\n")
	if total != 24105 || available != 2 || swap != 0 {
		t.Errorf("memory is %d, %d, %d", total, available, swap)
	}
	for text, want := range map[string]string{"flags\t\t: fpu svm\n": "svm", "flags : vmx\n": "vmx", "bugs : vmx\n": "", "": ""} {
		if got := doctor.Virtualization(text); got != want {
			t.Errorf("flag in %q is %q, want %q", text, got, want)
		}
	}
	dir := t.TempDir()
	if got := doctor.Existing(filepath.Join(dir, "a", "b")); got != dir {
		t.Errorf("nearest directory is %s, want %s", got, dir)
	}
}
