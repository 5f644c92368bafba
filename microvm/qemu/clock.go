package qemu

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	clockSpan = 50 * time.Millisecond // over which the counter is measured: 2 ppm
	// clockSlack is by how many parts of a million two measurements of one host differ at most. A
	// snapshot's guest has the rate of its host built in.
	clockSlack = 500
)

// MeasureTSC returns the rate of the time stamp counter in kHz, by the kernel's raw clock.
func MeasureTSC(ctx context.Context) (int, error) {
	t0, c0, err := sampleTSC()
	if err != nil {
		return 0, err
	}
	select {
	case <-time.After(clockSpan):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	t1, c1, err := sampleTSC()
	if err != nil {
		return 0, err
	}
	if c1 <= c0 || t1 <= t0 {
		return 0, fmt.Errorf("the time stamp counter stands still")
	}
	return int(float64(c1-c0) / float64(t1-t0) * 1e6), nil
}

// sampleTSC returns both clocks at one moment: the tightest of some tries.
func sampleTSC() (nanos int64, count uint64, err error) {
	best := int64(1 << 62)
	for range 20 {
		var a, b unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &a); err != nil {
			return 0, 0, err
		}
		c := rdtsc()
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &b); err != nil {
			return 0, 0, err
		}
		if d := b.Nano() - a.Nano(); d < best {
			best, nanos, count = d, a.Nano()+d/2, c
		}
	}
	return nanos, count, nil
}

// sameClock says whether a guest made for one rate runs right at another.
func sameClock(a, b int) bool {
	apart := int64(max(a, b) - min(a, b))
	return apart*1_000_000 <= clockSlack*int64(max(a, b))
}
