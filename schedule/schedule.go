package schedule

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/perapp"
	"github.com/volant-edge/volant/why"
)

// Fleet is what a Keeper sees and does.
type Fleet interface {
	// Observe returns the app's machines to look after.
	Observe(ctx context.Context, app volant.AppID) (volant.OrgID, []Machine, error)
	Apply(ctx context.Context, app volant.AppID, step Step, term uint64) error
}

// Config of a Keeper.
type Config struct {
	Why why.Log      // nil discards
	Log *slog.Logger // nil discards
}

// Keeper looks after machines whose program is to end. It is a perapp.Worker.
type Keeper struct {
	fleet Fleet
	why   why.Log
	log   *slog.Logger
	pokes perapp.Pokes
}

// New returns a Keeper of the fleet.
func New(fleet Fleet, cfg Config) *Keeper {
	k := &Keeper{fleet: fleet, why: cfg.Why, log: cfg.Log}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	if k.why == nil {
		k.why = why.Discard
	}
	return k
}

// Poke says that something about the app changed.
func (k *Keeper) Poke(app volant.AppID) { k.pokes.Poke(app) }

// ForgetApp drops all of an app that is deleted.
func (k *Keeper) ForgetApp(app volant.AppID) { k.pokes.Forget(app) }

// Work looks after the app's machines until ctx is done or the term is lost.
func (k *Keeper) Work(ctx context.Context, app volant.AppID, term perapp.Term) error {
	w := &watch{k: k, app: app, term: term, rests: map[volant.MachineID]perapp.Backoff{}}
	l := perapp.Loop[*Step]{Actor: w, Term: term, Poke: k.pokes.Of(app), Log: k.log.With("app", app)}
	return l.Run(ctx)
}

// watch is the Keeper of one app under one term.
type watch struct {
	k     *Keeper
	app   volant.AppID
	term  perapp.Term
	org   volant.OrgID
	rests map[volant.MachineID]perapp.Backoff // after a step, so that it shows before the next
}

// Plan is perapp's.
func (w *watch) Plan(ctx context.Context, inFlight []*Step) ([]*Step, time.Time, error) {
	org, ms, err := w.k.fleet.Observe(ctx, w.app)
	if err != nil {
		return nil, time.Time{}, err
	}
	w.org = org
	now := time.Now()
	steps, next := Plan(now, ms)
	var out []*Step
	for _, s := range steps {
		if slices.ContainsFunc(inFlight, func(f *Step) bool { return f.Machine == s.Machine }) {
			continue
		}
		if until := w.rests[s.Machine].Until; until.After(now) {
			next = perapp.Sooner(next, until)
			continue
		}
		out = append(out, &s)
	}
	return out, next, nil
}

// Apply is perapp's.
func (w *watch) Apply(ctx context.Context, s *Step) error {
	return w.k.fleet.Apply(ctx, w.app, *s, w.term.Token())
}

// Done is perapp's.
func (w *watch) Done(s *Step, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	now := time.Now()
	if err != nil {
		w.rests[s.Machine] = w.rests[s.Machine].Again(now)
		w.k.log.Warn("step went wrong", "app", w.app, "step", s.Kind, "machine", s.Machine, "err", err)
		return
	}
	w.rests[s.Machine] = perapp.Backoff{}.Again(now)
	w.k.log.Info("machine looked after", "app", w.app, "step", s.Kind, "machine", s.Machine, "rule", s.Rule)
	w.k.why.Add(why.Record{
		Time: now, Kind: why.Machine, Org: w.org, App: w.app, Machine: s.Machine, Rule: s.Rule, Text: s.Text,
		Attrs: map[string]string{"step": string(s.Kind)},
	})
}
