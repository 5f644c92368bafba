package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Points lists the write-ahead points of the binary's host.
func (s *Server) Points(ctx context.Context) ([]string, error) {
	out, err := exec.CommandContext(ctx, s.Bin, "server", "points", "--json").Output()
	if err != nil {
		return nil, fmt.Errorf("list the points: %w", err)
	}
	var points []string
	return points, json.Unmarshal(out, &points)
}

// What a server does at an armed point.
const (
	Kill = "kill" // it kills itself
	Hold = "hold" // what came to the point waits there, until Release
)

func (s *Server) crashFile() string { return s.file("crash") }

// Arm has the server do something, once, the next time its host comes to a point; now or after its next start.
func (s *Server) Arm(point, when, do string) error {
	if err := s.Release(); err != nil {
		return err
	}
	tmp := s.crashFile() + ".new"
	if err := os.WriteFile(tmp, []byte(point+":"+when+" "+do+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, s.crashFile())
}

// Reached says whether the armed point was reached.
func (s *Server) Reached() bool {
	_, err := os.Stat(s.crashFile())
	return errors.Is(err, os.ErrNotExist)
}

// Release lets a held point go on, and disarms one that was not reached.
func (s *Server) Release() error {
	for _, f := range []string{s.crashFile(), s.crashFile() + ".held"} {
		if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// ProxyPID is the process ID of the server's proxy, 0 if none runs.
func (s *Server) ProxyPID() int {
	for _, p := range processes(s.Data) {
		if isProxy(p) {
			return p.PID
		}
	}
	return 0
}

func isProxy(p Process) bool { return strings.Contains(p.Command, " proxy --data ") }

// VMMs are the process IDs that bear a machine; of all machines for "".
func (s *Server) VMMs(machine string) []int {
	var pids []int
	for _, p := range processes(filepath.Join(s.Data, "vm")) {
		if strings.Contains(p.Command, "qemu") && strings.Contains(p.Command, machine) {
			pids = append(pids, p.PID)
		}
	}
	return pids
}

// KillProxy ends the proxy with SIGKILL and returns when it is gone.
func (s *Server) KillProxy() error {
	pid := s.ProxyPID()
	if pid == 0 {
		return errors.New("no proxy runs")
	}
	return kill(pid)
}

// KillVMMs ends the processes that bear a machine, or all machines, with SIGKILL, and says how many.
func (s *Server) KillVMMs(machine string) (int, error) {
	n := 0
	for _, pid := range s.VMMs(machine) {
		if err := kill(pid); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// kill returns when the process has ended, reaped or not.
func kill(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return nil //nolint:nilerr // it is gone
		}
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid)) // the first may end before the others
		if strings.Contains(string(b), ") Z ") && (err != nil || len(threads) <= 1) {
			return nil //nolint:nilerr // a process whose threads cannot be listed is gone
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d does not end", pid)
		}
	}
}
