package control

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

// act does a call to the machine's host, audits it and answers ok. The caller's lease, or nobody's, admits it.
func (s *Server) act(w http.ResponseWriter, c *call, rule string, do func(ctx context.Context, m *volant.Machine, st volant.State) error) error {
	a, m, snap, err := s.machine(c)
	if err != nil {
		return err
	}
	if gone(m) {
		return destroyedError(m)
	}
	if err := s.unleased(c, m); err != nil {
		return err
	}
	before := machineState(m, first(snap.Have(volant.MachineID(m.ID))))
	if err := do(c.ctx(), m, before); err != nil {
		return err
	}
	s.audit(c, a.Org, a.App, volant.MachineID(m.ID), rule, "machine "+m.ID+": "+strings.ReplaceAll(rule, "_", " "))
	reply(w, http.StatusOK, api.Acted{OK: true, PreviousState: string(before)})
	return nil
}

func first[A, B any](a A, _ B) A { return a }

// notFrom is the answer to an order that a machine's state does not allow.
func notFrom(verb string, m *volant.Machine, st volant.State, remedy string) error {
	return volant.Errorf(volant.ErrPrecondition, "failed_precondition: unable to %s machine from current state: '%s'", verb, st).
		WithRemedy("%s (GET …/machines/%s/wait)", remedy, m.ID)
}

// startMachine wakes an auto machine; one whose wish is off is wished on again. What is awake or on its way
// there is what was asked for; what is being suspended runs on.
func (s *Server) startMachine(w http.ResponseWriter, c *call) error {
	return s.act(w, c, "start_asked", func(ctx context.Context, m *volant.Machine, st volant.State) error {
		switch st {
		case volant.StateStopping:
			return notFrom("start", m, st, "wait until it is stopped")
		case volant.StateDestroying, volant.StateDestroyed:
			return notFrom("start", m, st, "make a new machine: destroyed ones do not come back")
		case volant.StateUpdating:
			return notFrom("start", m, st, "wait until it is settled")
		case volant.StateCreated, volant.StateSuspended, volant.StateStopped, volant.StateFailed: // it is woken
		case volant.StateStarting, volant.StateStarted, volant.StateSuspending: // its wish may have to change all the same
		}
		switch {
		case len(m.Config.Services) == 0 && m.Run != volant.RunOn:
			return s.wish(c, m, volant.RunOn)
		case m.Run == volant.RunOff:
			if err := s.wish(c, m, volant.RunAuto); err != nil {
				return err
			}
		}
		return s.wake(ctx, m, c.who.name)
	})
}

// wake wakes a machine that its host may hear of a moment later.
func (s *Server) wake(ctx context.Context, m *volant.Machine, by string) error {
	for n := 0; ; n++ {
		err := s.Machines.Start(ctx, volant.MachineID(m.ID), by)
		again := errors.Is(err, volant.ErrNotFound) || errors.Is(err, volant.ErrPrecondition) && m.Run == volant.RunOff
		if !again || n == 250 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (s *Server) wish(c *call, m *volant.Machine, run volant.Run) error {
	return s.commit(c, m, wished(m, run))
}

func (s *Server) stopMachine(w http.ResponseWriter, c *call) error {
	var in api.StopMachine
	if err := c.read(w, &in); err != nil {
		return err
	}
	end, err := c.ending(in.Signal, in.Timeout)
	if err != nil {
		return err
	}
	return s.act(w, c, "stop_asked", func(ctx context.Context, m *volant.Machine, st volant.State) error {
		switch st {
		case volant.StateStopped, volant.StateStopping, volant.StateFailed:
			end.By = "" // it is what was asked for, or on its way there
		case volant.StateDestroying, volant.StateDestroyed:
			return notFrom("stop", m, st, "it is being destroyed: wait until it is")
		case volant.StateCreated, volant.StateStarting, volant.StateStarted, volant.StateSuspending, volant.StateSuspended,
			volant.StateUpdating: // its host knows how to stop it
		}
		if end.By != "" {
			err := s.Machines.Sleep(ctx, volant.MachineID(m.ID), "stop", end)
			if err != nil && (m.Run != volant.RunOn || !errors.Is(err, volant.ErrPrecondition)) {
				return err
			}
		}
		if m.Run == volant.RunOn {
			return s.wish(c, m, volant.RunOff)
		}
		return nil
	})
}

// suspendMachine puts a machine to disk. One that is wished on sleeps then until somebody starts it.
func (s *Server) suspendMachine(w http.ResponseWriter, c *call) error {
	return s.act(w, c, "suspend_asked", func(ctx context.Context, m *volant.Machine, st volant.State) error {
		switch st {
		case volant.StateSuspended, volant.StateSuspending:
			return nil
		case volant.StateStarted, volant.StateStarting:
		default:
			return notFrom("suspend", m, st, "start it first")
		}
		if m.Run != volant.RunOn {
			return s.Machines.Sleep(ctx, volant.MachineID(m.ID), "suspend", Ending{By: c.who.name})
		}
		if err := s.wish(c, m, volant.RunAuto); err != nil {
			return err
		}
		if err := s.Machines.Sleep(ctx, volant.MachineID(m.ID), "suspend", Ending{By: c.who.name}); err != nil {
			return errors.Join(err, s.wish(c, m, volant.RunOn)) // it stays awake, and wished so
		}
		return nil
	})
}

func (s *Server) restartMachine(w http.ResponseWriter, c *call) error {
	q := c.r.URL.Query()
	var timeout api.Timeout
	if v := q.Get("timeout"); v != "" {
		if err := timeout.UnmarshalText([]byte(v)); err != nil {
			return err
		}
	}
	end, err := c.ending(q.Get("signal"), timeout)
	if err != nil {
		return err
	}
	if c.flag("force_stop") {
		end.Signal = int(syscall.SIGKILL)
	}
	return s.act(w, c, "restart_asked", func(ctx context.Context, m *volant.Machine, st volant.State) error {
		if st != volant.StateStarted && st != volant.StateStarting {
			return notFrom("restart", m, st, "start it")
		}
		return s.Machines.Restart(ctx, volant.MachineID(m.ID), end)
	})
}

// ending reads how an app is to be ended: a signal by name or number, and a time.
func (c *call) ending(signal any, timeout api.Timeout) (Ending, error) {
	e := Ending{By: c.who.name, Grace: time.Duration(timeout)}
	if signal == nil || signal == "" {
		return e, nil
	}
	sig, err := parseSignal(signal)
	e.Signal = int(sig)
	return e, err
}

// signals are the names the API takes, with or without SIG.
var signals = map[string]syscall.Signal{
	"ABRT": syscall.SIGABRT, "ALRM": syscall.SIGALRM, "FPE": syscall.SIGFPE, "HUP": syscall.SIGHUP, "ILL": syscall.SIGILL,
	"INT": syscall.SIGINT, "KILL": syscall.SIGKILL, "PIPE": syscall.SIGPIPE, "QUIT": syscall.SIGQUIT, "SEGV": syscall.SIGSEGV,
	"TERM": syscall.SIGTERM, "TRAP": syscall.SIGTRAP, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "WINCH": syscall.SIGWINCH,
}

// parseSignal reads a signal by its name, or by its number as JSON or text.
func parseSignal(v any) (syscall.Signal, error) {
	name, isText := v.(string)
	if sig, ok := signals[strings.TrimPrefix(strings.ToUpper(name), "SIG")]; ok && isText {
		return sig, nil
	}
	n, isNumber := v.(float64)
	if i, err := strconv.Atoi(name); isText && err == nil {
		n, isNumber = float64(i), true
	}
	for _, known := range signals {
		if isNumber && float64(known) == n {
			return known, nil
		}
	}
	return 0, volant.Invalidf("signal %v is not known", v).WithRemedy("use a name such as SIGTERM, or its number")
}

func (s *Server) signalMachine(w http.ResponseWriter, c *call) error {
	var in api.SignalMachine
	if err := c.read(w, &in); err != nil {
		return err
	}
	sig, err := parseSignal(in.Signal)
	if err != nil {
		return err
	}
	return s.act(w, c, "signal_sent", func(ctx context.Context, m *volant.Machine, _ volant.State) error {
		return s.Machines.Signal(ctx, volant.MachineID(m.ID), int(sig))
	})
}
