package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest/live"
)

// patience bounds waits for what takes a few seconds on a machine that is not busy.
const patience = time.Minute

// server runs a server for fn and removes everything of it.
func (b *bench) server(ctx context.Context, fn func(*live.Server) error, change ...func(*live.Options)) (err error) {
	o := live.Options{Bin: filepath.Join(b.build, "volant"), Kernel: filepath.Join(b.build, "kernel")}
	for _, f := range change {
		f(&o)
	}
	s, err := live.Start(ctx, o)
	if s != nil {
		defer func() { err = errors.Join(err, s.Close()) }()
	}
	if err != nil {
		return err
	}
	if err := fn(s); err != nil {
		return s.WithLog(err)
	}
	return nil
}

func (b *bench) archive(image string) string {
	return "oci-archive:" + filepath.Join(b.build, "images", image+".tar")
}

// config is a volant.toml of one TCP service with more lines for the service and for [scale].
func config(app string, port int, service, scale string) string {
	return fmt.Sprintf("app = %q\n[[services]]\ninternal_port = %d\nprotocol = \"tcp\"\n%s\n[[services.ports]]\nport = %d\n[scale]\n%s\n",
		app, port, service, port, scale)
}

// request is what is asked of nginx; its answer's first byte ends a sample.
const request = "GET / HTTP/1.0\r\n\r\n"

// ask connects, asks, and returns when the first byte came, and how long that took.
func ask(ctx context.Context, addr, say string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	begun := time.Now()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, err
	}
	defer c.Close() //nolint:errcheck // nothing is written after
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(c, say); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return 0, fmt.Errorf("first byte: %w", err)
	}
	took := time.Since(begun)
	_, err = io.Copy(io.Discard, c) // to its end, so that both sides close in order
	return took, err
}

// until waits for a condition of an app's machines.
func until(ctx context.Context, s *live.Server, app, what string, ok func([]api.Machine) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		ms, err := s.API.Machines(ctx, app)
		if err == nil && ok(ms) {
			return nil
		}
		if pause(ctx, 5*time.Millisecond) != nil {
			if err != nil {
				return fmt.Errorf("this did not happen: %s; machines: %w", what, err)
			}
			return fmt.Errorf("this did not happen: %s; machines: %s", what, states(ms))
		}
	}
}

func states(ms []api.Machine) string {
	var out []string
	for _, m := range ms {
		out = append(out, fmt.Sprintf("%s %s, %d connections (%s)", m.ID, m.State, m.Slots, m.Reason))
	}
	return strings.Join(out, "; ")
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func inState(state string) func([]api.Machine) bool {
	return func(ms []api.Machine) bool {
		for _, m := range ms {
			if m.State != state {
				return false
			}
		}
		return len(ms) > 0
	}
}

// suspend puts an app's machines to sleep.
func suspend(ctx context.Context, s *live.Server, app string) error {
	ms, err := s.API.Machines(ctx, app)
	if err != nil {
		return err
	}
	for _, m := range ms {
		if m.State == "started" {
			if err := s.API.MachineAction(ctx, app, m.ID, "suspend"); err != nil {
				return err
			}
		}
	}
	return until(ctx, s, app, "all machines are suspended", inState("suspended"))
}

// templateReady waits until machines of the default size can start from a template.
func templateReady(ctx context.Context, s *live.Server) error {
	for range 600 {
		if strings.Contains(s.Log(), "template made") {
			return nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return errors.New("no template was made within a minute")
}

// temp makes a directory for fn.
func temp(fn func(dir string) error) (err error) {
	dir, err := os.MkdirTemp("", "volant-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return fn(dir)
}
