// Package why keeps the reasons of decisions: one bounded ring per kind, so that a flood of one
// cannot push out another.
//
// # Invariants
//
//   - A record names the rule that decided, in words a user of the platform understands.
//   - Rings on disk survive a kill -9 of their process, but for records of the last moments; a torn or
//     foreign line is skipped when they are read.
//   - Adding never blocks on the disk and never fails the decision itself.
package why

import (
	"time"

	volant "github.com/volant-edge/volant"
)

// Kind is a kind of decision; each has its own ring.
type Kind string

// The kinds.
const (
	Connection Kind = "connection" // in memory only: a connection's road
	Refusal    Kind = "refusal"    // a connection that was not served
	Wake       Kind = "wake"       // a machine woke, or did not
	Sleep      Kind = "sleep"      // a machine fell asleep
	Scale      Kind = "scale"      // a step of the scaler
	Placement  Kind = "placement"  // where a machine was created
	Deploy     Kind = "deploy"     // a step of a deploy
	Machine    Kind = "machine"    // exits, restarts, failed checks
	Change     Kind = "change"     // an API call that changed something: the audit
)

// Kinds lists them.
func Kinds() []Kind {
	return []Kind{Connection, Refusal, Wake, Sleep, Scale, Placement, Deploy, Machine, Change}
}

// Record is one decision.
type Record struct {
	Time    time.Time         `json:"time"`
	Kind    Kind              `json:"kind"`
	Org     volant.OrgID      `json:"org,omitempty"`
	App     volant.AppID      `json:"app,omitempty"`
	Machine volant.MachineID  `json:"machine,omitempty"`
	Request string            `json:"request,omitempty"` // connection ID
	Rule    string            `json:"rule"`              // short constant name of the rule, such as "hard_limit"
	Text    string            `json:"text"`              // the sentence for people
	Attrs   map[string]string `json:"attrs,omitempty"`
}

// Log takes records. It is what rooms ask for.
type Log interface {
	Add(r Record)
}

// Query selects records. Zero fields select all.
type Query struct {
	Org     volant.OrgID
	App     volant.AppID
	Machine volant.MachineID
	Request string
	Node    volant.NodeID // of the attribute "node"
	Kinds   []Kind
	Since   time.Time
	Limit   int // newest first; 100
}
