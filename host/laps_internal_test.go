package host

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestLapsAddUpToTheBoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := laps{last: time.Now()}
		time.Sleep(1500 * time.Microsecond)
		l.lap("vm")
		l.lap("record")
		time.Sleep(20 * time.Millisecond)
		l.lap("agent")
		if got, want := l.String(), "vm=1.5 record=0.0 agent=20.0"; got != want {
			t.Errorf("laps %q, want %q", got, want)
		}
		var adopted laps
		adopted.lap("agent")
		if got, want := adopted.String(), "agent=0.0"; got != want {
			t.Errorf("laps of a boot that another process began: %q, want %q", got, want)
		}
	})
}
