package cgroup_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cgroup"
	"github.com/volant-edge/volant/volanttest/need"
)

const (
	node = volant.NodeID("0badcafe")
	m1   = volant.MachineID("11111111111111")
	m2   = volant.MachineID("22222222222222")
)

const (
	mountV2     = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	mountV1     = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
	mountHybrid = mountV1 + "40 31 0:40 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)

func TestDetect(t *testing.T) {
	for _, c := range []struct{ name, mounts, self, want string }{
		{"v2", mountV2, "0::/system.slice/volant.service\n", "v2 map[:/sys/fs/cgroup]"},
		{"v1 inside the own group", mountV1, "3:memory:/system.slice/volant.service\n2:cpu,cpuacct:/\n", "v1 map[cpu:/sys/fs/cgroup/cpu,cpuacct memory:/sys/fs/cgroup/memory/system.slice/volant.service]"},
		{"hybrid has its controllers in v1", mountHybrid, "0::/\n", "v1 map[cpu:/sys/fs/cgroup/cpu,cpuacct memory:/sys/fs/cgroup/memory]"},
		{"started out of a group of ours", mountV1, "3:memory:/s/volant-0badcafe/proxy\n", "v1 map[cpu:/sys/fs/cgroup/cpu,cpuacct memory:/sys/fs/cgroup/memory/s]"},
		{"in a container that sees its own part", strings.ReplaceAll(mountV1, "0:30 /", "0:30 /docker/1"), "3:memory:/docker/1/x\n", "v1 map[cpu:/sys/fs/cgroup/cpu,cpuacct memory:/sys/fs/cgroup/memory/x]"},
		{"own group outside of what the container sees", mountV1, "3:memory:/../../x\n", "v1 map[cpu:/sys/fs/cgroup/cpu,cpuacct memory:/sys/fs/cgroup/memory]"},
		{"none", "22 1 0:5 / /proc rw - proc proc rw\ngarbage\n", "", "none map[]"},
	} {
		mode, bases := cgroup.Detect(c.mounts, c.self)
		if got := fmt.Sprint(mode, " ", bases); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

func FuzzDetect(f *testing.F) {
	f.Add(mountHybrid, "3:memory:/a/b\n")
	f.Add(mountV2, "0::/\n")
	f.Add(" - cgroup x cpu", "::\n:cpu:..")
	f.Fuzz(func(t *testing.T, mounts, self string) {
		mode, bases := cgroup.Detect(mounts, self)
		if (mode == cgroup.None) != (len(bases) == 0) {
			t.Errorf("mode %s with %v", mode, bases)
		}
	})
}

func TestLimitsAsTheKernelReadsThem(t *testing.T) {
	for _, c := range []struct {
		name   string
		limits cgroup.Limits
		v1, v2 []string
	}{
		{name: "nothing is set", limits: cgroup.Limits{}},
		{
			name: "a shared vCPU: 1/16 of a core, burst after its quota", limits: cgroup.Shared(1),
			v1: []string{"cpu/n/m/cpu.shares=1024", "cpu/n/m/cpu.cfs_burst_us=0", "cpu/n/m/cpu.cfs_quota_us=-1", "cpu/n/m/cpu.cfs_period_us=80000", "cpu/n/m/cpu.cfs_quota_us=5000", "cpu/n/m/cpu.cfs_burst_us=5000"},
			v2: []string{"n/m/cpu.weight=100", "n/m/cpu.max.burst=0", "n/m/cpu.max=5000 80000", "n/m/cpu.max.burst=5000"},
		},
		{
			name: "a full share lifts the quota", limits: cgroup.Full(2),
			v1: []string{"cpu/n/m/cpu.shares=2048", "cpu/n/m/cpu.cfs_burst_us=0", "cpu/n/m/cpu.cfs_quota_us=-1"},
			v2: []string{"n/m/cpu.weight=200", "n/m/cpu.max.burst=0", "n/m/cpu.max=max"},
		},
		{
			name: "a burst above its quota is cut to it", limits: cgroup.Limits{Quota: 10 * time.Millisecond, Burst: time.Second},
			v1: []string{"cpu/n/m/cpu.cfs_burst_us=0", "cpu/n/m/cpu.cfs_quota_us=-1", "cpu/n/m/cpu.cfs_period_us=100000", "cpu/n/m/cpu.cfs_quota_us=10000", "cpu/n/m/cpu.cfs_burst_us=10000"},
			v2: []string{"n/m/cpu.max.burst=0", "n/m/cpu.max=10000 100000", "n/m/cpu.max.burst=10000"},
		},
		{
			name: "CPUs, memory, processes", limits: cgroup.Limits{CPUs: []int{2, 3, 10}, MemoryMB: 512, Pids: 64},
			v1: []string{"cpuset/n/m/cpuset.cpus=2,3,10", "memory/n/m/memory.limit_in_bytes=536870912", "pids/n/m/pids.max=64"},
			v2: []string{"n/m/cpuset.cpus=2,3,10", "n/m/memory.max=536870912", "n/m/memory.swap.max=0", "n/m/memory.oom.group=1", "n/m/pids.max=64"},
		},
		{
			name: "limits taken away", limits: cgroup.Limits{MemoryMB: cgroup.NoLimit, Pids: cgroup.NoLimit},
			v1: []string{"memory/n/m/memory.limit_in_bytes=-1", "pids/n/m/pids.max=max"},
			v2: []string{"n/m/memory.max=max", "n/m/memory.swap.max=0", "n/m/memory.oom.group=1", "n/m/pids.max=max"},
		},
		{name: "weights in the kernel's bounds", limits: cgroup.Limits{Weight: 1 << 30}, v1: []string{"cpu/n/m/cpu.shares=262144"}, v2: []string{"n/m/cpu.weight=10000"}},
	} {
		if diff := cmp.Diff(c.v1, cgroup.Writes(cgroup.V1, c.limits)); diff != "" {
			t.Errorf("%s, v1 (-want +got):\n%s", c.name, diff)
		}
		if diff := cmp.Diff(c.v2, cgroup.Writes(cgroup.V2, c.limits)); diff != "" {
			t.Errorf("%s, v2 (-want +got):\n%s", c.name, diff)
		}
		if got := cgroup.Writes(cgroup.None, c.limits); len(got) > 0 {
			t.Errorf("%s, no cgroups: got %v", c.name, got)
		}
	}
}

func openV2(t *testing.T, u *unified) *cgroup.Groups {
	t.Helper()
	g, err := cgroup.OpenOn(u, node, mountV2, "0::/system.slice/volant.service\n", nil)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestV2SwitchesControllersOnAndSetsLimits(t *testing.T) {
	u := newUnified("cpuset cpu io memory pids")
	g := openV2(t, u)
	ctx := t.Context()
	if err := g.Add(ctx, m1, 77); err != nil {
		t.Fatal(err)
	}
	if got, want := u.procs["77"], root+"/volant-0badcafe/"+string(m1); got != want {
		t.Errorf("process is in %q, want %q", got, want)
	}
	for _, l := range []cgroup.Limits{cgroup.Shared(2), cgroup.Shared(1), cgroup.Full(1), {CPUs: []int{1}, MemoryMB: 256, Pids: 9}, cgroup.Shared(1)} {
		if err := g.Limit(ctx, m1, l); err != nil {
			t.Errorf("limits %+v: %v", l, err)
		}
	}
	for file, want := range map[string]string{"cpu.max": "5000 80000", "cpu.max.burst": "5000", "cpu.weight": "100", "cpuset.cpus": "1", "memory.max": "268435456", "pids.max": "9"} {
		if got := u.read(string(m1) + "/" + file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if got := g.Missing(); len(got) > 0 {
		t.Errorf("missing are %v", got)
	}
	if err := g.Add(ctx, m2, 4000); err == nil || !strings.Contains(err.Error(), "process 4000 is gone") {
		t.Errorf("error is %v, want that the process is gone", err)
	}
}

func TestMissingControllersAreToldAndTheRestWorks(t *testing.T) {
	u := newUnified("cpu pids")
	g := openV2(t, u)
	if err := g.Limit(t.Context(), m1, cgroup.Limits{Weight: 200, CPUs: []int{0}, MemoryMB: 512, Pids: 10}); err != nil {
		t.Fatal(err)
	}
	want := []cgroup.Missing{
		{Controller: "cpuset", Why: "the kernel offers no cpuset controller in /sys/fs/cgroup"},
		{Controller: "memory", Why: "the kernel offers no memory controller in /sys/fs/cgroup"},
	}
	if diff := cmp.Diff(want, g.Missing()); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	if got := u.read(string(m1) + "/cpu.weight"); got != "200" {
		t.Errorf("weight is %q, want 200", got)
	}
}

func TestWithoutCgroupsNothingFails(t *testing.T) {
	g, err := cgroup.OpenOn(newUnified(""), node, "", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := errors.Join(g.Add(ctx, m1, 1), g.Limit(ctx, m1, cgroup.Shared(1)), g.Remove(ctx, m1)); err != nil {
		t.Error(err)
	}
	if _, err := g.Sweep(ctx, func(volant.MachineID) bool { return false }); err != nil {
		t.Error(err)
	}
	if g.Mode() != cgroup.None || len(g.Missing()) != 4 {
		t.Errorf("mode %s, missing %v; want none, and all four", g.Mode(), g.Missing())
	}
}

func TestSweepKeepsTheNamedAndOurOwn(t *testing.T) {
	u := newUnified("cpu")
	g := openV2(t, u)
	ctx := t.Context()
	for _, name := range []string{string(m1), string(m2), "proxy"} {
		if err := g.Place(ctx, name, 10); err != nil {
			t.Fatal(err)
		}
	}
	u.procs["10"] = "elsewhere"
	removed, err := g.Sweep(ctx, func(id volant.MachineID) bool { return id == m1 })
	if err != nil || !slices.Equal(removed, []string{"cgroup " + string(m2)}) {
		t.Errorf("removed %v, %v; want only the second machine's", removed, err)
	}
}

func TestRemoveWaitsForTheKernelAndEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := newUnified("cpu")
		g := openV2(t, u)
		for _, id := range []volant.MachineID{m1, m2} {
			if err := g.Limit(t.Context(), id, cgroup.Limits{}); err != nil {
				t.Fatal(err)
			}
		}
		u.busy[root+"/volant-0badcafe/"+string(m1)] = 3
		if err := g.Remove(t.Context(), m1); err != nil {
			t.Error(err)
		}
		if err := g.Remove(t.Context(), m1); err != nil {
			t.Errorf("second removal: %v", err)
		}
		u.busy[root+"/volant-0badcafe/"+string(m2)] = 1 << 30
		if err := g.Remove(t.Context(), m2); err == nil {
			t.Error("a group that stays busy was removed")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.Remove(ctx, m2); !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v, want that of the context", err)
		}
	})
}

func TestNamesCannotClimbOut(t *testing.T) {
	u := newUnified("cpu")
	g := openV2(t, u)
	for _, name := range []volant.MachineID{"", "..", "../x", "a/b", "A"} {
		err := errors.Join(g.Add(t.Context(), name, 1))
		if !errors.Is(err, volant.ErrInvalid) || !errors.Is(g.Remove(t.Context(), name), volant.ErrInvalid) {
			t.Errorf("%q: error is %v, want invalid", name, err)
		}
	}
}

func TestUsage(t *testing.T) {
	u := newUnified("cpu memory")
	g := openV2(t, u)
	if err := g.Limit(t.Context(), m1, cgroup.Limits{}); err != nil {
		t.Fatal(err)
	}
	dir := root + "/volant-0badcafe/" + string(m1)
	u.files[dir+"/cpu.stat"] = "usage_usec 1500000\nthrottled_usec 250000\nnr_bursts x\n"
	u.files[dir+"/memory.current"] = "1048576\n"
	u.files[dir+"/memory.events"] = "low 0\noom_kill 2\n"
	got, err := g.Usage(m1)
	want := cgroup.Usage{CPU: 1500 * time.Millisecond, Throttled: 250 * time.Millisecond, MemoryMB: 1, OOMKills: 2}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestCredit(t *testing.T) {
	c := cgroup.NewCredit(1)
	if c.Left != 5*time.Second || c.Limits().Quota != cgroup.NoLimit {
		t.Errorf("a new machine has %v and %+v, want 5s and no quota", c.Left, c.Limits())
	}
	// At full speed 5 s of credit last 5/(1-1/16) s.
	full := 5 * time.Second * 16 / 15
	if got := c.Spend(full-time.Millisecond, full-time.Millisecond); got.Left <= 0 {
		t.Errorf("credit ended early: %v", got.Left)
	}
	got := c.Spend(full+time.Millisecond, full+time.Millisecond)
	if got.Left != 0 || got.Limits().Quota != 5*time.Millisecond {
		t.Errorf("after %v at full speed: %v left, quota %v; want 0 and 5ms", full, got.Left, got.Limits().Quota)
	}
	if got = got.Spend(0, 16*time.Second); got.Left != time.Second {
		t.Errorf("16 idle seconds earned %v, want 1s", got.Left)
	}
	if got = got.Spend(0, 100*time.Hour); got.Left != 500*time.Second {
		t.Errorf("100 idle hours saved %v, want 500s", got.Left)
	}
}

func sysfs(online string, siblings map[string]string) fstest.MapFS {
	m := fstest.MapFS{"online": {Data: []byte(online + "\n")}}
	for cpu, list := range siblings {
		m["cpu"+cpu+"/topology/thread_siblings_list"] = &fstest.MapFile{Data: []byte(list + "\n")}
	}
	return m
}

func TestCores(t *testing.T) {
	for _, c := range []struct {
		name string
		fs   fstest.MapFS
		want [][]int
	}{
		{"SMT, siblings far apart", sysfs("0-7", map[string]string{"0": "0,4", "1": "1,5", "2": "2,6", "3": "3,7", "4": "0,4", "5": "1,5", "6": "2,6", "7": "3,7"}), [][]int{{0, 4}, {1, 5}, {2, 6}, {3, 7}}},
		{"SMT, siblings side by side", sysfs("0-3", map[string]string{"0": "0-1", "1": "0-1", "2": "2-3", "3": "2-3"}), [][]int{{0, 1}, {2, 3}}},
		{"no SMT", sysfs("0-1", map[string]string{"0": "0", "1": "1"}), [][]int{{0}, {1}}},
		{"a sibling is offline", sysfs("0-2", map[string]string{"0": "0,2", "1": "1,3", "2": "0,2"}), [][]int{{0, 2}, {1}}},
		{"nothing is told", sysfs("0,5", nil), [][]int{{0}, {5}}},
	} {
		got, err := cgroup.Cores(c.fs)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
	if _, err := cgroup.Cores(sysfs("0-x", nil)); !errors.Is(err, volant.ErrInvalid) {
		t.Errorf("error is %v, want invalid", err)
	}
}

func FuzzParseCPUs(f *testing.F) {
	for _, s := range []string{"0-3,8", "", "0", "4-2", "-1", "0-99999999", "1,1,0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := cgroup.ParseCPUs(s)
		if err == nil && (!slices.IsSorted(got) || len(got) > 1<<14) {
			t.Errorf("%q gave %v", s, got)
		}
	})
}

func TestRealCgroups(t *testing.T) {
	need.Root(t)
	id := volant.NewNodeID()
	g, err := cgroup.New(id, nil)
	if err != nil {
		t.Fatal(err)
	}
	if g.Mode() == cgroup.None {
		need.Unmet(t, "root", "no cgroups are mounted")
	}
	t.Cleanup(func() {
		if _, err := cgroup.Cleanup(context.Background(), id); err != nil {
			t.Error(err)
		}
	})
	ctx := t.Context()
	cmd := exec.CommandContext(ctx, "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(ctx, m1, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	for _, l := range []cgroup.Limits{cgroup.Shared(2), cgroup.Shared(1), cgroup.Full(1), {CPUs: []int{0}, MemoryMB: 64, Pids: 20}} {
		if err := g.Limit(ctx, m1, l); err != nil {
			t.Errorf("limits %+v: %v", l, err)
		}
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if want := path.Join("/volant-"+string(id), string(m1)); !strings.Contains(string(b), want) {
		t.Errorf("process is in\n%swant it in %s", b, want)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(g.Missing(), func(m cgroup.Missing) bool { return m.Controller == "cpuset" }) && !strings.Contains(string(status), "Cpus_allowed_list:\t0\n") {
		t.Errorf("process may run on\n%s", status)
	}
	if _, err := g.Usage(m1); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() //nolint:errcheck // killed
	if err := g.Remove(ctx, m1); err != nil {
		t.Error(err)
	}
	if err := g.Limit(ctx, m2, cgroup.Limits{}); err != nil {
		t.Fatal(err)
	}
	nodes, err := cgroup.Nodes(ctx)
	if err != nil || !slices.Contains(nodes, id) {
		t.Errorf("nodes are %v, %v; want %s among them", nodes, err, id)
	}
	removed, err := cgroup.Cleanup(ctx, id)
	if err != nil || len(removed) == 0 {
		t.Errorf("cleanup removed %v, %v", removed, err)
	}
	if nodes, err = cgroup.Nodes(ctx); err != nil || slices.Contains(nodes, id) {
		t.Errorf("nodes after cleanup are %v, %v", nodes, err)
	}
}
