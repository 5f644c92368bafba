package live

import (
	"math/bits"
	"time"
)

// peer is all that is kept of another node. Feed.mu guards it.
type peer struct {
	Peer
	added time.Time
	next  time.Time // when the sender looks here next

	epoch     uint64 // its own; 0: not heard yet
	heard     time.Time
	isSilent  bool // and that was told
	arrivals  arrivals
	stamp     uint32    // newest clock of it
	stampedAt time.Time // when that came
	rtt       roundTrip
	rttTold   time.Duration
	rttToldAt time.Time

	lossy bool // datagrams to it were lost of late

	heardFacts heardFacts
	told       told

	number uint64 // of the last datagram to it
	sentAt time.Time
	acks   []uint64  // to be sent
	ackAt  time.Time // by when, if there are any
}

func newPeer(cfg Peer, now time.Time) *peer {
	return &peer{Peer: cfg, added: now, heardFacts: heardFacts{known: map[Key]*known{}}}
}

func (p *peer) state() PeerState {
	return PeerState{
		Node: p.Node, Epoch: p.epoch, RTT: p.rtt.smooth, MinRTT: p.rtt.least(), Heard: p.heard, Silent: p.silent(),
	}
}

func (p *peer) silent() bool { return p.heard.IsZero() || p.isSilent }

// lastHeard is when it was heard, or when one began to listen.
func (p *peer) lastHeard() time.Time {
	if p.heard.IsZero() {
		return p.added
	}
	return p.heard
}

// soon has the sender look here at that time, if not before.
func (p *peer) soon(at time.Time) {
	if at.Before(p.next) {
		p.next = at
	}
}

// reborn begins anew with a peer that restarted: it knows nothing, and its numbers begin again. What it told
// stays until it has told all anew.
func (p *peer) reborn(epoch uint64) {
	p.epoch = epoch
	p.arrivals = arrivals{}
	p.stamp, p.acks, p.ackAt = 0, nil, time.Time{}
	p.heardFacts.restart()
	p.told.stop()
}

// roundTrip is what was measured of the way to a peer and back.
type roundTrip struct {
	smooth   time.Duration // 0: not measured
	min      [2]time.Duration
	minSince time.Time
}

const minFor = time.Minute

func (r *roundTrip) add(d time.Duration, now time.Time) {
	d = max(d, time.Microsecond)
	if r.smooth == 0 {
		r.smooth = d
	} else {
		r.smooth += (d - r.smooth) / 8
	}
	if r.minSince.IsZero() || now.Sub(r.minSince) > minFor {
		r.min[0], r.min[1], r.minSince = r.min[1], d, now
	}
	r.min[1] = min(r.min[1], d)
}

// least is the shortest of the last minute or two.
func (r *roundTrip) least() time.Duration {
	if r.min[0] == 0 {
		return r.min[1]
	}
	return min(r.min[0], r.min[1])
}

// arrivals remembers which of the last 64 datagrams came.
type arrivals struct {
	first, highest uint64
	seen           uint64 // bit i: highest - i came
}

// add says whether a number is new, and whether it is the highest so far.
func (a *arrivals) add(n uint64) (fresh, highest bool) {
	switch {
	case a.highest == 0:
		a.first, a.highest, a.seen = n, n, 1
		return true, true
	case n > a.highest:
		if d := n - a.highest; d < 64 {
			a.seen = a.seen<<d | 1
		} else {
			a.seen = 1
		}
		a.highest = n
		return true, true
	case a.highest-n >= 64 || a.seen&(1<<(a.highest-n)) != 0:
		return false, false
	}
	a.seen |= 1 << (a.highest - n)
	return true, false
}

const (
	lateBy    = 4  // datagrams: what is not there by then is lost
	lossFrom  = 20 // datagrams: fewer say nothing
	lossWhole = 255
)

// loss is the share that was lost, in 1/255.
func (a *arrivals) loss() uint8 {
	n := min(a.highest-a.first+1, 64)
	if a.highest == 0 || n < lossFrom {
		return 0
	}
	window := n - lateBy
	mask := (uint64(1)<<window - 1) << lateBy
	missing := window - uint64(bits.OnesCount64(a.seen&mask)) //nolint:gosec // at most 64
	return uint8(missing * lossWhole / window)                //nolint:gosec // at most 255
}
