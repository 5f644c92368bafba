package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is one that runs in a lab.
type Process struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	space   string // its network namespace
	args    []string
}

// processes lists the machine's processes that pass, but this one.
func processes(pass func(Process) bool) ([]Process, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var out []Process
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil || pid == os.Getpid() {
			continue
		}
		space, err := os.Readlink(d + "/ns/net")
		if err != nil {
			continue // it has ended
		}
		cmdline, err := os.ReadFile(d + "/cmdline")
		if err != nil {
			continue // likewise
		}
		args := strings.Split(string(bytes.TrimRight(cmdline, "\x00")), "\x00")
		if p := (Process{PID: pid, Command: strings.Join(args, " "), space: space, args: args}); pass(p) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b Process) int { return a.PID - b.PID })
	return out, nil
}

// processesIn lists the processes in namespaces.
func processesIn(names ...string) ([]Process, error) {
	in := map[string]bool{}
	for _, ns := range names {
		id, err := inode(ns)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		in[id] = true
	}
	if len(in) == 0 {
		return nil, nil
	}
	return processes(func(p Process) bool { return in[p.space] })
}

// wireProcesses lists those that hold the wires of the lab in dir.
func wireProcesses(dir string) ([]Process, error) {
	return processes(func(p Process) bool {
		n := len(p.args)
		return n >= 4 && p.args[n-4] == "lab" && p.args[n-3] == "wire" && p.args[n-2] == "--dir" && p.args[n-1] == dir
	})
}

// end kills what list lists until it lists nothing: a process may have started another meanwhile.
func end(ctx context.Context, list func() ([]Process, error)) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	killed := map[int]bool{}
	for {
		ps, err := list()
		if err != nil || len(ps) == 0 {
			return len(killed), err
		}
		for _, p := range ps {
			if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return len(killed), fmt.Errorf("kill process %d: %w", p.PID, err)
			}
			killed[p.PID] = true
		}
		select {
		case <-ctx.Done():
			return len(killed), fmt.Errorf("process %d (%s) does not end", ps[0].PID, ps[0].Command)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
