package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/atomicfile"
	"github.com/volant-edge/volant/lab/wire"
)

const (
	wireFile   = "wires.json"
	wireSocket = "wires.sock"
	wireLog    = "wires.log"
)

// RunWires is the process that holds the wires of the lab in dir, until ctx ends.
func RunWires(ctx context.Context, dir string) error {
	l := &Lab{plan: plan{Config: Config{Dir: dir}}}
	p := wire.Process{File: l.file(wireFile), Socket: l.file(wireSocket)}
	return p.Run(ctx)
}

func (l *Lab) writeWires(s *state) error {
	p := newPlan(s.Config)
	b, err := json.Marshal(p.wireSpecs(s.Faults))
	if err != nil {
		return err
	}
	return atomicfile.Write(l.file(wireFile), b, 0o600)
}

// startWires starts the process and returns when the wires' interfaces are there.
func (l *Lab) startWires(ctx context.Context, s *state) error {
	if err := l.writeWires(s); err != nil {
		return err
	}
	ended, err := l.spawn("", wireLog, nil, l.plan.Bin, "lab", "wire", "--dir", l.plan.Dir)
	if err != nil {
		return err
	}
	return l.await(ctx, 20*time.Second, wireLog, ended, func(ctx context.Context) error {
		_, err := wire.Apply(ctx, l.file(wireSocket))
		return err
	})
}

// spawn starts a process that outlives this one, in a namespace or in this one. Its output goes to a file of the lab.
// The channel is closed when it has ended.
func (l *Lab) spawn(ns, log string, env []string, args ...string) (ended <-chan struct{}, err error) {
	out, err := os.OpenFile(l.file(log), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() //nolint:errcheck // the child has its own copy
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if ns == "" {
		err = cmd.Start()
	} else {
		err = inside(ns, cmd.Start)
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", strings.Join(args, " "), err)
	}
	done := make(chan struct{})
	go func() {
		cmd.Wait() //nolint:errcheck // who waits for what it should do tells that it ended
		close(done)
	}()
	return done, nil
}

// await asks until there is no error, the process has ended, or the time is over.
func (l *Lab) await(ctx context.Context, limit time.Duration, log string, ended <-chan struct{}, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			return l.withLog(log, errors.New("the process ended"))
		case <-ctx.Done():
			return l.withLog(log, fmt.Errorf("it did not come up: %w", err))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// withLog adds the end of a log to an error.
func (l *Lab) withLog(log string, err error) error {
	b, rerr := os.ReadFile(l.file(log))
	if rerr != nil {
		return err
	}
	return volant.Errorf(volant.ErrUnavailable, "%v; %s ends with:\n%s", err, l.file(log), b[max(0, len(b)-3000):])
}
