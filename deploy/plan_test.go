package deploy_test

import (
	"slices"
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
func least(n int) change {
	return func(o *deploy.Observation) { o.Releases[len(o.Releases)-1].Groups[0].Min = n }
}

func most(n int) change {
	return func(o *deploy.Observation) { o.Releases[len(o.Releases)-1].Groups[0].Max = n }
}

func full(o *deploy.Observation) {
	o.Full = "no host has room"
}

func release(v uint64, s volant.ReleaseStatus, began ...time.Duration) change {
	r := deploy.Release{
		Version: v, Status: s, Began: now, WaitTimeout: 5 * time.Minute, Strategy: volant.StrategyBlueGreen,
		Groups: []deploy.Group{{Name: "app"}}, Previous: v - 1,
	}
	for _, ago := range began {
		r.Began = now.Add(-ago)
	}
	return func(o *deploy.Observation) { o.Releases = append(o.Releases, r) }
}

func machine(id volant.MachineID, v uint64, s volant.State, change ...func(*deploy.Machine)) change {
	m := deploy.Machine{
		ID: id, Region: "ams", Group: "app", Release: v, Managed: true, Changed: now.Add(-time.Minute), Since: now.Add(-time.Minute), Run: volant.RunAuto, State: s, Ready: s == volant.StateStarted, Acted: true,
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

// by changes the release named last.
func by(strategy string, unavailable ...float64) change {
	return func(o *deploy.Observation) {
		r := &o.Releases[len(o.Releases)-1]
		r.Strategy = strategy
		for _, n := range unavailable {
			r.MaxUnavailable = n
		}
	}
}

// with adds a process group to the release named last.
func with(g deploy.Group) change {
	return func(o *deploy.Observation) {
		r := &o.Releases[len(o.Releases)-1]
		r.Groups = append(r.Groups, g)
	}
}

// minIn has the first group of the release named last keep n machines in a region.
func minIn(r volant.Region, n int) change {
	return func(o *deploy.Observation) {
		o.Releases[len(o.Releases)-1].Groups[0].RegionMin = map[volant.Region]int{r: n}
	}
}

func whole(o *deploy.Observation) { o.Releases[len(o.Releases)-1].Groups[0].Whole = true }

// command gives the release named last a command.
func command(done bool) change {
	return func(o *deploy.Observation) {
		o.Releases[len(o.Releases)-1].Command = &deploy.ReleaseCommand{Timeout: 2 * time.Minute, Done: done}
	}
}

func commanding(m *deploy.Machine) {
	m.Command, m.Managed, m.Run, m.Cordoned = true, false, volant.RunOn, true
}
func well(m *deploy.Machine) { m.Ended, m.EndedWell = "its program ended with exit code 0", true }
func of(group string) func(*deploy.Machine) {
	return func(m *deploy.Machine) { m.Group = group }
}
func working(m *deploy.Machine)  { m.Group, m.Run = "worker", volant.RunOn }
func byDeploy(m *deploy.Machine) { m.ByDeploy, m.Cordoned, m.Acted = true, true, true }
func since(ago time.Duration) func(*deploy.Machine) {
	return func(m *deploy.Machine) { m.Since, m.Changed = now.Add(-ago), now.Add(-ago) }
}

func exits(n int) func(*deploy.Machine) {
	return func(m *deploy.Machine) { m.Exits, m.LastExit = n, "its program ended with exit code 7" }
}

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
		{"the first deploy with min boots as many", []change{current(0), release(1, running), least(2)}, "create - least, create - least"},
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
		{"rolling: one new machine proves the release", []change{
			release(1, complete), release(2, running), by("rolling"),
			machine("a", 1, started), machine("b", 1, started), machine("c", 1, started),
		}, "create a replace"},
		{"and no other is made before it serves", []change{
			release(1, complete), release(2, running), by("rolling"),
			machine("a", 1, started), machine("b", 1, started), machine("d", 2, starting, fresh("a")),
		}, ""},
		{"then the release is current", []change{
			release(1, complete), release(2, running), by("rolling"),
			machine("a", 1, started), machine("b", 1, started), machine("d", 2, started, fresh("a")),
		}, "switch 2 ready"},
		{"its machine is routed, and others wait for it", []change{
			release(1, complete), current(2), release(2, running), by("rolling"),
			machine("a", 1, started), machine("b", 1, started), machine("d", 2, started, fresh("a")),
		}, "route d ready"},
		{"what scaling made beside the deploy counts for max: no more are made, and the rest drains", []change{
			current(2), release(1, complete), release(2, running), by(volant.StrategyRolling), most(2),
			machine("a", 1, started), machine("b", 2, started), machine("c", 2, suspended),
		}, "drain a max"},
		{"when all of them are routed", []change{
			current(2), release(1, complete), release(2, running), by(volant.StrategyRolling), most(2),
			machine("a", 1, started), machine("b", 2, started), machine("c", 2, started, unheard),
		}, ""},
		{"a third of the machines is replaced at once, the one replaced drains", []change{
			release(1, complete), current(2), release(2, running), by("rolling"), machine("a", 1, started), machine("b", 1, started),
			machine("c", 1, started), machine("d", 2, started, inPlaceOfA),
		}, "drain a replaced, create b replace"},
		{"max_unavailable may be a count", []change{
			release(1, complete), current(2), release(2, running), by("rolling", 2), machine("b", 1, started),
			machine("c", 1, started), machine("d", 2, started, inPlaceOfA), machine("e", 1, started),
		}, "create b replace, create c replace"},
		{"or a fraction, rounded up", []change{
			release(1, complete), current(2), release(2, running), by("rolling", 0.5), machine("b", 1, started),
			machine("c", 1, started), machine("d", 2, started, inPlaceOfA),
		}, "create b replace, create c replace"},
		{"one that is replaced already takes part of it", []change{
			release(1, complete), current(2), release(2, running), by("rolling", 1), machine("b", 1, started),
			machine("c", 1, started), machine("d", 2, starting, fresh("b")),
		}, ""},
		{"old ones that sleep are kept while the release may be taken back", []change{
			release(1, complete), current(2), release(2, running), by("rolling"), machine("a", 1, stopped, byDeploy),
			machine("b", 1, started), machine("d", 2, starting, fresh("b")),
		}, ""},
		{"and destroyed afterwards", []change{
			release(1, complete), current(2), release(2, complete), by("rolling"), machine("a", 1, stopped, byDeploy),
			machine("d", 2, started),
		}, "destroy a old_asleep"},
		{"one that fails later takes the release back", []change{
			release(1, complete), current(2), release(2, running), by("rolling"), machine("b", 1, started),
			machine("d", 2, started, inPlaceOfA), machine("e", 2, starting, fresh("b"), failures(3)),
		}, "revert 2 machine_failed"},
		{"also one that takes connections already", []change{
			release(1, complete), current(2), release(2, running), by("rolling"), machine("b", 1, started),
			machine("d", 2, started, inPlaceOfA, exits(3)),
		}, "revert 2 machine_failed"},
		{"then the old ones serve again and the new ones stay until they do", []change{
			release(1, complete), release(2, volant.ReleaseFailed), by("rolling"), machine("a", 1, stopped, byDeploy),
			machine("b", 1, started), machine("d", 2, started, inPlaceOfA), machine("e", 2, starting, fresh("b")),
		}, "restore a reverted, destroy e release_failed"},
		{"no other release begins before", []change{
			release(1, complete), release(2, volant.ReleaseFailed), by("rolling"), release(3, pending),
			machine("a", 1, starting, since(time.Second)), machine("d", 2, started, inPlaceOfA),
		}, ""},
		{"new ones drain when the old ones serve", []change{
			release(1, complete), release(2, volant.ReleaseFailed), by("rolling"), machine("a", 1, started, since(time.Second)),
			machine("d", 2, started, inPlaceOfA),
		}, "drain d old"},
		{"or if the old ones do not come back within a minute", []change{
			release(1, complete), release(2, volant.ReleaseFailed), by("rolling"), machine("a", 1, suspended),
			machine("d", 2, started, inPlaceOfA),
		}, "drain d old"},
		{"where ports differ, all are made first", []change{
			release(1, complete), release(2, running), by("rolling"), whole, machine("a", 1, started), machine("b", 1, started),
		}, "create a replace, create b replace"},
		{"canary: one serves beside the old ones for a while", []change{
			release(1, complete), current(2), release(2, running), by("canary"), machine("a", 1, started), machine("b", 1, started),
			machine("d", 2, started, inPlaceOfA, since(9*time.Second)),
		}, ""},
		{"then the others are replaced", []change{
			release(1, complete), current(2), release(2, running), by("canary"), machine("a", 1, started), machine("b", 1, started),
			machine("d", 2, started, inPlaceOfA, since(10*time.Second)),
		}, "drain a replaced"},
		{"a canary that fails takes the release back", []change{
			release(1, complete), current(2), release(2, running), by("canary"), machine("a", 1, started),
			machine("d", 2, volant.StateFailed, inPlaceOfA, since(time.Second)),
		}, "revert 2 machine_failed"},
		{"immediate: nothing is waited for", []change{
			release(1, complete), release(2, running), by("immediate"), machine("a", 1, started), machine("b", 1, started),
		}, "switch 2 ready"},
		{"all are made at once", []change{
			release(1, complete), current(2), release(2, running), by("immediate"), machine("a", 1, started), machine("b", 1, started),
		}, "create a replace, create b replace"},
		{"routed at once", []change{
			release(1, complete), current(2), release(2, running), by("immediate"), machine("a", 1, started), machine("d", 2, starting, fresh("a")),
		}, "route d immediate"},
		{"and the old ones drain", []change{
			release(1, complete), current(2), release(2, running), by("immediate"), machine("a", 1, started), machine("d", 2, starting, inPlaceOfA),
		}, "drain a replaced"},
		{"each group has its first machine", []change{
			release(1, complete), release(2, running), by("rolling"), with(deploy.Group{Name: "api"}), machine("a", 1, started),
			machine("b", 1, started, of("api")),
		}, "create a replace, create b replace"},
		{"and waits for none but those", []change{
			release(1, complete), release(2, running), by("rolling"), with(deploy.Group{Name: "api"}), machine("a", 1, started),
			machine("b", 1, started, of("api")), machine("c", 2, started, fresh("a")), machine("d", 2, starting, fresh("b"), of("api")),
		}, ""},
		{"a worker is replaced when the new one has run for a while", []change{
			release(1, complete), release(2, running), by("rolling"), with(deploy.Group{Name: "worker", Worker: true, Min: 1}),
			machine("c", 2, started, fresh("")), machine("w", 1, started, working),
			machine("x", 2, started, working, fresh("w"), since(4*time.Second)),
		}, ""},
		{"5 s", []change{
			release(1, complete), release(2, running), by("rolling"), with(deploy.Group{Name: "worker", Worker: true, Min: 1}),
			machine("c", 2, started, fresh("")), machine("w", 1, started, working),
			machine("x", 2, started, working, fresh("w"), since(5*time.Second)),
		}, "switch 2 ready"},
		{"no worker is made where none runs and min is 0", []change{
			release(1, complete), release(2, running), by("rolling"), with(deploy.Group{Name: "worker", Worker: true}),
			machine("c", 2, started, fresh("")),
		}, "switch 2 ready"},
		{"machines of a group that is gone drain", []change{
			release(1, complete), current(2), release(2, running), by("rolling"), machine("w", 1, started, working), machine("c", 2, started),
		}, "drain w group_gone"},
		{"a program that ends again and again fails the release early", []change{
			release(1, complete), release(2, running), by("rolling"), machine("a", 1, started), machine("b", 2, starting, fresh("a"), exits(3)),
		}, "fail 2 machine_failed"},
		{"one that ended once is watched for a while", []change{
			release(1, complete), release(2, running), by("rolling"), machine("a", 1, started),
			machine("b", 2, started, fresh("a"), exits(1), since(time.Second)),
		}, ""},
		{"a release command runs before any machine changes", []change{
			release(1, complete), release(2, running), by("rolling"), command(false), machine("a", 1, started),
		}, "command - release_command"},
		{"and is waited for", []change{
			release(1, complete), release(2, running), by("rolling"), command(false), machine("a", 1, started),
			machine("r", 2, started, commanding, since(time.Minute)),
		}, ""},
		{"when it has ended well the deploy goes on", []change{
			release(1, complete), release(2, running), by("rolling"), command(false), machine("a", 1, started),
			machine("r", 2, stopped, commanding, well),
		}, "commanded r release_command"},
		{"its machine goes", []change{
			release(1, complete), release(2, running), by("rolling"), command(true), machine("a", 1, started),
			machine("r", 2, stopped, commanding, well),
		}, "create a replace, destroy r command_done"},
		{"one that fails fails the release", []change{
			release(1, complete), release(2, running), by("rolling"), command(false), machine("a", 1, started),
			machine("r", 2, stopped, commanding, ended),
		}, "fail 2 release_command"},
		{"also one that does not end in time", []change{
			release(1, complete), release(2, running), by("rolling"), command(false), machine("a", 1, started),
			machine("r", 2, started, commanding, since(2*time.Minute)),
		}, "fail 2 release_command"},
		{"and its machine goes as well", []change{
			release(1, complete), release(2, volant.ReleaseFailed), command(false), machine("a", 1, started),
			machine("r", 2, started, commanding),
		}, "destroy r command_done"},
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
	case (s.Kind == deploy.Create || s.Kind == deploy.Command) && s.Replaces == "":
		return "-"
	case s.Kind == deploy.Create:
		return string(s.Replaces)
	case slices.Contains([]deploy.Kind{deploy.Route, deploy.Drain, deploy.Destroy, deploy.Restore, deploy.Commanded}, s.Kind):
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

// What min keeps in a region is made there, the rest where the app is at home.
func TestPlanMakesWhatMinKeepsInItsRegion(t *testing.T) {
	steps, _ := deploy.Plan(look(release(1, complete), release(2, running), least(4), minIn("syd", 2),
		machine("a", 2, started, fresh(""), in("syd"))))
	var got []volant.Region
	for _, s := range steps {
		got = append(got, s.Region)
	}
	if want := []volant.Region{"syd", "ams", "ams"}; !slices.Equal(got, want) {
		t.Errorf("machines are made in %v, want %v", got, want)
	}
}
