package proxy

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
)

// choice is what pick decided.
type choice struct {
	index int // of the candidate; -1 if none may take a connection now
	rule  rule
	// demand says that no candidate is under its soft limit.
	demand bool
}

// The classes of a candidate, best first: the top bits of its rank.
const (
	classSoft  = 0 // under the soft limit
	classHard  = 1 // under the hard limit
	classProbe = 2 // refused the last connection, nobody tries now
	noRank     = ^uint32(0)
)

// fit says whether a candidate may serve at all, limits and checks aside.
func (c candidate) fit() bool { return c.flags&^(failing|unproven|shut|trying) == serving }

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
func (c candidate) rank(soft, hard int32, suspect bool) uint32 {
	if !c.fit() || c.used >= hard || c.flags&failing != 0 && !suspect {
		return noRank
	}
	class := uint32(classSoft)
	if c.used >= soft {
		class = classHard
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

// pick chooses the machine for one more connection by the candidates' ranks: under the soft limit before
// under the hard one, inside that the nearest band, then the least loaded, then chance.
func pick(ranks []uint32, chance uint64) choice {
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
			return chosen(i, best>>28)
		}
		nth--
	}
	panic("proxy: pick lost its best candidate")
}

func chosen(i int, class uint32) choice {
	switch class {
	case classSoft:
		return choice{index: i, rule: ruleSoft}
	case classHard:
		return choice{index: i, rule: ruleSpill, demand: true}
	}
	return choice{index: i, rule: ruleProbe, demand: true}
}
