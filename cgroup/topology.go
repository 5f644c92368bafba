package cgroup

import (
	"cmp"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/volant-edge/volant"
)

// maxCPU bounds the CPU numbers that are believed.
const maxCPU = 1 << 14

// Cores returns the logical CPUs of each physical core that is online, read from the directory
// devices/system/cpu of sysfs. Siblings that share a core are in one list.
func Cores(cpuDir fs.FS) ([][]int, error) {
	b, err := fs.ReadFile(cpuDir, "online")
	if err != nil {
		return nil, fmt.Errorf("CPU topology: %w", err)
	}
	online, err := ParseCPUs(string(b))
	if err != nil {
		return nil, fmt.Errorf("CPU topology: online: %w", err)
	}
	var cores [][]int
	seen := map[int]bool{}
	for _, cpu := range online {
		if seen[cpu] {
			continue
		}
		core := []int{cpu} // alone where the kernel tells no siblings
		for _, file := range []string{"core_cpus_list", "thread_siblings_list"} {
			b, err := fs.ReadFile(cpuDir, path.Join("cpu"+strconv.Itoa(cpu), "topology", file))
			if err != nil {
				continue
			}
			if core, err = ParseCPUs(string(b)); err != nil {
				return nil, fmt.Errorf("CPU topology: siblings of CPU %d: %w", cpu, err)
			}
			break
		}
		core = slices.DeleteFunc(core, func(c int) bool { return seen[c] || !slices.Contains(online, c) })
		for _, c := range core {
			seen[c] = true
		}
		if len(core) > 0 {
			cores = append(cores, core)
		}
	}
	slices.SortFunc(cores, func(a, b []int) int { return cmp.Compare(a[0], b[0]) })
	return cores, nil
}

// ParseCPUs reads a list of CPUs as the kernel writes it, such as "0-3,8".
func ParseCPUs(text string) ([]int, error) {
	var out []int
	text = strings.TrimSpace(text)
	if text == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(first, 10, 16)
		b := a
		if err == nil && isRange {
			b, err = strconv.ParseUint(last, 10, 16)
		}
		if err != nil || b < a || b >= maxCPU {
			return nil, volant.Invalidf("list of CPUs %q", text)
		}
		for c := a; c <= b; c++ {
			out = append(out, int(c))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
