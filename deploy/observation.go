package deploy

import (
	"fmt"
	"time"

	volant "github.com/volant-edge/volant"
)

// MetadataReplaces is the metadata key which names the machine that a new one replaces.
const MetadataReplaces = "volant_replaces"

// Observation is all Plan looks at: one app at one moment.
type Observation struct {
	Now      time.Time
	Org      volant.OrgID
	Current  uint64        // version of the app's current release; 0 before the first deploy
	Min      int           // awake machines that scaling keeps in all
	Primary  volant.Region // where machines go that replace none
	Releases []Release
	Machines []Machine // all that are not destroyed
	// Full says why no machine can be created now; empty if they can. The Deployer fills it in.
	Full string
}

// Release is one release as the deploy sees it.
type Release struct {
	Version     uint64
	Status      volant.ReleaseStatus
	Began       time.Time // when it began to run
	WaitTimeout time.Duration
}

// ReleaseOf makes a Release of a record.
func ReleaseOf(r *volant.Release) Release {
	wait := r.WaitTimeout.D()
	if wait <= 0 {
		wait = 5 * time.Minute
	}
	return Release{Version: r.Version, Status: r.Status, Began: r.Updated, WaitTimeout: wait}
}

// Machine is one machine as the deploy sees it.
type Machine struct {
	ID       volant.MachineID
	Region   volant.Region
	Release  uint64
	Replaces volant.MachineID
	Managed  bool // made by scaling or a deploy
	Run      volant.Run
	Cordoned bool
	Draining bool
	State    volant.State // empty while its host says nothing of it
	Ready    bool         // awake, listens, and its checks passed
	Acted    bool         // its host has acted on the newest wish
	Failures int          // boots in a row which did not come to serve
	Ended    string       // how its program ended, if it rests since
	Reason   string       // why it is in State
	Created  time.Time
}

// MachineOf makes a Machine of a record and what its host says; have may be nil.
func MachineOf(m *volant.Machine, have *volant.Have) Machine {
	out := Machine{
		ID: volant.MachineID(m.ID), Region: m.Region, Release: m.Release, Managed: m.Managed(), Run: m.Run,
		Replaces: volant.MachineID(m.Config.Metadata[MetadataReplaces]), Cordoned: m.Cordoned, Created: m.Created,
	}
	if have == nil {
		return out
	}
	out.Draining, out.State, out.Ready = have.Draining, have.State, have.Ready
	out.Acted = have.Generation >= m.Generation
	out.Failures, out.Reason = have.Failures, have.Reason
	if e := have.Exit; e != nil && have.State == volant.StateStopped {
		out.Ended = fmt.Sprintf("its program ended with exit code %d", e.Code)
		if e.OOM {
			out.Ended = "its program ran out of memory"
		}
	}
	return out
}

// Step is one thing to do.
type Step struct {
	Kind     Kind
	Release  uint64
	Machine  volant.MachineID // Route, Drain, Destroy
	Region   volant.Region    // Create
	Replaces volant.MachineID // Create; may be empty
	Rule     string           // short name of the rule that decided
	Text     string           // the sentence for people; for Fail the release's reason
}

// Kind is what a Step does.
type Kind string

// The kinds of steps.
const (
	Begin    Kind = "begin"    // the release is running
	Create   Kind = "create"   // a machine of Release, RunOn and cordoned, which replaces Replaces
	Switch   Kind = "switch"   // the release is the app's current one
	Route    Kind = "route"    // the machine is uncordoned and RunAuto
	Drain    Kind = "drain"    // the machine is cordoned and RunAuto; if awake its host lets it stop when empty
	Destroy  Kind = "destroy"  // the machine
	Complete Kind = "complete" // the release
	Fail     Kind = "fail"     // the release
)
