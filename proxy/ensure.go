package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
)

const (
	helloWithin = 5 * time.Second
	startWithin = 10 * time.Second
	startPoll   = 10 * time.Millisecond
	logMost     = 8 << 20 // of the process's log, at its start
)

// Start says how Ensure starts a proxy.
type Start struct {
	Data *datadir.Dir
	// Args is the command; by default this binary with "proxy --data DIR".
	Args []string
	// Place puts the new process into a cgroup of its own, so that nothing which ends the server's ends it.
	Place func(pid int) error
	Log   *slog.Logger
}

// Ensure returns a Client of the data directory's proxy process, which it starts if none runs. The process
// has a session of its own and outlives its starter.
func Ensure(ctx context.Context, s Start) (*Client, error) {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	path, err := s.Data.Socket(socketName)
	if err != nil {
		return nil, err
	}
	c, h, err := reach(ctx, path)
	if err == nil {
		s.Log.Info("proxy adopted", "pid", h.PID, "epoch", h.Epoch, "version", h.Version)
		return c, nil
	}
	if lock, lerr := s.Data.Lock(lockName); lerr == nil {
		if err := lock.Close(); err != nil {
			return nil, err
		}
		return s.start(ctx, path)
	}
	// Somebody holds the lock: it starts, or it hangs.
	c, h, err = s.await(ctx, path, nil)
	if err != nil {
		return nil, volant.Errorf(volant.ErrUnavailable, "the proxy process does not answer: %v", err).
			WithRemedy("look at %s; `kill -9` the process named in %s to start anew, which closes its connections",
				s.logPath(), s.Data.Path("lock", lockName))
	}
	s.Log.Info("proxy adopted", "pid", h.PID, "epoch", h.Epoch, "version", h.Version)
	return c, nil
}

// reach connects and says hello.
func reach(ctx context.Context, path string) (*Client, Hello, error) {
	ctx, cancel := context.WithTimeout(ctx, helloWithin)
	defer cancel()
	c, err := Dial(ctx, path)
	if err != nil {
		return nil, Hello{}, err
	}
	h, err := c.Hello(ctx)
	if err != nil {
		return nil, Hello{}, errors.Join(err, c.Close())
	}
	return c, h, nil
}

func (s *Start) logPath() string { return s.Data.Path("proxy", "log") }

func (s *Start) start(ctx context.Context, path string) (*Client, error) {
	args := s.Args
	if len(args) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("start the proxy: %w", err)
		}
		args = []string{self, "proxy", "--data", s.Data.Root()}
	}
	out, err := s.openLog()
	if err != nil {
		return nil, fmt.Errorf("start the proxy: %w", err)
	}
	defer out.Close()                         //nolint:errcheck // the child has its own
	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx // it must outlive every context of this process
	cmd.Stdout, cmd.Stderr, cmd.Dir = out, out, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the proxy: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	if s.Place != nil {
		if err := s.Place(cmd.Process.Pid); err != nil {
			s.Log.Warn("proxy has no cgroup of its own", "pid", cmd.Process.Pid, "err", err)
		}
	}
	c, h, err := s.await(ctx, path, exited)
	if err != nil {
		return nil, fmt.Errorf("start the proxy: %w; its last words: %s", err, s.lastWords())
	}
	s.Log.Info("proxy started", "pid", h.PID, "epoch", h.Epoch)
	return c, nil
}

// await polls until the proxy answers.
func (s *Start) await(ctx context.Context, path string, exited <-chan error) (*Client, Hello, error) {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	for {
		c, h, err := reach(ctx, path)
		if err == nil {
			return c, h, nil
		}
		select {
		case <-ctx.Done():
			return nil, Hello{}, err
		case xerr := <-exited:
			return nil, Hello{}, fmt.Errorf("it ended: %w", errors.Join(xerr, err))
		case <-tick.C:
		}
	}
}

// openLog opens the process's log, moved aside first where it has grown.
func (s *Start) openLog() (*os.File, error) {
	if _, err := s.Data.Sub("proxy"); err != nil {
		return nil, err
	}
	if fi, err := os.Stat(s.logPath()); err == nil && fi.Size() > logMost {
		if err := os.Rename(s.logPath(), s.logPath()+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(s.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
}

// lastWords is the end of the process's log.
func (s *Start) lastWords() string {
	f, err := os.Open(s.logPath())
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
