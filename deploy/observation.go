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
	Primary  volant.Region // where machines go that replace none
	Releases []Release
	Machines []Machine // all that are not destroyed
	// Full says why no machine can be created now; empty if they can. The Deployer fills it in.
	Full string
}

// Release is one release as the deploy sees it.
type Release struct {
	Version        uint64
	Status         volant.ReleaseStatus
	Began          time.Time // when it began to run
	WaitTimeout    time.Duration
	Strategy       string // rolling if empty
	MaxUnavailable float64
	Previous       uint64 // the current release when it was switched to
	Groups         []Group
	Command        *ReleaseCommand // nil if there is none
}

// Group is one process group of a release.
type Group struct {
	Name string
	Min  int // awake machines that scaling keeps
	Max  int // machines that there may be; 0: any number
	// RegionMin are those of them that regions have for themselves.
	RegionMin map[volant.Region]int
	Worker    bool // it has no services
	// Whole says that machines of the current release cannot serve beside those of this one, since their ports
	// differ: then all are made before the first is routed.
	Whole bool
}

// ReleaseCommand is run once before machines change.
type ReleaseCommand struct {
	Timeout time.Duration
	Done    bool
}

// ReleaseOf makes a Release of a record; scaleOf is how a group of its app scales.
func ReleaseOf(r *volant.Release, current *volant.Release, scaleOf func(group string) volant.Scale) Release {
	wait := r.WaitTimeout.D()
	if wait <= 0 {
		wait = 5 * time.Minute
	}
	out := Release{
		Version: r.Version, Status: r.Status, Began: r.Updated, WaitTimeout: wait, Strategy: r.Strategy,
		MaxUnavailable: r.MaxUnavailable, Previous: r.Previous,
	}
	for _, g := range r.Groups() {
		out.Groups = append(out.Groups, Group{
			Name: g.Name, Min: scaleOf(g.Name).Least(), Max: most(scaleOf(g.Name)), RegionMin: scaleOf(g.Name).RegionMin, Worker: len(g.Config.Services) == 0, Whole: !together(current, &g),
		})
	}
	if c := r.Command; c != nil {
		out.Command = &ReleaseCommand{Timeout: c.Timeout.D(), Done: r.CommandDone}
		if out.Command.Timeout <= 0 {
			out.Command.Timeout = 5 * time.Minute
		}
	}
	return out
}

func most(s volant.Scale) int { return max(s.WithDefaults().Max, s.Least()) }

// together says whether machines of the group as the current release has it serve all ports that g does.
func together(current *volant.Release, g *volant.Group) bool {
	if current == nil {
		return true
	}
	for _, old := range current.Groups() {
		if old.Name != g.Name {
			continue
		}
		ports := map[int]bool{}
		for _, s := range old.Config.Services {
			ports[s.InternalPort] = true
		}
		for _, s := range g.Config.Services {
			if !ports[s.InternalPort] {
				return false
			}
		}
	}
	return true
}

// Machine is one machine as the deploy sees it.
type Machine struct {
	ID        volant.MachineID
	Region    volant.Region
	Group     string
	Command   bool // it runs the command of its release
	Release   uint64
	Replaces  volant.MachineID
	Managed   bool // made by scaling or a deploy
	Run       volant.Run
	Cordoned  bool
	ByDeploy  bool      // a deploy was the last to change its record
	Changed   time.Time // when its record was
	Draining  bool
	State     volant.State // empty while its host says nothing of it
	Since     time.Time    // when State began
	Ready     bool         // awake, listens, and its checks passed
	Acted     bool         // its host has acted on the newest wish
	Failures  int          // boots in a row which did not come to serve
	Exits     int          // of its program within some minutes, after which it was started again
	LastExit  string       // how it ended then
	Ended     string       // how its program ended, if it rests since
	EndedWell bool         // with exit code 0
	Reason    string       // why it is in State
	Created   time.Time
}

// Actor is the name by which a Fleet writes the records that a Deployer's steps change.
const Actor = "deploy"

// MachineOf makes a Machine of a record and what its host says; have may be nil.
func MachineOf(m *volant.Machine, have *volant.Have) Machine {
	out := Machine{
		ID: volant.MachineID(m.ID), Region: m.Region, Release: m.Release, Managed: m.Managed(), Run: m.Run,
		Replaces: volant.MachineID(m.Config.Metadata[MetadataReplaces]), Cordoned: m.Cordoned, Created: m.Created,
		Group: m.Config.Group(), Command: m.Config.Group() == GroupCommand, ByDeploy: m.Actor == Actor, Changed: m.Updated,
	}
	if have == nil {
		return out
	}
	out.Draining, out.State, out.Ready = have.Draining, have.State, have.Ready
	out.Acted = have.Generation >= m.Generation
	out.Failures, out.Reason = have.Failures, have.Reason
	out.Since, out.Exits = have.Since, have.Restarts
	if e := have.Exit; e != nil {
		out.LastExit = fmt.Sprintf("its program ended with exit code %d", e.Code)
		switch {
		case e.OOM:
			out.LastExit = "its program ran out of memory"
		case e.Signal != 0:
			out.LastExit = fmt.Sprintf("its program was ended by signal %d", e.Signal)
		}
		if have.State == volant.StateStopped {
			out.Ended, out.EndedWell = out.LastExit, e.Code == 0 && e.Signal == 0 && !e.OOM
		}
	}
	return out
}

// Step is one thing to do.
type Step struct {
	Kind     Kind
	Release  uint64
	Group    string           // Create
	Machine  volant.MachineID // Route, Drain, Restore, Destroy, Commanded; Fail, Revert: whose fault it is, if any
	Region   volant.Region    // Create
	Replaces volant.MachineID // Create; may be empty
	Wake     bool             // Restore: RunOn, so that it wakes
	Rule     string           // short name of the rule that decided
	Text     string           // the sentence for people; for Fail the release's reason
}

// Kind is what a Step does.
type Kind string

// The kinds of steps.
const (
	Begin     Kind = "begin"     // the release is running
	Command   Kind = "command"   // a machine which runs the release's command
	Commanded Kind = "commanded" // the command is done
	Create    Kind = "create"    // a machine of Release, RunOn and cordoned, which replaces Replaces
	Switch    Kind = "switch"    // the release is the app's current one
	Route     Kind = "route"     // the machine is uncordoned, and RunAuto if it has services
	Drain     Kind = "drain"     // the machine is cordoned and RunAuto; if awake its host lets it stop when empty
	Destroy   Kind = "destroy"   // the machine
	Complete  Kind = "complete"  // the release
	Fail      Kind = "fail"      // the release, before the switch
	Revert    Kind = "revert"    // the release fails after the switch: the one before it is current again
	Restore   Kind = "restore"   // the machine takes connections again
)
