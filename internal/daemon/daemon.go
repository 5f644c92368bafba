// Package daemon starts processes of this binary that outlive their starter: a session of their own, a cgroup of their own,
// and a log on disk; and has them listen on their control sockets.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"
)

const (
	logMost   = 8 << 20 // of a process's log, at its start
	answersIn = 10 * time.Second
	askEvery  = 10 * time.Millisecond
)

// Start says how a process is started.
type Start struct {
	Name string   // for errors and the log, such as "proxy"
	Args []string // the binary and its arguments
	Out  string   // the file of its log; its directory is there
	// Place puts the process into a cgroup of its own, so that nothing which ends its starter ends it. Nil: nowhere.
	Place func(pid int) error
	Log   *slog.Logger
}

// Run starts the process. The channel tells how it ended.
func (s Start) Run() (<-chan error, error) {
	out, err := s.openLog()
	if err != nil {
		return nil, err
	}
	defer out.Close()                             //nolint:errcheck // the child has its own
	cmd := exec.Command(s.Args[0], s.Args[1:]...) //nolint:noctx // it must outlive every context of this process
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	if s.Place != nil {
		if err := s.Place(cmd.Process.Pid); err != nil {
			s.Log.Warn("process has no cgroup of its own", "process", s.Name, "pid", cmd.Process.Pid, "err", err)
		}
	}
	return exited, nil
}

// openLog opens the process's log, moved aside first where it has grown.
func (s Start) openLog() (*os.File, error) {
	if fi, err := os.Stat(s.Out); err == nil && fi.Size() > logMost {
		if err := os.Rename(s.Out, s.Out+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(s.Out, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
}

// LastWords is the end of the process's log.
func (s Start) LastWords() string {
	f, err := os.Open(s.Out)
	if err != nil {
		return err.Error()
	}
	defer f.Close() //nolint:errcheck // only read
	if fi, err := f.Stat(); err == nil && fi.Size() > 1<<10 {
		if _, err := f.Seek(-1<<10, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Await asks a process until it answers, for 10 s at most, or until it has ended; exited may be nil.
func Await(ctx context.Context, exited <-chan error, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, answersIn)
	defer cancel()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case xerr := <-exited:
			return fmt.Errorf("it ended: %w", errors.Join(xerr, err))
		case <-tick.C:
		}
	}
}

// Listen listens on a unix socket that only root and the process's own user can connect to. Who calls it holds the lock of
// the process, so that a socket which lies there is of one that is no more.
func Listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
