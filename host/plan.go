package host

import (
	"time"

	volant "github.com/volant-edge/volant"
)

// Facts are all that Plan looks at: the wish and what the machine has.
type Facts struct {
	Now time.Time

	Run         volant.Run
	WishVersion string // of the wished config
	Policy      volant.Restart

	State    volant.State
	Version  string // of the config that runs, or sleeps in a snapshot; else empty
	VM       bool   // a VMM process runs
	App      bool   // the main process runs
	Wanted   bool   // a connection, a call or RunOn wants it awake
	Prepared bool   // image, disk and network are made
	Draining bool
	Then     string // how a drained machine sleeps: suspend, stop
	Slots    int    // held now, as far as known

	Ask      string       // what a call asks: suspend, stop, restart; else empty
	AskSeal  bool         // only if no slot is held
	AskRule  string       // why
	Exit     *volant.Exit // an end of the run that nothing was done about
	Restarts []time.Time  // after exits, the latest last

	RetryAt time.Time // no boot and no preparation before
	SealAt  time.Time // no try to seal before
	CoolAt  time.Time // a failed machine may be woken again then
}

// Action is what a step does.
type Action string

// The actions.
const (
	DoWait    Action = "wait"    // nothing until something happens, or until At
	DoPrepare Action = "prepare" // make image, disk and network, so that a wake finds them
	DoBoot    Action = "boot"    // restore, or boot from the template, or cold
	DoRestart Action = "restart" // run the app again in the same VM
	DoSleep   Action = "sleep"   // suspend or stop, as How says
	DoStop    Action = "stop"    // ask the app to end, then end the VM
	DoDiscard Action = "discard" // throw the snapshot away: the next wake boots
	DoFail    Action = "fail"    // give up: end the VM, failed
	DoCool    Action = "cool"    // failed becomes stopped: the next connection may wake it
	DoDestroy Action = "destroy" // remove everything of it
	DoForget  Action = "forget"  // drop an order there is nothing to do for
)

// Step is the next thing to do for a machine.
type Step struct {
	Do   Action
	How  string    // of DoSleep
	Seal bool      // DoSleep: only if the proxy holds no slot
	At   time.Time // of DoWait; zero: until something happens
	Rule string    // the rule that decided, for why
}

// Plan says what to do next. It is pure.
func Plan(f Facts) Step {
	updated := f.Version != "" && f.Version != f.WishVersion
	switch {
	case f.State == volant.StateDestroyed:
		return Step{Do: DoWait}
	case f.Run == volant.RunDestroyed && f.VM:
		return Step{Do: DoStop, Rule: "destroyed"}
	case f.Run == volant.RunDestroyed:
		return Step{Do: DoDestroy, Rule: "destroyed"}
	case updated && f.VM:
		return Step{Do: DoStop, Rule: "updated"}
	case updated && f.State == volant.StateSuspended:
		return Step{Do: DoDiscard, Rule: "updated"}
	case f.Run == volant.RunOff && f.VM:
		return Step{Do: DoStop, Rule: "off"}
	case f.Run == volant.RunOff && f.State == volant.StateSuspended:
		return Step{Do: DoDiscard, Rule: "off"}
	case f.Ask != "":
		return planAsk(f)
	case f.Run == volant.RunOff && f.Exit == nil:
		return planPrepare(f)
	case f.Exit != nil:
		return planExit(f)
	case f.VM:
		return planAwake(f)
	}
	return planAsleep(f)
}

// planAsk acts on what a call asked for.
func planAsk(f Facts) Step {
	switch {
	case f.Ask == AskRestart && f.VM:
		return Step{Do: DoRestart, Rule: f.AskRule}
	case f.Ask == AskSuspend && f.VM && f.App && f.Exit == nil:
		return Step{Do: DoSleep, How: AskSuspend, Seal: f.AskSeal, Rule: f.AskRule}
	case f.Ask == AskStop && f.VM && f.App && f.AskSeal:
		return Step{Do: DoSleep, How: AskStop, Seal: true, Rule: f.AskRule}
	case f.Ask != AskRestart && f.VM:
		return Step{Do: DoStop, Rule: f.AskRule}
	case f.Ask == AskStop && f.State == volant.StateSuspended:
		return Step{Do: DoDiscard, Rule: f.AskRule}
	case f.Ask == AskStop && f.Exit != nil:
		return Step{Do: DoStop, Rule: f.AskRule}
	}
	return Step{Do: DoForget}
}

// What a call may ask of a machine.
const (
	AskSuspend = "suspend"
	AskStop    = "stop"
	AskRestart = "restart"
)

func planExit(f Facts) Step {
	again, wait := afterExit(f.Policy, *f.Exit, f.Restarts)
	at := f.Exit.At.Add(wait)
	switch {
	case f.Draining: // its connections have ended with it
		return Step{Do: DoStop, Rule: "drained"}
	case again == exitRest || f.Run == volant.RunOff:
		return Step{Do: DoStop, Rule: "exited"}
	case again == exitFail:
		return Step{Do: DoFail, Rule: "max_retries"}
	case f.Now.Before(at):
		return Step{Do: DoWait, At: at}
	case f.VM:
		return Step{Do: DoRestart, Rule: "restart_policy"}
	}
	return Step{Do: DoBoot, Rule: "restart_policy"}
}

func planAwake(f Facts) Step {
	switch {
	case !f.App || !f.Draining || f.Slots > 0:
		return Step{Do: DoWait}
	case f.Now.Before(f.SealAt):
		return Step{Do: DoWait, At: f.SealAt}
	}
	return Step{Do: DoSleep, How: f.Then, Seal: true, Rule: "drained"}
}

func planAsleep(f Facts) Step {
	switch {
	case f.Wanted && f.Now.Before(f.RetryAt):
		return Step{Do: DoWait, At: f.RetryAt}
	case f.Wanted:
		return Step{Do: DoBoot, Rule: "wanted"}
	case f.State == volant.StateFailed && f.Run == volant.RunAuto && f.Now.Before(f.CoolAt):
		return Step{Do: DoWait, At: f.CoolAt}
	case f.State == volant.StateFailed && f.Run == volant.RunAuto:
		return Step{Do: DoCool, Rule: "cooled"}
	}
	return planPrepare(f)
}

func planPrepare(f Facts) Step {
	switch {
	case f.Prepared || f.VM:
		return Step{Do: DoWait}
	case f.Now.Before(f.RetryAt):
		return Step{Do: DoWait, At: f.RetryAt}
	}
	return Step{Do: DoPrepare}
}
