package host_test

import (
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/host"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// The rows are sentences of the design's sections 3, 5 and 6.
func TestPlan(t *testing.T) {
	awake := host.Facts{
		Now: now, Run: volant.RunAuto, State: volant.StateStarted, VM: true, App: true, Wanted: true,
		Version: "v1", WishVersion: "v1", Prepared: true,
	}
	asleep := host.Facts{
		Now: now, Run: volant.RunAuto, State: volant.StateSuspended, Version: "v1", WishVersion: "v1", Prepared: true,
	}
	stopped := host.Facts{
		Now: now, Run: volant.RunAuto, State: volant.StateStopped, WishVersion: "v1", Prepared: true,
	}
	crash := &volant.Exit{Code: 1, At: now}
	for name, row := range map[string]struct {
		f    host.Facts
		edit func(f *host.Facts)
		want host.Step
	}{
		"an awake machine that nobody asks anything of runs on": {
			awake, nil, host.Step{Do: host.DoWait},
		},
		"auto: a machine sleeps until a connection asks": {
			asleep, nil, host.Step{Do: host.DoWait},
		},
		"auto: a connection wakes it": {
			asleep, func(f *host.Facts) { f.Wanted = true }, host.Step{Do: host.DoBoot, Rule: "wanted"},
		},
		"a new machine is prepared before its first connection": {
			stopped, func(f *host.Facts) { f.State, f.Prepared = volant.StateCreated, false }, host.Step{Do: host.DoPrepare},
		},
		"on: the machine is awake": {
			stopped, func(f *host.Facts) { f.Run, f.Wanted = volant.RunOn, true }, host.Step{Do: host.DoBoot, Rule: "wanted"},
		},
		"off: the machine is stopped, whatever it did": {
			awake, func(f *host.Facts) { f.Run = volant.RunOff }, host.Step{Do: host.DoStop, Rule: "off"},
		},
		"off: a snapshot is thrown away": {
			asleep, func(f *host.Facts) { f.Run = volant.RunOff }, host.Step{Do: host.DoDiscard, Rule: "off"},
		},
		"destroyed: an awake machine is stopped first": {
			awake, func(f *host.Facts) { f.Run = volant.RunDestroyed }, host.Step{Do: host.DoStop, Rule: "destroyed"},
		},
		"destroyed: then everything of it goes": {
			stopped, func(f *host.Facts) { f.Run = volant.RunDestroyed }, host.Step{Do: host.DoDestroy, Rule: "destroyed"},
		},
		"destroyed: nothing is left to do": {
			stopped, func(f *host.Facts) { f.Run, f.State = volant.RunDestroyed, volant.StateDestroyed }, host.Step{Do: host.DoWait},
		},
		"a snapshot is discarded on update": {
			asleep, func(f *host.Facts) { f.WishVersion = "v2" }, host.Step{Do: host.DoDiscard, Rule: "updated"},
		},
		"an update stops what runs": {
			awake, func(f *host.Facts) { f.WishVersion = "v2" }, host.Step{Do: host.DoStop, Rule: "updated"},
		},
		"and boots the new config, since it was awake": {
			stopped, func(f *host.Facts) { f.WishVersion, f.Wanted = "v2", true }, host.Step{Do: host.DoBoot, Rule: "wanted"},
		},
		"drained and empty: asleep at once": {
			awake, func(f *host.Facts) { f.Draining, f.Then = true, host.AskSuspend },
			host.Step{Do: host.DoSleep, How: host.AskSuspend, Seal: true, Rule: "drained"},
		},
		"never is a machine with open connections stopped by scaling": {
			awake, func(f *host.Facts) { f.Draining, f.Then, f.Slots = true, host.AskSuspend, 1 }, host.Step{Do: host.DoWait},
		},
		"a drained machine that could not be sealed is asked again later": {
			awake, func(f *host.Facts) { f.Draining, f.SealAt = true, now.Add(time.Second) },
			host.Step{Do: host.DoWait, At: now.Add(time.Second)},
		},
		"an API suspend puts an auto machine to sleep": {
			awake, func(f *host.Facts) { f.Ask, f.AskRule = host.AskSuspend, "asked" },
			host.Step{Do: host.DoSleep, How: host.AskSuspend, Rule: "asked"},
		},
		"an API stop too": {
			awake, func(f *host.Facts) { f.Ask, f.AskRule = host.AskStop, "asked" }, host.Step{Do: host.DoStop, Rule: "asked"},
		},
		"an API stop that spares connections seals first": {
			awake, func(f *host.Facts) { f.Ask, f.AskSeal, f.AskRule = host.AskStop, true, "asked" },
			host.Step{Do: host.DoSleep, How: host.AskStop, Seal: true, Rule: "asked"},
		},
		"an API stop of a suspended machine throws its snapshot away": {
			asleep, func(f *host.Facts) { f.Ask, f.AskRule = host.AskStop, "asked" }, host.Step{Do: host.DoDiscard, Rule: "asked"},
		},
		"an order there is nothing to do for is dropped": {
			stopped, func(f *host.Facts) { f.Ask, f.AskRule = host.AskSuspend, "asked" }, host.Step{Do: host.DoForget},
		},
		"on-failure: an app that fails runs again, in the same VM": {
			awake, func(f *host.Facts) { f.App, f.Exit = false, crash }, host.Step{Do: host.DoRestart, Rule: "restart_policy"},
		},
		"a VM that died is booted again": {
			awake, func(f *host.Facts) { f.VM, f.App, f.Exit = false, false, crash }, host.Step{Do: host.DoBoot, Rule: "restart_policy"},
		},
		"the second time after a back-off": {
			awake, func(f *host.Facts) { f.App, f.Exit, f.Restarts = false, crash, []time.Time{now.Add(-time.Second)} },
			host.Step{Do: host.DoWait, At: now.Add(500 * time.Millisecond)},
		},
		"an app that ends well is stopped; the next connection wakes it": {
			awake, func(f *host.Facts) { f.App, f.Exit = false, &volant.Exit{At: now} }, host.Step{Do: host.DoStop, Rule: "exited"},
		},
		"an app that fails while it drains has no connections left: asleep": {
			awake, func(f *host.Facts) { f.App, f.Exit, f.Draining = false, crash, true }, host.Step{Do: host.DoStop, Rule: "drained"},
		},
		"no: it stays stopped": {
			awake, func(f *host.Facts) { f.App, f.Exit, f.Policy.Policy = false, crash, volant.RestartNo },
			host.Step{Do: host.DoStop, Rule: "exited"},
		},
		"always: it never rests": {
			awake, func(f *host.Facts) {
				f.App, f.Exit, f.Policy.Policy = false, &volant.Exit{At: now}, volant.RestartAlways
			},
			host.Step{Do: host.DoRestart, Rule: "restart_policy"},
		},
		"more than max_retries in five minutes: failed": {
			awake, func(f *host.Facts) {
				f.App, f.Exit, f.Policy.MaxRetries = false, crash, 2
				f.Restarts = []time.Time{now.Add(-time.Minute), now.Add(-time.Second)}
			}, host.Step{Do: host.DoFail, Rule: "max_retries"},
		},
		"restarts longer ago than five minutes do not count": {
			awake, func(f *host.Facts) {
				f.App, f.Exit, f.Policy.MaxRetries = false, crash, 2
				f.Restarts = []time.Time{now.Add(-6 * time.Minute), now.Add(-5 * time.Minute)}
			}, host.Step{Do: host.DoRestart, Rule: "restart_policy"},
		},
		"an explicit stop is not undone by a policy": {
			awake, func(f *host.Facts) {
				f.App, f.Exit, f.Policy.Policy = false, &volant.Exit{Requested: true, At: now}, volant.RestartAlways
			}, host.Step{Do: host.DoStop, Rule: "exited"},
		},
		"a boot that failed is tried again after a back-off": {
			stopped, func(f *host.Facts) { f.Wanted, f.RetryAt = true, now.Add(time.Second) },
			host.Step{Do: host.DoWait, At: now.Add(time.Second)},
		},
		"a failed machine is left alone for a while": {
			stopped, func(f *host.Facts) { f.State, f.CoolAt = volant.StateFailed, now.Add(time.Second) },
			host.Step{Do: host.DoWait, At: now.Add(time.Second)},
		},
		"and may be woken again then": {
			stopped, func(f *host.Facts) { f.State, f.CoolAt = volant.StateFailed, now }, host.Step{Do: host.DoCool, Rule: "cooled"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := row.f
			if row.edit != nil {
				row.edit(&f)
			}
			if got := host.Plan(f); got != row.want {
				t.Errorf("got %+v, want %+v", got, row.want)
			}
		})
	}
}

func TestRecover(t *testing.T) {
	for name, row := range map[string]struct {
		state              volant.State
		vm, snapshot, same bool
		want               host.Remedy
	}{
		"a machine that serves is adopted":                        {volant.StateStarted, true, false, true, host.RemedyServe},
		"one whose VM died follows its restart policy":            {volant.StateStarted, false, false, true, host.RemedyDied},
		"one that the server's boot ended is stopped":             {volant.StateStarted, false, false, false, host.RemedyStop},
		"a VM that was made is brought up":                        {volant.StateStarting, true, false, true, host.RemedyFinish},
		"a boot of which nothing is left begins anew":             {volant.StateStarting, false, false, true, host.RemedyBoot},
		"a boot that the server's boot ended is off":              {volant.StateStarting, false, false, false, host.RemedyStop},
		"half a snapshot is undone":                               {volant.StateSuspending, true, false, true, host.RemedyUndo},
		"a whole snapshot is slept on":                            {volant.StateSuspending, true, true, true, host.RemedySleep},
		"a whole snapshot whose VM is gone too":                   {volant.StateSuspending, false, true, true, host.RemedySleep},
		"half a snapshot without its VM is nothing":               {volant.StateSuspending, false, false, true, host.RemedyStop},
		"a stop is finished":                                      {volant.StateStopping, true, false, true, host.RemedyStop},
		"a sleeping machine sleeps on":                            {volant.StateSuspended, false, true, true, host.RemedyNone},
		"a sleeping machine sleeps on over a boot of the host":    {volant.StateSuspended, false, true, false, host.RemedyNone},
		"a destroy goes on by its wish":                           {volant.StateDestroying, false, false, true, host.RemedyNone},
		"a machine that never ran waits for its first connection": {volant.StateCreated, false, false, true, host.RemedyNone},
	} {
		t.Run(name, func(t *testing.T) {
			if got := host.Recover(row.state, row.vm, row.snapshot, row.same); got != row.want {
				t.Errorf("got %s, want %s", got, row.want)
			}
		})
	}
}
