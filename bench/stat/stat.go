// Package stat sums up samples.
package stat

import (
	"fmt"
	"slices"
	"time"
)

// Millis are durations in milliseconds.
func Millis(ds []time.Duration) []float64 {
	out := make([]float64, len(ds))
	for i, d := range ds {
		out[i] = float64(d.Microseconds()) / 1000
	}
	return out
}

// Quantile is the q-th of the samples, from 0 to 1, with a straight line between neighbours; 0 of none.
func Quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	at := q * float64(len(v)-1)
	i := int(at)
	if i+1 >= len(v) {
		return v[len(v)-1]
	}
	return v[i] + (at-float64(i))*(v[i+1]-v[i])
}

// Median is the middle of the samples.
func Median(v []float64) float64 { return Quantile(v, 0.5) }

// Ratios are the quotients of pairs of samples.
func Ratios(a, b []float64) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = a[i] / b[i]
	}
	return out
}

// Spread says where most samples lie.
func Spread(v []float64, format string) string {
	return fmt.Sprintf("n=%d p10 "+format+" p90 "+format, len(v), Quantile(v, 0.1), Quantile(v, 0.9))
}
