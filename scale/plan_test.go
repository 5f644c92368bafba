package scale_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/scale"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// look is an observation of an app with release 7 and one region with room, watched for long.
func look(change ...func(*scale.Observation)) scale.Observation {
	o := scale.Observation{
		Now: now, Watched: time.Hour, Soft: 20, Primary: "ams", Release: 7, Template: true,
		Regions: map[volant.Region]scale.Region{"ams": {Room: 100}},
	}
	for _, f := range change {
		f(&o)
	}
	return o
}

// in changes the region r.
func in(r volant.Region, f func(*scale.Region)) func(*scale.Observation) {
	return func(o *scale.Observation) {
		v := o.Regions[r]
		f(&v)
		o.Regions[r] = v
	}
}

func waiting(r volant.Region, n int) func(*scale.Observation) {
	return in(r, func(v *scale.Region) { v.Waiting, v.Peak = n, n+v.Entering })
}

func entering(r volant.Region, n int) func(*scale.Observation) {
	return in(r, func(v *scale.Region) { v.Entering, v.Peak = n, n+v.Waiting })
}

func peak(r volant.Region, n int) func(*scale.Observation) {
	return in(r, func(v *scale.Region) { v.Peak = n })
}

func room(r volant.Region, n int, near ...volant.Region) func(*scale.Observation) {
	return in(r, func(v *scale.Region) { v.Room, v.Near = n, near })
}

func settings(f func(*volant.Scale)) func(*scale.Observation) {
	return func(o *scale.Observation) { f(&o.Scale) }
}

// machine adds one made by scaling, in ams, in its state for two hours with on slots.
func machine(id volant.MachineID, s scale.State, slots int, change ...func(*scale.Machine)) func(*scale.Observation) {
	m := scale.Machine{
		ID: id, Node: "n1", Region: "ams", Release: 7, Run: volant.RunAuto, Managed: true, State: s,
		Since: now.Add(-30 * time.Minute), Slots: slots, Counted: true,
	}
	for _, f := range change {
		f(&m)
	}
	return func(o *scale.Observation) { o.Machines = append(o.Machines, m) }
}

func since(ago time.Duration) func(*scale.Machine) {
	return func(m *scale.Machine) { m.Since = now.Add(-ago) }
}

func emptied(ago time.Duration) func(*scale.Machine) {
	return func(m *scale.Machine) { m.Emptied = now.Add(-ago) }
}
func failures(n int) func(*scale.Machine)   { return func(m *scale.Machine) { m.Failures = n } }
func draining(m *scale.Machine)             { m.Draining = true }
func cordoned(m *scale.Machine)             { m.Cordoned = true }
func acted(m *scale.Machine)                { m.Acted = true }
func retiring(m *scale.Machine)             { m.Cordoned, m.Retiring = true, true }
func failing(m *scale.Machine)              { m.Failing = true }
func silent(m *scale.Machine)               { m.Silent = true }
func evacuate(m *scale.Machine)             { m.Evacuate = true }
func byHand(m *scale.Machine)               { m.Managed, m.Release = false, 0 }
func release(v uint64) func(*scale.Machine) { return func(m *scale.Machine) { m.Release = v } }
func run(r volant.Run) func(*scale.Machine) { return func(m *scale.Machine) { m.Run = r } }

// TestPlan has one row per sentence of the scaling rules.
func TestPlan(t *testing.T) {
	type change = func(*scale.Observation)
	for _, tt := range []struct {
		sentence string
		o        []change
		want     string // steps by kind, machine or region, and rule
	}{
		{"an app nobody uses and which has no machines gets none", nil, ""},
		{"the first connection creates a machine", []change{waiting("ams", 1)}, "create ams demand"},
		{"the first connection wakes the machine that sleeps", []change{
			waiting("ams", 1), machine("a", scale.Suspended, 0, since(time.Minute)),
		}, "wake a demand"},
		{"20 connections fit one machine", []change{entering("ams", 20), machine("a", scale.Serving, 20)}, ""},
		{"the 21st connection wants a second machine, though the first takes it up to its hard limit", []change{
			entering("ams", 21), machine("a", scale.Serving, 21),
		}, "create ams demand"},
		{
			"a burst of 100 waiting makes five machines in one go",
			[]change{waiting("ams", 100)},
			"create ams demand, create ams demand, create ams demand, create ams demand, create ams demand",
		},
		{"a machine already booting counts as capacity", []change{
			waiting("ams", 21), machine("a", scale.Booting, 0),
		}, "create ams demand"},
		{"two booting are enough for 40", []change{
			waiting("ams", 40), machine("a", scale.Booting, 0), machine("b", scale.Booting, 0),
		}, ""},
		{"first a drain is cleared", []change{
			waiting("ams", 1), entering("ams", 20), machine("a", scale.Serving, 20), machine("b", scale.Serving, 0, draining),
			machine("c", scale.Suspended, 0),
		}, "undrain b demand"},
		{"then a suspended one is resumed", []change{
			waiting("ams", 1), machine("b", scale.Stopped, 0), machine("c", scale.Suspended, 0),
		}, "wake c demand"},
		{"then a stopped one is started", []change{waiting("ams", 1), machine("b", scale.Stopped, 0)}, "wake b demand"},
		{"then one is created", []change{
			waiting("ams", 41), machine("b", scale.Stopped, 0), machine("c", scale.Suspended, 0),
		}, "wake c demand, wake b demand, create ams demand"},
		{"one that failed to boot is woken after the others", []change{
			waiting("ams", 1), machine("a", scale.Stopped, 0, failures(1)), machine("b", scale.Stopped, 0),
		}, "wake b demand"},
		{"wanted stays below max", []change{
			settings(func(s *volant.Scale) { s.Max = 2 }), waiting("ams", 100),
		}, "create ams demand, create ams demand, hold max"},
		{"at max nothing is created for machines that are full", []change{
			settings(func(s *volant.Scale) { s.Max = 1 }), entering("ams", 25), waiting("ams", 3), machine("a", scale.Serving, 25),
		}, "hold max"},
		{"max counts machines that sleep", []change{
			settings(func(s *volant.Scale) { s.Max = 2 }), waiting("ams", 60), machine("a", scale.Suspended, 0, cordoned),
		}, "create ams demand, hold max"},
		{"max does not count older releases", []change{
			settings(func(s *volant.Scale) { s.Max = 1 }), waiting("ams", 1), machine("a", scale.Serving, 9, release(6), draining),
		}, "create ams demand"},
		{"max holds per region", []change{
			settings(func(s *volant.Scale) { s.RegionMax = map[volant.Region]int{"ams": 1} }), waiting("ams", 40),
		}, "create ams demand, hold no_room"},
		{"min is kept awake with no connection", []change{
			settings(func(s *volant.Scale) { s.Min = 2 }), machine("a", scale.Suspended, 0, since(time.Minute)),
		}, "wake a min, create ams min"},
		{"min is not slept below", []change{
			settings(func(s *volant.Scale) { s.Min = 1 }), machine("a", scale.Serving, 0), machine("b", scale.Serving, 0),
		}, "drain a idle"},
		{"min per region is kept there", []change{
			room("syd", 5), settings(func(s *volant.Scale) { s.RegionMin = map[volant.Region]int{"syd": 1} }),
			machine("a", scale.Serving, 3), entering("ams", 3),
		}, "create syd region_min"},
		{"the busiest region is where most of the unserved enter", []change{
			room("syd", 5), entering("ams", 20), waiting("syd", 3), waiting("ams", 1), machine("a", scale.Serving, 20),
		}, "create syd demand"},
		{"then where most of the served enter", []change{
			room("syd", 5), entering("ams", 9), entering("syd", 12), machine("a", scale.Serving, 21),
		}, "create syd demand"},
		{"a burst from two regions is served in both", []change{
			room("syd", 5), waiting("ams", 40), waiting("syd", 20),
		}, "create ams demand, create ams demand, create syd demand"},
		{"if no host there has room, the next nearest", []change{
			waiting("syd", 1), room("syd", 0, "sin", "ams"), room("sin", 3),
		}, "create sin demand"},
		{"no room anywhere is told", []change{waiting("ams", 1), room("ams", 0)}, "hold no_room"},
		{"machines are created only in the regions of the app", []change{
			settings(func(s *volant.Scale) { s.Regions = []volant.Region{"ams"} }), room("syd", 5, "ams"), waiting("syd", 1),
		}, "create ams demand"},
		{"connections served too far away make a machine near", []change{
			room("syd", 5), entering("syd", 3), in("syd", func(r *scale.Region) { r.Spilled = 3 }), machine("a", scale.Serving, 3),
		}, "create syd spilled"},
		{"auto_start off wakes and creates nothing", []change{
			settings(func(s *volant.Scale) { s.NoWake = true }), waiting("ams", 1), machine("a", scale.Suspended, 0),
		}, "hold no_wake"},
		{"auto_start off still keeps min", []change{
			settings(func(s *volant.Scale) { s.NoWake, s.Min = true, 1 }), machine("a", scale.Suspended, 0),
		}, "wake a min"},

		{"a machine whose host is silent takes no demand: another is made", []change{
			waiting("ams", 1), machine("a", scale.Serving, 0, silent),
		}, "create ams demand"},
		{"but it counts for max", []change{
			settings(func(s *volant.Scale) { s.Max = 1 }), waiting("ams", 1), machine("a", scale.Serving, 0, silent),
		}, "hold max"},
		{"and for min, until it is lost", []change{
			settings(func(s *volant.Scale) { s.Min = 1 }), machine("a", scale.Serving, 0, silent),
		}, ""},
		{"and it is told nothing", []change{
			machine("a", scale.Serving, 0, silent), machine("b", scale.Serving, 0, silent, draining, emptied(time.Hour)),
			machine("c", scale.Suspended, 0, silent, since(5*time.Hour)),
		}, ""},
		{"nor woken", []change{waiting("ams", 1), machine("a", scale.Suspended, 0, silent)}, "create ams demand"},
		{"what is on a node that drains is made elsewhere first", []change{
			entering("ams", 5), machine("a", scale.Serving, 5, evacuate),
		}, "create ams demand"},
		{"and drains when that serves", []change{
			entering("ams", 5), machine("a", scale.Serving, 5, evacuate), machine("b", scale.Serving, 0, since(time.Second)),
		}, "drain a node_drains"},
		{"not while it boots", []change{
			entering("ams", 5), machine("a", scale.Serving, 5, evacuate), machine("b", scale.Booting, 0),
		}, ""},
		{"what nobody needs drains at once", []change{machine("a", scale.Serving, 0, evacuate)}, "drain a node_drains"},
		{"min is kept while a node drains", []change{
			settings(func(s *volant.Scale) { s.Min = 1 }), machine("a", scale.Serving, 0, evacuate),
		}, "create ams min"},
		{"also where there is no room for another", []change{
			settings(func(s *volant.Scale) { s.Min = 1 }), room("ams", 0), machine("a", scale.Serving, 0, evacuate),
		}, "hold no_room"},
		{"max does not count what is on a node that drains", []change{
			settings(func(s *volant.Scale) { s.Max = 1 }), entering("ams", 5), machine("a", scale.Serving, 5, evacuate),
		}, "create ams demand"},
		{"what sleeps on a node that drains is destroyed", []change{machine("a", scale.Suspended, 0, evacuate)}, "retire a node_drains"},
		{"and not woken", []change{waiting("ams", 1), machine("a", scale.Suspended, 0, evacuate)}, "create ams demand, retire a node_drains"},
		{"what was made by hand stays there, asleep", []change{machine("a", scale.Suspended, 0, evacuate, byHand)}, ""},

		{"what was too much for a whole idle timeout is drained: the least loaded", []change{
			entering("ams", 12), machine("a", scale.Serving, 7), machine("b", scale.Serving, 5),
		}, "drain b idle"},
		{"a peak within the idle timeout keeps them", []change{
			entering("ams", 12), peak("ams", 21), machine("a", scale.Serving, 7), machine("b", scale.Serving, 5),
		}, ""},
		{"one per idle timeout", []change{
			entering("ams", 9), in("ams", func(r *scale.Region) { r.LastDrain = now.Add(-59 * time.Second) }),
			machine("a", scale.Serving, 5), machine("b", scale.Serving, 4),
		}, ""},
		{"another after the idle timeout", []change{
			entering("ams", 9), in("ams", func(r *scale.Region) { r.LastDrain = now.Add(-time.Minute) }),
			machine("a", scale.Serving, 5), machine("b", scale.Serving, 4),
		}, "drain b idle"},
		{"all surplus at once where it is empty", []change{
			machine("a", scale.Serving, 0), machine("b", scale.Serving, 0), machine("c", scale.Serving, 0),
		}, "drain a idle, drain b idle, drain c idle"},
		{"one that serves for less than the idle timeout is not drained", []change{
			machine("a", scale.Serving, 0, since(59*time.Second)),
		}, ""},
		{"drained and empty: its host lets it sleep at once", []change{machine("a", scale.Serving, 0, draining, emptied(2*time.Second))}, ""},
		{"and the scaler where its host does not", []change{machine("a", scale.Serving, 0, draining, emptied(3*time.Second))}, "sleep a drained"},
		{"machines which a deploy has yet to route count as capacity", []change{
			settings(func(s *volant.Scale) { s.Min = 2 }), machine("a", scale.Booting, 0, cordoned, run(volant.RunOn)),
			machine("b", scale.Serving, 0, cordoned, run(volant.RunOn)),
		}, ""},
		{"drained with a connection: awake", []change{entering("ams", 1), machine("a", scale.Serving, 0), machine("b", scale.Serving, 1, draining)}, ""},
		{"demand which the others can take does not clear a drain", []change{
			entering("ams", 25), machine("a", scale.Serving, 15), machine("b", scale.Serving, 10, draining),
		}, ""},
		{"on_idle off never scales in", []change{
			settings(func(s *volant.Scale) { s.OnIdle = volant.OnIdleOff }), machine("a", scale.Serving, 0),
		}, ""},
		{"after a restart the scaler first only grows", []change{
			func(o *scale.Observation) { o.Watched = 59 * time.Second }, waiting("ams", 1), entering("ams", 20),
			machine("a", scale.Serving, 20), machine("b", scale.Suspended, 0, since(2*time.Hour), cordoned), machine("c", scale.Stopped, 0, since(2*time.Hour)),
		}, "wake c demand"},
		{"it does not shrink what it has not watched", []change{
			func(o *scale.Observation) { o.Watched = 59 * time.Second },
			machine("a", scale.Serving, 0), machine("b", scale.Suspended, 0, since(2*time.Hour)),
		}, ""},
		{"one whose slots nobody has told is not put to sleep", []change{
			func(o *scale.Observation) { o.Watched = 59 * time.Second },
			machine("a", scale.Serving, 0, draining, emptied(time.Minute), func(m *scale.Machine) { m.Counted = false }),
		}, ""},
		{"a region keeps what serves the others", []change{
			room("syd", 0), entering("syd", 30), machine("a", scale.Serving, 15), machine("b", scale.Serving, 15),
		}, ""},

		{"asleep for keep beyond min: destroyed", []change{
			machine("a", scale.Suspended, 0, since(time.Hour)), machine("b", scale.Suspended, 0, since(59*time.Minute)),
		}, "retire a keep"},
		{"min stays though it sleeps", []change{
			settings(func(s *volant.Scale) { s.Min = 1 }), machine("a", scale.Serving, 0), machine("b", scale.Stopped, 0, since(2*time.Hour)),
		}, "retire b keep"},
		{"machines made by hand are never destroyed", []change{machine("a", scale.Suspended, 0, since(24*time.Hour), byHand)}, ""},
		{"machines made by hand are woken and drained", []change{
			machine("a", scale.Serving, 0, byHand),
		}, "drain a idle"},
		{"without a release the last machine stays as the template", []change{
			func(o *scale.Observation) { o.Release = 0 }, machine("a", scale.Suspended, 0, since(24*time.Hour), release(0)),
		}, ""},
		{"at max the longest asleep made by scaling elsewhere makes room", []change{
			settings(func(s *volant.Scale) { s.Max = 2 }), room("syd", 5, "ams"), waiting("syd", 1),
			machine("a", scale.Suspended, 0, since(5*time.Minute)), machine("b", scale.Stopped, 0, since(6*time.Minute)),
		}, "retire b make_room"},
		{"what is to go is cordoned first, and destroyed when its host knows", []change{
			machine("a", scale.Suspended, 0, retiring, acted), machine("b", scale.Suspended, 0, retiring),
		}, "destroy a retired"},
		{"one that woke before stays", []change{
			entering("ams", 1), machine("a", scale.Serving, 1, retiring, acted), machine("b", scale.Serving, 0),
		}, "restore a woke"},
		{"at max the place of one that is to go is waited for", []change{
			settings(func(s *volant.Scale) { s.Max = 2 }), room("syd", 5, "ams"), waiting("syd", 1),
			machine("a", scale.Suspended, 0, since(5*time.Minute)), machine("b", scale.Stopped, 0, retiring),
		}, ""},
		{"min is not destroyed below while others go", []change{
			settings(func(s *volant.Scale) { s.Min, s.OnIdle = 1, volant.OnIdleStop }), machine("a", scale.Booting, 0),
			machine("b", scale.Stopped, 0, since(2*time.Hour), retiring), machine("c", scale.Stopped, 0, since(2*time.Hour)),
		}, "retire c keep"},
		{"with none to make room, the nearest that sleeps is woken", []change{
			settings(func(s *volant.Scale) { s.Max = 1 }), room("syd", 5, "ams"), waiting("syd", 1),
			machine("a", scale.Suspended, 0, byHand),
		}, "wake a demand"},

		{"a cordoned machine is left alone", []change{
			waiting("ams", 1), machine("a", scale.Suspended, 0, cordoned), machine("b", scale.Serving, 0, cordoned),
		}, "create ams demand"},
		{"a machine with run off is not woken", []change{waiting("ams", 1), machine("a", scale.Stopped, 0, run(volant.RunOff))}, "create ams demand"},
		{"a machine with run on is capacity and stays awake", []change{machine("a", scale.Serving, 0, run(volant.RunOn))}, ""},
		{"another release's machines are the deploy's", []change{
			machine("a", scale.Serving, 0, release(6)), machine("b", scale.Suspended, 0, release(6), since(9*time.Hour)),
			machine("c", scale.Serving, 0, release(6), draining),
		}, ""},
		{"another release's machines serve until they are drained", []change{
			entering("ams", 20), machine("a", scale.Serving, 20, release(6)),
		}, ""},
		{"a machine whose checks fail is no capacity", []change{
			entering("ams", 20), machine("a", scale.Serving, 10), machine("b", scale.Serving, 10, failing),
			machine("c", scale.Serving, 0, draining), waiting("ams", 11),
		}, "undrain c demand"},
		{"if more than half fail the checker is suspected", []change{
			entering("ams", 20), machine("a", scale.Serving, 10, failing), machine("b", scale.Serving, 11, failing),
		}, ""},
		{"a release whose machines failed three times running is not multiplied", []change{
			waiting("ams", 90), machine("a", scale.Stopped, 0, failures(3), since(9*time.Second)),
		}, "hold broken"},
		{"one is tried again with back-off", []change{
			waiting("ams", 90), machine("a", scale.Stopped, 0, failures(3), since(10*time.Second)),
		}, "wake a demand, hold broken"},
		{"a longer one after each failure", []change{
			waiting("ams", 90), machine("a", scale.Stopped, 0, failures(5), since(39*time.Second)),
		}, "hold broken"},
		{"failures of one machine do not break a release that serves", []change{
			waiting("ams", 1), entering("ams", 20), machine("a", scale.Serving, 20), machine("b", scale.Stopped, 0, failures(5)),
		}, "wake b demand"},
		{"without a release or a machine there is nothing to create from", []change{
			func(o *scale.Observation) { o.Release, o.Template = 0, false }, waiting("ams", 1),
		}, "hold no_template"},
	} {
		t.Run(tt.sentence, func(t *testing.T) {
			steps, _ := scale.Plan(look(tt.o...))
			var got []string
			for _, s := range steps {
				words := []string{string(s.Kind)}
				if s.Kind == scale.Create {
					words = append(words, string(s.Region))
				} else if s.Kind != scale.Hold {
					words = append(words, string(s.Machine))
				}
				got = append(got, strings.Join(append(words, s.Rule), " "))
				if s.Text == "" || s.Rule == "" {
					t.Errorf("step %+v does not explain itself", s)
				}
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, ", ")); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
		})
	}
}
