package perapp

import "time"

// Backoff keeps something that went wrong from being tried again at once. Its zero value allows it.
type Backoff struct {
	Until time.Time
	wait  time.Duration
}

const (
	backoffFirst = time.Second
	backoffMost  = 30 * time.Second
)

// Again is the Backoff after one more failure.
func (b Backoff) Again(now time.Time) Backoff {
	b.wait = min(max(2*b.wait, backoffFirst), backoffMost)
	b.Until = now.Add(b.wait)
	return b
}

// Sooner is the earlier of two times, of which zero means never.
func Sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
