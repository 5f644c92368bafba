package cgroup

import (
	"path"
	"strconv"
	"strings"
	"time"
)

// write is one value for one file.
type write struct {
	file, value string
	optional    bool // newer kernels only
}

// plan says what to write for limits, in an order the kernel takes. It is pure.
func (g *Groups) plan(name string, l Limits) []write {
	if l.Quota != 0 && l.Period == 0 {
		l.Period = 100 * time.Millisecond
	}
	dir := func(controller string) string {
		if g.missing[controller] != "" {
			return ""
		}
		if g.mode == V2 {
			return path.Join(g.bases[""], g.dir, name)
		}
		return path.Join(g.bases[controller], g.dir, name)
	}
	var ws []write
	for _, c := range []struct {
		controller string
		v1, v2     func(Limits) []write
	}{
		{"cpu", cpuV1, cpuV2}, {"cpuset", cpuset, cpuset}, {"memory", memoryV1, memoryV2}, {"pids", pids, pids},
	} {
		d := dir(c.controller)
		if d == "" || g.mode == None {
			continue
		}
		f := c.v1
		if g.mode == V2 {
			f = c.v2
		}
		for _, w := range f(l) {
			w.file = path.Join(d, w.file)
			ws = append(ws, w)
		}
	}
	return ws
}

func us(d time.Duration) string { return strconv.FormatInt(d.Microseconds(), 10) }

func burst(l Limits) time.Duration { return max(0, min(l.Burst, l.Quota)) }

func cpuV1(l Limits) (ws []write) {
	if l.Weight > 0 {
		// 1024 is v1's usual share, 100 v2's usual weight.
		ws = append(ws, write{file: "cpu.shares", value: strconv.Itoa(min(max(l.Weight*1024/100, 2), 1<<18))})
	}
	if l.Quota == 0 {
		return ws
	}
	// A burst above the quota is refused, so it goes first and comes back last. A quota that is lifted
	// meanwhile lets the period be set freely.
	ws = append(ws, write{file: "cpu.cfs_burst_us", value: "0", optional: true}, write{file: "cpu.cfs_quota_us", value: "-1"})
	if l.Quota == NoLimit {
		return ws
	}
	ws = append(ws, write{file: "cpu.cfs_period_us", value: us(l.Period)}, write{file: "cpu.cfs_quota_us", value: us(l.Quota)})
	if b := burst(l); b > 0 {
		ws = append(ws, write{file: "cpu.cfs_burst_us", value: us(b), optional: true})
	}
	return ws
}

func cpuV2(l Limits) (ws []write) {
	if l.Weight > 0 {
		ws = append(ws, write{file: "cpu.weight", value: strconv.Itoa(min(l.Weight, 10000))})
	}
	if l.Quota == 0 {
		return ws
	}
	ws = append(ws, write{file: "cpu.max.burst", value: "0", optional: true})
	if l.Quota == NoLimit {
		return append(ws, write{file: "cpu.max", value: "max"})
	}
	ws = append(ws, write{file: "cpu.max", value: us(l.Quota) + " " + us(l.Period)})
	if b := burst(l); b > 0 {
		ws = append(ws, write{file: "cpu.max.burst", value: us(b), optional: true})
	}
	return ws
}

func cpuset(l Limits) []write {
	if len(l.CPUs) == 0 {
		return nil
	}
	s := make([]string, len(l.CPUs))
	for i, c := range l.CPUs {
		s[i] = strconv.Itoa(c)
	}
	return []write{{file: "cpuset.cpus", value: strings.Join(s, ",")}}
}

func memoryV1(l Limits) []write {
	if l.MemoryMB == 0 {
		return nil
	}
	return []write{{file: "memory.limit_in_bytes", value: bytes(l.MemoryMB, "-1")}}
}

func memoryV2(l Limits) []write {
	if l.MemoryMB == 0 {
		return nil
	}
	return []write{
		{file: "memory.max", value: bytes(l.MemoryMB, "max")},
		// A guest's memory never goes to the host's swap, and a VMM ends whole or not at all.
		{file: "memory.swap.max", value: "0", optional: true},
		{file: "memory.oom.group", value: "1", optional: true},
	}
}

func bytes(mb int, none string) string {
	if mb == NoLimit {
		return none
	}
	return strconv.FormatInt(int64(mb)<<20, 10)
}

func pids(l Limits) []write {
	switch l.Pids {
	case 0:
		return nil
	case NoLimit:
		return []write{{file: "pids.max", value: "max"}}
	}
	return []write{{file: "pids.max", value: strconv.Itoa(l.Pids)}}
}

// sharedPeriod and sharedQuota are what a shared vCPU is worth: 1/16 of a core.
const (
	sharedPeriod = 80 * time.Millisecond
	sharedQuota  = 5 * time.Millisecond
)

// Shared returns the limits of a machine with shared vCPUs once its credit is used up: 1/16 of a core
// and the usual weight for each. Credit tells when that is.
func Shared(vcpus int) Limits {
	n := max(1, vcpus)
	quota := time.Duration(n) * sharedQuota
	return Limits{Weight: 100 * n, Quota: quota, Burst: quota, Period: sharedPeriod}
}

// Full returns the limits of a machine with shared vCPUs while it has credit: all its vCPUs' time.
func Full(vcpus int) Limits { return Limits{Weight: 100 * max(1, vcpus), Quota: NoLimit} }

// Credit is the CPU time that a shared machine may use above its baseline. What it does not use of the
// baseline is added.
type Credit struct {
	Left time.Duration
	VCPU int
}

// The credit of a new machine and the most that is saved, per vCPU. The kernel's own burst is too
// small for it: it cannot exceed one quota.
const (
	creditStart = 5 * time.Second
	creditMax   = 500 * time.Second
)

// NewCredit is what a machine starts with.
func NewCredit(vcpus int) Credit {
	n := max(1, vcpus)
	return Credit{Left: time.Duration(n) * creditStart, VCPU: n}
}

// Spend returns the credit after a machine has used CPU time within an elapsed time. It is pure.
func (c Credit) Spend(used, elapsed time.Duration) Credit {
	earned := time.Duration(c.VCPU) * (elapsed / (sharedPeriod / sharedQuota))
	c.Left = min(max(c.Left+earned-used, 0), time.Duration(c.VCPU)*creditMax)
	return c
}

// Limits are those that the credit asks for: full as long as there is some.
func (c Credit) Limits() Limits {
	if c.Left > 0 {
		return Full(c.VCPU)
	}
	return Shared(c.VCPU)
}
