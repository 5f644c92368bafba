package live

import (
	"time"
)

// known is a fact of another node.
type known struct {
	Fact
	round uint64    // in which it was told last
	epoch uint64    // the same
	gone  time.Time // when it was told to be no more
}

// heardFacts are the facts of one peer. Each generation tells them all anew; those that it does not repeat are
// gone once it says that it is complete.
type heardFacts struct {
	gen     uint64 // the writer's
	round   uint64 // counts generations, of all epochs
	number  uint64 // of the newest datagram with facts, in this generation
	known   map[Key]*known
	sum     sum // of those told in this generation and not gone
	alive   int // not gone
	old     int // of those, not told in this generation
	graves  int // gone
	resync  uint64
	askedAt time.Time
	asked   int // how often in a row a digest differed
}

const (
	resyncFirst = digestEvery / 2
	resyncMost  = time.Minute
)

// restart is for a writer that began anew.
func (h *heardFacts) restart() { h.begin(0) }

// begin begins a generation.
func (h *heardFacts) begin(gen uint64) {
	h.round++
	h.gen, h.number, h.sum, h.old, h.resync = gen, 0, sum{}, h.alive, 0
}

// taken says what became of a fact: it was not known like this, and it is to be told.
type taken struct{ took, news bool }

// take takes a fact of the present generation.
func (h *heardFacts) take(p *peer, in *wireFact, now time.Time) (Fact, taken) {
	key := Key{in.kind, string(in.id)}
	k := h.known[key]
	if k == nil {
		if len(h.known) >= factsMost {
			return Fact{}, taken{}
		}
		k = &known{}
		h.known[key] = k
		h.store(p, k, key, in, now)
		return k.Fact, taken{true, !in.gone}
	}
	if newer(in.version, in.gone, k.Version, k.Gone) {
		wasGone := k.Gone
		h.unlink(k)
		h.store(p, k, key, in, now)
		return k.Fact, taken{true, !in.gone || !wasGone}
	}
	if !k.Gone && k.round != h.round && k.Version == in.version { // told again
		k.round, k.epoch = h.round, p.epoch
		h.old--
		h.sum.add(sumOf(key, k.Version))
		return Fact{}, taken{took: true}
	}
	return Fact{}, taken{}
}

// unlink takes a fact out of the counts.
func (h *heardFacts) unlink(k *known) {
	switch {
	case k.Gone:
		h.graves--
		return
	case k.round == h.round:
		h.sum.add(sumOf(k.Key, k.Version))
	default:
		h.old--
	}
	h.alive--
}

func (h *heardFacts) store(p *peer, k *known, key Key, in *wireFact, now time.Time) {
	if k.Key.ID != "" {
		key = k.Key // the string that is there already
	}
	k.Fact = Fact{Node: p.Node, Key: key, Version: in.version, Gone: in.gone}
	k.round, k.epoch = h.round, p.epoch
	if in.gone {
		k.gone = now
		h.graves++
		return
	}
	k.Body = append([]byte(nil), in.body...)
	h.alive++
	h.sum.add(sumOf(key, in.version))
}

// complete removes what the present generation has not told of the kinds that were had: what this epoch told before,
// and of whole kinds everything. It calls tell with what it removes.
func (h *heardFacts) complete(epoch uint64, had, whole Kinds, tell func(Fact)) {
	if h.old == 0 {
		return
	}
	for key, k := range h.known {
		if !k.Gone && k.round != h.round && (whole.Has(key.Kind) || k.epoch == epoch && had.Has(key.Kind)) {
			h.remove(k, tell)
		}
	}
}

// remove makes a fact gone without the writer's word.
func (h *heardFacts) remove(k *known, tell func(Fact)) {
	h.unlink(k)
	delete(h.known, k.Key)
	tell(Fact{Node: k.Node, Key: k.Key, Version: k.Version, Gone: true})
}

// sweep forgets that facts are gone, when no datagram of before can come any more.
func (h *heardFacts) sweep(now time.Time) {
	if h.graves == 0 {
		return
	}
	for key, k := range h.known {
		if k.Gone && now.Sub(k.gone) > goneKept {
			delete(h.known, key)
			h.graves--
		}
	}
}

// differs notes that the digest of a generation is another than ours, and says whether to ask for everything.
func (h *heardFacts) differs(now time.Time) bool {
	wait := min(resyncFirst<<min(h.asked, 8), resyncMost)
	if now.Sub(h.askedAt) < wait {
		return false
	}
	h.asked++
	h.askedAt, h.resync = now, h.gen
	return true
}
