package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/peer"
)

// encode is v as a body.
func encode(v any) (io.Reader, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode a call: %w", err)
	}
	return bytes.NewReader(b), nil
}

// answers serves the calls of other nodes to a host. Only nodes that may ask are answered.
type answers struct {
	host hostCalls
	may  func(volant.NodeID) error
}

// answer adds a call about one machine.
func answer[T any](s *peer.Server, a *answers, call string, fn func(ctx context.Context, id volant.MachineID, what T) (any, error)) {
	peer.Handle(s, call, func(ctx context.Context, from volant.NodeID, in order[T]) (any, error) {
		if err := a.may(from); err != nil {
			return nil, err
		}
		return fn(ctx, in.Machine, in.What)
	})
}

// serve adds all calls.
func (a *answers) serve(s *peer.Server) {
	peer.Handle(s, callReserve, func(ctx context.Context, from volant.NodeID, r host.Reservation) (any, error) {
		if err := a.may(from); err != nil {
			return nil, err
		}
		return nil, a.host.Reserve(ctx, r)
	})
	peer.Handle(s, callOldLogs, func(ctx context.Context, from volant.NodeID, app volant.AppID) (any, error) {
		if err := a.may(from); err != nil {
			return nil, err
		}
		return a.host.OldLogs(ctx, app)
	})
	answer(s, a, callWake, func(ctx context.Context, id volant.MachineID, w wakeOrder) (any, error) {
		return nil, a.host.WakeFor(ctx, id, w.Source, w.Reason)
	})
	answer(s, a, callSleep, func(ctx context.Context, id volant.MachineID, sl host.Sleep) (any, error) {
		return nil, a.host.Sleep(ctx, id, sl)
	})
	answer(s, a, callDrain, func(ctx context.Context, id volant.MachineID, d host.Drain) (any, error) {
		return nil, a.host.Drain(ctx, id, d)
	})
	answer(s, a, callRestart, func(ctx context.Context, id volant.MachineID, r host.Restart) (any, error) {
		return nil, a.host.Restart(ctx, id, r)
	})
	answer(s, a, callSignal, func(ctx context.Context, id volant.MachineID, sig int) (any, error) {
		return nil, a.host.Signal(ctx, id, sig)
	})
	answer(s, a, callStats, func(ctx context.Context, id volant.MachineID, _ struct{}) (any, error) {
		return a.host.Stats(ctx, id)
	})
	answer(s, a, callProcesses, func(ctx context.Context, id volant.MachineID, _ struct{}) (any, error) {
		return a.host.Processes(ctx, id)
	})
	answer(s, a, callEvents, func(ctx context.Context, id volant.MachineID, e eventsOrder) (any, error) {
		return a.host.Events(ctx, id, max(0, min(e.Limit, volant.MaxEvents)))
	})
	s.Raw(callExec, a.exec)
	s.Raw(callLogs, a.logs)
}

// frames writes an answer in pieces, each when it is there.
type frames struct {
	mu sync.Mutex // stdout and stderr come from two goroutines
	w  http.ResponseWriter
}

func (f *frames) send(fr *frame) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, err := json.Marshal(fr)
	if err != nil {
		return fmt.Errorf("encode an answer: %w", err)
	}
	if _, err := f.w.Write(append(b, '\n')); err != nil {
		return err
	}
	return http.NewResponseController(f.w).Flush()
}

// end sends the last frame.
func (f *frames) end(last *frame, err error) error {
	if last.End = true; err != nil {
		last.Err = volant.ToWire(err)
	}
	return f.send(last)
}

type frameWriter func(p []byte) error

func (w frameWriter) Write(p []byte) (int, error) {
	if err := w(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (a *answers) exec(w http.ResponseWriter, r peer.Request) error {
	in, err := readOrder[execOrder](a, w, r)
	if err != nil {
		return err
	}
	out := &frames{w: w}
	e := in.What.Exec
	e.Stdin = bytes.NewReader(in.What.Input)
	e.Stdout = frameWriter(func(p []byte) error { return out.send(&frame{Stdout: p}) })
	e.Stderr = frameWriter(func(p []byte) error { return out.send(&frame{Stderr: p}) })
	exit, err := a.host.Exec(r.Context(), in.Machine, e)
	return out.end(&frame{Exit: exit}, err)
}

func (a *answers) logs(w http.ResponseWriter, r peer.Request) error {
	in, err := readOrder[logsOrder](a, w, r)
	if err != nil {
		return err
	}
	out := &frames{w: w}
	if in.What.Follow { // the head goes at once: there may be no line for long
		w.WriteHeader(http.StatusOK)
		if err := http.NewResponseController(w).Flush(); err != nil {
			return err
		}
	}
	err = a.host.Logs(r.Context(), in.Machine, in.What.Tail, in.What.Follow, func(l host.LogLine) error {
		return out.send(&frame{Line: &l})
	})
	return out.end(&frame{}, err)
}

// readOrder reads what a call with an answer in pieces is told.
func readOrder[T any](a *answers, w http.ResponseWriter, r peer.Request) (order[T], error) {
	var in order[T]
	if err := a.may(r.From); err != nil {
		return in, err
	}
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, peer.MaxBody)).Decode(&in)
	if err != nil && !errors.Is(err, io.EOF) {
		return in, volant.Invalidf("the call cannot be read: %v", err)
	}
	return in, nil
}
