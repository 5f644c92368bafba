package scale

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/perapp"
	"github.com/volant-edge/volant/why"
)

// Fleet is what a Scaler sees and does.
type Fleet interface {
	// Observe says what is so now of each process group, in slices and maps which the Scaler may change. The
	// Scaler adds Now, Watched and what the proxies' loads tell: Slots, Counted and a Region's first numbers.
	Observe(ctx context.Context, app volant.AppID) ([]Observation, error)
	// Apply does one step. For Create it returns the new machine's ID, placed, written down and told to
	// wake; ErrNoCapacity means that no host of the region had room after all. A host refuses a term
	// older than one it has seen with ErrStaleTerm.
	Apply(ctx context.Context, app volant.AppID, step Step, term uint64) (volant.MachineID, error)
}

// Config of a Scaler.
type Config struct {
	Why why.Log      // nil discards
	Log *slog.Logger // nil discards
}

// Scaler scales apps. It is a perapp.Worker: Work scales one app while its term is held.
type Scaler struct {
	fleet Fleet
	why   why.Log
	log   *slog.Logger

	mu   sync.Mutex // guards apps and what is in them
	apps map[volant.AppID]*app
}

type app struct {
	demand map[string]*demand // by group
	poke   chan struct{}
}

// of is the demand of a group.
func (a *app) of(group string) *demand {
	d := a.demand[group]
	if d == nil {
		d = newDemand()
		a.demand[group] = d
	}
	return d
}

// New returns a Scaler of the fleet.
func New(fleet Fleet, cfg Config) *Scaler {
	s := &Scaler{fleet: fleet, why: cfg.Why, log: cfg.Log, apps: map[volant.AppID]*app{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.why == nil {
		s.why = why.Discard
	}
	return s
}

// Load takes what a node's proxy tells of an app.
func (s *Scaler) Load(node volant.NodeID, id volant.AppID, l Load) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.appLocked(id)
	a.of(l.Group).set(time.Now(), node, l)
	poke(a.poke)
}

// ForgetNode drops all that a node's proxy told, since it is gone.
func (s *Scaler) ForgetNode(node volant.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.apps {
		for _, d := range a.demand {
			d.forget(time.Now(), node)
		}
		poke(a.poke)
	}
}

// ForgetApp drops all of an app that is deleted.
func (s *Scaler) ForgetApp(id volant.AppID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.apps, id)
}

// Poke says that something about the app changed.
func (s *Scaler) Poke(id volant.AppID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	poke(s.appLocked(id).poke)
}

func (s *Scaler) appLocked(id volant.AppID) *app {
	a := s.apps[id]
	if a == nil {
		a = &app{demand: map[string]*demand{}, poke: make(chan struct{}, 1)}
		s.apps[id] = a
	}
	return a
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // one is waiting already
	}
}

// Work scales one app until ctx is done or the term is lost.
func (s *Scaler) Work(ctx context.Context, id volant.AppID, term perapp.Term) error {
	s.mu.Lock()
	ch := s.appLocked(id).poke
	s.mu.Unlock()
	w := &watch{
		s: s, id: id, term: term, since: time.Now(),
		blocked: map[volant.MachineID]perapp.Backoff{}, full: map[spot]perapp.Backoff{}, told: map[string]told{},
	}
	l := perapp.Loop[*act]{Actor: w, Term: term, Poke: ch, Log: s.log.With("app", id)}
	return l.Run(ctx)
}

// act is a step on its way.
type act struct {
	Step
	before  Machine          // the machine when the step was planned
	created volant.MachineID // by Create
	done    time.Time        // when Apply returned; zero before
}

// tellAgain is how often a Hold that stays is told.
const tellAgain = time.Minute

// watch is the scaler of one app under one term.
type watch struct {
	s     *Scaler
	id    volant.AppID
	term  perapp.Term
	since time.Time

	org     volant.OrgID
	emptied map[volant.MachineID]time.Time // drained and empty ones, since when
	settled []*act                         // done, and not yet seen in an observation
	blocked map[volant.MachineID]perapp.Backoff
	full    map[spot]perapp.Backoff
	told    map[string]told // by group
}

// spot is where a machine of a group may be created.
type spot struct {
	group  string
	region volant.Region
}

// told is the Hold last told of a group.
type told struct {
	rule string
	at   time.Time
}

// Plan is perapp's.
func (w *watch) Plan(ctx context.Context, inFlight []*act) ([]*act, time.Time, error) {
	all, err := w.s.fleet.Observe(ctx, w.id)
	if err != nil {
		return nil, time.Time{}, err
	}
	emptied := map[volant.MachineID]time.Time{}
	var out []*act
	var next time.Time
	for i := range all {
		steps, again := w.planGroup(&all[i], inFlight, emptied)
		out = append(out, steps...)
		next = perapp.Sooner(next, again)
	}
	w.emptied = emptied
	return out, next, nil
}

// planGroup plans one process group.
func (w *watch) planGroup(o *Observation, inFlight []*act, emptied map[volant.MachineID]time.Time) ([]*act, time.Time) {
	o.Now = time.Now()
	o.Watched = o.Now.Sub(w.since)
	w.org = o.Org
	w.s.mu.Lock()
	w.s.appLocked(w.id).of(o.Group).fill(o)
	w.s.mu.Unlock()
	w.noteEmptied(o, emptied)
	again := w.block(o)
	again = perapp.Sooner(again, w.overlay(o, inFlight))
	before := map[volant.MachineID]Machine{}
	for _, m := range o.Machines {
		before[m.ID] = m
	}
	steps, next := Plan(*o)
	var out []*act
	held := told{}
	for _, s := range steps {
		s.Group = o.Group
		if s.Kind != Hold {
			out = append(out, &act{Step: s, before: before[s.Machine]})
			continue
		}
		held = told{s.Rule, w.told[o.Group].at}
		if w.told[o.Group].rule != s.Rule || o.Now.Sub(held.at) >= tellAgain {
			w.explain(s, nil)
			held.at = o.Now
		}
	}
	w.told[o.Group] = held
	return out, perapp.Sooner(next, again)
}

// Apply is perapp's.
func (w *watch) Apply(ctx context.Context, a *act) error {
	var err error
	a.created, err = w.s.fleet.Apply(ctx, w.id, a.Step, w.term.Token())
	return err
}

// Done is perapp's.
func (w *watch) Done(a *act, err error) {
	now := time.Now()
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return
		}
		w.failed(now, a, err)
		return
	}
	a.done = now
	w.settled = append(w.settled, a)
	switch a.Kind {
	case Create:
		delete(w.full, spot{a.Group, a.Region})
		a.Machine = a.created
	case Drain:
		w.s.mu.Lock()
		w.s.appLocked(w.id).of(a.Group).drained[a.Region] = now
		w.s.mu.Unlock()
	case Undrain, Wake, Sleep, Retire, Restore, Destroy, Hold:
	}
	delete(w.blocked, a.Machine)
	w.explain(a.Step, nil)
	w.s.log.Info("scaled", "app", w.id, "step", a.Kind, "machine", a.Machine, "region", a.Region, "rule", a.Rule)
}

func (w *watch) failed(now time.Time, a *act, err error) {
	if a.Kind == Create {
		at := spot{a.Group, a.Region}
		w.full[at] = w.full[at].Again(now)
	} else {
		w.blocked[a.Machine] = w.blocked[a.Machine].Again(now)
	}
	// What a step found changed before it is no fault: the next plan knows better.
	if errors.Is(err, volant.ErrPrecondition) || errors.Is(err, volant.ErrConflict) {
		w.s.log.Debug("step came too late", "app", w.id, "step", a.Kind, "machine", a.Machine, "err", err)
		return
	}
	w.explain(a.Step, err)
	w.s.log.Warn("step went wrong", "app", w.id, "step", a.Kind, "machine", a.Machine, "region", a.Region, "err", err)
}

// explain records why a step was taken, or what kept it from being taken.
func (w *watch) explain(s Step, err error) {
	r := why.Record{
		Time: time.Now(), Kind: why.Scale, Org: w.org, App: w.id, Machine: s.Machine, Rule: s.Rule, Text: s.Text,
		Attrs: map[string]string{"step": string(s.Kind)},
	}
	if s.Group != "" {
		r.Attrs["group"] = s.Group
	}
	if s.Region != "" {
		r.Attrs["region"] = string(s.Region)
	}
	if err != nil {
		r.Attrs["error"] = err.Error()
		if errors.Is(err, volant.ErrNoCapacity) {
			r.Rule = "no_capacity"
		}
		r.Text = string(s.Kind) + " went wrong: " + err.Error() + " (" + s.Text + ")"
	}
	w.s.why.Add(r)
}

// noteEmptied keeps since when machines are drained and empty.
func (w *watch) noteEmptied(o *Observation, now map[volant.MachineID]time.Time) {
	for i := range o.Machines {
		m := &o.Machines[i]
		if m.Draining && m.State == Serving && m.Slots == 0 {
			if m.Emptied = w.emptied[m.ID]; m.Emptied.IsZero() {
				m.Emptied = o.Now
			}
			now[m.ID] = m.Emptied
		}
	}
}

// block marks what must not be tried again yet, and says when it may.
func (w *watch) block(o *Observation) (again time.Time) {
	for i := range o.Machines {
		m := &o.Machines[i]
		if b, ok := w.blocked[m.ID]; ok && b.Until.After(o.Now) {
			m.Blocked = true
			again = perapp.Sooner(again, b.Until)
		}
	}
	for at, b := range w.full {
		if r, ok := o.Regions[at.region]; ok && at.group == o.Group && b.Until.After(o.Now) {
			r.Room = 0
			o.Regions[at.region] = r
			again = perapp.Sooner(again, b.Until)
		}
	}
	return again
}
