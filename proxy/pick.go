package proxy

import "time"

// candidate is what is known of one machine for one service port. Its rank is kept beside it, so that
// a thousand of them are looked through in less than a microsecond for each connection.
type candidate struct {
	used  int32 // slots held
	band  uint8 // distance, in bands of round-trip time; 0 is nearest
	flags flags
}

// flags of a candidate.
type flags uint16

const (
	serving  flags = 1 << iota
	cordoned       // by the operator
	draining       // by the scaler or a deploy
	sealed         // its host is putting it to sleep
	failing        // its checks do not pass
	dead           // did not accept connections for its whole connect time
	unproven       // has not accepted a connection since it began to serve: one at a time tries
	shut           // refused the last connection: one at a time tries, and only if no other can
	trying         // one tries now
	unheard        // its host is not heard: what is known of it may be old
	busy           // its host has said so a moment ago
	away           // its host did not answer a moment ago, or is not to be spoken to
)

// choice is what pick decided.
type choice struct {
	index int // of the candidate; -1 if none may take a connection now
	rule  rule
	// demand says that no candidate near is under its soft limit.
	demand bool
	// far says that the candidate is farther away than is near for its app.
	far bool
}

// The classes of a candidate, best first: the top bits of its rank.
const (
	classSoft    = iota // near, and under the soft limit
	classFar            // far away and under the soft limit
	classHard           // under the hard limit
	classUnheard        // under the hard limit when its host was heard last
	classProbe          // refused the last connection, nobody tries now
	noRank       = ^uint32(0)
)

// policy says how far connections of an app go, and when.
type policy struct {
	near     uint8 // the last band that is near
	late     bool  // they go far only where all near are at the hard limit
	disabled bool  // health is not looked at
}

// bandEnds are the round trips at which the next band begins: places of one city, one country, one ocean.
var bandEnds = [...]time.Duration{
	2 * time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 35 * time.Millisecond,
	50 * time.Millisecond, 75 * time.Millisecond, 100 * time.Millisecond, 150 * time.Millisecond, 200 * time.Millisecond,
	300 * time.Millisecond,
}

// bandOf is the band of a round trip; 0 is this place.
func bandOf(rtt time.Duration) uint8 {
	for i, end := range bandEnds {
		if rtt < end {
			return uint8(i)
		}
	}
	return uint8(len(bandEnds))
}

// nearBand is the last of the bands that end within a round trip: at least the first.
func nearBand(rtt time.Duration) uint8 {
	n := uint8(0)
	for i, end := range bandEnds {
		if end <= rtt {
			n = uint8(i)
		}
	}
	return n
}

// fit says whether a candidate may serve at all, limits and checks aside.
func (c candidate) fit() bool { return c.flags&^(failing|unproven|shut|trying|unheard) == serving }

// suspect says whether more than half of the candidates that could serve fail their checks: then the
// checker is suspected and health is not looked at.
func suspect(cs []candidate) bool {
	total, sick := 0, 0
	for _, c := range cs {
		if !c.fit() {
			continue
		}
		total++
		if c.flags&failing != 0 {
			sick++
		}
	}
	return 2*sick > total
}

// rank orders a candidate for pick: lower is better, noRank is not at all. The class comes first, then the
// nearer band, then fewer slots.
func (c candidate) rank(soft, hard int32, r policy) uint32 {
	if !c.fit() || c.used >= hard || c.flags&failing != 0 && !r.disabled {
		return noRank
	}
	class := uint32(classHard)
	switch far := c.band > r.near; {
	case c.used < soft && !far:
		class = classSoft
	case c.used < soft && !r.late:
		class = classFar
	}
	if c.flags&unheard != 0 {
		class = classUnheard
	}
	if c.flags&(unproven|shut) != 0 {
		if c.flags&trying != 0 {
			return noRank
		}
		if c.flags&shut != 0 {
			class = classProbe
		}
	}
	return class<<28 | uint32(c.band)<<20 | min(uint32(c.used), 1<<20-1)
}

// pick chooses the machine for one more connection by the candidates' ranks: by class, inside that the nearest
// band, then the least loaded, then chance.
func pick(ranks []uint32, near uint8, chance uint64) choice {
	best, ties := noRank, 0
	for _, r := range ranks {
		if r < best {
			best, ties = r, 1
		} else if r == best {
			ties++
		}
	}
	if best == noRank {
		return choice{index: -1, rule: ruleFull, demand: true}
	}
	nth := int(chance % uint64(ties))
	for i, r := range ranks {
		if r != best {
			continue
		}
		if nth == 0 {
			return chosen(i, best, near)
		}
		nth--
	}
	panic("proxy: pick lost its best candidate")
}

// chosen says by which rule a candidate of a rank is chosen.
func chosen(i int, rank uint32, near uint8) choice {
	c := choice{index: i, rule: ruleSpill, demand: true, far: uint8(rank>>20) > near}
	switch class := rank >> 28; {
	case class == classSoft:
		c.rule, c.demand = ruleSoft, false
	case class == classUnheard:
		c.rule = ruleUnknown
	case class == classProbe:
		c.rule = ruleProbe
	case c.far:
		c.rule = ruleFar
	}
	return c
}
