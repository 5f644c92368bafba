package mesh

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/internal/daemon"
)

const (
	helloWithin = 5 * time.Second
	startPoll   = 10 * time.Millisecond
	startAgain  = time.Second
)

// Remote is the Device of the mesh process of a data directory.
type Remote struct {
	d     *datadir.Dir
	args  []string
	place func(pid int) error
	log   *slog.Logger
	http  *http.Client

	mu  sync.Mutex
	cfg *Config // the last; nil: none yet
}

// Start says how the mesh process is started.
type Start struct {
	Data *datadir.Dir
	// Args is the command; by default this binary with "mesh --data DIR".
	Args []string
	// Place puts the new process into a cgroup of its own, so that nothing which ends the server's ends it.
	Place func(pid int) error
	Log   *slog.Logger
}

// Ensure returns the Device of the data directory's mesh process, which it starts if none runs. The process has a
// session of its own and outlives its starter.
func Ensure(ctx context.Context, s Start) (*Remote, error) {
	r, err := attach(s.Data)
	if err != nil {
		return nil, err
	}
	r.args, r.place = s.Args, s.Place
	if s.Log != nil {
		r.log = s.Log
	}
	return r, r.ensure(ctx)
}

// attach is a Device whose process is not started.
func attach(d *datadir.Dir) (*Remote, error) {
	path, err := d.Socket(socketName)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var nd net.Dialer
		return nd.DialContext(ctx, "unix", path)
	}
	return &Remote{
		d: d, log: slog.New(slog.DiscardHandler),
		http: &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConns: 2, IdleConnTimeout: time.Minute}},
	}, nil
}

// ensure finds the process or starts it.
func (r *Remote) ensure(ctx context.Context) error {
	h, err := r.hello(ctx)
	if err == nil {
		r.log.Info("mesh adopted", "pid", h.PID, "version", h.Version)
		return nil
	}
	if lock, lerr := r.d.Lock(lockName); lerr == nil {
		if err := lock.Close(); err != nil {
			return err
		}
		return r.start(ctx)
	}
	// Somebody holds the lock: it starts, or it hangs.
	if _, err := r.await(ctx, nil); err != nil {
		return volant.Errorf(volant.ErrUnavailable, "the mesh process does not answer: %v", err).
			WithRemedy("look at %s; `kill -9` the process named in %s: it is started anew", r.logPath(), r.d.Path("lock", lockName))
	}
	return nil
}

func (r *Remote) hello(ctx context.Context) (h Hello, err error) {
	ctx, cancel := context.WithTimeout(ctx, helloWithin)
	defer cancel()
	err = r.call(ctx, http.MethodGet, "hello", nil, &h)
	return h, err
}

func (r *Remote) logPath() string { return r.d.Path("mesh", "log") }

func (r *Remote) start(ctx context.Context) error {
	args := r.args
	if len(args) == 0 {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("start the mesh: %w", err)
		}
		args = []string{self, "mesh", "--data", r.d.Root()}
	}
	if _, err := r.d.Sub("mesh"); err != nil {
		return fmt.Errorf("start the mesh: %w", err)
	}
	d := daemon.Start{Name: "mesh", Args: args, Out: r.logPath(), Place: r.place, Log: r.log}
	exited, err := d.Run()
	if err != nil {
		return fmt.Errorf("start the mesh: %w", err)
	}
	h, err := r.await(ctx, exited)
	if err != nil {
		return fmt.Errorf("start the mesh: %w; its last words: %s", err, d.LastWords())
	}
	r.log.Info("mesh started", "pid", h.PID)
	return nil
}

// await polls until the process answers.
func (r *Remote) await(ctx context.Context, exited <-chan error) (h Hello, err error) {
	err = daemon.Await(ctx, exited, func(ctx context.Context) (err error) {
		h, err = r.hello(ctx)
		return err
	})
	return h, err
}

// Configure is Device's.
func (r *Remote) Configure(ctx context.Context, cfg Config) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.call(ctx, http.MethodPut, "config", cfg, &struct{}{}); err != nil {
		return err
	}
	r.cfg = &cfg
	return nil
}

// Status is Device's.
func (r *Remote) Status(ctx context.Context) (st Status, err error) {
	err = r.call(ctx, http.MethodGet, "status", nil, &st)
	return st, err
}

// Run is Device's: it starts the process again when it has ended.
func (r *Remote) Run(ctx context.Context) error {
	for {
		ended := r.call(ctx, http.MethodGet, "end", nil, &struct{}{})
		if ctx.Err() != nil {
			return nil //nolint:nilerr // asked to end
		}
		r.log.Error("the mesh process has ended", "err", ended)
		for {
			failed := r.again(ctx)
			if failed == nil || ctx.Err() != nil {
				break
			}
			r.log.Error("the mesh process is not started again yet", "err", failed)
			select {
			case <-ctx.Done():
			case <-time.After(startAgain):
			}
		}
	}
}

// again starts the process and tells it what its predecessor was told last.
func (r *Remote) again(ctx context.Context) error {
	if err := r.ensure(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cfg == nil {
		return nil
	}
	return r.call(ctx, http.MethodPut, "config", *r.cfg, &struct{}{})
}

// Remove is Device's. The process ends with its device.
func (r *Remote) Remove(ctx context.Context) error {
	return r.call(ctx, http.MethodPost, "remove", nil, &struct{}{})
}

// End removes the device of a data directory's mesh process and ends that, if one runs; it returns which.
func End(ctx context.Context, d *datadir.Dir) (pid int, err error) {
	r, err := attach(d)
	if err != nil {
		return 0, err
	}
	defer r.http.CloseIdleConnections()
	h, err := r.hello(ctx)
	if err != nil {
		lock, lerr := d.Lock(lockName)
		if lerr == nil { // none runs
			return 0, lock.Close()
		}
		return 0, volant.Errorf(volant.ErrUnavailable, "the mesh process does not answer: %v", err).
			WithRemedy("end the process named in %s with `kill -9`, and try again", d.Path("lock", lockName))
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = r.call(ctx, http.MethodGet, "end", nil, &struct{}{}) // its failing is what is waited for
	}()
	if err := r.Remove(ctx); err != nil {
		return h.PID, fmt.Errorf("end the mesh: %w", err)
	}
	<-ended
	return h.PID, r.unlocked(ctx)
}

// unlocked waits until the process has given its lock back.
func (r *Remote) unlocked(ctx context.Context) error {
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	for {
		lock, err := r.d.Lock(lockName)
		if err == nil {
			return lock.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the mesh process did not end: %w", err)
		case <-tick.C:
		}
	}
}

// call asks the process.
func (r *Remote) call(ctx context.Context, method, what string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://mesh/"+what, body)
	if err != nil {
		return err
	}
	res, err := r.http.Do(req)
	if err != nil {
		return fmt.Errorf("mesh process: %w", err)
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	dec := json.NewDecoder(io.LimitReader(res.Body, configMost))
	if res.StatusCode == http.StatusOK {
		return dec.Decode(out)
	}
	var f volant.WireError
	if err := dec.Decode(&f); err != nil {
		return fmt.Errorf("mesh process: %s: %w", res.Status, err)
	}
	return f.Err()
}
