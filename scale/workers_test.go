package scale_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/scale"
)

// TestPlanOfWorkers has one row per sentence of how a group without services scales.
func TestPlanOfWorkers(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	work := func(id volant.MachineID, s scale.State, change ...func(*scale.Machine)) scale.Machine {
		m := scale.Machine{ID: id, Region: "ams", Release: 2, Managed: true, Run: volant.RunOn, State: s, Acted: true, Since: at.Add(-time.Hour)}
		for _, f := range change {
			f(&m)
		}
		return m
	}
	old := func(m *scale.Machine) { m.Release = 1 }
	cordoned := func(m *scale.Machine) { m.Cordoned = true }
	young := func(m *scale.Machine) { m.Since = at.Add(-time.Minute) }
	byHand := func(m *scale.Machine) { m.Managed, m.Release = false, 0 }
	moving := func(m *scale.Machine) { m.Blocked = true }
	leaving := func(m *scale.Machine) { m.Evacuate = true }
	silent := func(m *scale.Machine) { m.Silent = true }
	for _, tt := range []struct {
		sentence string
		min      int
		ms       []scale.Machine
		want     string
	}{
		{"min are on", 2, nil, "create min, create min"},
		{"no more than min", 1, []scale.Machine{work("a", scale.Serving)}, ""},
		{"one whose program has ended counts: its restart policy says what follows", 1, []scale.Machine{work("a", scale.Stopped)}, ""},
		{"so does one that its host gave up", 1, []scale.Machine{work("a", scale.Failed)}, ""},
		{"the youngest of too many is destroyed", 1, []scale.Machine{work("a", scale.Serving), work("b", scale.Serving, young)}, "destroy b min"},
		{"before it one that does not run", 1, []scale.Machine{work("a", scale.Stopped), work("b", scale.Serving, young)}, "destroy a min"},
		{"none while one is on its way", 1, []scale.Machine{work("a", scale.Serving), work("b", scale.Booting, moving)}, ""},
		{"all with min = 0", 0, []scale.Machine{work("a", scale.Serving)}, "destroy a min"},
		{"those made by hand are left alone", 0, []scale.Machine{work("a", scale.Serving, byHand)}, ""},
		{"those of the release before count until the deploy takes them out", 1, []scale.Machine{work("a", scale.Serving, old)}, ""},
		{"one whose host is silent counts", 1, []scale.Machine{work("a", scale.Serving, silent)}, ""},
		{"one on a node that drains is made elsewhere", 1, []scale.Machine{work("a", scale.Serving, leaving)}, "create min"},
		{"and ends when the other works", 1, []scale.Machine{work("a", scale.Serving, leaving), work("b", scale.Serving)}, "destroy a node_drains"},
		{"not before", 1, []scale.Machine{work("a", scale.Serving, leaving), work("b", scale.Booting)}, ""},
		{"then they do not", 1, []scale.Machine{work("a", scale.Serving, old, cordoned)}, "create min"},
	} {
		t.Run(tt.sentence, func(t *testing.T) {
			steps, _ := scale.Plan(scale.Observation{
				Now: at, Group: "worker", Worker: true, Scale: volant.Scale{Min: tt.min}.WithDefaults(), Primary: "ams", Release: 2,
				Template: true, Regions: map[volant.Region]scale.Region{"ams": {Room: 9}}, Machines: tt.ms, Watched: time.Hour,
			})
			var got []string
			for _, s := range steps {
				got = append(got, strings.Join(strings.Fields(string(s.Kind)+" "+string(s.Machine)+" "+s.Rule), " "))
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, ", ")); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
		})
	}
}
