package control

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/catalog"
)

// longestWait bounds a wait, in seconds. Fly's is a minute; ours may be longer.
const longestWait = 600

// stateSettled is any state that does not pass by itself.
const stateSettled = "settled"

var waitStates = []string{"started", "stopped", "suspended", "destroyed", "failed", stateSettled, "created"}

// waiting is what a caller waits for.
type waiting struct {
	states  []string
	version string // only while the machine is of it
	after   string // only by what happened after this event
}

func (c *call) waiting() (waiting, error) {
	q := c.r.URL.Query()
	w := waiting{version: q.Get("version"), after: q.Get("from_event_id")}
	if w.version == "" {
		w.version = q.Get("instance_id")
	}
	for _, v := range q["state"] {
		for st := range strings.SplitSeq(v, ",") {
			if st = strings.TrimSpace(st); !slices.Contains(waitStates, st) {
				return w, volant.Invalidf("state=%q: use one of %s", st, strings.Join(waitStates, ", "))
			}
			w.states = append(w.states, st)
		}
	}
	if len(w.states) == 0 {
		w.states = []string{string(volant.StateStarted)}
	}
	return w, nil
}

// waitMachine answers when the machine has reached the state, or 408.
func (s *Server) waitMachine(w http.ResponseWriter, c *call) error {
	_, m, _, err := s.machine(c)
	if err != nil {
		return err
	}
	want, err := c.waiting()
	if err != nil {
		return err
	}
	seconds, err := c.number("timeout", 60, 1, longestWait)
	if err != nil {
		return err
	}
	var out api.Waited
	err = s.untilSnapshot(c, time.Duration(seconds)*time.Second, func(snap *catalog.Snapshot) (done bool, err error) {
		if now, ok := snap.Machine(volant.MachineID(m.ID)); ok {
			m = now
		}
		out, done, err = s.reached(snap, m, want)
		return done, err
	})
	if errors.Is(err, errTimeout) {
		return fmt.Errorf("%w: machine %s did not reach %s in %d s; it is %s", errTimeout, m.ID, strings.Join(want.states, " or "), seconds, out.State)
	}
	if err != nil {
		return err
	}
	out.OK = true
	reply(w, http.StatusOK, out)
	return nil
}

// reached says whether a machine is, or was, what the caller waits for.
func (s *Server) reached(snap *catalog.Snapshot, m *volant.Machine, want waiting) (api.Waited, bool, error) {
	have, known := snap.Have(volant.MachineID(m.ID))
	st := machineState(m, have)
	out := api.Waited{State: string(st), Version: m.Version}
	events := s.history(m, volant.MaxEvents)
	if len(events) > 0 {
		out.EventID = events[0].ID
	}
	if want.version != "" && want.version != m.Version {
		return replaced(m, have, want, out)
	}
	if want.after != "" {
		for _, e := range slices.Backward(events) { // the first of those that came after
			if e.ID > want.after && want.is(e.Status, passes(e.Status)) {
				out.State, out.EventID = string(e.Status), e.ID
				return out, true, nil
			}
		}
		return out, false, nil
	}
	return out, want.is(st, passes(st) || !known && !gone(m) || unsettled(m, have)), nil
}

// replaced answers a wait for a version that is not the machine's any more: it has ended when nothing of it runs.
func replaced(m *volant.Machine, have volant.Have, want waiting, out api.Waited) (api.Waited, bool, error) {
	if slices.Contains(want.states, string(volant.StateStopped)) || slices.Contains(want.states, string(volant.StateDestroyed)) {
		out.State, out.Version = string(volant.StateStopped), want.version
		return out, have.Version != want.version, nil
	}
	return out, false, volant.Errorf(volant.ErrPrecondition, "machine %s has version %s now, so version %s will not be %s",
		m.ID, m.Version, want.version, strings.Join(want.states, " or ")).WithRemedy("wait for its present version")
}

func (w waiting) is(st volant.State, passing bool) bool {
	return slices.Contains(w.states, string(st)) || !passing && slices.Contains(w.states, stateSettled)
}

// passes says whether a state goes over into another one by itself.
func passes(st volant.State) bool {
	switch st {
	case volant.StateStarting, volant.StateSuspending, volant.StateStopping, volant.StateDestroying, volant.StateUpdating:
		return true
	default:
		return false
	}
}

// unsettled says whether the host has yet to act on the wish as it is.
func unsettled(m *volant.Machine, have volant.Have) bool {
	launched := m.Run == volant.RunOn || m.Launch == volant.LaunchStart
	return have.Generation < m.Generation && !gone(m) || have.State == volant.StateCreated && launched
}
