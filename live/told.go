package live

import (
	"slices"
	"time"
)

const (
	resendMin   = 20 * time.Millisecond
	resendMax   = time.Second
	resendFirst = 200 * time.Millisecond // while the round trip is not known
	// On a way that loses, facts are sent again before an acknowledgement can be there: three times within lossyWithin
	// and half a round trip, so that of hundreds of readers the last one has them in time, and not only most.
	lossyWithin = 200 * time.Millisecond
	lossyCopies = 3
	lossyFrom   = 2  // in 1/255
	patience    = 3  // resends before they are sent less often
	flightMost  = 16 // datagrams not acknowledged, to one subscriber
	flightsKept = 64 // with those given up, whose acknowledgement may still come
)

// told is what a subscriber was told of this node's facts.
type told struct {
	wants   Kinds  // 0: it does not subscribe
	gen     uint64 // counts the times that it was told everything
	marks   []mark // by index of the fact
	dirty   []int32
	missing [kindsMost]int // facts of which it has acknowledged no version in this generation
	behind  int            // facts of which it has not acknowledged the newest
	since   time.Time      // when behind began not to be 0
	at      time.Time      // when dirty ones may go out
	flights []flight       // by number
	tries   int            // resends since the last acknowledgement
	stale   bool           // it has missed the end of a fact

	digestAt time.Time
	hadTold  Kinds // in the newest digest of this generation
	whole    Kinds // the same
}

// mark is what a subscriber knows of one fact.
type mark struct {
	acked  uint64 // revision; 0: none
	last   uint64 // number of the newest datagram with it
	dirty  bool   // to be sent
	behind bool   // acked is not the newest
	copies uint8  // sent of the newest revision
}

// flight is a datagram with facts which is not acknowledged.
type flight struct {
	number uint64
	sent   time.Time
	again  time.Time // when its facts are sent again; zero: they were
	refs   []ref
}

type ref struct {
	index int32
	rev   uint64
}

// stop ends the subscription.
func (t *told) stop() {
	*t = told{gen: t.gen}
}

// start makes everything of the wanted kinds dirty.
func (t *told) start(f *Feed, now time.Time) {
	gen, wants := t.gen+1, t.wants
	*t = told{gen: gen, wants: wants, digestAt: now, marks: t.marks[:0]}
	t.grow(len(f.facts))
	for i, o := range f.facts {
		if o != nil && !o.Gone && wants.Has(o.Key.Kind) {
			t.changed(int32(i), o.Key.Kind, now) //nolint:gosec // factsMost
		}
	}
	slices.SortStableFunc(t.dirty, func(a, b int32) int { return int(f.facts[a].Key.Kind) - int(f.facts[b].Key.Kind) })
	t.sendBy(now)
	f.num.Fulls++
}

func (t *told) grow(n int) {
	for len(t.marks) < n {
		t.marks = append(t.marks, mark{})
	}
}

// changed says that a fact has a new revision.
func (t *told) changed(i int32, k Kind, now time.Time) {
	t.grow(int(i) + 1)
	m := &t.marks[i]
	if !m.behind {
		m.behind = true
		if t.behind == 0 {
			t.since = now
		}
		t.behind++
		if m.acked == 0 {
			t.missing[k]++
		}
	}
	m.copies = 0
	t.push(i)
}

func (t *told) push(i int32) {
	if m := &t.marks[i]; !m.dirty {
		m.dirty = true
		t.dirty = append(t.dirty, i)
	}
}

func (t *told) sendBy(at time.Time) {
	if t.at.IsZero() || at.Before(t.at) {
		t.at = at
	}
}

// ready says whether facts may be sent now.
func (t *told) ready(now time.Time) bool {
	for len(t.dirty) > 0 && !t.marks[t.dirty[0]].dirty {
		t.dirty = t.dirty[1:]
	}
	return len(t.dirty) > 0 && !now.Before(t.at) && t.flying() < flightMost
}

func (t *told) flying() int {
	n := 0
	for i := range t.flights {
		if !t.flights[i].again.IsZero() {
			n++
		}
	}
	return n
}

// acked takes an acknowledgement.
func (t *told) acked(f *Feed, number uint64, now time.Time) {
	i := slices.IndexFunc(t.flights, func(x flight) bool { return x.number == number })
	if i < 0 {
		return
	}
	t.tries = 0
	for _, r := range t.flights[i].refs {
		m, o := &t.marks[r.index], f.facts[r.index]
		if o == nil || r.rev <= m.acked || r.rev < o.born {
			continue
		}
		if m.acked == 0 {
			t.missing[o.Key.Kind]--
		}
		m.acked = r.rev
		if m.behind && m.acked == o.rev {
			t.caughtUp(m, now)
		}
	}
	t.flights = slices.Delete(t.flights, i, i+1)
}

func (t *told) caughtUp(m *mark, now time.Time) {
	m.behind, m.dirty = false, false
	t.behind--
	t.since = now
}

// drop forgets a fact whose index will be another's.
func (t *told) drop(i int32, k Kind, now time.Time) {
	if int(i) >= len(t.marks) {
		return
	}
	m := &t.marks[i]
	if m.behind {
		if m.acked == 0 {
			t.missing[k]--
		}
		t.caughtUp(m, now)
	}
	*m = mark{}
}

// expire makes facts dirty again whose acknowledgement is overdue.
func (t *told) expire(f *Feed, now time.Time) {
	late := false
	for i := range t.flights {
		x := &t.flights[i]
		if x.again.IsZero() || now.Before(x.again) {
			continue
		}
		x.again = time.Time{}
		for _, r := range x.refs {
			m := &t.marks[r.index]
			if m.behind && m.last == x.number && !m.dirty {
				late = true
				t.push(r.index)
				f.num.Resent++
			}
		}
	}
	if late {
		t.tries++
		t.sendBy(now)
	}
	if n := len(t.flights) - flightsKept; n > 0 {
		t.flights = slices.Delete(t.flights, 0, n)
	}
}

// again is after how long a datagram's facts are sent again. copies is how often the one of them that was sent least
// was sent before.
func (t *told) again(rtt time.Duration, lossy bool, copies uint8) time.Duration {
	if rtt == 0 {
		return resendFirst
	}
	d := max(rtt*3/2, resendMin)
	if lossy && copies < lossyCopies {
		return min(d, (lossyWithin+rtt/2)/lossyCopies)
	}
	for range t.tries - patience {
		if d >= resendMax {
			break
		}
		d *= 2
	}
	return min(d, max(resendMax, rtt*3/2))
}

// fill appends a section of dirty facts, as many as fit, and notes them as flight number.
func (t *told) fill(b []byte, f *Feed, number uint64, now time.Time, rtt time.Duration, lossy bool) []byte {
	at := len(b)
	b = append(b, sectionFacts, 0, 0)
	b = appendUvarint(b, t.gen)
	var refs []ref
	copies := uint8(lossyCopies)
	done := 0
	for _, i := range t.dirty {
		o, m := f.facts[i], &t.marks[i]
		if o == nil || !m.dirty || !m.behind {
			m.dirty = false
			done++
			continue
		}
		if len(b)+factSize(&o.Fact) > datagramMost {
			break
		}
		done++
		b = appendFact(b, &o.Fact)
		copies = min(copies, m.copies)
		m.dirty, m.last, m.copies = false, number, min(m.copies+1, lossyCopies)
		refs = append(refs, ref{i, o.rev})
	}
	t.dirty = slices.Delete(t.dirty, 0, done)
	if len(t.dirty) == 0 {
		t.at = time.Time{}
	}
	if len(refs) == 0 {
		return b[:at]
	}
	t.flights = append(t.flights, flight{number: number, sent: now, again: now.Add(t.again(rtt, lossy, copies)), refs: refs})
	return endSection(b, at)
}

// had are the kinds of which the subscriber has had every fact.
func (t *told) had() Kinds {
	had := t.wants
	for k := range Kind(kindsMost) {
		if t.missing[k] > 0 {
			had &^= KindsOf(k)
		}
	}
	return had
}

// digestDue says whether a digest is to be sent.
func (t *told) digestDue(f *Feed, now time.Time) bool {
	return t.wants != 0 && (!now.Before(t.digestAt) || t.had() != t.hadTold || t.hadTold&f.whole != t.whole)
}

func (t *told) digest(f *Feed, now time.Time) digest {
	had := t.had()
	d := digest{gen: t.gen, had: had, whole: had & f.whole, exact: t.behind == 0}
	for k := range Kind(kindsMost) {
		if t.wants.Has(k) {
			d.sum.add(f.sums[k])
		}
	}
	t.digestAt, t.hadTold, t.whole = now.Add(digestEvery).Truncate(grid), d.had, d.whole
	return d
}
