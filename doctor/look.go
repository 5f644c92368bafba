package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cgroup"
	"github.com/volant-edge/volant/hostnet"
)

// Look gathers the facts.
func Look(ctx context.Context, cfg Config) Facts {
	f := Facts{
		UID: os.Geteuid(), Release: release(), KVM: opens("/dev/kvm"), Tun: opens("/dev/net/tun"),
		Virtualization: virtualization(read("/proc/cpuinfo")),
		Forwarding:     strings.TrimSpace(read("/proc/sys/net/ipv4/ip_forward")) == "1",
		KSM:            strings.TrimSpace(read("/sys/kernel/mm/ksm/run")) == "1",
		Vulnerable:     vulnerable("/sys/devices/system/cpu/vulnerabilities"),
		Tools:          map[string]string{},
	}
	if cfg.Engine != nil {
		f.EngineAsked = true
		f.Engine, f.EngineErr = cfg.Engine(ctx)
	}
	if cfg.Kernel != nil {
		f.GuestAsked = true
		f.GuestKernel, f.GuestErr = cfg.Kernel()
	}
	f.Net, f.NetErr = hostnet.Problems(ctx, hostnet.Config{Node: cfg.Node, Pool4: cfg.Pool, Apps: cfg.Apps})
	if cfg.Mesh != nil {
		m := cfg.Mesh(ctx)
		f.Mesh = &m
	}
	f.lookCgroups(cfg.Node)
	f.lookMemory(read("/proc/meminfo"))
	f.lookDisks(cfg)
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
		f.NoFile = lim.Max // a server raises its own to that
	}
	for _, t := range tools() {
		f.Tools[t.program] = findTool(t.program)
	}
	return f
}

func (f *Facts) lookCgroups(node volant.NodeID) {
	if node == "" {
		node = "00000000" // nothing is made under it
	}
	g, err := cgroup.New(node, nil)
	if err != nil {
		f.CgroupErr = err
		return
	}
	f.CgroupMode, f.CgroupMissing = g.Mode(), g.Missing()
}

func (f *Facts) lookMemory(meminfo string) {
	kb := map[string]int{}
	for line := range strings.Lines(meminfo) {
		name, rest, _ := strings.Cut(line, ":")
		if s := strings.Fields(rest); len(s) > 0 {
			kb[name], _ = strconv.Atoi(s[0]) // 0 where it is no number
		}
	}
	f.MemoryMB, f.AvailableMB, f.SwapMB = kb["MemTotal"]>>10, kb["MemAvailable"]>>10, kb["SwapTotal"]>>10
}

func (f *Facts) lookDisks(cfg Config) {
	f.ShmDir, f.DataDir = cfg.Shm, cfg.Data
	if f.ShmDir == "" {
		f.ShmDir = "/dev/shm"
	}
	var st unix.Statfs_t
	if err := unix.Statfs(f.ShmDir, &st); err != nil {
		f.ShmErr = fmt.Errorf("%s: %w", f.ShmDir, err)
	} else {
		f.ShmIsTmpfs = st.Type == unix.TMPFS_MAGIC || st.Type == unix.HUGETLBFS_MAGIC
		f.ShmMB, f.ShmFreeMB = megabytes(st.Blocks, st), megabytes(st.Bavail, st)
	}
	dir := existing(f.DataDir)
	if err := unix.Statfs(dir, &st); err != nil {
		f.DiskErr = fmt.Errorf("%s: %w", dir, err)
		return
	}
	f.DiskFreeMB = megabytes(st.Bavail, st)
}

func megabytes(blocks uint64, st unix.Statfs_t) int {
	return int(blocks * uint64(st.Bsize) >> 20)
}

// existing is the nearest parent of path that is there.
func existing(path string) string {
	path = filepath.Clean(path)
	for path != "/" && path != "." {
		if _, err := os.Stat(path); err == nil {
			return path
		}
		path = filepath.Dir(path)
	}
	return path
}

func read(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return string(b)
}

func opens(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func release() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// virtualization is the CPU's flag for KVM.
func virtualization(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		name, flags, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		for _, f := range []string{"vmx", "svm"} {
			if slices.Contains(strings.Fields(flags), f) {
				return f
			}
		}
	}
	return ""
}

// vulnerable lists the CPU's known leaks against which the kernel does nothing.
func vulnerable(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(read(filepath.Join(dir, e.Name())), "Vulnerable") {
			out = append(out, e.Name())
		}
	}
	return out
}

// findTool looks in PATH, and in the directories that a user's PATH may lack.
func findTool(program string) string {
	if p, err := exec.LookPath(program); err == nil {
		return p
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return p
		}
	}
	return ""
}

func asVolant(err error) (*volant.Error, bool) {
	var e *volant.Error
	return e, errors.As(err, &e)
}
