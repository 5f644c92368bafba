package live

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Leaks lists what a node still has outside its data directory: processes that name dir, and links,
// rules, routes, cgroups, mounts and shared memory which bear the node's ID.
func Leaks(dir, node string) []string {
	out := Processes(dir)
	if node != "" {
		out = append(out, named("ip", []string{"-o", "link"}, node)...)
		out = append(out, named("nft", []string{"list", "tables"}, node)...)
		out = append(out, Routes(node)...)
		out = append(out, matches("/dev/shm/*"+node+"*")...)
		out = append(out, Cgroups(node)...)
	}
	return append(out, mounts(dir)...)
}

// A Process is one that belongs to a server.
type Process struct {
	PID     int
	Command string
}

func (p Process) String() string { return fmt.Sprintf("process %d %.120s", p.PID, p.Command) }

// Processes lists the processes whose command line or working directory names dir.
func Processes(dir string) []string {
	var out []string
	for _, p := range processes(dir) {
		out = append(out, p.String())
	}
	return out
}

func processes(dir string) []Process {
	var out []Process
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is right
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // it has ended
		}
		cwd, _ := os.Readlink(filepath.Join(filepath.Dir(p), "cwd"))
		if bytes.Contains(b, []byte(dir)) || strings.HasPrefix(cwd, dir) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(p))) // digits, by the pattern
			out = append(out, Process{pid, strings.TrimSpace(string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))})
		}
	}
	return out
}

// Routes lists the routes that a node has made: they bear Volant's protocol, and the node's ID as their metric.
func Routes(node string) []string {
	id, err := hex.DecodeString(node)
	if err != nil || len(id) != 4 {
		return []string{fmt.Sprintf("node ID %q: it has 8 hex digits", node)}
	}
	metric := fmt.Sprintf("metric %d", uint32(id[0])<<24|uint32(id[1])<<16|uint32(id[2])<<8|uint32(id[3]))
	var out []string
	for _, family := range []string{"-4", "-6"} {
		out = append(out, named("ip", []string{"-o", family, "route", "show", "table", "all", "proto", "86"}, metric)...)
	}
	return out
}

// Cgroups lists the cgroups that bear the node's ID, wherever they were made. Those below them bear it not.
func Cgroups(node string) []string {
	var out []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || !d.IsDir():
			return nil //nolint:nilerr // a group that has just gone
		case strings.Contains(d.Name(), node):
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		out = append(out, "cgroups: "+err.Error())
	}
	return out
}

func mounts(dir string) []string {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return []string{"mounts: " + err.Error()}
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, dir) {
			out = append(out, "mount "+strings.TrimSpace(line))
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
