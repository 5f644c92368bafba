package wire

import (
	"os"
	"sync/atomic"
)

// Lane is one direction of a cable between two files, for tests.
type Lane struct {
	l   *lane
	now *atomic.Pointer[setting]
}

// NewLane runs one until Close.
func NewLane(from, to *os.File, s Spec) (*Lane, error) {
	now := new(atomic.Pointer[setting])
	l, err := newLane(from, to, now)
	if err != nil {
		return nil, err
	}
	out := &Lane{l, now}
	out.Set(s)
	go l.read() //nolint:errcheck // it ends with the file
	go l.write()
	return out, nil
}

// Set changes how it is.
func (l *Lane) Set(s Spec) { l.now.Store(&setting{delay: s.Delay, loss: s.Loss, cut: s.Cut}) }

// Counts are the frames that passed and those that were dropped.
func (l *Lane) Counts() (passed, dropped uint64) { return l.l.passed.Load(), l.l.dropped.Load() }

// Close ends it.
func (l *Lane) Close() { l.l.close() }
