package node

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
)

// regions knows how far regions are from each other: by round trips that nodes measure, else by the map.
type regions struct {
	snap *catalog.Snapshot
	rtts map[[2]volant.Region]time.Duration // measured, the region with the lesser name first
	all  []volant.Region                    // of nodes, sorted
}

func pairOf(a, b volant.Region) [2]volant.Region {
	if b < a {
		a, b = b, a
	}
	return [2]volant.Region{a, b}
}

// newRegions takes in what this node of a region has measured and what others told.
func newRegions(snap *catalog.Snapshot, self volant.NodeID, here volant.Region, k *known) *regions {
	r := &regions{snap: snap, rtts: map[[2]volant.Region]time.Duration{}}
	seen := map[volant.Region]bool{here: true}
	for id, n := range snap.Nodes() {
		if n.Tombstone {
			continue
		}
		seen[n.Region] = true
		if id == self {
			continue
		}
		r.measured(here, n.Region, k.rtt(id))
		told, _ := k.roomOf(id)
		for to, ms := range told.RTT {
			r.measured(n.Region, to, time.Duration(ms*float64(time.Millisecond)))
		}
	}
	r.all = slices.Sorted(maps.Keys(seen))
	return r
}

func (r *regions) measured(a, b volant.Region, rtt time.Duration) {
	p := pairOf(a, b)
	if old, ok := r.rtts[p]; a != b && rtt > 0 && (!ok || rtt < old) {
		r.rtts[p] = rtt
	}
}

// distance is the round trip between two regions, measured or estimated; the longest there is if nothing is known.
func (r *regions) distance(a, b volant.Region) time.Duration {
	if a == b {
		return 0
	}
	if rtt, ok := r.rtts[pairOf(a, b)]; ok {
		return rtt
	}
	pa, oka := r.snap.Place(a)
	pb, okb := r.snap.Place(b)
	if !oka || !okb {
		return math.MaxInt64
	}
	return overland(pa, pb)
}

// near are the other regions, nearest first.
func (r *regions) near(a volant.Region) []volant.Region {
	out := slices.DeleteFunc(slices.Clone(r.all), func(b volant.Region) bool { return a == b })
	slices.SortStableFunc(out, func(b, c volant.Region) int { return cmp.Compare(r.distance(a, b), r.distance(a, c)) })
	return out
}

const (
	earthKM = 6371
	// fibreKM is how far a signal goes there and back within a millisecond, on the ways that fibre takes.
	fibreKM = 70
)

// overland estimates the round trip between two places by the great circle.
func overland(a, b *volant.Place) time.Duration {
	rad := func(deg float64) float64 { return deg * math.Pi / 180 }
	dLat, dLong := rad(b.Lat-a.Lat), rad(b.Long-a.Long)
	h := math.Pow(math.Sin(dLat/2), 2) + math.Cos(rad(a.Lat))*math.Cos(rad(b.Lat))*math.Pow(math.Sin(dLong/2), 2)
	km := 2 * earthKM * math.Asin(math.Sqrt(min(1, h)))
	return time.Duration(km / fibreKM * float64(time.Millisecond))
}

// regionRTTs is the round trip from this node to each other region, in milliseconds, as others are told it.
func (p *Platform) regionRTTs() map[volant.Region]float64 {
	const most = 40
	out := map[volant.Region]float64{}
	for id, n := range p.cat.Snapshot().Nodes() {
		rtt := p.known.rtt(id)
		if n.Tombstone || n.Region == p.Region || rtt <= 0 || len(out) >= most {
			continue
		}
		ms := math.Round(float64(rtt)/float64(time.Millisecond)*10) / 10
		if ms >= 10 {
			ms = math.Round(ms)
		}
		if old, ok := out[n.Region]; !ok || ms < old {
			out[n.Region] = ms
		}
	}
	return out
}
