package deploy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/perapp"
	"github.com/volant-edge/volant/why"
)

// Fleet is what a Deployer sees and does.
type Fleet interface {
	// Observe says what is so now, in slices which the Deployer may change.
	Observe(ctx context.Context, app volant.AppID) (Observation, error)
	// Apply does one step. For Create it returns the new machine's ID, placed and written down;
	// ErrNoCapacity means that no host of the region has room. A store or host refuses a term older than
	// one it has seen with ErrStaleTerm.
	Apply(ctx context.Context, app volant.AppID, step Step, term uint64) (volant.MachineID, error)
}

// Config of a Deployer.
type Config struct {
	Why why.Log      // nil discards
	Log *slog.Logger // nil discards
}

// Deployer brings releases about. It is a perapp.Worker: Work acts for one app while its term is held.
type Deployer struct {
	fleet Fleet
	why   why.Log
	log   *slog.Logger
	pokes perapp.Pokes
}

// New returns a Deployer of the fleet.
func New(fleet Fleet, cfg Config) *Deployer {
	d := &Deployer{fleet: fleet, why: cfg.Why, log: cfg.Log}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.why == nil {
		d.why = why.Discard
	}
	return d
}

// Poke says that something about the app changed: a record, or what a host says of a machine.
func (d *Deployer) Poke(app volant.AppID) { d.pokes.Poke(app) }

// ForgetApp drops all of an app that is deleted.
func (d *Deployer) ForgetApp(app volant.AppID) { d.pokes.Forget(app) }

// Work brings the app's releases about until ctx is done or the term is lost.
func (d *Deployer) Work(ctx context.Context, app volant.AppID, term perapp.Term) error {
	r := &rollout{d: d, app: app, term: term, blocked: map[string]perapp.Backoff{}}
	l := perapp.Loop[*act]{Actor: r, Term: term, Poke: d.pokes.Of(app), Log: d.log.With("app", app)}
	return l.Run(ctx)
}

// act is a step on its way.
type act struct {
	Step
	created volant.MachineID
	done    time.Time // when Apply returned; zero before
}

// key is what must not be done twice at once.
func (a *act) key() string {
	return fmt.Sprintf("%s/%d/%s/%s/%s/%s", a.Kind, a.Release, a.Group, a.Machine, a.Region, a.Replaces)
}

// gate steps change what all others are planned from: none is planned beside them.
func (a *act) gate() bool {
	switch a.Kind {
	case Begin, Commanded, Switch, Complete, Fail, Revert:
		return true
	case Command, Create, Route, Drain, Restore, Destroy:
	}
	return false
}

// rollout is the Deployer of one app under one term.
type rollout struct {
	d    *Deployer
	app  volant.AppID
	term perapp.Term

	org     volant.OrgID
	settled []*act // done, and not yet seen in an observation
	blocked map[string]perapp.Backoff
	full    perapp.Backoff
	fullWhy string
}

// Plan is perapp's.
func (r *rollout) Plan(ctx context.Context, inFlight []*act) ([]*act, time.Time, error) {
	if slices.ContainsFunc(inFlight, (*act).gate) {
		return nil, time.Time{}, nil // its end is waited for
	}
	o, err := r.d.fleet.Observe(ctx, r.app)
	if err != nil {
		return nil, time.Time{}, err
	}
	o.Now = time.Now()
	r.org = o.Org
	var again time.Time
	if r.full.Until.After(o.Now) {
		o.Full, again = r.fullWhy, r.full.Until
	}
	again = perapp.Sooner(again, r.overlay(&o))
	for _, a := range inFlight {
		if a.Kind == Create || a.Kind == Command {
			a.pretend(&o)
		}
	}
	steps, next := Plan(o)
	next = perapp.Sooner(next, again)
	var out []*act
	for _, s := range steps {
		a := &act{Step: s}
		if slices.ContainsFunc(inFlight, func(b *act) bool { return b.key() == a.key() && a.Kind != Create }) {
			continue
		}
		if until := r.blocked[a.key()].Until; until.After(o.Now) {
			next = perapp.Sooner(next, until)
			continue
		}
		out = append(out, a)
		if a.gate() {
			return []*act{a}, next, nil
		}
	}
	return out, next, nil
}

// Apply is perapp's.
func (r *rollout) Apply(ctx context.Context, a *act) error {
	var err error
	a.created, err = r.d.fleet.Apply(ctx, r.app, a.Step, r.term.Token())
	return err
}

// Done is perapp's.
func (r *rollout) Done(a *act, err error) {
	now := time.Now()
	log := r.d.log.With("app", r.app, "release", a.Release, "step", a.Kind, "machine", a.Machine, "region", a.Region)
	switch {
	case err == nil:
		delete(r.blocked, a.key())
		a.done = now
		if a.Kind == Create || a.Kind == Command {
			a.Machine, r.full = a.created, perapp.Backoff{}
		}
		r.settled = append(r.settled, a)
		r.explain(a.Step, nil)
		log.Info("deploy went on", "rule", a.Rule, "machine", a.Machine)
	case errors.Is(err, context.Canceled):
	case errors.Is(err, volant.ErrNoCapacity) && (a.Kind == Create || a.Kind == Command):
		if r.fullWhy = err.Error(); r.full.Until.IsZero() {
			r.explain(a.Step, err)
		}
		r.full = r.full.Again(now)
		log.Warn("no room for a new machine", "err", err)
	default:
		r.blocked[a.key()] = r.blocked[a.key()].Again(now)
		// What a step found changed before it is no fault: the next plan knows better.
		if errors.Is(err, volant.ErrPrecondition) || errors.Is(err, volant.ErrConflict) {
			log.Debug("step came too late", "err", err)
			return
		}
		r.explain(a.Step, err)
		log.Warn("step went wrong", "err", err)
	}
}

// explain records why a step was taken, or what kept it from being taken.
func (r *rollout) explain(s Step, err error) {
	rec := why.Record{
		Time: time.Now(), Kind: why.Deploy, Org: r.org, App: r.app, Machine: s.Machine, Rule: s.Rule, Text: s.Text,
		Attrs: map[string]string{"step": string(s.Kind), "release": fmt.Sprint(s.Release)},
	}
	if s.Replaces != "" {
		rec.Attrs["replaces"] = string(s.Replaces)
	}
	if err != nil {
		rec.Attrs["error"] = err.Error()
		rec.Text = string(s.Kind) + " went wrong: " + err.Error() + " (" + s.Text + ")"
	}
	r.d.why.Add(rec)
}

// How long a step that is done may go unseen before the observation is believed again.
const unseen = 10 * time.Second

// overlay makes the observation show what settled steps brought about, drops those which show by
// themselves, and says when the next is given up.
func (r *rollout) overlay(o *Observation) (again time.Time) {
	r.settled = slices.DeleteFunc(r.settled, func(a *act) bool {
		due := a.done.Add(unseen)
		if !due.After(o.Now) || a.shows(o) {
			return true
		}
		again = perapp.Sooner(again, due)
		return false
	})
	for _, a := range r.settled {
		a.pretend(o)
	}
	return again
}

func (a *act) find(o *Observation) (*Release, *Machine) {
	i := slices.IndexFunc(o.Releases, func(r Release) bool { return r.Version == a.Release })
	j := slices.IndexFunc(o.Machines, func(m Machine) bool { return m.ID == a.Machine })
	var rel *Release
	var m *Machine
	if i >= 0 {
		rel = &o.Releases[i]
	}
	if j >= 0 && a.Machine != "" {
		m = &o.Machines[j]
	}
	return rel, m
}

// shows says whether the observation shows that a was done.
func (a *act) shows(o *Observation) bool {
	rel, m := a.find(o)
	switch a.Kind {
	case Begin:
		return rel == nil || rel.Status != volant.ReleasePending
	case Complete, Fail, Revert:
		return rel == nil || rel.Status != volant.ReleaseRunning
	case Commanded:
		return rel == nil || rel.Command == nil || rel.Command.Done
	case Switch:
		return o.Current >= a.Release || rel == nil || rel.Status != volant.ReleaseRunning
	case Command, Create:
		return m != nil
	case Restore:
		return m == nil || !m.Cordoned
	case Route:
		return m == nil || !m.Cordoned && (m.Run != volant.RunOn || m.Acted)
	case Drain:
		return m == nil || m.Cordoned && (m.Draining || !awake(*m))
	case Destroy:
		return m == nil
	}
	return true
}

// pretend changes o to what it will be when a is seen.
func (a *act) pretend(o *Observation) {
	rel, m := a.find(o)
	switch {
	case (a.Kind == Create || a.Kind == Command) && m == nil:
		o.Machines = append(o.Machines, Machine{
			ID: volant.MachineID("pending-" + a.Group + "-" + string(a.Replaces)), Group: a.Group, Command: a.Kind == Command, Region: a.Region, Release: a.Release, Replaces: a.Replaces, Managed: true,
			Run: volant.RunOn, Cordoned: true, State: volant.StateStarting, Created: o.Now,
		})
	case a.Kind == Switch:
		if rel != nil && o.Current != a.Release {
			rel.Previous = o.Current
		}
		o.Current = a.Release
	case rel != nil && a.Kind == Begin:
		rel.Status, rel.Began = volant.ReleaseRunning, a.done
	case rel != nil && a.Kind == Complete:
		rel.Status = volant.ReleaseComplete
	case rel != nil && a.Kind == Fail:
		rel.Status = volant.ReleaseFailed
	case rel != nil && a.Kind == Revert:
		rel.Status = volant.ReleaseFailed
		o.Current = rel.Previous
	case rel != nil && a.Kind == Commanded && rel.Command != nil:
		done := *rel.Command
		done.Done = true
		rel.Command = &done
	case m == nil:
	case a.Kind == Route:
		m.Cordoned, m.Acted, m.Changed = false, false, a.done
	case a.Kind == Restore:
		m.Cordoned, m.Draining, m.Acted = false, false, false
		if a.Wake {
			m.Run = volant.RunOn
		}
	case a.Kind == Drain:
		m.Cordoned, m.Draining, m.Acted = true, awake(*m), false
	case a.Kind == Destroy:
		o.Machines = slices.DeleteFunc(o.Machines, func(m Machine) bool { return m.ID == a.Machine })
	}
}
