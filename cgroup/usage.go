package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/volant-edge/volant"
)

// Usage is what a machine has used since its group was made. What the kernel does not tell is zero.
type Usage struct {
	CPU       time.Duration // v1 only where cpu and cpuacct are mounted together
	Throttled time.Duration // it wanted to run and its quota was used up
	MemoryMB  int
	OOMKills  int // v2 only
}

// Usage reads what a machine has used.
func (g *Groups) Usage(id volant.MachineID) (u Usage, err error) {
	name := string(id)
	if !groupName.MatchString(name) {
		return u, volant.Invalidf("cgroup name %q: use lower-case letters, digits, '-' and '_'", name)
	}
	g.mu.Lock()
	dir := func(controller string) string {
		if g.mode == V2 {
			controller = ""
		}
		return path.Join(g.bases[controller], g.dir, name)
	}
	cpu, memory := dir("cpu"), dir("memory")
	g.mu.Unlock()
	stat, err := g.stat(path.Join(cpu, "cpu.stat"))
	if err != nil {
		return u, err
	}
	u.CPU = time.Duration(stat["usage_usec"]) * time.Microsecond
	if b, err := g.fs.ReadFile(path.Join(cpu, "cpuacct.usage")); err == nil {
		ns, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64) // 0 where it is no number
		u.CPU = time.Duration(ns)
	}
	u.Throttled = time.Duration(stat["throttled_usec"])*time.Microsecond + time.Duration(stat["throttled_time"])
	file := "memory.current"
	if g.mode == V1 {
		file = "memory.usage_in_bytes"
	}
	if b, err := g.fs.ReadFile(path.Join(memory, file)); err == nil {
		n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64) // 0 where it is no number
		u.MemoryMB = int(n >> 20)
	}
	events, err := g.stat(path.Join(memory, "memory.events"))
	u.OOMKills = int(events["oom_kill"])
	return u, err
}

// stat reads a file of "name value" lines; one that is missing has none.
func (g *Groups) stat(file string) (map[string]int64, error) {
	b, err := g.fs.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cgroup usage: %w", err)
	}
	return parseStat(string(b)), nil
}

func parseStat(text string) map[string]int64 {
	out := map[string]int64{}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 2 {
			if n, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				out[f[0]] = n
			}
		}
	}
	return out
}
