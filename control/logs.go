package control

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/why"
)

// logs streams what an app's machines print and what the platform did to them, the past ones in the order of
// time, destroyed machines among them, and with follow each new one.
func (s *Server) logs(w http.ResponseWriter, c *call) error {
	a, snap, err := s.app(c)
	if err != nil {
		return err
	}
	f := &follower{s: s, app: a, only: volant.MachineID(c.r.URL.Query().Get("machine")), events: !c.flag("no_events")}
	if f.tail, err = c.number("tail", 100, 0, mostTail); err != nil {
		return err
	}
	if f.since, err = c.since(); err != nil {
		return err
	}
	if m, ok := snap.Machine(f.only); f.only != "" && (!ok || m.App != a.App) {
		return volant.Errorf(volant.ErrNotFound, "app %s has no machine %q", a.Name, f.only)
	}
	past, err := f.past(c.ctx(), snap)
	if err != nil {
		return err
	}
	f.out = c.stream(w)
	for _, e := range past {
		if err := f.out.send(e); err != nil {
			return err
		}
	}
	if !c.flag("follow") {
		return nil
	}
	return f.follow(c, snap)
}

const (
	mostTail   = 10_000
	mostOld    = 20 // destroyed machines whose logs are looked at
	followTime = 24 * time.Hour
	eventsTick = time.Second
	// SourceVolant is the source of lines about what the platform did.
	SourceVolant = "volant"
)

// since reads the parameter since: a time, or how long ago.
func (c *call) since() (time.Time, error) {
	v := c.r.URL.Query().Get("since")
	if v == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(v); err == nil && ago >= 0 {
		return time.Now().Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339, v)
	if err != nil {
		return t, volant.Invalidf("since=%q: use a time such as 2006-01-02T15:04:05Z, or how long ago, such as 10m", v)
	}
	return t, nil
}

// follower merges the logs of several machines and the platform's events into one stream.
type follower struct {
	s      *Server
	app    *volant.App
	only   volant.MachineID // empty: all
	tail   int
	since  time.Time
	events bool

	mu   sync.Mutex // guards out
	out  *lines
	seen map[volant.MachineID]uint64 // the last line of each machine that was sent, or passed over
	told time.Time                   // of the last event
	wg   sync.WaitGroup
}

// past are the last lines before now, in the order of time.
func (f *follower) past(ctx context.Context, snap *catalog.Snapshot) ([]api.LogEntry, error) {
	var out []api.LogEntry
	f.seen = map[volant.MachineID]uint64{}
	for _, id := range f.machines(snap) {
		err := f.s.Machines.Logs(ctx, id, max(1, f.tail), false, func(l guest.LogLine) error {
			f.seen[id] = l.Seq
			if !l.Time.Before(f.since) {
				out = append(out, f.entry(id, l))
			}
			return nil
		})
		switch {
		case errors.Is(err, volant.ErrUnavailable) && f.only == "": // what the others have is worth showing
			out = append(out, api.LogEntry{
				App: f.app.Name, Machine: string(id), Region: f.region(id), Time: time.Now(), Source: SourceVolant,
				Message: "the log of this machine is not here: " + err.Error(),
			})
		case err != nil && !errors.Is(err, volant.ErrNotFound):
			return nil, err
		}
	}
	events, err := f.happened(ctx, time.Time{})
	if err != nil {
		return nil, err
	}
	out = append(out, events...)
	slices.SortStableFunc(out, func(a, b api.LogEntry) int { return a.Time.Compare(b.Time) })
	return out[max(0, len(out)-f.tail):], nil
}

// machines are those whose logs there may be: all that are not destroyed, and the last that were.
func (f *follower) machines(snap *catalog.Snapshot) []volant.MachineID {
	if f.only != "" {
		return []volant.MachineID{f.only}
	}
	var ids []volant.MachineID
	for id, m := range snap.Machines(f.app.App) {
		if have, _ := snap.Have(id); !m.Tombstone && have.State != volant.StateDestroyed {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	old := f.s.Machines.OldLogs(f.app.App)
	return append(ids, old[:min(len(old), mostOld)]...)
}

func (f *follower) entry(id volant.MachineID, l guest.LogLine) api.LogEntry {
	return api.LogEntry{
		App: f.app.Name, Machine: string(id), Region: f.region(id), Seq: l.Seq, Time: l.Time, Source: l.Source, Message: l.Text,
	}
}

// region is where a machine is; what is about none is said to be of here.
func (f *follower) region(id volant.MachineID) string {
	if m, ok := f.s.Catalog.Snapshot().Machine(id); ok {
		return string(m.Region)
	}
	return string(f.s.Region)
}

// happened are the platform's events since the given time, or the last ones.
func (f *follower) happened(ctx context.Context, since time.Time) ([]api.LogEntry, error) {
	if !f.events || f.tail == 0 && since.IsZero() {
		return nil, nil
	}
	if f.since.After(since) {
		since = f.since
	}
	recs, err := f.s.Reasons.Query(ctx, why.Query{
		App: f.app.App, Machine: f.only, Since: since, Limit: max(1, min(f.tail, 1000)),
		Kinds: []why.Kind{why.Wake, why.Sleep, why.Scale, why.Placement, why.Deploy, why.Machine, why.Refusal},
	})
	if err != nil {
		return nil, err
	}
	var out []api.LogEntry
	for _, r := range slices.Backward(recs) { // newest first
		if r.Time.After(f.told) {
			out = append(out, api.LogEntry{
				App: f.app.Name, Machine: string(r.Machine), Region: f.region(r.Machine), Time: r.Time, Source: SourceVolant, Message: r.Text,
			})
		}
	}
	for _, e := range out {
		if e.Time.After(f.told) {
			f.told = e.Time
		}
	}
	return out, nil
}

// follow goes on with new lines of all machines, those that are yet to come among them.
func (f *follower) follow(c *call, snap *catalog.Snapshot) error {
	ctx, cancel := context.WithTimeout(c.ctx(), followTime)
	defer f.wg.Wait()
	defer cancel()
	begun := map[volant.MachineID]bool{}
	begin := func(snap *catalog.Snapshot) {
		for id, m := range snap.Machines(f.app.App) {
			if !begun[id] && !gone(m) && (f.only == "" || f.only == id) {
				begun[id] = true
				f.wg.Go(func() { f.one(ctx, cancel, id, f.seen[id]) })
			}
		}
	}
	begin(snap)
	changed, stop := f.s.Catalog.Subscribe()
	defer stop()
	begin(f.s.Catalog.Snapshot())
	if f.told.IsZero() {
		f.told = time.Now()
	}
	tick := time.NewTicker(eventsTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			begin(f.s.Catalog.Snapshot())
		case <-tick.C:
			events, err := f.happened(ctx, f.told)
			if err != nil {
				return err
			}
			for _, e := range events {
				if err := f.send(e); err != nil {
					return err
				}
			}
		}
	}
}

// unreachedAgain is when the host of a machine is asked again that did not answer.
const unreachedAgain = 2 * time.Second

// one follows a machine from the line after seen.
func (f *follower) one(ctx context.Context, cancel context.CancelFunc, id volant.MachineID, seen uint64) {
	for ctx.Err() == nil {
		pause := 200 * time.Millisecond
		err := f.s.Machines.Logs(ctx, id, -1, true, func(l guest.LogLine) error {
			if l.Seq <= seen {
				return nil
			}
			seen = l.Seq
			return f.send(f.entry(id, l))
		})
		switch {
		case errors.Is(err, volant.ErrNotFound): // its host has it in a moment, or has it no more
		case errors.Is(err, volant.ErrUnavailable): // its host is away; it may come back
			pause = unreachedAgain
		case err != nil:
			if ctx.Err() == nil {
				f.s.Log.Debug("log stream ended", "machine", id, "err", err)
			}
			cancel()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		if m, ok := f.s.Catalog.Snapshot().Machine(id); !ok || gone(m) {
			return
		}
	}
}

func (f *follower) send(e api.LogEntry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.out.send(e)
}
