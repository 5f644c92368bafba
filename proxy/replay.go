package proxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/volant-edge/volant"
)

// Bounds of replays.
const (
	replaysMost   = 10       // of one request
	replayBody    = 1 << 20  // of a request that may be sent again
	replayBudget  = 64 << 20 // kept of all requests' bodies at once
	replayTextMax = 4 << 10  // of the header
)

// replay is what the header fly-replay of a response says: send the request elsewhere.
type replay struct {
	text      string
	app       string
	instance  volant.MachineID
	prefer    volant.MachineID
	regions   string
	state     string
	elsewhere bool
}

// parseReplay reads fields k=v separated by semicolons. A value with commas or semicolons is quoted.
func parseReplay(text string) (*replay, error) {
	if len(text) > replayTextMax {
		return nil, errors.New("fly-replay is over 4 KiB")
	}
	r := &replay{text: text}
	for rest := text; strings.TrimSpace(rest) != ""; {
		var field string
		field, rest = cutField(rest)
		key, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		if n := len(value); n >= 2 && value[0] == '"' && value[n-1] == '"' {
			value = value[1 : n-1]
		}
		if err := r.set(strings.TrimSpace(key), value); err != nil {
			return nil, err
		}
	}
	if r.app == "" && r.instance == "" && r.prefer == "" && r.regions == "" && !r.elsewhere {
		return nil, errors.New("fly-replay names no target")
	}
	return r, nil
}

// cutField cuts at the first semicolon outside quotes.
func cutField(s string) (field, rest string) {
	quoted := false
	for i := range len(s) {
		switch s[i] {
		case '"':
			quoted = !quoted
		case ';':
			if !quoted {
				return s[:i], s[i+1:]
			}
		}
	}
	return s, ""
}

func (r *replay) set(key, value string) error {
	switch key {
	case "":
	case "app":
		r.app = value
	case "instance":
		r.instance = volant.MachineID(value)
	case "prefer_instance":
		r.prefer = volant.MachineID(value)
	case "region":
		r.regions = value
	case "state":
		r.state = value
	case "elsewhere":
		r.elsewhere = value == "true"
	default:
		return fmt.Errorf("fly-replay has the field %q: app, instance, prefer_instance, region, elsewhere and state are known", key)
	}
	return nil
}

// follow finds where a request goes that the machine by has sent on; rule says why it goes nowhere.
func (s *server) follow(g *httpCaller, from *route, n int) (*route, rule) {
	r := g.again
	g.again = nil
	switch {
	case n >= replaysMost:
		return nil, ruleReplays
	case g.body != nil && !g.body.rewind():
		return nil, ruleReplayBody
	}
	target := from
	if r.app != "" && r.app != from.name {
		target = (*s.f.p.named.Load())[nameKey{r.app, g.c.at.Port()}]
		if target == nil || target.org != from.org {
			return nil, ruleReplayApp
		}
	}
	g.wish = &wish{only: r.instance, prefer: r.prefer}
	g.wish.force(r.regions)
	if r.elsewhere && target.app == from.app {
		g.wish.not = g.by
	}
	g.source = fmt.Sprintf("instance=%s;region=%s;t=%d", g.by, from.region, time.Now().UnixMicro())
	if r.state != "" {
		g.source += ";state=" + r.state
	}
	return target, ruleNone
}

// replayed says whether the response sends the request elsewhere, and notes where.
func (g *httpCaller) replayed(resp *http.Response) bool {
	text := resp.Header.Get("Fly-Replay")
	if text == "" {
		return false
	}
	g.again, g.badReplay = parseReplay(text)
	g.x.failed("sent on by fly-replay: " + text)
	return true
}

// requestBody is the body of a request. It notes what was read and keeps it, so that the request can be sent
// again; of a large one, or while too much is kept, it keeps nothing.
type requestBody struct {
	from         io.Reader
	budget       *atomic.Int64
	begun, whole atomic.Bool

	mu   sync.Mutex // guards the following
	kept []byte
	at   int  // how far kept was read
	lost bool // more was read than kept
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.begun.Store(true)
	if n := b.again(p); n > 0 {
		return n, nil
	}
	if b.whole.Load() {
		return 0, io.EOF
	}
	n, err := b.from.Read(p)
	b.keep(p[:n])
	if errors.Is(err, io.EOF) {
		b.whole.Store(true)
	}
	return n, err
}

// again reads what was kept.
func (b *requestBody) again(p []byte) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := copy(p, b.kept[min(b.at, len(b.kept)):])
	b.at += n
	return n
}

func (b *requestBody) keep(p []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lost || len(p) == 0 {
		return
	}
	total := b.budget.Add(int64(len(p)))
	b.kept = append(b.kept, p...)
	b.at = len(b.kept)
	if len(b.kept) > replayBody || total > replayBudget {
		b.dropLocked()
	}
}

// rewind makes the next Read begin anew; false if it cannot.
func (b *requestBody) rewind() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at = 0
	b.begun.Store(false)
	return !b.lost
}

// Close does nothing: the server closes a request's body when the request is over.
func (b *requestBody) Close() error { return nil }

// drop gives back what is kept.
func (b *requestBody) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropLocked()
}

func (b *requestBody) dropLocked() {
	b.budget.Add(-int64(len(b.kept)))
	b.kept, b.at, b.lost = nil, 0, true
}
