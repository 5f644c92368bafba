package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/peer"
)

// caller calls other nodes, as peer.Client does.
type caller interface {
	Call(ctx context.Context, node volant.NodeID, call string, in, out any) error
	Open(ctx context.Context, node volant.NodeID, call string, body io.Reader, header http.Header) (*http.Response, error)
}

// The calls of a host.
const (
	callReserve   = "POST /host/reserve"
	callWake      = "POST /host/wake"
	callSleep     = "POST /host/sleep"
	callDrain     = "POST /host/drain"
	callRestart   = "POST /host/restart"
	callSignal    = "POST /host/signal"
	callExec      = "POST /host/exec"
	callStats     = "POST /host/stats"
	callProcesses = "POST /host/processes"
	callLogs      = "POST /host/logs"
	callOldLogs   = "POST /host/old-logs"
	callEvents    = "POST /host/events"
)

// Bounds of calls to hosts.
const (
	callWithin = 10 * time.Second
	maxStdin   = 4 << 20 // bytes that a command in a machine elsewhere is given
	maxFrame   = 4 << 20 // bytes of one frame of a stream
)

// order is a call about one machine.
type order[T any] struct {
	Machine volant.MachineID `json:"machine"`
	What    T                `json:"what"`
}

type wakeOrder struct {
	Source string `json:"source"`
	Reason string `json:"reason"`
}

type logsOrder struct {
	Tail   int  `json:"tail"`
	Follow bool `json:"follow"`
}

type execOrder struct {
	guest.Exec
	Input []byte `json:"input,omitempty"`
}

type eventsOrder struct {
	Limit int `json:"limit"`
}

// frame is one piece of an answer that comes in pieces. The last has End set, and nothing else but Exit or Err.
type frame struct {
	Line   *host.LogLine     `json:"line,omitempty"`
	Stdout []byte            `json:"stdout,omitempty"`
	Stderr []byte            `json:"stderr,omitempty"`
	End    bool              `json:"end,omitempty"`
	Exit   guest.Exit        `json:"exit,omitzero"`
	Err    *volant.WireError `json:"err,omitempty"`
}

// remoteHost is the host of another node.
type remoteHost struct {
	node  volant.NodeID
	calls caller
	gone  func(volant.NodeID) error // why the node need not be called
}

func (h remoteHost) call(ctx context.Context, call string, in, out any) error {
	if err := h.gone(h.node); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	return h.calls.Call(ctx, h.node, call, in, out)
}

func (h remoteHost) Reserve(ctx context.Context, r host.Reservation) error {
	return h.call(ctx, callReserve, r, nil)
}

func (h remoteHost) WakeFor(ctx context.Context, id volant.MachineID, source, reason string) error {
	return h.call(ctx, callWake, order[wakeOrder]{id, wakeOrder{source, reason}}, nil)
}

func (h remoteHost) Sleep(ctx context.Context, id volant.MachineID, s host.Sleep) error {
	return h.call(ctx, callSleep, order[host.Sleep]{id, s}, nil)
}

func (h remoteHost) Drain(ctx context.Context, id volant.MachineID, d host.Drain) error {
	return h.call(ctx, callDrain, order[host.Drain]{id, d}, nil)
}

func (h remoteHost) Restart(ctx context.Context, id volant.MachineID, r host.Restart) error {
	return h.call(ctx, callRestart, order[host.Restart]{id, r}, nil)
}

func (h remoteHost) Signal(ctx context.Context, id volant.MachineID, sig int) error {
	return h.call(ctx, callSignal, order[int]{id, sig}, nil)
}

func (h remoteHost) Stats(ctx context.Context, id volant.MachineID) (st guest.Stats, err error) {
	err = h.call(ctx, callStats, order[struct{}]{Machine: id}, &st)
	return st, err
}

func (h remoteHost) Processes(ctx context.Context, id volant.MachineID) (ps []guest.Process, err error) {
	err = h.call(ctx, callProcesses, order[struct{}]{Machine: id}, &ps)
	return ps, err
}

func (h remoteHost) OldLogs(ctx context.Context, app volant.AppID) (ids []volant.MachineID, err error) {
	err = h.call(ctx, callOldLogs, app, &ids)
	return ids, err
}

func (h remoteHost) Events(ctx context.Context, id volant.MachineID, limit int) (events []volant.Event, err error) {
	err = h.call(ctx, callEvents, order[eventsOrder]{id, eventsOrder{limit}}, &events)
	return events, err
}

func (h remoteHost) Exec(ctx context.Context, id volant.MachineID, e guest.Exec) (guest.Exit, error) {
	in := execOrder{Exec: e}
	if e.Stdin != nil {
		var err error
		if in.Input, err = io.ReadAll(io.LimitReader(e.Stdin, maxStdin+1)); err != nil {
			return guest.Exit{}, fmt.Errorf("input of the command: %w", err)
		}
		if len(in.Input) > maxStdin {
			return guest.Exit{}, volant.Invalidf("the command's input has more than %d bytes", maxStdin)
		}
	}
	var exit guest.Exit
	err := h.stream(ctx, callExec, order[execOrder]{id, in}, func(f *frame) error {
		exit = f.Exit
		if len(f.Stdout) > 0 && e.Stdout != nil {
			if _, err := e.Stdout.Write(f.Stdout); err != nil {
				return err
			}
		}
		if len(f.Stderr) > 0 && e.Stderr != nil {
			_, err := e.Stderr.Write(f.Stderr)
			return err
		}
		return nil
	})
	return exit, err
}

func (h remoteHost) Logs(ctx context.Context, id volant.MachineID, tail int, follow bool, fn func(host.LogLine) error) error {
	return h.stream(ctx, callLogs, order[logsOrder]{id, logsOrder{tail, follow}}, func(f *frame) error {
		if f.Line == nil {
			return nil
		}
		return fn(*f.Line)
	})
}

// stream calls fn for each frame of an answer, until the last one.
func (h remoteHost) stream(ctx context.Context, call string, in any, fn func(*frame) error) error {
	if err := h.gone(h.node); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx) // an answer that is not read to its end goes with it
	defer cancel()
	body, err := encode(in)
	if err != nil {
		return err
	}
	res, err := h.calls.Open(ctx, h.node, call, body, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close() //nolint:errcheck // only read
	dec := json.NewDecoder(&bounded{r: res.Body})
	for {
		var f frame
		if err := dec.Decode(&f); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return volant.Errorf(volant.ErrUnavailable, "the answer of node %s broke off: %v", h.node, err)
		}
		if f.Err != nil {
			return f.Err.Err()
		}
		if err := fn(&f); err != nil || f.End {
			return err
		}
	}
}

var errLongFrame = errors.New("a frame is too long")

// bounded refuses a stream without an end of line within maxFrame bytes.
type bounded struct {
	r io.Reader
	n int
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	for _, c := range p[:n] {
		if b.n++; c == '\n' {
			b.n = 0
		}
		if b.n > maxFrame {
			return 0, errLongFrame
		}
	}
	return n, err
}

var _ caller = (*peer.Client)(nil)
