package deploy_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/deploy"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

type change = func(*deploy.Observation)

// look is an observation of an app whose release 1 is current.
func look(cs ...change) deploy.Observation {
	o := deploy.Observation{Now: now, Current: 1, Primary: "ams"}
	for _, c := range cs {
		c(&o)
	}
	return o
}

func current(v uint64) change { return func(o *deploy.Observation) { o.Current = v } }
func least(n int) change      { return func(o *deploy.Observation) { o.Min = n } }
func full(o *deploy.Observation) {
	o.Full = "no host has room"
}

func release(v uint64, s volant.ReleaseStatus, began ...time.Duration) change {
	r := deploy.Release{Version: v, Status: s, Began: now, WaitTimeout: 5 * time.Minute}
	for _, ago := range began {
		r.Began = now.Add(-ago)
	}
	return func(o *deploy.Observation) { o.Releases = append(o.Releases, r) }
}

func machine(id volant.MachineID, v uint64, s volant.State, change ...func(*deploy.Machine)) change {
	m := deploy.Machine{
		ID: id, Region: "ams", Release: v, Managed: true, Run: volant.RunAuto, State: s, Ready: s == volant.StateStarted, Acted: true,
		Created: now.Add(-time.Minute),
	}
	for _, f := range change {
		f(&m)
	}
	return func(o *deploy.Observation) { o.Machines = append(o.Machines, m) }
}

// fresh is a machine that the deploy made and has not routed yet, in place of another.
func fresh(replaces volant.MachineID) func(*deploy.Machine) {
	return func(m *deploy.Machine) { m.Cordoned, m.Run, m.Replaces = true, volant.RunOn, replaces }
}

func in(r volant.Region) func(*deploy.Machine) { return func(m *deploy.Machine) { m.Region = r } }

// inPlaceOfA is a new machine that replaces a and is routed.
func inPlaceOfA(m *deploy.Machine) { m.Replaces = "a" }

func failures(n int) func(*deploy.Machine) { return func(m *deploy.Machine) { m.Failures = n } }
func created(ago time.Duration) func(*deploy.Machine) {
	return func(m *deploy.Machine) { m.Created = now.Add(-ago) }
}
func unready(m *deploy.Machine)  { m.Ready = false }
func draining(m *deploy.Machine) { m.Draining, m.Cordoned = true, true }
func cordoned(m *deploy.Machine) { m.Cordoned = true }
func byHand(m *deploy.Machine)   { m.Managed, m.Release = false, 0 }
func unheard(m *deploy.Machine)  { m.Acted = false }
func ended(m *deploy.Machine)    { m.Ended = "its program ended with exit code 3" }

const (
	started   = volant.StateStarted
	starting  = volant.StateStarting
	suspended = volant.StateSuspended
	stopped   = volant.StateStopped
	pending   = volant.ReleasePending
	running   = volant.ReleaseRunning
	complete  = volant.ReleaseComplete
)

// TestPlan has one row per sentence of the rules of a deploy.
func TestPlan(t *testing.T) {
	for _, tt := range []struct {
		sentence string
		o        []change
		want     string // steps by kind, machine or what is replaced, and rule
	}{
		{"nothing is deployed: nothing is done", []change{release(1, complete), machine("a", 1, started), machine("b", 1, suspended)}, ""},
		{"a pending release begins", []change{release(1, complete), release(2, pending)}, "begin 2 next"},
		{"the next deploy is queued while one runs", []change{
			release(2, running), release(3, pending), machine("a", 1, started), machine("b", 2, starting, fresh("a")),
		}, ""},
		{"queued ones come in order", []change{release(4, pending), release(3, pending)}, "begin 3 next"},
		{"the first deploy with min = 0 boots none", []change{current(0), release(1, running)}, "switch 1 ready"},
		{"the first deploy with min boots as many", []change{current(0), least(2), release(1, running)}, "create - least, create - least"},
		{"as many new machines as old ones serve", []change{
			release(2, running), machine("a", 1, started), machine("b", 1, started, in("syd")), machine("c", 1, suspended),
		}, "create a replace, create b replace"},
		{"one that boots will serve", []change{release(2, running), machine("a", 1, starting)}, "create a replace"},
		{"at least one", []change{release(2, running), machine("a", 1, suspended)}, "create - least"},
		{"not one more where they are made already", []change{
			release(2, running), machine("a", 1, started), machine("b", 2, starting, fresh("a")),
		}, ""},
		{"one whose old machine fell asleep meanwhile counts for the least", []change{
			release(2, running), machine("a", 1, suspended), machine("b", 2, starting, fresh("a")),
		}, ""},
		{"an old machine that woke meanwhile gets its own", []change{
			release(2, running), machine("a", 1, started), machine("c", 1, started), machine("b", 2, started, fresh("a")),
		}, "create c replace"},
		{"draining ones are not replaced", []change{
			release(2, running), machine("a", 1, started, draining), machine("b", 2, starting, fresh("")),
		}, ""},
		{"machines made by hand are left alone", []change{
			release(2, running), machine("a", 0, started, byHand), machine("b", 2, started, fresh("")),
		}, "switch 2 ready"},
		{"not switched before all listen and pass their checks", []change{
			release(2, running), machine("a", 1, started), machine("c", 1, started),
			machine("b", 2, started, fresh("a")), machine("d", 2, started, fresh("c"), unready),
		}, ""},
		{"switched when all are ready", []change{
			release(2, running), machine("a", 1, started), machine("b", 2, started, fresh("a")),
		}, "switch 2 ready"},
		{"then they are routed, and the old ones still serve", []change{
			current(2), release(2, running), machine("a", 1, started), machine("b", 2, started, fresh("a")),
		}, "route b ready"},
		{"an old one serves until the host of the new one knows that it is routed", []change{
			current(2), release(2, running), machine("a", 1, started), machine("b", 2, started, inPlaceOfA, unheard),
		}, ""},
		{"old ones drain when the new are routed", []change{
			current(2), release(2, running), machine("a", 1, started), machine("b", 2, started, inPlaceOfA),
		}, "drain a replaced"},
		{"only those whose replacement is routed", []change{
			current(2), release(2, running), machine("a", 1, started), machine("c", 1, started),
			machine("b", 2, started, inPlaceOfA), machine("d", 2, starting, fresh("c")),
		}, "drain a replaced"},
		{"a routed replacement may sleep already", []change{
			current(2), release(2, running), machine("a", 1, started), machine("b", 2, suspended, inPlaceOfA),
		}, "drain a replaced"},
		{"old ones with connections stay, and the release is complete", []change{
			current(2), release(2, running), machine("a", 1, started, draining), machine("b", 2, started, inPlaceOfA),
		}, "complete 2 replaced"},
		{"sleeping old ones are cordoned, so that they do not wake", []change{
			current(2), release(2, running), machine("a", 1, suspended), machine("b", 2, started),
		}, "complete 2 replaced, drain a old_asleep"},
		{"not destroyed before their host knows that", []change{
			current(2), release(2, complete), machine("a", 1, suspended, cordoned, unheard),
		}, ""},
		{"then they are destroyed", []change{current(2), release(2, complete), machine("a", 1, suspended, cordoned)}, "destroy a old_asleep"},
		{"but not before the switch", []change{
			release(2, running), machine("a", 1, suspended), machine("b", 2, starting, fresh("")),
		}, ""},
		{"drained old ones are destroyed when they sleep, long after", []change{
			current(2), release(2, complete), machine("a", 1, stopped, cordoned),
		}, "destroy a old_asleep"},
		{"an old one that was cordoned and not yet drained is drained", []change{
			current(2), release(2, complete), machine("a", 1, started, cordoned),
		}, "drain a old"},
		{"an old one that woke again drains", []change{current(2), release(2, complete), machine("a", 1, started)}, "drain a old"},
		{"one that is falling asleep is waited for", []change{current(2), release(2, complete), machine("a", 1, volant.StateStopping)}, ""},
		{"a new one that fails to serve three times fails the release", []change{
			release(2, running), machine("a", 1, started), machine("b", 2, starting, fresh("a"), failures(3)),
		}, "fail 2 machine_failed"},
		{"also one that its host gave up", []change{
			release(2, running), machine("a", 1, started), machine("b", 2, volant.StateFailed, fresh("a")),
		}, "fail 2 machine_failed"},
		{"also one whose program ended", []change{
			release(2, running), machine("a", 1, started), machine("b", 2, stopped, fresh("a"), ended),
		}, "fail 2 machine_failed"},
		{"also one that takes longer than the wait timeout", []change{
			release(2, running), machine("a", 1, started), machine("b", 2, started, fresh("a"), unready, created(5*time.Minute)),
		}, "fail 2 machine_failed"},
		{"a failed release's machines are destroyed, the old serve on", []change{
			release(2, volant.ReleaseFailed), machine("a", 1, started), machine("b", 2, started, fresh("a")), machine("c", 2, starting, fresh("")),
		}, "destroy b release_failed, destroy c release_failed"},
		{"after a failed one the next begins", []change{
			release(2, volant.ReleaseFailed), release(3, pending), machine("a", 1, started),
		}, "begin 3 next"},
		{"without room for all, those that serve are enough to switch", []change{
			full, release(2, running), machine("a", 1, started), machine("c", 1, started), machine("b", 2, started, fresh("a")),
		}, "switch 2 ready"},
		{"those that boot are waited for", []change{
			full, release(2, running), machine("a", 1, started), machine("c", 1, started), machine("b", 2, starting, fresh("a")),
		}, ""},
		{"then the old ones without a replacement serve until there is room", []change{
			full, current(2), release(2, running), machine("c", 1, started), machine("b", 2, started, inPlaceOfA),
		}, ""},
		{"and are replaced when there is", []change{
			current(2), release(2, running), machine("c", 1, started), machine("b", 2, started, inPlaceOfA),
		}, "create c replace"},
		{"without any room the release fails after the wait timeout", []change{
			full, release(2, running, 5*time.Minute), machine("a", 1, started),
		}, "fail 2 no_room"},
		{"and not before", []change{full, release(2, running, 4*time.Minute), machine("a", 1, started)}, ""},
		{"after the switch a new one that fails is given up, and its old one drains", []change{
			current(2), release(2, running), machine("a", 1, started), machine("b", 2, starting, fresh("a"), failures(3)),
		}, "destroy b machine_failed, drain a given_up"},
		{"machines which scaling made of another machine are replaced as well", []change{
			current(0), release(1, running), machine("a", 0, started),
		}, "create a replace"},
	} {
		t.Run(tt.sentence, func(t *testing.T) {
			steps, _ := deploy.Plan(look(tt.o...))
			var got []string
			for _, s := range steps {
				got = append(got, strings.Join([]string{string(s.Kind), object(s), s.Rule}, " "))
				if s.Text == "" {
					t.Errorf("step %+v does not explain itself", s)
				}
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, ", ")); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
		})
	}
}

// object is what a step is about, for a row of the table.
func object(s deploy.Step) string {
	switch {
	case s.Kind == deploy.Create && s.Replaces == "":
		return "-"
	case s.Kind == deploy.Create:
		return string(s.Replaces)
	case s.Kind == deploy.Route || s.Kind == deploy.Drain || s.Kind == deploy.Destroy:
		return string(s.Machine)
	}
	return string(rune('0' + s.Release))
}

func TestPlanLooksAgainWhenANewMachineIsDue(t *testing.T) {
	_, next := deploy.Plan(look(release(2, running), machine("a", 1, started), machine("b", 2, starting, fresh("a"))))
	if want := now.Add(4 * time.Minute); !next.Equal(want) {
		t.Errorf("got %v, want %v", next, want)
	}
}
