// Package live replicates facts between nodes in datagrams: each has one writer, and only its newest version counts.
//
//	writer: Set ─► Feed ══ UDP over the mesh ══► Feed ─► Events.Fact :reader
//
// Facts are states of machines, slots in use, room of hosts and demand of apps: high rate, worthless tomorrow, never
// in the store. A reader subscribes at each writer for the kinds it wants.
//
// # Invariants
//
//   - A fact is ordered by its version, (epoch, sequence) of its one writer. Nothing older is ever told.
//   - The first change is sent at once, followers within 50 ms are sent together. What is not acknowledged is sent again
//     after 1.5 round trips, at least 20 ms, and sooner where datagrams are lost. Every 2 s a digest is sent, and all
//     facts only where it differs.
//   - A reader forgets what a writer told before its restart only when that has said that it told all (SetAll).
//   - Silence is never an order: facts of a silent writer stay, and Events.Peer says that it is silent.
//   - Nothing read off the wire is trusted with a length, and only the nodes that were named are heard, each by its own
//     mesh address.
package live

import (
	"time"

	volant "github.com/volant-edge/volant"
)

// Kind says what a fact is about.
type Kind uint8

// The kinds of facts.
const (
	Route Kind = 1 + iota // a machine as proxies route to it; written by its host's proxy
	Slots                 // slots held of a machine; written by its host's proxy
	Have                  // a machine as its host has it; written by its host's server
	Room                  // the room of a host; written by its server
	Load                  // the demand for one group of an app; written by the proxy where clients enter
)

// Kinds is a set of kinds.
type Kinds uint16

// KindsOf is the set of some kinds.
func KindsOf(ks ...Kind) Kinds {
	var s Kinds
	for _, k := range ks {
		s |= 1 << k
	}
	return s
}

// Has says whether k is in the set.
func (s Kinds) Has(k Kind) bool { return s&(1<<k) != 0 }

// Key names a fact of a node.
type Key struct {
	Kind Kind
	ID   string // a machine's ID and the like; at most MaxID bytes
}

// Bounds of a fact.
const (
	MaxID   = 96
	MaxBody = 1024
)

// Version orders the states of one fact.
type Version struct{ Epoch, Seq uint64 }

// Before says whether v is older than o.
func (v Version) Before(o Version) bool {
	return v.Epoch < o.Epoch || v.Epoch == o.Epoch && v.Seq < o.Seq
}

// Fact is one fact in one version.
type Fact struct {
	Node    volant.NodeID // who wrote it
	Key     Key
	Version Version
	Body    []byte // at most MaxBody bytes; not to be changed
	Gone    bool   // the fact is no more; Body is empty
}

// PeerState is what is known of another node.
type PeerState struct {
	Node   volant.NodeID
	Epoch  uint64        // boot epoch of its proxy, 0 until it was heard
	RTT    time.Duration // smoothed; 0 until it was measured
	MinRTT time.Duration // the shortest of the last minutes
	Heard  time.Time     // when it was heard last
	Silent bool          // not heard for 6 s, or never
}

// Distance is how long the way to the node and back is, as far as that can be told from how busy both ends are: the
// shortest round trip of the last minutes, unless it has long been another.
func (s PeerState) Distance() time.Duration {
	if s.RTT > 2*s.MinRTT+5*time.Millisecond {
		return s.RTT
	}
	return s.MinRTT
}
