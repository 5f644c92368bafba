package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant/microvm"
)

// process is a QEMU, ours by birth or adopted.
type process struct {
	pid     int
	started uint64
	pidfd   *os.File
	child   *os.Process // nil when adopted
	console *os.File    // what the guest's serial port printed; may be nil
	errors  *os.File    // what QEMU printed; may be nil
}

// buildVariable tells, in a process' environment, the build that snapshots of it are of: a server that
// adopts it may have another binary or another command line by then.
const buildVariable = "VOLANT_BUILD="

// spawn starts a QEMU in a session of its own, with dir as its working directory.
func spawn(binary, dir, build string, args []string, files ...*os.File) (*process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close() //nolint:errcheck // only read
	p := &process{}
	if p.console, err = sink("console"); err != nil {
		return nil, err
	}
	if p.errors, err = sink("errors"); err != nil {
		p.release()
		return nil, err
	}
	// What our own parent left open for us is no business of a VM's. Kernels before 5.11 cannot do it.
	err = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		p.release()
		return nil, fmt.Errorf("close_range: %w", err)
	}
	var pidfd int
	p.child, err = os.StartProcess(binary, append([]string{binary}, args...), &os.ProcAttr{
		Dir: dir, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C", buildVariable + build},
		Files: append([]*os.File{null, p.console, p.errors}, files...),
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	})
	if err != nil {
		p.release()
		return nil, err
	}
	p.pid = p.child.Pid
	err = p.setPidfd(pidfd)
	if err == nil {
		p.started, _, err = stat(p.pid)
	}
	if err != nil {
		err = errors.Join(err, p.child.Kill())
		_, werr := p.child.Wait()
		p.release()
		return nil, errors.Join(err, werr)
	}
	return p, nil
}

// attach returns the process of a handle whose memory file is in shm, or ErrGone.
func attach(h microvm.Handle, shm string) (*process, error) {
	fd, err := unix.PidfdOpen(h.PID, 0)
	if err != nil {
		return nil, gone(err)
	}
	p := &process{pid: h.PID, started: h.StartTime}
	if err := p.setPidfd(fd); err != nil {
		return nil, err
	}
	// The pidfd holds the process, so what follows is of the same one.
	started, state, err := stat(h.PID)
	if err != nil || started != h.StartTime || state == 'Z' || state == 'X' {
		p.release()
		return nil, gone(err)
	}
	// Start times are counted from the host's boot, so that after a reboot they may match by chance.
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", h.PID))
	if id, ok := guestOf(cmdline, shm); err != nil || !ok || id != h.ID {
		p.release()
		return nil, gone(err)
	}
	p.console, _ = os.Open(fmt.Sprintf("/proc/%d/fd/1", h.PID)) // an exit tells less without them
	p.errors, _ = os.Open(fmt.Sprintf("/proc/%d/fd/2", h.PID))
	return p, nil
}

// build reads the process' build from its environment; "unknown" fits no snapshot.
func (p *process) build() string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid))
	if err == nil {
		for v := range bytes.SplitSeq(b, []byte{0}) {
			if s, ok := strings.CutPrefix(string(v), buildVariable); ok {
				return s
			}
		}
	}
	return "unknown"
}

func gone(err error) error {
	if err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return microvm.ErrGone
	}
	return err
}

// setPidfd takes the descriptor, so that waiting for it occupies no thread.
func (p *process) setPidfd(fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	p.pidfd = os.NewFile(uintptr(fd), "pidfd")
	return nil
}

// stat returns a process' start time and state, fields 22 and 3 of /proc/PID/stat.
func stat(pid int) (started uint64, state byte, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	_, rest, ok := bytes.Cut(b[bytes.LastIndexByte(b, ')')+1:], []byte{' '})
	f := strings.Fields(string(rest))
	if !ok || len(f) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat is %q", pid, b)
	}
	started, err = strconv.ParseUint(f[19], 10, 64)
	return started, f[0][0], err
}

// wait blocks until the process has ended, and reaps it where it is ours. It returns early, with an
// error, when the pidfd is closed.
func (p *process) wait() (microvm.VMExit, error) {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return microvm.VMExit{}, err
	}
	if err := raw.Read(func(fd uintptr) bool { return ready(int(fd)) }); err != nil {
		return microvm.VMExit{}, err
	}
	exit := microvm.VMExit{Code: -1} // adopted: only its parent is told how it ended
	if p.child != nil {
		state, err := p.child.Wait()
		if err != nil {
			return exit, err
		}
		exit.Code = state.ExitCode()
		if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			exit.Code, exit.Signal = 0, int(ws.Signal())
		}
	}
	exit.Log = tail(p.errors, p.console)
	return exit, nil
}

func ready(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// kill sends SIGKILL. It reports whether the process still ran.
func (p *process) kill() (bool, error) {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return false, err
	}
	var ran bool
	var serr error
	err = raw.Control(func(fd uintptr) {
		if ready(int(fd)) {
			return
		}
		ran = true
		serr = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0)
	})
	if errors.Is(serr, unix.ESRCH) {
		return false, nil
	}
	return ran, errors.Join(err, serr)
}

// release closes our descriptors; the process is not touched.
func (p *process) release() {
	for _, f := range []*os.File{p.pidfd, p.console, p.errors} {
		if f != nil {
			f.Close() //nolint:errcheck // nothing is written by us
		}
	}
}

// processes returns the QEMUs whose memory files are in shm, by VM ID.
func processes(ctx context.Context, shm string) (map[string][]int, error) {
	list, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	found := map[string][]int{}
	for _, e := range list {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue // ended meanwhile
		}
		if id, ok := guestOf(b, shm); ok {
			found[id] = append(found[id], pid)
		}
	}
	return found, ctx.Err()
}

// guestOf returns the VM that a command line is of, if its memory file is in shm.
func guestOf(cmdline []byte, shm string) (id string, ok bool) {
	args := strings.Split(string(cmdline), "\x00")
	for i, a := range args {
		if a == "-name" && i+1 < len(args) {
			id, _, _ = strings.Cut(strings.TrimPrefix(args[i+1], "guest="), ",")
			break
		}
	}
	want := "mem-path=" + comma(memoryFile(shm, id)) + ","
	return id, microvm.CheckID(id) == nil && slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, want) })
}

func memoryFile(shm, id string) string { return filepath.Join(shm, id+memorySuffix) }

// memorySuffix ends the names of memory files.
const memorySuffix = ".mem"
