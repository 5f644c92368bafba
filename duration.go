package volant

import (
	"encoding/json"
	"time"
)

// Duration is a time.Duration which reads and writes as Go's notation ("15s"). A bare number is
// nanoseconds, as Fly's clients send it.
type Duration time.Duration

// D returns d as time.Duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes Go's notation.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads Go's notation.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return Invalidf("duration %q: write a number and a unit, such as 15s or 2m", b)
	}
	*d = Duration(v)
	return nil
}

// UnmarshalJSON reads Go's notation or nanoseconds.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var n int64
	if json.Unmarshal(b, &n) == nil {
		*d = Duration(n)
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return Invalidf("duration %s: write a string such as \"15s\"", b)
	}
	return d.UnmarshalText([]byte(s))
}
