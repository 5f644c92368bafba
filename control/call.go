package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/why"
)

// maxJSON bounds a request's JSON body.
const maxJSON = 1 << 20

// bodyWithin bounds how long a body may take to arrive, be it read or not, unless its handler says else.
const bodyWithin = 30 * time.Second

// stalled is how long a stream may wait for its client, in either direction.
const stalled = time.Minute

// steady is a request's body whose sender may take its time, but not stop.
type steady struct {
	r  io.Reader
	rc *http.ResponseController
}

func (s steady) Read(b []byte) (int, error) {
	_ = s.rc.SetReadDeadline(time.Now().Add(stalled)) // a connection that cannot have one has no slow client
	n, err := s.r.Read(b)
	if errors.Is(err, io.EOF) {
		_ = s.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

// call is one authenticated request.
type call struct {
	r     *http.Request
	who   caller
	need  scope
	begun bool // a streamed answer has begun; errors can no longer change the status
}

func (c *call) ctx() context.Context { return c.r.Context() }

type handler func(w http.ResponseWriter, c *call) error

// handle authenticates, runs the route's handler and answers its error. A call that belongs to one organization
// is authorized by grant once that is known; here only that the token has the scope anywhere.
func (s *Server) handle(route Route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := &call{r: r, need: scope(route.Scope)}
		err := s.admit(w, c, &route)
		if key := r.Header.Get(keyHeader); err == nil && key != "" && r.Method == http.MethodPost {
			err = s.once(w, c, key, route.handle)
		} else if err == nil {
			err = route.handle(w, c)
		}
		if err != nil && !c.begun {
			s.fail(w, c, err)
		} else if err != nil {
			s.Log.Debug("stream ended", "path", r.URL.Path, "err", err)
		}
	}
}

// admit says who calls, and whether he may and not too often.
func (s *Server) admit(w http.ResponseWriter, c *call, route *Route) (err error) {
	if c.need == scopeNone {
		return nil
	}
	if c.who, err = s.authenticate(c.r); err != nil {
		return err
	}
	if err := c.grant(c.who.org, c.who.app); err != nil {
		return err
	}
	return s.within(w, c, route)
}

// grant is the one place that says whether the caller may do what this call does to an app of org, or with
// app empty to what of org belongs to no app.
func (c *call) grant(org volant.OrgID, app volant.AppID) error {
	if c.who.may(org, app, c.need) {
		return nil
	}
	if c.who.app != "" && c.who.may(org, c.who.app, c.need) {
		return volant.Errorf(volant.ErrForbidden, "the token %q is for one app alone", c.who.name).
			WithRemedy("use a token of organization %s that is not restricted to an app", org)
	}
	return volant.Errorf(volant.ErrForbidden, "the token %q may not %s in organization %q", c.who.name, c.need, org).
		WithRemedy("use a token of that organization with the scope %s", c.need)
}

// fail answers an error: its kind is the status, its text goes to the caller if it has a kind.
func (s *Server) fail(w http.ResponseWriter, c *call, err error) {
	code, _ := status(err)
	reply(w, code, s.body(c, err))
}

// Fail answers a request with an error, as the API tells errors.
func (s *Server) Fail(w http.ResponseWriter, r *http.Request, err error) { s.fail(w, &call{r: r}, err) }

// body is what a caller is told of an error.
func (s *Server) body(c *call, err error) api.Error {
	code, word := status(err)
	body := api.Error{Error: err.Error(), Status: word}
	var e *volant.Error
	switch {
	case errors.As(err, &e):
		body.Error, body.Remedy = strings.TrimSuffix(err.Error(), "; "+e.Remedy), e.Remedy
	case code == http.StatusInternalServerError:
		s.Log.Error("request failed", "method", c.r.Method, "path", c.r.URL.Path, "err", err)
		body.Error, body.Remedy = "internal error", "look into the server's log, and try again"
	}
	return body
}

// statuses maps the kinds of errors to HTTP, and to the word that programs match; the first that fits holds.
func statuses() []statusOf {
	return []statusOf{
		{volant.ErrNotFound, http.StatusNotFound, "not_found"},
		{volant.ErrExists, http.StatusUnprocessableEntity, "name_taken"},
		{volant.ErrInvalid, http.StatusBadRequest, "invalid_argument"},
		{volant.ErrUnauthorized, http.StatusUnauthorized, "unauthorized"},
		{volant.ErrForbidden, http.StatusForbidden, "forbidden"},
		{volant.ErrLeased, http.StatusConflict, "leased"},
		{volant.ErrConflict, http.StatusConflict, "conflict"},
		{volant.ErrStaleTerm, http.StatusConflict, "conflict"},
		{volant.ErrNoCapacity, http.StatusUnprocessableEntity, "insufficient_capacity"},
		{volant.ErrPrecondition, http.StatusPreconditionFailed, "failed_precondition"},
		{volant.ErrLimited, http.StatusTooManyRequests, "rate_limited"},
		{volant.ErrUnserved, http.StatusNotImplemented, "not_served"},
		{errTimeout, http.StatusRequestTimeout, "deadline_exceeded"},
		{volant.ErrUnavailable, http.StatusServiceUnavailable, "unavailable"},
		{context.DeadlineExceeded, http.StatusServiceUnavailable, "unavailable"},
		{context.Canceled, http.StatusServiceUnavailable, "unavailable"},
	}
}

type statusOf struct {
	kind error
	code int
	word string
}

// unknown is the word for what has no kind.
const unknown = "unknown"

func status(err error) (code int, word string) {
	for _, s := range statuses() {
		if errors.Is(err, s.kind) {
			return s.code, s.word
		}
	}
	return http.StatusInternalServerError, unknown
}

// Words are the status words that errors of the API may have.
func Words() []string {
	words := []string{unknown}
	for _, s := range statuses() {
		words = append(words, s.word)
	}
	slices.Sort(words)
	return slices.Compact(words)
}

var errTimeout = errors.New("deadline exceeded")

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the caller is gone: nobody to tell
}

// read decodes a JSON body; an empty one leaves v as it is. Unknown fields are let through, since
// existing clients send many we do not act on.
func (c *call) read(w http.ResponseWriter, v any) error {
	body, err := c.bytes(w)
	if err != nil {
		return err
	}
	if len(body) == 0 {
		return nil
	}
	if err := json.Unmarshal(body, v); err != nil {
		var kind *volant.Error
		if errors.As(err, &kind) {
			return kind
		}
		return volant.Invalidf("the body is not the JSON expected here: %v", err)
	}
	return nil
}

// number reads a query parameter within bounds.
func (c *call) number(name string, def, low, high int) (int, error) {
	v := c.r.URL.Query().Get(name)
	if v == "" {
		return def, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		return 0, volant.Invalidf("%s=%q: use a number from %d to %d", name, v, low, high)
	}
	return n, nil
}

func (c *call) flag(name string) bool {
	b, _ := strconv.ParseBool(c.r.URL.Query().Get(name)) // absent or odd is false
	return b
}

// audit records a change for why.
func (s *Server) audit(c *call, org volant.OrgID, app volant.AppID, machine volant.MachineID, rule, text string) {
	s.Reasons.Add(why.Record{
		Time: time.Now(), Kind: why.Change, Org: org, App: app, Machine: machine, Rule: rule, Text: text,
		Attrs: map[string]string{"actor": c.who.name},
	})
}

// lines streams JSON objects, one a line, each flushed.
type lines struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	enc *json.Encoder
}

func (c *call) stream(w http.ResponseWriter) *lines {
	c.begun = true
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.WriteHeader(http.StatusOK)
	l := &lines{w: w, rc: http.NewResponseController(w), enc: json.NewEncoder(w)}
	_ = l.rc.Flush() // a writer that cannot flush still delivers at the end
	return l
}

func (l *lines) send(v any) error {
	_ = l.rc.SetWriteDeadline(time.Now().Add(stalled)) // a connection that cannot have one is read at once
	defer func() { _ = l.rc.SetWriteDeadline(time.Time{}) }()
	if err := l.enc.Encode(v); err != nil {
		return err
	}
	return l.rc.Flush()
}
