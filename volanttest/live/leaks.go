package live

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Leaks lists what a node still has outside its data directory: processes that name dir, and links,
// rules, routes, cgroups, mounts and shared memory which bear the node's ID.
func Leaks(dir, node string) []string {
	out := Processes(dir)
	if node != "" {
		out = append(out, named("ip", []string{"-o", "link"}, node)...)
		out = append(out, named("nft", []string{"list", "tables"}, node)...)
		out = append(out, matches("/dev/shm/*"+node+"*")...)
		for _, depth := range []string{"*", "*/*", "*/*/*"} {
			out = append(out, matches("/sys/fs/cgroup/"+depth+node+"*")...)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err == nil {
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, dir) {
				out = append(out, "mount "+strings.TrimSpace(line))
			}
		}
	}
	return out
}

// Processes lists the processes whose command line or working directory names dir.
func Processes(dir string) []string {
	var out []string
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is right
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // it has ended
		}
		cwd, _ := os.Readlink(filepath.Join(filepath.Dir(p), "cwd"))
		if bytes.Contains(b, []byte(dir)) || strings.HasPrefix(cwd, dir) {
			cmd := string(bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
			out = append(out, fmt.Sprintf("process %s %.120s", filepath.Base(filepath.Dir(p)), cmd))
		}
	}
	return out
}

// named runs a lister and keeps the lines that bear the word.
func named(tool string, args []string, word string) []string {
	b, err := exec.Command(tool, args...).Output()
	if err != nil {
		return []string{fmt.Sprintf("%s did not answer: %v", tool, err)}
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, word) {
			out = append(out, tool+" "+strings.TrimSpace(line))
		}
	}
	return out
}

func matches(pattern string) []string {
	paths, _ := filepath.Glob(pattern) // the pattern is right
	return paths
}
