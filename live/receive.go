package live

import (
	"net/netip"
	"time"
)

const (
	ackWithin = 2 * time.Millisecond // for company
	// ackAgain is for what brought nothing new: its writer had an acknowledgement, or sends it once more.
	ackAgain = 200 * time.Millisecond
	rttMost  = 10 * time.Second
	rttEvery = time.Second // a change of it is told at most so often
)

// receive takes one datagram.
func (f *Feed) receive(b []byte, from netip.AddrPort, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.num.Received++
	f.num.RecvBytes += uint64(len(b))
	p := f.byAddr[from]
	d := &f.in
	if p == nil || d.parse(b) != nil || d.epoch < p.epoch {
		f.num.Refused++
		return
	}
	if d.epoch > p.epoch {
		p.reborn(d.epoch)
		f.log.Info("peer has a new epoch", "peer", p.Node, "epoch", d.epoch)
		p.heard = time.Time{} // so that it is told
	}
	fresh, newest := p.arrivals.add(d.number)
	if !fresh {
		f.num.Repeated++
		return
	}
	first := p.silent()
	p.heard, p.isSilent = now, false
	if newest {
		f.takeHead(p, &d.head, now)
	}
	if d.you == f.cfg.Epoch {
		f.takeAnswers(p, d, now)
	}
	f.takeFacts(p, d, now)
	switch {
	case first:
		p.distanceTold, p.distanceAt = p.state().Distance(), now
		p.next = time.Time{}
		p.told.tries = 0
		f.news.peer(p.state())
	case p.moved(now):
		p.distanceTold, p.distanceAt = p.state().Distance(), now
		f.news.peer(p.state())
	}
	f.due(p)
}

// moved says whether the peer's distance is another than what was told.
func (p *peer) moved(now time.Time) bool {
	if now.Sub(p.distanceAt) < rttEvery {
		return false
	}
	d := (p.state().Distance() - p.distanceTold).Abs()
	return d > p.distanceTold/8 && (d > rttStep || p.distanceTold == 0)
}

// rttStep is a change of round trip that matters to nobody.
const rttStep = 500 * time.Microsecond

// takeHead takes what only the newest datagram can tell.
func (f *Feed) takeHead(p *peer, h *head, now time.Time) {
	if h.sent != 0 {
		p.stamp, p.stampedAt = h.sent, now
	}
	if h.echo != 0 && h.you == f.cfg.Epoch {
		rtt := time.Duration(int32(f.clock(now)-h.echo-h.hold)) * time.Microsecond //nolint:gosec // it wraps
		if rtt < rttMost {
			p.rtt.add(rtt, now)
		}
	}
	p.loss = h.loss
	if want := h.want & allKinds; want != p.told.wants {
		p.told.stop()
		p.told.wants = want
		if want != 0 {
			p.told.start(f, now)
		}
		p.soon(now)
	}
}

// allKinds are those that there may ever be.
const allKinds = Kinds(1<<kindsMost - 1)

// takeAnswers takes what a peer says to what it was sent.
func (f *Feed) takeAnswers(p *peer, d *datagram, now time.Time) {
	for _, n := range d.acks {
		p.told.acked(f, n, now)
	}
	if d.resync != 0 && d.resync == p.told.gen && p.told.wants != 0 {
		p.told.start(f, now)
		p.soon(now)
	}
	if len(d.acks) > 0 && p.told.digestDue(f, now) {
		p.soon(now)
	}
}

// takeFacts takes facts and the digest of them.
func (f *Feed) takeFacts(p *peer, d *datagram, now time.Time) {
	h := &p.heardFacts
	if gen := max(d.gen, d.digest.gen); gen > h.gen {
		h.begin(gen)
	}
	if d.gen != 0 {
		within := ackAgain
		if d.gen == h.gen {
			for i := range d.facts {
				if !p.Want.Has(d.facts[i].kind) {
					continue
				}
				fact, told := h.take(p, &d.facts[i], now)
				if told.news {
					f.news.fact(fact)
				}
				if told.took {
					within = ackWithin
				}
			}
			h.number = max(h.number, d.number)
		}
		f.owe(p, d.number, now.Add(within))
	}
	if d.hasDigest && d.digest.gen == h.gen {
		f.takeDigest(p, d, now)
	}
}

// takeDigest compares what is known with what should be. It says nothing if something newer has overtaken it.
func (f *Feed) takeDigest(p *peer, d *datagram, now time.Time) {
	h := &p.heardFacts
	h.complete(p.epoch, d.digest.had, d.digest.whole, f.news.fact)
	if !d.digest.exact || d.number < h.number {
		return
	}
	if d.digest.sum == h.sum {
		h.asked = 0
		return
	}
	f.num.Mismatch++
	if h.differs(now) {
		p.soon(now)
	}
}

// owe notes that a datagram is to be acknowledged, and by when.
func (f *Feed) owe(p *peer, number uint64, by time.Time) {
	if len(p.acks) == 0 || by.Before(p.ackAt) {
		p.ackAt = by
	}
	p.acks = append(p.acks, number)
	if len(p.acks) >= acksMost {
		p.ackAt = time.Time{}
	}
	p.soon(p.ackAt)
}

// forget makes facts of a peer gone.
func (f *Feed) forget(p *peer, kinds func(Kind) bool) {
	for key, k := range p.heardFacts.known {
		if !k.Gone && kinds(key.Kind) {
			p.heardFacts.remove(k, f.news.fact)
		}
	}
	p.heardFacts.asked = 0
}
