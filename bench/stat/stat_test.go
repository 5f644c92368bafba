package stat_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant/bench/stat"
)

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		v    []float64
		q    float64
		want float64
	}{
		{nil, 0.5, 0},
		{[]float64{3}, 0.9, 3},
		{[]float64{4, 1, 3, 2}, 0.5, 2.5},
		{[]float64{4, 1, 3, 2}, 0, 1},
		{[]float64{4, 1, 3, 2}, 1, 4},
		{[]float64{10, 20, 30, 40, 50}, 0.9, 46},
	} {
		if got := stat.Quantile(c.v, c.q); got != c.want {
			t.Errorf("quantile %v of %v is %v, want %v", c.q, c.v, got, c.want)
		}
	}
}

func TestRatiosArePairwise(t *testing.T) {
	got := stat.Ratios(stat.Millis([]time.Duration{10 * time.Millisecond, 30 * time.Millisecond}), []float64{5, 10, 99})
	if diff := cmp.Diff([]float64{2, 3}, got); diff != "" {
		t.Error(diff)
	}
}
