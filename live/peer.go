package live

import "time"

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

	distanceTold time.Duration
	distanceAt   time.Time // when it was told

	loss uint8 // of datagrams to it, as it says, in 1/255

	heardFacts heardFacts
	told       told

	number uint64 // of the last datagram to it
	sentAt time.Time
	acks   []uint64  // to be sent
	ackAt  time.Time // by when, if there are any; those that brought nothing new may wait
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

// silentAt is when it will be silent, if it is not heard before. excused is when this node itself was back after it did
// nothing for some time: what came meanwhile may not have been read yet.
func (p *peer) silentAt(excused time.Time) time.Time {
	at := p.heard
	if at.IsZero() {
		at = p.added
	}
	if at.Before(excused) {
		at = excused
	}
	return at.Add(silentAfter)
}

// beatAt is when it is to hear of this node at the latest.
func (p *peer) beatAt() time.Time {
	if p.sentAt.IsZero() {
		return p.sentAt
	}
	return p.sentAt.Add(beatEvery).Truncate(grid)
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
	if r.smooth == 0 || d < r.smooth/2 { // nothing makes a way look shorter than it is
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
	highest   uint64
	seen      uint64 // bit i: highest - i came
	due, lost uint64 // of those that are too old to come still; both are halved now and then
}

// add says whether a number is new, and whether it is the highest so far.
func (a *arrivals) add(n uint64) (fresh, highest bool) {
	switch {
	case a.highest == 0:
		a.highest, a.seen = n, 1<<64-1 // what came before does not count as lost
		return true, true
	case n > a.highest:
		a.advance(min(n-a.highest, 64))
		a.highest = n
		return true, true
	case a.highest-n >= 64 || a.seen&(1<<(a.highest-n)) != 0:
		return false, false
	}
	a.seen |= 1 << (a.highest - n)
	return true, false
}

const (
	lateBy    = 4   // datagrams: what is not there by then is lost
	lossFrom  = 20  // datagrams: fewer say nothing
	lossMost  = 512 // datagrams that are remembered, about
	lossWhole = 255
)

// advance makes room for d numbers more. What is late by then is lost.
func (a *arrivals) advance(d uint64) {
	for range d {
		a.due++
		if a.seen&(1<<lateBy) == 0 {
			a.lost++
		}
		a.seen <<= 1
	}
	a.seen |= 1
	if a.due >= lossMost {
		a.due, a.lost = a.due/2, a.lost/2
	}
}

// loss is the share that was lost, in 1/255.
func (a *arrivals) loss() uint8 {
	if a.due < lossFrom {
		return 0
	}
	return uint8((a.lost*lossWhole + a.due/2) / a.due) //nolint:gosec // lost are not more than due
}
