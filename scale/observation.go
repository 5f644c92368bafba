package scale

import (
	"time"

	volant "github.com/volant-edge/volant"
)

// Observation is all Plan looks at: one process group of an app at one moment.
type Observation struct {
	Now   time.Time
	Org   volant.OrgID
	Group string
	// Worker says that the group has no services: no connection wakes its machines, they are awake as min says.
	Worker bool
	// Watched is how long this scaler has watched the app. The Scaler fills it in.
	Watched time.Duration
	Scale   volant.Scale
	Soft    int           // connections a machine takes before another is wanted
	Primary volant.Region // where machines go that no client's region asks for
	// Release is the version of the current release; 0 before the first deploy.
	Release uint64
	// Template says that there is something to create machines from: a release, or a machine.
	Template bool
	Regions  map[volant.Region]Region
	Machines []Machine // all that are not destroyed
}

// Region is what an app has and asks for in one region.
type Region struct {
	Waiting  int // connections which entered here and are not served
	Entering int // connections which entered here and are served
	// Spilled are those of Entering which are served too far away, for want of room here.
	Spilled int
	// Peak is the most of Waiting and Entering at once within the last idle timeout, and PeakFalls
	// when it can next become smaller; zero: not before a change.
	Peak      int
	PeakFalls time.Time
	LastDrain time.Time       // when scaling last drained a machine here
	Room      int             // machines of this app that the hosts here can take
	Near      []volant.Region // other regions, nearest first
}

// Machine is one machine as scaling sees it.
type Machine struct {
	ID       volant.MachineID
	Node     volant.NodeID
	Region   volant.Region
	Release  uint64
	Run      volant.Run
	Managed  bool // made by scaling
	Cordoned bool
	Draining bool
	Retiring bool // cordoned by scaling, which is about to destroy it
	Acted    bool // its host has acted on the newest wish
	Failing  bool // serves, and its checks do not pass
	State    State
	Since    time.Time // when State began
	Slots    int       // connections it holds
	Counted  bool      // its host's proxy has told Slots
	Emptied  time.Time // since when the Scaler sees it drained and empty; it fills that in
	Failures int       // boots in a row which did not come to serve
	Blocked  bool      // a step on it went wrong a moment ago
	// Silent says that its host is not heard, or that clients' connections avoid it: it is there, as far as min and max
	// go, but cannot be told anything, and nothing can be counted on that it holds.
	Silent bool
	// Evacuate says that its node is to be emptied: others take its place.
	Evacuate bool
}

// State is a machine's state as far as scaling cares.
type State string

// The states.
const (
	Serving   State = "serving"
	Booting   State = "booting"   // will be serving; counts as capacity
	Suspended State = "suspended" // a wake restores it
	Stopped   State = "stopped"   // a wake boots it; also one which was only created
	Leaving   State = "leaving"   // on its way to sleep or to its end
	Failed    State = "failed"    // its host gave it up
	Unknown   State = "unknown"   // its host says nothing of it
)

// freshFor is how long a machine may exist before its host has spoken of it and still count as booting.
const freshFor = 30 * time.Second

// Actor is the name by which a Fleet writes the records that the Scaler's steps change. A machine made by
// scaling and cordoned by this actor is one to be destroyed; any change by others makes the cordon theirs.
const Actor = "scaler"

// MachineOf makes a Machine of a record and what its host says; have may be nil.
func MachineOf(m *volant.Machine, have *volant.Have, now time.Time) Machine {
	out := Machine{
		ID: volant.MachineID(m.ID), Node: m.Node, Region: m.Region, Release: m.Release, Run: m.Run,
		Managed: m.Managed(), Cordoned: m.Cordoned, State: Unknown, Since: m.Created,
		Retiring: m.Cordoned && m.Managed() && m.Actor == Actor,
	}
	if have == nil {
		if now.Sub(m.Created) < freshFor && m.Run != volant.RunOff {
			out.State = Booting
		}
		return out
	}
	out.State, out.Since = stateOf(have), have.Since
	out.Acted = have.Generation >= m.Generation
	out.Draining, out.Failures = have.Draining, have.Failures
	if have.State == volant.StateFailed { // another boot would not help
		out.Failures = max(out.Failures, brokenAfter)
	}
	if out.State == Serving {
		for _, c := range have.Checks {
			out.Failing = out.Failing || !c.Informational && c.Status == volant.CheckCritical
		}
	}
	return out
}

func stateOf(h *volant.Have) State {
	switch h.State {
	case volant.StateStarted:
		if h.Ready {
			return Serving
		}
		return Booting
	case volant.StateStarting:
		return Booting
	case volant.StateSuspended:
		return Suspended
	case volant.StateCreated, volant.StateStopped:
		return Stopped
	case volant.StateFailed:
		return Failed
	case volant.StateSuspending, volant.StateStopping, volant.StateDestroying, volant.StateDestroyed:
		return Leaving
	case volant.StateUpdating: // no host says so
	}
	return Unknown
}

// Step is one thing to do.
type Step struct {
	Kind    Kind
	Group   string           // the Scaler fills it in
	Machine volant.MachineID // all but Create and Hold
	Region  volant.Region
	Then    string // Drain, Sleep: how it sleeps, suspend or stop
	Rule    string // short name of the rule that decided
	Text    string // the sentence for people
}

// Kind is what a Step does.
type Kind string

// The kinds of steps.
const (
	Undrain Kind = "undrain" // route to the machine again
	Wake    Kind = "wake"
	Create  Kind = "create"  // a machine in Region, and wake it
	Drain   Kind = "drain"   // route nothing new to the machine; its host lets it sleep when empty
	Sleep   Kind = "sleep"   // an empty, drained machine
	Retire  Kind = "retire"  // cordon the machine, so that it does not wake before it is destroyed
	Restore Kind = "restore" // clear that, since it woke before its host knew
	Destroy Kind = "destroy"
	Hold    Kind = "hold" // nothing is done though something is wanted; Text says why
)
