package host

import (
	"time"

	volant "github.com/volant-edge/volant"
)

// What may follow an exit.
type verdict int

const (
	exitRest  verdict = iota // stay stopped
	exitAgain                // run again after the wait
	exitFail                 // too many in too short a time
)

const (
	restartWindow = 5 * time.Minute
	maxRetries    = 10 // within the window
	firstBackoff  = 500 * time.Millisecond
	maxBackoff    = 30 * time.Second
	coolOff       = time.Minute // a failed machine may be woken again after it
)

// afterExit applies a restart policy to an exit; restarts are the earlier ones.
func afterExit(p volant.Restart, e volant.Exit, restarts []time.Time) (verdict, time.Duration) {
	recent := len(within(restarts, e.At))
	switch {
	case e.Requested, p.Policy == volant.RestartNo:
		return exitRest, 0
	case p.Policy == volant.RestartAlways:
		return exitAgain, backoff(recent)
	case e.Code == 0 && e.Signal == 0 && !e.OOM:
		return exitRest, 0
	}
	limit := p.MaxRetries
	if limit <= 0 {
		limit = maxRetries
	}
	if recent >= limit {
		return exitFail, 0
	}
	return exitAgain, backoff(recent)
}

// within returns the restarts in the window that ends at now.
func within(restarts []time.Time, now time.Time) []time.Time {
	for i, t := range restarts {
		if now.Sub(t) < restartWindow {
			return restarts[i:]
		}
	}
	return nil
}

// backoff is the wait before try n+1: none at first, then doubling.
func backoff(n int) time.Duration {
	if n <= 0 {
		return 0
	}
	d := firstBackoff
	for range n - 1 {
		if d *= 2; d >= maxBackoff {
			return maxBackoff
		}
	}
	return d
}
