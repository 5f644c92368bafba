// Package doctor says what a server can do for Volant, and what is missing.
//
//	Look ─► Facts ─► Judge ─► findings
//
// # Invariants
//
//   - Nothing is changed. What only root can see is told as such.
//   - Judge is pure: every finding follows from Facts.
//   - Each finding that is not ok says what to do.
//
// # Not here
//
// Setting a server up: volant setup and the packages. The engines' own probing: package microvm.
package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cgroup"
	"github.com/volant-edge/volant/hostnet"
	"github.com/volant-edge/volant/microvm"
)

// Status is how well something is.
type Status string

// The statuses.
const (
	OK   Status = "ok"
	Warn Status = "warn" // works, with less than it could
	Fail Status = "fail" // no machine runs until it is mended
)

// Finding is one line of the report.
type Finding struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Found  string `json:"found"`
	Remedy string `json:"remedy,omitempty"`
}

// Config says what to look at.
type Config struct {
	Data string         // data directory, or where it will be
	Shm  string         // where the memory of awake machines lies; /dev/shm
	Node volant.NodeID  // "" before the first start
	Pool netip.Prefix   // private addresses of machines; hostnet's default
	Apps []netip.Prefix // pools of apps' addresses
	// Engine probes the engines; nil leaves them out.
	Engine func(context.Context) (microvm.Capabilities, error)
	// Kernel says whether the guest kernel is there; nil leaves it out.
	Kernel func() (release string, err error)
	// Mesh looks at the mesh; nil leaves it out, as on a server that is alone.
	Mesh func(context.Context) Mesh
}

// Check looks and judges.
func Check(ctx context.Context, cfg Config) []Finding { return Judge(Look(ctx, cfg)) }

// Failed says whether a finding keeps machines from running.
func Failed(fs []Finding) bool {
	for _, f := range fs {
		if f.Status == Fail {
			return true
		}
	}
	return false
}

// Judge turns facts into findings, the grave ones not first but in a fixed order.
func Judge(f Facts) []Finding {
	fs := []Finding{
		judgeRoot(f), judgeKernel(f), judgeKVM(f),
	}
	if f.EngineAsked {
		fs = append(fs, judgeEngine(f))
	}
	if f.GuestAsked {
		fs = append(fs, judgeGuestKernel(f))
	}
	fs = append(fs, judgeTun(f))
	fs = append(fs, judgeNetwork(f)...)
	fs = append(fs, judgeForwarding(f), judgeCgroups(f), judgeMemory(f), judgeShm(f), judgeDisk(f), judgeFiles(f))
	if f.Mesh != nil {
		fs = append(fs, judgeMesh(f)...)
	}
	fs = append(fs, judgeTools(f)...)
	return append(fs, judgeIsolation(f)...)
}

func ok(name, format string, args ...any) Finding {
	return Finding{Name: name, Status: OK, Found: fmt.Sprintf(format, args...)}
}

func (f Finding) worse(s Status, remedy string) Finding {
	f.Status, f.Remedy = s, remedy
	return f
}

func judgeRoot(f Facts) Finding {
	if f.UID != 0 {
		return ok("root", "running as user %d", f.UID).worse(Fail, "run volant as root: taps, firewall and cgroups need it")
	}
	return ok("root", "running as root")
}

func judgeKernel(f Facts) Finding {
	major, minor, good := parseRelease(f.Release)
	found := ok("kernel", "Linux %s", f.Release)
	switch {
	case !good:
		return found.worse(Warn, "the version is not understood; Volant is tried on 6.1 and later")
	case major < 5 || major == 5 && minor < 10:
		return found.worse(Fail, "use Linux 6.1 or later, as in Debian 12")
	case major < 6 || major == 6 && minor < 1:
		return found.worse(Warn, "Volant is tried on Linux 6.1 and later")
	}
	return found
}

func parseRelease(s string) (major, minor int, good bool) {
	a, rest, ok := strings.Cut(s, ".")
	b := rest
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		b = rest[:i]
	}
	major, err1 := strconv.Atoi(a)
	minor, err2 := strconv.Atoi(b)
	return major, minor, ok && err1 == nil && err2 == nil
}

func judgeKVM(f Facts) Finding {
	const slow = "machines run without KVM: several times slower, and not for several tenants"
	switch {
	case f.KVM == nil && f.Virtualization != "":
		return ok("kvm", "/dev/kvm opens; CPU has %s", f.Virtualization)
	case f.KVM == nil:
		return ok("kvm", "/dev/kvm opens, but the CPU shows neither vmx nor svm").
			worse(Warn, "see the finding engine: it says whether a guest really boots with KVM")
	case f.Virtualization != "":
		return ok("kvm", "CPU has %s, but KVM does not open: %v; %s", f.Virtualization, f.KVM, slow).
			worse(Warn, "load the module (modprobe kvm_intel or kvm_amd) and give root access to /dev/kvm")
	}
	return ok("kvm", "no KVM: %v; the CPU shows neither vmx nor svm; %s", f.KVM, slow).
		worse(Warn, "switch virtualization on in the firmware, or nested virtualization where this server is a VM itself")
}

func judgeEngine(f Facts) Finding {
	if f.EngineErr != nil {
		return ok("engine", "%v", text(f.EngineErr)).worse(Fail, remedy(f.EngineErr, "install QEMU: apt-get install --no-install-recommends qemu-system-x86"))
	}
	c := f.Engine
	found := ok("engine", "%s %s; %s", c.Accel, c.Version, c.Why)
	if !c.MultiTenant {
		return found.worse(Warn, "run apps of one organization only on this server: this engine is no wall between tenants")
	}
	return found
}

func judgeGuestKernel(f Facts) Finding {
	if f.GuestErr != nil {
		return ok("guest-kernel", "%v", text(f.GuestErr)).worse(Fail, remedy(f.GuestErr, "run: volant setup kernel"))
	}
	return ok("guest-kernel", "%s", f.GuestKernel)
}

func judgeTun(f Facts) Finding {
	if f.Tun != nil {
		return ok("tun", "%v", f.Tun).worse(Fail, "load the module: modprobe tun")
	}
	return ok("tun", "/dev/net/tun opens")
}

func judgeNetwork(f Facts) []Finding {
	if f.NetErr != nil {
		return []Finding{ok("network", "%v", f.NetErr).worse(Fail, "run as root on a kernel with nf_tables (modprobe nf_tables)")}
	}
	var fs []Finding
	for _, p := range f.Net {
		s := Warn
		if p.Serious {
			s = Fail
		}
		fs = append(fs, ok("network", "%s", p.Found).worse(s, p.Remedy))
	}
	if len(fs) == 0 {
		fs = append(fs, ok("network", "nftables answers; no rule or route of others is in the way"))
	}
	return fs
}

func judgeForwarding(f Facts) Finding {
	if f.Forwarding {
		return ok("ip_forward", "on")
	}
	return ok("ip_forward", "off; the server switches it on when it starts")
}

func judgeCgroups(f Facts) Finding {
	if f.CgroupErr != nil {
		return ok("cgroups", "%v", f.CgroupErr).worse(Warn, "mount cgroups v2: mount -t cgroup2 none /sys/fs/cgroup")
	}
	if len(f.CgroupMissing) == 0 {
		return ok("cgroups", "%s with cpu, cpuset, memory and pids", f.CgroupMode)
	}
	var missing []string
	for _, m := range f.CgroupMissing {
		missing = append(missing, m.Controller+" ("+m.Why+")")
	}
	return ok("cgroups", "%s without %s: machines are not bounded in these", f.CgroupMode, strings.Join(missing, ", ")).
		worse(Warn, "boot with cgroups v2 and these controllers (systemd.unified_cgroup_hierarchy=1, no cgroup_disable= on the kernel's command line)")
}

func judgeMemory(f Facts) Finding {
	found := ok("memory", "%d MiB, %d MiB available", f.MemoryMB, f.AvailableMB)
	if f.AvailableMB < 1024 {
		return found.worse(Warn, "a machine takes 512 MiB while awake: free some memory, or add some")
	}
	return found
}

func judgeShm(f Facts) Finding {
	found := ok("machine-memory", "%s holds %d MiB, %d MiB free", f.ShmDir, f.ShmMB, f.ShmFreeMB)
	switch {
	case f.ShmErr != nil:
		return ok("machine-memory", "%v", f.ShmErr).worse(Fail, "mount a tmpfs there, or name one in the server's config (host.shm_dir)")
	case !f.ShmIsTmpfs:
		return found.worse(Warn, "it is no tmpfs, so machines' memory goes through a disk: mount a tmpfs there")
	case f.ShmMB < f.MemoryMB*3/4:
		return found.worse(Warn, fmt.Sprintf("machines can use no more than that of the server's memory; make it larger: mount -o remount,size=90%% %s", f.ShmDir))
	}
	return found
}

func judgeDisk(f Facts) Finding {
	if f.DiskErr != nil {
		return ok("disk", "%v", f.DiskErr).worse(Fail, "name a directory on a local disk with --data")
	}
	found := ok("disk", "%d MiB free for %s", f.DiskFreeMB, f.DataDir)
	switch {
	case f.DiskFreeMB < 2<<10:
		return found.worse(Fail, "free some space: images, snapshots and scratch disks need at least 2 GiB")
	case f.DiskFreeMB < 10<<10:
		return found.worse(Warn, "a few images with their machines' snapshots fill that: 10 GiB and more are better")
	}
	return found
}

func judgeFiles(f Facts) Finding {
	found := ok("open-files", "up to %d per process", f.NoFile)
	if f.NoFile < 20000 {
		return found.worse(Warn, "each connection takes two or more: set LimitNOFILE=1048576 in the unit, or ulimit -n")
	}
	return found
}

func judgeTools(f Facts) []Finding {
	var fs []Finding
	for _, t := range tools() {
		if path := f.Tools[t.program]; path != "" {
			fs = append(fs, ok(t.program, "%s", path))
			continue
		}
		fs = append(fs, ok(t.program, "not installed").worse(t.status, "run: apt-get install --no-install-recommends "+t.debian))
	}
	return fs
}

type tool struct {
	program, debian string
	status          Status
}

func tools() []tool {
	return []tool{{"mkfs.ext4", "e2fsprogs", Fail}, {"qemu-system-x86_64", "qemu-system-x86", Fail}}
}

// judgeIsolation finds what weakens the wall between tenants; it is silent where all is well.
func judgeIsolation(f Facts) []Finding {
	var fs []Finding
	if f.SwapMB > 0 {
		fs = append(fs, ok("swap", "%d MiB", f.SwapMB).worse(Warn, "machines' memory may reach the disk in the clear: swapoff -a, or encrypt it"))
	}
	if f.KSM {
		fs = append(fs, ok("ksm", "on").worse(Warn, "pages shared between tenants leak what they hold: echo 0 > /sys/kernel/mm/ksm/run"))
	}
	if len(f.Vulnerable) > 0 && f.KVM == nil {
		fs = append(fs, ok("cpu", "no protection against %s", strings.Join(f.Vulnerable, ", ")).
			worse(Warn, "install the CPU's microcode and remove mitigations=off before several tenants share this server"))
	}
	return fs
}

// text and remedy take an error for people apart.
func text(err error) string {
	if e, ok := asVolant(err); ok {
		return e.Text
	}
	return err.Error()
}

func remedy(err error, otherwise string) string {
	if e, ok := asVolant(err); ok && e.Remedy != "" {
		return e.Remedy
	}
	return otherwise
}

// Facts are what Look found. Errors say why something does not work.
type Facts struct {
	UID            int
	Release        string
	KVM            error  // of opening /dev/kvm
	Virtualization string // vmx, svm, or ""
	EngineAsked    bool
	Engine         microvm.Capabilities
	EngineErr      error
	GuestAsked     bool
	GuestKernel    string
	GuestErr       error
	Tun            error
	Mesh           *Mesh // nil: not asked
	Net            []hostnet.Problem
	NetErr         error
	Forwarding     bool
	CgroupMode     cgroup.Mode
	CgroupMissing  []cgroup.Missing
	CgroupErr      error
	MemoryMB       int
	AvailableMB    int
	SwapMB         int
	ShmDir         string
	ShmIsTmpfs     bool
	ShmMB          int
	ShmFreeMB      int
	ShmErr         error
	DataDir        string
	DiskFreeMB     int
	DiskErr        error
	NoFile         uint64
	Tools          map[string]string // program → path
	KSM            bool
	Vulnerable     []string
}
