package node

import (
	"maps"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
	"github.com/volant-edge/volant/proxy"
)

// known is what this node's proxy hears of other nodes: who is silent, the room of hosts, the demand where clients
// enter, and the slots machines hold. It is empty on a node that is alone. Silence forgets nothing.
type known struct {
	self volant.NodeID

	mu    sync.Mutex // guards the fields below
	since time.Time  // of the link to the proxy that hears
	nodes map[volant.NodeID]*neighbour
}

// neighbour is what is heard of one node.
type neighbour struct {
	state live.PeerState
	room  room
	roomV live.Version
	ahead time.Duration // of its clock, by the quickest that it told its time; ahead of ours
	timed bool
	loads map[groupKey]heardLoad
	slots map[volant.MachineID]heardSlots
}

// groupKey names a group of an app.
type groupKey struct {
	app   volant.AppID
	group string
}

type heardLoad struct {
	version live.Version
	load    proxy.Load
}

type heardSlots struct {
	version live.Version
	n       int
}

func newKnown(self volant.NodeID) *known {
	return &known{self: self, nodes: map[volant.NodeID]*neighbour{}}
}

func (k *known) ofLocked(node volant.NodeID) *neighbour {
	n := k.nodes[node]
	if n == nil {
		n = &neighbour{loads: map[groupKey]heardLoad{}, slots: map[volant.MachineID]heardSlots{}}
		k.nodes[node] = n
	}
	return n
}

// silentAfter is how long a node that was never heard counts as one that is about to be.
const silentAfter = 6 * time.Second

// silent says whether a node has not been heard for long.
func (k *known) silent(node volant.NodeID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.silentLocked(node)
}

func (k *known) silentLocked(node volant.NodeID) bool {
	if node == k.self {
		return false
	}
	n := k.nodes[node]
	if n == nil || n.state.Heard.IsZero() {
		return !k.since.IsZero() && time.Since(k.since) >= silentAfter
	}
	return n.state.Silent
}

// heard says whether a node is heard now.
func (k *known) heard(node volant.NodeID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.nodes[node]
	return node == k.self || n != nil && !n.state.Heard.IsZero() && !n.state.Silent
}

// hears are the other nodes that are heard now.
func (k *known) hears() []volant.NodeID {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []volant.NodeID
	for id, n := range k.nodes {
		if !n.state.Heard.IsZero() && !n.state.Silent {
			out = append(out, id)
		}
	}
	return out
}

// linked begins to hear by a proxy, which tells all it knows anew.
func (k *known) linked() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.since = time.Now()
	for _, n := range k.nodes {
		clear(n.loads) // the end of what ended meanwhile is not told
		clear(n.slots)
	}
}

// setPeer takes what the proxy says of a node, and reports whether that node's proxy is another one than before: what
// the one before told of connections is over.
func (k *known) setPeer(s live.PeerState) (fresh bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.ofLocked(s.Node)
	fresh = n.state.Epoch != 0 && s.Epoch > n.state.Epoch
	n.state = s
	if fresh {
		maps.DeleteFunc(n.loads, func(_ groupKey, l heardLoad) bool { return l.version.Epoch < s.Epoch })
		maps.DeleteFunc(n.slots, func(_ volant.MachineID, l heardSlots) bool { return l.version.Epoch < s.Epoch })
	}
	return fresh
}

func (k *known) setRoom(f live.Fact, r room) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.ofLocked(f.Node)
	n.room, n.roomV = r, f.Version
	if r.Clock == 0 {
		return
	}
	if ahead := time.Until(time.UnixMilli(r.Clock)); !n.timed || ahead > n.ahead {
		n.ahead, n.timed = ahead, true
	}
}

func (k *known) setLoad(f live.Fact, l proxy.Load) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.ofLocked(f.Node)
	at := groupKey{l.App, l.Group}
	if f.Gone {
		delete(n.loads, at)
		return
	}
	n.loads[at] = heardLoad{f.Version, l}
}

func (k *known) setSlots(f live.Fact, slots int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.ofLocked(f.Node)
	if f.Gone {
		delete(n.slots, volant.MachineID(f.Key.ID))
		return
	}
	n.slots[volant.MachineID(f.Key.ID)] = heardSlots{f.Version, slots}
}

// load is what a node's proxy told of a group, with the slots of those of its machines that are named.
func (k *known) load(node volant.NodeID, at groupKey, machines []volant.MachineID) proxy.Load {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.ofLocked(node)
	l := n.loads[at].load
	l.App, l.Group, l.Slots = at.app, at.group, map[volant.MachineID]int{}
	for _, id := range machines {
		if s := n.slots[id].n; s > 0 {
			l.Slots[id] = s
		}
	}
	return l
}

// groups are the groups of which a node's proxy told anything.
func (k *known) groups(node volant.NodeID) []groupKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []groupKey
	if n := k.nodes[node]; n != nil {
		for at := range n.loads {
			out = append(out, at)
		}
	}
	return out
}

// roomOf is the room of a node's host, and whether it was told.
func (k *known) roomOf(node volant.NodeID) (room, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.nodes[node]
	if n == nil || n.roomV == (live.Version{}) {
		return room{}, false
	}
	return n.room, true
}

// rtt is the round trip to a node; 0 if it is not measured.
func (k *known) rtt(node volant.NodeID) time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	if n := k.nodes[node]; n != nil {
		return n.state.RTT
	}
	return 0
}

// here is a node's time by this node's clock.
func (k *known) here(node volant.NodeID, at time.Time) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := k.nodes[node]
	if n == nil || !n.timed || at.IsZero() || n.ahead.Abs() < sameClock {
		return at
	}
	return at.Add(-n.ahead)
}

// sameClock is how far apart clocks may be that count as the same: told times travel.
const sameClock = 2 * time.Second

// slotsOf are the slots that the machines named hold on other nodes.
func (k *known) slotsOf(app volant.AppID, machines map[volant.MachineID]*volant.Machine) map[volant.MachineID]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[volant.MachineID]int{}
	for id, m := range machines {
		if n := k.nodes[m.Node]; n != nil && n.slots[id].n > 0 && m.App == app {
			out[id] = n.slots[id].n
		}
	}
	return out
}

// waiting is how many connections of an app wait on other nodes that are heard.
func (k *known) waiting(app volant.AppID) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	sum := 0
	for id, n := range k.nodes {
		if k.silentLocked(id) {
			continue
		}
		for at, l := range n.loads {
			if at.app != app {
				continue
			}
			for _, w := range l.load.Waiting {
				sum += w
			}
		}
	}
	return sum
}

// hungry are the apps of which connections wait somewhere.
func (k *known) hungry() map[volant.AppID]bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[volant.AppID]bool{}
	for id, n := range k.nodes {
		if k.silentLocked(id) {
			continue
		}
		for at, l := range n.loads {
			if len(l.load.Waiting) > 0 {
				out[at.app] = true
			}
		}
	}
	return out
}

// avoided adds the hosts that connections which wait on other nodes do not reach.
func (k *known) avoided(to map[volant.NodeID]bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, n := range k.nodes {
		if k.silentLocked(id) {
			continue
		}
		for _, l := range n.loads {
			if len(l.load.Waiting) == 0 {
				continue
			}
			for _, host := range l.load.Avoid {
				to[host] = true
			}
		}
	}
}
