package schedule

import (
	"hash/fnv"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/perapp"
)

// Machine is one machine with a schedule or with auto_destroy.
type Machine struct {
	ID          volant.MachineID
	Schedule    string
	AutoDestroy bool
	Off         bool      // its owner wants it stopped
	Ended       time.Time // when its program ended for good; zero if it runs, will run again or never ran
}

// MachineOf makes a Machine of a record and what its host says, and says whether it is one to look after.
func MachineOf(m *volant.Machine, have *volant.Have) (Machine, bool) {
	out := Machine{
		ID: volant.MachineID(m.ID), Schedule: m.Config.Schedule, AutoDestroy: m.Config.AutoDestroy, Off: m.Run == volant.RunOff,
	}
	asked := m.Run == volant.RunOff // then a stop that was asked for is for good
	if e := have.Exit; e != nil && have.State == volant.StateStopped && (!e.Requested || asked) {
		out.Ended = e.At
	}
	return out, out.Schedule != "" || out.AutoDestroy
}

// Step is one thing to do.
type Step struct {
	Kind    Kind
	Machine volant.MachineID
	Rule    string // short name of the rule that decided
	Text    string // the sentence for people
}

// Kind is what a Step does.
type Kind string

// The kinds of steps.
const (
	Start   Kind = "start"
	Destroy Kind = "destroy"
)

// Plan says what to do now, and when to look again though nothing happens; zero means never.
func Plan(now time.Time, ms []Machine) (steps []Step, next time.Time) {
	for _, m := range ms {
		switch {
		case m.Ended.IsZero():
		case m.AutoDestroy:
			steps = append(steps, Step{Destroy, m.ID, "auto_destroy", "its program has ended, and its config says auto_destroy"})
		case m.Schedule == "" || m.Off:
		default:
			due := Due(m.ID, m.Schedule, m.Ended)
			if due.IsZero() {
				continue // a schedule of a newer version
			}
			if due.After(now) {
				next = perapp.Sooner(next, due)
				continue
			}
			steps = append(steps, Step{Start, m.ID, "schedule", "it runs " + m.Schedule + ", and was due at " + due.UTC().Format(time.RFC3339)})
		}
	}
	return steps, next
}

// Due is when a machine whose last run ended at ended is to run again; zero for a schedule that is not known.
func Due(id volant.MachineID, schedule string, ended time.Time) time.Time {
	t := ended.UTC()
	day := time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, time.UTC)
	switch schedule {
	case "hourly":
		return t.Truncate(time.Hour).Add(time.Hour + spread(id, 5*time.Minute))
	case "daily":
		return day.AddDate(0, 0, 1).Add(spread(id, time.Hour))
	case "weekly":
		past := (int(day.Weekday()) + 6) % 7 // days since Monday
		return day.AddDate(0, 0, 7-past).Add(spread(id, time.Hour))
	case "monthly":
		return time.Date(t.Year(), t.Month()+1, 1, 0, 0, 0, 0, time.UTC).Add(spread(id, time.Hour))
	}
	return time.Time{}
}

// spread is a time below most that stays the same for a machine.
func spread(id volant.MachineID, most time.Duration) time.Duration {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id)) // never fails
	return time.Duration(h.Sum32()) % most
}
