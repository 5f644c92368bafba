package host

import (
	"fmt"
	"strings"
	"time"
)

// laps say where the time of a boot went, for the log.
type laps struct {
	last  time.Time
	parts []string
}

// lap ends a part.
func (l *laps) lap(name string) {
	now := time.Now()
	if l.last.IsZero() {
		l.last = now // the boot was begun by another process
	}
	l.parts = append(l.parts, fmt.Sprintf("%s=%.1f", name, float64(now.Sub(l.last).Microseconds())/1000))
	l.last = now
}

// String is the parts in milliseconds.
func (l *laps) String() string { return strings.Join(l.parts, " ") }
