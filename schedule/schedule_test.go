package schedule_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/schedule"
)

// now is a Thursday.
var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func ended(ago time.Duration) time.Time { return now.Add(-ago) }

func TestPlan(t *testing.T) {
	for _, tt := range []struct {
		sentence string
		m        schedule.Machine
		want     string
	}{
		{"one that runs is left alone", schedule.Machine{Schedule: "hourly", AutoDestroy: true}, ""},
		{"one that ended is destroyed where its config says so", schedule.Machine{AutoDestroy: true, Ended: ended(0)}, "destroy"},
		{"also one that its owner stopped", schedule.Machine{AutoDestroy: true, Off: true, Ended: ended(0)}, "destroy"},
		{"one with a schedule waits for the next hour", schedule.Machine{Schedule: "hourly", Ended: ended(0)}, ""},
		{"then it is started", schedule.Machine{Schedule: "hourly", Ended: ended(65 * time.Minute)}, "start"},
		{"a run that was missed long ago is made up for once", schedule.Machine{Schedule: "hourly", Ended: ended(500 * time.Hour)}, "start"},
		{"unless its owner stopped it", schedule.Machine{Schedule: "hourly", Off: true, Ended: ended(65 * time.Minute)}, ""},
		{"a schedule of a newer version is not understood", schedule.Machine{Schedule: "yearly", Ended: ended(20000 * time.Hour)}, ""},
	} {
		t.Run(tt.sentence, func(t *testing.T) {
			tt.m.ID = "a"
			steps, next := schedule.Plan(now, []schedule.Machine{tt.m})
			var got []string
			for _, s := range steps {
				got = append(got, string(s.Kind))
				if s.Text == "" || s.Rule == "" {
					t.Errorf("step %+v does not explain itself", s)
				}
			}
			if strings.Join(got, ", ") != tt.want {
				t.Errorf("got %v, want %q", got, tt.want)
			}
			waits := tt.m.Schedule == "hourly" && !tt.m.Ended.IsZero() && !tt.m.Off && tt.want == ""
			if waits != next.After(now) {
				t.Errorf("looks again at %v", next)
			}
		})
	}
}

func TestDueIsInTheNextInterval(t *testing.T) {
	for schedules, want := range map[string][2]time.Time{
		"hourly":  {now.Add(time.Hour), now.Add(time.Hour + 5*time.Minute)},
		"daily":   {now.Add(12 * time.Hour), now.Add(13 * time.Hour)},
		"weekly":  {time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC), time.Date(2026, 1, 5, 1, 0, 0, 0, time.UTC)},
		"monthly": {time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 2, 1, 1, 0, 0, 0, time.UTC)},
	} {
		seen := map[time.Time]bool{}
		for n := range 20 {
			got := schedule.Due(volant.MachineID(fmt.Sprint(n)), schedules, now)
			if got.Before(want[0]) || !got.Before(want[1]) {
				t.Errorf("%s: due at %v, want %v to %v", schedules, got, want[0], want[1])
			}
			seen[got] = true
		}
		if len(seen) < 10 {
			t.Errorf("%s: 20 machines are due at only %d times", schedules, len(seen))
		}
	}
	// A run which ends on a Monday is followed by one on the next.
	monday := time.Date(2026, 1, 5, 0, 30, 0, 0, time.UTC)
	if got := schedule.Due("a", "weekly", monday); got.Before(monday.Add(6 * 24 * time.Hour)) {
		t.Errorf("due at %v after a run that ended at %v", got, monday)
	}
}
