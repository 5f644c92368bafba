package node

import (
	"context"
	"slices"
	"strconv"
	"strings"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/place"
)

// machines is the fleet as the API asks for it.
type machines struct{ f *fleet }

func (m machines) Start(ctx context.Context, id volant.MachineID, by string) error {
	return m.f.hosts.of(id).WakeFor(ctx, id, volant.SourceUser, "asked through the API by "+by)
}

func (m machines) Sleep(ctx context.Context, id volant.MachineID, how string, e control.Ending) error {
	return m.f.hosts.of(id).Sleep(ctx, id, host.Sleep{How: how, Force: true, By: e.By, Signal: e.Signal, Grace: e.Grace})
}

func (m machines) Restart(ctx context.Context, id volant.MachineID, e control.Ending) error {
	return m.f.hosts.of(id).Restart(ctx, id, host.Restart{By: e.By, Signal: e.Signal, Grace: e.Grace})
}

func (m machines) Events(id volant.MachineID, limit int) []volant.Event {
	return m.f.hosts.history(id, limit)
}

func (m machines) Processes(ctx context.Context, id volant.MachineID) ([]guest.Process, error) {
	return m.f.hosts.of(id).Processes(ctx, id)
}

func (m machines) Stats(ctx context.Context, id volant.MachineID) (guest.Stats, error) {
	return m.f.hosts.of(id).Stats(ctx, id)
}

func (m machines) Signal(ctx context.Context, id volant.MachineID, sig int) error {
	return m.f.hosts.of(id).Signal(ctx, id, sig)
}

func (m machines) Exec(ctx context.Context, id volant.MachineID, e guest.Exec) (guest.Exit, error) {
	return m.f.hosts.of(id).Exec(ctx, id, e)
}

func (m machines) OldLogs(app volant.AppID) []volant.MachineID { return m.f.hosts.oldLogs(app) }

func (m machines) Logs(ctx context.Context, id volant.MachineID, tail int, follow bool, fn func(guest.LogLine) error) error {
	return m.f.hosts.of(id).Logs(ctx, id, tail, follow, func(l host.LogLine) error {
		return fn(guest.LogLine{Seq: l.Seq, Time: l.Time, Source: l.Source, Text: l.Text})
	})
}

// Room is control's.
func (m machines) Room(g volant.Guest) map[volant.Region]int {
	snap := m.f.cat.Snapshot()
	hosts := m.f.hostsFor(snap, "", m.f.pending.now())
	out := map[volant.Region]int{}
	for _, h := range hosts {
		if _, ok := out[h.Region]; !ok {
			out[h.Region] = place.Fits(place.Request{Region: h.Region, Guest: g}, hosts)
		}
	}
	return out
}

// Place reserves room for a machine made by hand, unless it begins asleep: such a one needs none.
func (m machines) Place(ctx context.Context, rec *volant.Machine) (volant.NodeID, error) {
	hosts := m.f.hostsFor(m.f.cat.Snapshot(), rec.App, m.f.pending.now())
	var regions []string
	for _, h := range hosts {
		if !h.Closed && !slices.Contains(regions, string(h.Region)) {
			regions = append(regions, string(h.Region))
		}
	}
	slices.Sort(regions)
	if !slices.Contains(regions, string(rec.Region)) {
		return "", volant.Errorf(volant.ErrNoCapacity, "region %q has no server", rec.Region).WithRemedy("use %s", quoted(regions))
	}
	if rec.Launch == volant.LaunchRest {
		c, err := place.Pick(place.Request{Org: rec.Org, App: rec.App, Region: rec.Region, Guest: volant.Guest{MemoryMB: 1}}, hosts)
		return c.Node, err
	}
	_, err := m.f.place(ctx, rec, "", 0)
	return rec.Node, err
}

func quoted(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = strconv.Quote(w)
	}
	return strings.Join(out, ", ")
}
