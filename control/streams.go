package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/why"
)

// exec runs a command in an awake machine. Streamed, each piece of output is a line of JSON.
func (s *Server) exec(w http.ResponseWriter, c *call) error {
	a, m, _, err := s.machine(c)
	if err != nil {
		return err
	}
	var in api.Exec
	if err := c.read(w, &in); err != nil {
		return err
	}
	if in.Container != "" {
		return volant.Invalidf("container %q: machines here have one image each", cut(in.Container)).WithRemedy("leave container out")
	}
	args := in.Command
	if len(args) == 0 {
		args = strings.Fields(in.Cmd)
	}
	if len(args) == 0 {
		return volant.Invalidf("the command is empty").WithRemedy("send command as a list of words")
	}
	timeout := time.Minute
	if in.Timeout > 0 {
		timeout = time.Duration(min(in.Timeout, 24*3600)) * time.Second
	}
	ctx, cancel := context.WithTimeout(c.ctx(), timeout)
	defer cancel()
	s.audit(c, a.Org, m.App, volant.MachineID(m.ID), "exec_asked", fmt.Sprintf("machine %s: a command was run in it", m.ID))
	e := guest.Exec{Args: args, Stdin: strings.NewReader(in.Stdin)}
	if in.Stream {
		return s.execStream(ctx, w, c, m, e, timeout)
	}
	var out, errs capped
	e.Stdout, e.Stderr = &out, &errs
	exit, err := s.Machines.Exec(ctx, volant.MachineID(m.ID), e)
	if err != nil {
		return execError(ctx, c, err, timeout)
	}
	reply(w, http.StatusOK, api.ExecResult{
		ExitCode: exit.Code, ExitSignal: exit.Signal, Stdout: out.String(), Stderr: errs.String(), Truncated: out.cut || errs.cut,
	})
	return nil
}

func (s *Server) execStream(ctx context.Context, w http.ResponseWriter, c *call, m *volant.Machine, e guest.Exec, timeout time.Duration) error {
	var mu sync.Mutex // guards out: stdout and stderr come from two goroutines
	var out *lines
	send := func(f api.ExecFrame) error {
		mu.Lock()
		defer mu.Unlock()
		if out == nil {
			out = c.stream(w)
		}
		return out.send(f)
	}
	e.Stdout = writer(func(p []byte) error { return send(api.ExecFrame{Stdout: p}) })
	e.Stderr = writer(func(p []byte) error { return send(api.ExecFrame{Stderr: p}) })
	exit, err := s.Machines.Exec(ctx, volant.MachineID(m.ID), e)
	if err != nil {
		err = execError(ctx, c, err, timeout)
		mu.Lock()
		begun := out != nil
		mu.Unlock()
		if !begun {
			return err // the status can still tell
		}
		return send(api.ExecFrame{Error: err.Error()})
	}
	return send(api.ExecFrame{Exit: &api.ExecResult{ExitCode: exit.Code, ExitSignal: exit.Signal}})
}

// execError tells the end of the command's time from other ends.
func execError(ctx context.Context, c *call, err error, timeout time.Duration) error {
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil && c.ctx().Err() == nil {
		return volant.Errorf(volant.ErrUnavailable, "the command was killed after %s", timeout).WithRemedy("give it more time with timeout (`--timeout`, in seconds)")
	}
	return err
}

type writer func(p []byte) error

func (f writer) Write(p []byte) (int, error) {
	if err := f(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// capped keeps the first MiB.
type capped struct {
	bytes.Buffer
	cut bool
}

func (b *capped) Write(p []byte) (int, error) {
	room := max(0, 1<<20-b.Len())
	b.cut = b.cut || room < len(p)
	b.Buffer.Write(p[:min(room, len(p))])
	return len(p), nil
}

// getWhy answers about an app by name, a machine or a connection by ID.
func (s *Server) getWhy(w http.ResponseWriter, c *call) error {
	what := c.r.PathValue("what")
	limit, err := c.number("limit", 50, 1, 1000)
	if err != nil {
		return err
	}
	q := why.Query{Limit: limit}
	for _, k := range c.r.URL.Query()["kind"] {
		if !slices.Contains(why.Kinds(), why.Kind(k)) {
			return volant.Invalidf("kind %q: use some of %v", k, why.Kinds())
		}
		q.Kinds = append(q.Kinds, why.Kind(k))
	}
	if !c.who.root() {
		q.Org, q.App = c.who.org, c.who.app
	}
	snap := s.Catalog.Snapshot()
	if a, ok := snap.AppByName(what); ok && c.who.sees(a) {
		q.App = a.App
	} else if m, ok := snap.Machine(volant.MachineID(what)); ok && c.who.may(m.Org, m.App, scopeRead) {
		q.Machine = volant.MachineID(what)
	} else if n := nodeEver(snap, what); n != nil && c.who.root() {
		q.Node, q.Kinds = volant.NodeID(n.ID), []why.Kind{why.Change}
	} else {
		q.Request = what
	}
	recs, err := s.Reasons.Query(c.ctx(), q)
	if err != nil {
		return err
	}
	if q.Request != "" && len(recs) == 0 {
		return volant.Errorf(volant.ErrNotFound, "%q is no app, no machine, no node and no connection on record", what).
			WithRemedy("connections are kept in memory for a while only; see `volant apps list` for the apps")
	}
	if recs == nil {
		recs = []why.Record{}
	}
	reply(w, http.StatusOK, recs)
	return nil
}
