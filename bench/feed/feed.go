// Package feed measures package live: many nodes' feeds over a network in memory, in the time of testing/synctest.
// Its test is the measurement; the bench runs it.
package feed

import (
	"math"
	"time"
)

// World is what is measured.
type World struct {
	Regions  int           `json:"regions"`
	Hosts    int           `json:"hosts"` // in all; each is an edge as well
	Machines int           `json:"machines"`
	Loss     float64       `json:"loss"`   // share of datagrams
	Jitter   float64       `json:"jitter"` // of the delay
	Every    time.Duration `json:"every"`  // between changes of one host
	WarmUp   time.Duration `json:"warm_up"`
	For      time.Duration `json:"for"`
	Seed     uint64        `json:"seed"`
}

// Result is what was seen.
type Result struct {
	Changes int `json:"changes"`
	Missing int `json:"missing"` // edges which did not hear of a change, nor of a later one
	// Late is, in milliseconds, how much later than half a round trip the last edge heard of a change; LateRTT how much
	// later than a whole one.
	LateP50   float64 `json:"late_p50"`
	LateP99   float64 `json:"late_p99"`
	LateMax   float64 `json:"late_max"`
	LateRTT99 float64 `json:"late_rtt_p99"`
	// AllP99 is the same from the change on, with nothing taken off.
	AllP99 float64 `json:"all_p99"`
	// EdgeP99 is of each edge by itself.
	EdgeP99 float64 `json:"edge_p99"`
	// Sent and SentMost are Mbit/s a node in the mean and at most, with the headers of IPv6 and UDP; SentWire also has
	// those of WireGuard and of the IPv4 outside.
	Sent      float64 `json:"sent"`
	SentMost  float64 `json:"sent_most"`
	SentWire  float64 `json:"sent_wire"`
	Datagrams float64 `json:"datagrams"` // a node and second
	Resent    uint64  `json:"resent"`
	Fulls     uint64  `json:"fulls"`   // after the warm-up
	HeapMB    float64 `json:"heap_mb"` // a node
	CPU       float64 `json:"cpu"`     // of one core, a node, the simulation included
	Took      float64 `json:"took_s"`
}

// delays are one-way delays between regions, which lie on a plane 200 ms wide; inside one it is a quarter of a
// millisecond.
func delays(regions int, place func() (x, y float64)) [][]time.Duration {
	xs, ys := make([]float64, regions), make([]float64, regions)
	for i := range regions {
		xs[i], ys[i] = place()
	}
	out := make([][]time.Duration, regions)
	for i := range regions {
		out[i] = make([]time.Duration, regions)
		for j := range regions {
			d := time.Duration(math.Hypot(xs[i]-xs[j], ys[i]-ys[j]) * float64(time.Millisecond))
			out[i][j] = max(d, 250*time.Microsecond)
		}
	}
	return out
}
