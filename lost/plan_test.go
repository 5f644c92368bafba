package lost_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/lost"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// look is a cluster of five nodes in which host "h" is gone with one machine, and all others heard do not hear it.
func look(change ...func(*lost.Observation)) lost.Observation {
	o := lost.Observation{Now: now, Self: "a", Answers: map[volant.NodeID]lost.Answer{}}
	for _, id := range []volant.NodeID{"a", "b", "c", "d"} {
		o.Nodes = append(o.Nodes, lost.Node{ID: id, Heard: id != "a", Seen: true})
		if id != "a" {
			o.Answers[id] = lost.Answer{At: now, Hears: []volant.NodeID{"a"}}
		}
	}
	o.Nodes = append(o.Nodes, lost.Node{ID: "h", Seen: true, Gone: now.Add(-time.Minute)})
	o.Machines = []lost.Machine{{ID: "m1", Node: "h", Managed: true, Awake: true, Acted: true}}
	for _, f := range change {
		f(&o)
	}
	return o
}

func node(id volant.NodeID, f func(*lost.Node)) func(*lost.Observation) {
	return func(o *lost.Observation) {
		for i := range o.Nodes {
			if o.Nodes[i].ID == id {
				f(&o.Nodes[i])
			}
		}
	}
}

func machine(f func(*lost.Machine)) func(*lost.Observation) {
	return func(o *lost.Observation) { f(&o.Machines[0]) }
}

func answer(id volant.NodeID, ago time.Duration, hears ...volant.NodeID) func(*lost.Observation) {
	return func(o *lost.Observation) { o.Answers[id] = lost.Answer{At: now.Add(-ago), Hears: hears} }
}

func steps(o lost.Observation) string {
	ss, next := lost.Plan(o)
	var out []string
	for _, s := range ss {
		if s.Kind == lost.Ask {
			out = append(out, fmt.Sprint("ask ", s.Nodes))
			continue
		}
		out = append(out, fmt.Sprintf("%s %s", s.Kind, s.Machine.ID))
	}
	if !next.IsZero() {
		out = append(out, fmt.Sprint("again in ", next.Sub(o.Now)))
	}
	return strings.Join(out, ", ")
}

func TestPlan(t *testing.T) {
	heard := func(n *lost.Node) { n.Heard = true }
	deaf := func(n *lost.Node) { n.Heard = false }
	for _, tt := range []struct {
		name string
		o    lost.Observation
		want string
	}{
		{"gone, and nobody hears it", look(), "lose m1"},
		{"made by hand", look(machine(func(m *lost.Machine) { m.Managed = false })), "wait m1"},
		{"its lease is there", look(node("h", func(n *lost.Node) { n.Gone = time.Time{} })), ""},
		{"not gone for long", look(node("h", func(n *lost.Node) { n.Gone = now.Add(-4 * time.Second) })), "again in 6s"},
		{"not seen in this epoch", look(node("h", func(n *lost.Node) { n.Seen = false })), ""},
		{"we hear its proxy", look(node("h", heard)), ""},
		{"another hears its proxy", look(answer("c", time.Second, "a", "h")), "again in 4s"},
		{"another heard its proxy a while ago", look(answer("c", 6*time.Second, "a", "h")), "ask [c]"},
		{"others were not asked", look(func(o *lost.Observation) { clear(o.Answers) }), "ask [b c d]"},
		{"an answer is old", look(answer("b", 4*time.Second)), "ask [b]"},
		{"an answer is from before it was gone for long", look(node("h", func(n *lost.Node) { n.Gone = now.Add(-lost.GoneFor) }), answer("b", time.Second)), "ask [b]"},
		{"we hear a majority", look(node("d", deaf), node("c", heard)), "lose m1"},
		{"we hear no majority", look(node("c", deaf), node("d", deaf)), "again in 5s"},
		{"one of two nodes", look(func(o *lost.Observation) { o.Nodes = append(o.Nodes[:1:1], o.Nodes[4]) }), "again in 5s"},
		{"removed nodes do not count", look(node("b", deaf), node("c", deaf), node("b", func(n *lost.Node) { n.Removed = true }), node("c", func(n *lost.Node) { n.Removed = true })), "lose m1"},
		{"it is us", look(func(o *lost.Observation) { o.Self = "h" }), ""},
		{"it is to be destroyed anyway", look(machine(func(m *lost.Machine) { m.Ending = true })), ""},
		{"the node was removed", look(node("h", func(n *lost.Node) { n.Removed = true })), "bury m1"},
		{"lost, and still gone", look(machine(func(m *lost.Machine) { m.Lost = true })), ""},
		{"lost, and back", look(node("h", heard), machine(func(m *lost.Machine) { m.Lost = true })), "drain m1"},
		{"lost, and its host has yet to learn of it", look(node("h", heard), machine(func(m *lost.Machine) { m.Lost, m.Acted = true, false })), ""},
		{"lost, and drains", look(node("h", heard), machine(func(m *lost.Machine) { m.Lost, m.Draining = true, true })), ""},
		{"lost, and sleeps", look(node("h", heard), machine(func(m *lost.Machine) { m.Lost, m.Awake, m.Resting = true, false, true })), "destroy m1"},
		{"lost, and is destroyed", look(node("h", heard), machine(func(m *lost.Machine) { m.Lost, m.Awake, m.Resting, m.Ending = true, false, true, true })), ""},
	} {
		if got := steps(tt.o); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
