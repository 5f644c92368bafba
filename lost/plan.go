package lost

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
)

const (
	// GoneFor is how long a host's lease must have been gone.
	GoneFor = 10 * time.Second
	// freshFor is how long the answer of a node about whom it hears is good.
	freshFor = 3 * time.Second
	// askAgain is when nodes are asked again after one of them heard the host, or too few are heard.
	askAgain = 5 * time.Second
)

// Observation is all Plan looks at.
type Observation struct {
	Now      time.Time
	Self     volant.NodeID // the node that decides
	Nodes    []Node
	Machines []Machine                // all that are not tombstones
	Answers  map[volant.NodeID]Answer // of nodes that were asked whom they hear
}

// Node is one node of the cluster, or one that was removed from it.
type Node struct {
	ID      volant.NodeID
	Name    string
	Removed bool
	Heard   bool      // the deciding node hears its proxy
	Seen    bool      // its lease was there in this epoch of the cluster
	Gone    time.Time // since when its lease is gone; zero: it is there, or that is not known
}

// Answer says whom a node hears.
type Answer struct {
	At    time.Time
	Hears []volant.NodeID
}

// Machine is one machine as its record and its host's last word have it.
type Machine struct {
	ID       volant.MachineID
	Org      volant.OrgID
	App      volant.AppID
	Node     volant.NodeID
	Managed  bool // made by scaling or a deploy
	Lost     bool // decided already
	Ending   bool // its record says that it is to be destroyed
	Awake    bool // starts or runs
	Resting  bool // sleeps, or was given up by its host
	Draining bool
	Acted    bool // its host has acted on its newest record
}

// Step is one thing to do.
type Step struct {
	Kind    Kind
	Machine Machine         // all but Ask
	Nodes   []volant.NodeID // Ask
	Rule    string
	Text    string // the sentence for people
}

// Kind is what a Step does.
type Kind string

// The kinds of steps.
const (
	Ask     Kind = "ask"     // nodes whom they hear
	Lose    Kind = "lose"    // the machine: it is marked, cordoned, and counts no more
	Wait    Kind = "wait"    // nothing; Text says what the machine waits for
	Drain   Kind = "drain"   // a lost machine that is back
	Destroy Kind = "destroy" // a lost machine that is back, empty and asleep
	Bury    Kind = "bury"    // a machine whose node was removed: nobody is left to end it
)

// Plan says what to do now, and when to look again though nothing happens; zero means never.
func Plan(o Observation) (steps []Step, next time.Time) {
	p := &planner{o: o, nodes: map[volant.NodeID]Node{}, on: map[volant.NodeID][]Machine{}}
	for _, n := range o.Nodes {
		p.nodes[n.ID] = n
	}
	for _, m := range o.Machines {
		p.on[m.Node] = append(p.on[m.Node], m)
	}
	slices.SortFunc(p.o.Nodes, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	for _, n := range p.o.Nodes {
		p.node(n)
	}
	if len(p.ask) > 0 {
		slices.Sort(p.ask)
		p.add(Step{Kind: Ask, Nodes: slices.Compact(p.ask), Rule: "who_hears", Text: "a host may be gone"})
	}
	return p.steps, p.next
}

type planner struct {
	o     Observation
	nodes map[volant.NodeID]Node
	on    map[volant.NodeID][]Machine
	ask   []volant.NodeID
	steps []Step
	next  time.Time
}

func (p *planner) add(s Step) { p.steps = append(p.steps, s) }

func (p *planner) wakeAt(t time.Time) {
	if t.After(p.o.Now) && (p.next.IsZero() || t.Before(p.next)) {
		p.next = t
	}
}

func (p *planner) node(n Node) {
	var left []Machine // that a lost host would take along
	for _, m := range p.on[n.ID] {
		switch {
		case n.Removed:
			p.add(Step{
				Kind: Bury, Machine: m, Rule: "node_removed",
				Text: fmt.Sprintf("machine %s is gone: node %s was removed from the cluster", m.ID, n.called()),
			})
		case m.Lost:
			p.back(n, m)
		case !m.Ending:
			left = append(left, m)
		}
	}
	if n.Removed || n.Heard || n.ID == p.o.Self || len(left) == 0 || !n.Seen || n.Gone.IsZero() {
		return
	}
	if due := n.Gone.Add(GoneFor); due.After(p.o.Now) {
		p.wakeAt(due)
		return
	}
	if !p.sure(n) {
		return
	}
	for _, m := range left {
		if m.Managed {
			p.add(Step{
				Kind: Lose, Machine: m, Rule: "host_lost",
				Text: fmt.Sprintf("machine %s is lost: its host %s has not renewed its lease for %s, and no node hears it", m.ID, n.called(), GoneFor),
			})
			continue
		}
		p.add(Step{
			Kind: Wait, Machine: m, Rule: "host_lost",
			Text: fmt.Sprintf("machine %s was made by hand and waits for its host %s, which is gone; remove the node to give it up", m.ID, n.called()),
		})
	}
}

func (n *Node) called() string {
	if n.Name == "" {
		return string(n.ID)
	}
	return n.Name
}

// sure says whether a host whose lease is gone is gone itself: whoever can be asked does not hear it, and these are
// more than half of all nodes.
func (p *planner) sure(gone Node) bool {
	all, heard := 0, 0
	for _, n := range p.o.Nodes {
		if n.Removed {
			continue
		}
		all++
		if n.Heard || n.ID == p.o.Self {
			heard++
		}
	}
	if 2*heard <= all {
		p.wakeAt(p.o.Now.Add(askAgain))
		return false
	}
	known := true
	for _, n := range p.o.Nodes {
		if n.Removed || !n.Heard || n.ID == p.o.Self {
			continue
		}
		a, ok := p.o.Answers[n.ID]
		switch {
		case !ok || a.At.Before(gone.Gone.Add(GoneFor)) || p.o.Now.Sub(a.At) > freshFor && !slices.Contains(a.Hears, gone.ID):
			p.ask = append(p.ask, n.ID)
			known = false
		case slices.Contains(a.Hears, gone.ID):
			if due := a.At.Add(askAgain); due.After(p.o.Now) {
				p.wakeAt(due)
			} else {
				p.ask = append(p.ask, n.ID)
			}
			known = false
		}
	}
	return known
}

// back brings a lost machine whose host is heard again to its end.
func (p *planner) back(n Node, m Machine) {
	switch {
	case !n.Heard && n.ID != p.o.Self || m.Ending || !m.Acted:
	case m.Awake && !m.Draining:
		p.add(Step{
			Kind: Drain, Machine: m, Rule: "lost_came_back",
			Text: fmt.Sprintf("machine %s was lost and is back on %s: another is in its place, so it takes no new connections", m.ID, n.called()),
		})
	case m.Resting:
		p.add(Step{
			Kind: Destroy, Machine: m, Rule: "lost_came_back",
			Text: fmt.Sprintf("machine %s was lost and is back on %s, empty: another is in its place", m.ID, n.called()),
		})
	}
}
