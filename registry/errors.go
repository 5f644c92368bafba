package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	volant "github.com/volant-edge/volant"
)

// answer is an error with its place in the distribution specification.
type answer struct {
	status int
	code   string
	err    *volant.Error
}

func (a *answer) Error() string { return a.err.Error() }
func (a *answer) Unwrap() error { return a.err }

// WithRemedy returns a with a cure for people.
func (a *answer) WithRemedy(format string, args ...any) *answer {
	c := *a
	c.err = a.err.WithRemedy(format, args...)
	return &c
}

func oops(status int, code, format string, args ...any) *answer {
	kind := volant.ErrInvalid
	switch status {
	case http.StatusNotFound:
		kind = volant.ErrNotFound
	case http.StatusForbidden:
		kind = volant.ErrForbidden
	case http.StatusUnauthorized:
		kind = volant.ErrUnauthorized
	case http.StatusTooManyRequests:
		kind = volant.ErrUnavailable
	}
	return &answer{status, code, volant.Errorf(kind, format, args...)}
}

func denied(text string) *answer { return oops(http.StatusForbidden, "DENIED", "%s", text) }

// Unauthorized answers a request whose caller is not known, as clients of registries expect it.
func (g *Registry) Unauthorized(w http.ResponseWriter, err error) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("WWW-Authenticate", `Basic realm="volant"`)
	var e *volant.Error
	if !errors.As(err, &e) {
		e = volant.Errorf(volant.ErrUnauthorized, "the request has no token")
	}
	e = volant.Errorf(volant.ErrUnauthorized, "%s", e.Text).WithRemedy("`docker login` with any user name and an API token as the password")
	if err := write(w, &answer{http.StatusUnauthorized, "UNAUTHORIZED", e}); err != nil {
		g.log.Debug("answer not written", "err", err)
	}
}

// fail answers an error.
func (g *Registry) fail(w http.ResponseWriter, r *http.Request, err error) {
	var a *answer
	var e *volant.Error
	switch {
	case errors.As(err, &a):
	case errors.As(err, &e):
		a = &answer{http.StatusBadRequest, "UNKNOWN", e}
		switch {
		case errors.Is(err, volant.ErrNotFound):
			a.status, a.code = http.StatusNotFound, "BLOB_UNKNOWN"
		case errors.Is(err, volant.ErrForbidden):
			a.status, a.code = http.StatusForbidden, "DENIED"
		case errors.Is(err, volant.ErrNoCapacity):
			a.status, a.code = http.StatusForbidden, "DENIED" // clients try 5xx again
		case errors.Is(err, volant.ErrUnavailable), errors.Is(err, volant.ErrConflict):
			a.status, a.code = http.StatusServiceUnavailable, "UNAVAILABLE"
		}
	case r.Context().Err() != nil:
		return // the caller is gone
	default:
		g.log.Error("request to the registry failed", "method", r.Method, "path", r.URL.Path, "err", err)
		a = oops(http.StatusInternalServerError, "UNKNOWN", "internal error").WithRemedy("look into the server's log, and try again")
	}
	if err := write(w, a); err != nil {
		g.log.Debug("answer not written", "path", r.URL.Path, "err", err)
	}
}

func write(w http.ResponseWriter, a *answer) error {
	type one struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	message := a.err.Text
	if a.err.Remedy != "" {
		message = fmt.Sprintf("%s; %s", message, a.err.Remedy)
	}
	return reply(w, a.status, struct {
		Errors []one  `json:"errors"`
		Error  string `json:"error"`
		Status string `json:"status"`
		Remedy string `json:"remedy,omitempty"`
	}{[]one{{a.code, message}}, a.err.Text, word(a.status), a.err.Remedy})
}

// word is the API's word for a status.
func word(status int) string {
	switch status {
	case http.StatusNotFound:
		return "not_found"
	case http.StatusForbidden:
		return "forbidden"
	case http.StatusUnauthorized:
		return "unauthorized"
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return "unavailable"
	case http.StatusInternalServerError:
		return "unknown"
	}
	return "invalid_argument"
}

func reply(w http.ResponseWriter, code int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	return json.NewEncoder(w).Encode(v)
}
