package volant

import (
	"errors"
	"fmt"
)

// The kinds of errors a caller can act on; test with errors.Is.
var (
	ErrNotFound     = errors.New("not found")
	ErrExists       = errors.New("already exists")
	ErrInvalid      = errors.New("invalid")
	ErrUnauthorized = errors.New("unauthorized")
	ErrForbidden    = errors.New("forbidden")
	ErrConflict     = errors.New("conflict")     // somebody else changed the record first
	ErrLeased       = errors.New("leased")       // a machine lease of somebody else
	ErrNoCapacity   = errors.New("no capacity")  // no host has room
	ErrPrecondition = errors.New("precondition") // the state does not allow it
	ErrStaleTerm    = errors.New("stale term")   // a scaler that lost its app
	ErrUnavailable  = errors.New("unavailable")  // try again
	ErrLimited      = errors.New("limited")      // too many requests; try again later
	ErrUnserved     = errors.New("not served")   // known, and not done here
)

// Error is a message for people with its kind and its cure.
type Error struct {
	Kind   error  // one of the Err values
	Text   string // cause, for a person
	Remedy string // what to do; may be empty
}

func (e *Error) Error() string {
	if e.Remedy == "" {
		return e.Text
	}
	return e.Text + "; " + e.Remedy
}

// Unwrap lets errors.Is find the kind.
func (e *Error) Unwrap() error { return e.Kind }

// Errorf returns an Error of the given kind.
func Errorf(kind error, format string, args ...any) *Error {
	return &Error{Kind: kind, Text: fmt.Sprintf(format, args...)}
}

// Invalidf returns an Error of kind ErrInvalid.
func Invalidf(format string, args ...any) *Error { return Errorf(ErrInvalid, format, args...) }

// WithRemedy returns e with a cure for people.
func (e *Error) WithRemedy(format string, args ...any) *Error {
	c := *e
	c.Remedy = fmt.Sprintf(format, args...)
	return &c
}
