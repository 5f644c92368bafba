package control

import (
	"container/list"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"

	volant "github.com/volant-edge/volant"
)

// limit is how often one token may do one thing to one machine or app.
type limit struct {
	perSecond float64
	burst     int
	each      bool // counted for each machine or app by itself, else for the token
}

// limitOf is the limit of a route, in the numbers that clients of the Machines API are written for.
func limitOf(r *Route) limit {
	switch {
	case r.Action == "app.destroy":
		return limit{100.0 / 60, 100, false}
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		return limit{5, 10, true}
	}
	return limit{1, 3, true}
}

// maxLimiters bounds the memory of limits. One that has not been used for as long as its burst takes to fill up is
// as good as new, so only a flood of more than this many things in a minute gets more than its due.
const maxLimiters = 50_000

// limiters are the limits in use, the last used first.
type limiters struct {
	mu  sync.Mutex // guards the fields below
	max int
	all map[string]*list.Element
	use list.List
}

type limiter struct {
	key string
	l   *rate.Limiter
}

func newLimiters(most int) *limiters { return &limiters{max: most, all: map[string]*list.Element{}} }

// take says how long the caller has to wait, 0 if it may go on.
func (ls *limiters) take(key string, l limit, now time.Time) time.Duration {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	e, ok := ls.all[key]
	if ok {
		ls.use.MoveToFront(e)
	} else {
		e = ls.use.PushFront(&limiter{key, rate.NewLimiter(rate.Limit(l.perSecond), l.burst)})
		ls.all[key] = e
		for len(ls.all) > ls.max {
			old := ls.use.Back()
			ls.use.Remove(old)
			delete(ls.all, of(old).key)
		}
	}
	r := of(e).l.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

func of(e *list.Element) *limiter { return e.Value.(*limiter) } //nolint:forcetypeassert // the list holds nothing else

// within refuses a call that comes too soon after others of its kind. Who acts for every organization has no limits.
func (s *Server) within(w http.ResponseWriter, c *call, r *Route) error {
	if c.who.id == "" || c.who.root() {
		return nil
	}
	l := limitOf(r)
	key, what := c.who.id+" "+r.Action, ""
	if l.each {
		for _, p := range []string{"id", "app", "digest", "org", "token"} {
			if v := c.r.PathValue(p); v != "" {
				key, what = key+" "+v, " of "+cut(v)
				break
			}
		}
	}
	wait := s.limits.take(key, l, time.Now())
	if wait == 0 {
		return nil
	}
	seconds := int(math.Ceil(wait.Seconds()))
	w.Header().Set("Retry-After", strconv.Itoa(seconds))
	often := fmt.Sprintf("%g times a second, %d at once", l.perSecond, l.burst)
	if l.perSecond != math.Trunc(l.perSecond) {
		often = fmt.Sprintf("%g times a minute", l.perSecond*60)
	}
	return volant.Errorf(volant.ErrLimited, "too many requests: the token %q may do %s%s %s", c.who.name, r.Action, what, often).
		WithRemedy("wait %d s, as Retry-After says, and try again", seconds)
}
