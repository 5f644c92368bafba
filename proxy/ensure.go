package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/internal/daemon"
)

const helloWithin = 5 * time.Second

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
	c, h, err = await(ctx, path, nil)
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
	if _, err := s.Data.Sub("proxy"); err != nil {
		return nil, fmt.Errorf("start the proxy: %w", err)
	}
	d := daemon.Start{Name: "proxy", Args: args, Out: s.logPath(), Place: s.Place, Log: s.Log}
	exited, err := d.Run()
	if err != nil {
		return nil, fmt.Errorf("start the proxy: %w", err)
	}
	c, h, err := await(ctx, path, exited)
	if err != nil {
		return nil, fmt.Errorf("start the proxy: %w; its last words: %s", err, d.LastWords())
	}
	s.Log.Info("proxy started", "pid", h.PID, "epoch", h.Epoch)
	return c, nil
}

// await polls until the proxy answers.
func await(ctx context.Context, path string, exited <-chan error) (c *Client, h Hello, err error) {
	err = daemon.Await(ctx, exited, func(ctx context.Context) (err error) {
		c, h, err = reach(ctx, path)
		return err
	})
	return c, h, err
}
