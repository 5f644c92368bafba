package control

import (
	"cmp"
	"net/http"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/guest"
)

// psOrders are what processes are sorted by.
var psOrders = map[string]func(a, b guest.Process) int{
	"pid":     func(a, b guest.Process) int { return cmp.Compare(a.PID, b.PID) },
	"stime":   func(a, b guest.Process) int { return a.Started.Compare(b.Started) },
	"rtime":   func(a, b guest.Process) int { return b.Started.Compare(a.Started) },
	"command": func(a, b guest.Process) int { return cmp.Compare(a.Command, b.Command) },
	"cpu":     func(a, b guest.Process) int { return cmp.Compare(a.CPU, b.CPU) },
	"rss":     func(a, b guest.Process) int { return cmp.Compare(a.RSS, b.RSS) },
}

// machineProcesses lists what runs in an awake machine.
func (s *Server) machineProcesses(w http.ResponseWriter, c *call) error {
	_, m, _, err := s.machine(c)
	if err != nil {
		return err
	}
	q := c.r.URL.Query()
	by, ok := psOrders[cmp.Or(q.Get("sort_by"), "pid")]
	if !ok {
		return volant.Invalidf("sort_by=%q: use one of pid, stime, rtime, command, cpu, rss", q.Get("sort_by"))
	}
	order := cmp.Or(q.Get("order"), "asc")
	if order != "asc" && order != "desc" {
		return volant.Invalidf("order=%q: use asc or desc", order)
	}
	if gone(m) {
		return destroyedError(m)
	}
	ps, err := s.Machines.Processes(c.ctx(), volant.MachineID(m.ID))
	if err != nil {
		return err
	}
	slices.SortStableFunc(ps, by)
	if order == "desc" {
		slices.Reverse(ps)
	}
	out := make([]api.Process, 0, len(ps))
	for _, p := range ps {
		v := api.Process{
			PID: p.PID, STime: p.Started.Unix(), RTime: int64(max(0, time.Since(p.Started)) / time.Second), Command: p.Command,
			Directory: p.Dir, CPU: p.CPU, RSS: p.RSS, ListenSockets: []api.ListenSocket{},
		}
		for _, l := range p.Listens {
			v.ListenSockets = append(v.ListenSockets, api.ListenSocket{Proto: l.Proto, Address: l.Address})
		}
		out = append(out, v)
	}
	reply(w, http.StatusOK, out)
	return nil
}

// machineMemory says how much memory a machine has, and how much of it its guest could still use.
func (s *Server) machineMemory(w http.ResponseWriter, c *call) error {
	_, m, _, err := s.machine(c)
	if err != nil {
		return err
	}
	if gone(m) {
		return destroyedError(m)
	}
	st, err := s.Machines.Stats(c.ctx(), volant.MachineID(m.ID))
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, api.Memory{
		LimitMB: m.Config.Guest.WithDefaults().MemoryMB, AvailableMB: int(st.Memory["mem_available"] >> 20), //nolint:gosec // a size in MiB
	})
	return nil
}
