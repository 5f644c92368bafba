package volant

import "errors"

// WireError carries an error between processes: what errors.Is finds there, it finds here.
type WireError struct {
	Kind   string `json:"kind,omitempty"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
}

// kinds are the names of the kinds of errors between processes.
func kinds() map[string]error {
	return map[string]error{
		"not_found": ErrNotFound, "exists": ErrExists, "invalid": ErrInvalid, "unauthorized": ErrUnauthorized,
		"forbidden": ErrForbidden, "conflict": ErrConflict, "leased": ErrLeased, "no_capacity": ErrNoCapacity,
		"precondition": ErrPrecondition, "stale_term": ErrStaleTerm, "unavailable": ErrUnavailable,
		"limited": ErrLimited, "unserved": ErrUnserved,
	}
}

// ToWire is the form of err between processes.
func ToWire(err error) *WireError {
	w := &WireError{Text: err.Error()}
	var e *Error
	if errors.As(err, &e) && err == error(e) { //nolint:errorlint // only the outermost has no more text than its own
		w.Text, w.Remedy = e.Text, e.Remedy
	}
	for name, kind := range kinds() {
		if errors.Is(err, kind) {
			w.Kind = name
		}
	}
	return w
}

// Err is the error that w carries.
func (w *WireError) Err() error {
	kind := kinds()[w.Kind]
	if kind == nil {
		return errors.New(w.Text)
	}
	return &Error{Kind: kind, Text: w.Text, Remedy: w.Remedy}
}
