package live

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"
)

func appendUvarint(b []byte, v uint64) []byte { return binary.AppendUvarint(b, v) }

// wire reads and writes datagrams.
type wire interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
}

// wireOf is conn as a wire; *net.UDPConn is one.
func wireOf(conn net.PacketConn) wire {
	if w, ok := conn.(wire); ok {
		return w
	}
	return slowWire{conn}
}

type slowWire struct{ conn net.PacketConn }

func (w slowWire) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	n, from, err := w.conn.ReadFrom(b)
	if err != nil {
		return 0, netip.AddrPort{}, err
	}
	if u, ok := from.(*net.UDPAddr); ok {
		return n, u.AddrPort(), nil
	}
	return n, netip.AddrPort{}, nil
}

func (w slowWire) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	return w.conn.WriteTo(b, net.UDPAddrFromAddrPort(to))
}

// outbox collects datagrams, to be sent when Feed.mu is free again.
type outbox struct {
	buf  []byte
	mail []letter
}

type letter struct {
	to   netip.AddrPort
	size int
}

// talk sends what is due until ctx ends.
func (f *Feed) talk(ctx context.Context, w wire) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.bell:
		case <-timer.C:
		}
		next := f.round(time.Now())
		f.post(w)
		timer.Reset(max(time.Until(next), 0))
	}
}

// due rings where a peer needs the sender before that looks again.
func (f *Feed) due(p *peer) {
	if p.next.Before(f.wakes) {
		f.wakes = p.next
		f.ring()
	}
}

// post sends what round has collected. Only talk calls it.
func (f *Feed) post(w wire) {
	b, failed := f.out.buf, uint64(0)
	for _, l := range f.out.mail {
		if _, err := w.WriteToUDPAddrPort(b[:l.size], l.to); err != nil {
			failed++ // as if it were lost: it is sent again
		}
		b = b[l.size:]
	}
	if failed > 0 {
		f.mu.Lock()
		f.num.SendFails += failed
		f.mu.Unlock()
	}
}

// round collects all that is due, and says when something is again.
func (f *Feed) round(now time.Time) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.out.buf, f.out.mail = f.out.buf[:0], f.out.mail[:0]
	if now.Sub(f.wakes) > lateMost {
		f.excused = now
	}
	next := now.Add(beatEvery)
	if now.Sub(f.swept) >= sweepEvery {
		f.swept = now
		f.sweep(now)
	}
	for _, p := range f.order {
		if !now.Before(p.next) {
			f.serve(p, now)
		}
		if p.next.Before(next) {
			next = p.next
		}
	}
	f.wakes = next
	return next
}

// serve sends a peer what is due, and sets when to look again.
func (f *Feed) serve(p *peer, now time.Time) {
	f.watch(p, now)
	t := &p.told
	if !p.silent() && t.wants != 0 {
		if t.stale {
			t.start(f, now)
		}
		t.expire(f, now)
		for t.ready(now) {
			f.write(p, now, true)
		}
	}
	if !now.Before(p.beatAt()) || len(p.acks) > 0 && !now.Before(p.ackAt) ||
		!p.silent() && (t.digestDue(f, now) || p.heardFacts.resync != 0) {
		f.write(p, now, false)
	}
	p.next = f.nextLook(p)
}

// nextLook is when something is due for a peer, if nothing happens before.
func (f *Feed) nextLook(p *peer) time.Time {
	next := p.beatAt()
	if len(p.acks) > 0 && p.ackAt.Before(next) {
		next = p.ackAt
	}
	if !p.isSilent {
		if at := p.silentAt(f.excused); at.Before(next) {
			next = at
		}
	}
	t := &p.told
	if p.silent() || t.wants == 0 {
		return next
	}
	if t.digestAt.Before(next) {
		next = t.digestAt
	}
	flying := 0
	for i := range t.flights {
		if again := t.flights[i].again; !again.IsZero() {
			flying++
			if again.Before(next) {
				next = again
			}
		}
	}
	if len(t.dirty) > 0 && flying < flightMost && t.at.Before(next) {
		next = t.at
	}
	return next
}

// watch notices silence.
func (f *Feed) watch(p *peer, now time.Time) {
	if !p.isSilent && !now.Before(p.silentAt(f.excused)) {
		p.isSilent = true
		f.log.Info("peer is silent", "peer", p.Node, "heard", !p.heard.IsZero())
		f.news.peer(p.state())
	}
}

// write makes one datagram for a peer.
func (f *Feed) write(p *peer, now time.Time, facts bool) {
	p.number++
	h := head{
		epoch: f.cfg.Epoch, you: p.epoch, number: p.number, sent: f.clock(now), loss: p.arrivals.loss(), want: p.Want,
	}
	if p.stamp != 0 {
		if hold := now.Sub(p.stampedAt).Microseconds(); hold < 1<<31 {
			h.echo, h.hold = p.stamp, uint32(hold) //nolint:gosec // checked
		}
	}
	at := len(f.out.buf)
	f.out.buf = slices.Grow(f.out.buf, datagramMost)
	b := h.append(f.out.buf[at:at])
	if n := min(len(p.acks), acksMost); n > 0 {
		slices.SortFunc(p.acks, func(a, b uint64) int { return int(b) - int(a) }) //nolint:gosec // only the order counts
		p.acks = slices.Compact(p.acks)
		n = min(n, len(p.acks))
		b = appendAcks(b, p.acks[:n])
		p.acks = slices.Delete(p.acks, 0, n)
	}
	if p.heardFacts.resync != 0 {
		b = appendResync(b, p.heardFacts.resync)
		p.heardFacts.resync = 0
	}
	if !p.silent() && p.told.digestDue(f, now) {
		d := p.told.digest(f, now)
		b = d.append(b)
	}
	if facts {
		b = p.told.fill(b, f, p.number, now, p.rtt.smooth, max(p.loss, f.loss) >= lossyFrom)
	}
	p.sentAt = now
	f.num.Sent++
	f.num.SentBytes += uint64(len(b))
	f.out.buf = f.out.buf[:at+len(b)]
	f.out.mail = append(f.out.mail, letter{p.Addr, len(b)})
}

// sweep forgets facts that are no more: when all subscribers know, or have had the time.
func (f *Feed) sweep(now time.Time) {
	for i, o := range f.facts {
		if o == nil || !o.Gone {
			continue
		}
		old := now.Sub(o.gone) > goneKept
		if !old && f.unknownTo(int32(i), o) { //nolint:gosec // factsMost
			continue
		}
		for _, p := range f.order {
			if p.told.wants.Has(o.Key.Kind) {
				if i < len(p.told.marks) && p.told.marks[i].behind {
					p.told.stale = true
				}
				p.told.drop(int32(i), o.Key.Kind, now) //nolint:gosec // factsMost
			}
		}
		delete(f.index, o.Key)
		f.facts[i] = nil
		f.free = append(f.free, int32(i)) //nolint:gosec // factsMost
	}
	loss := 0
	for _, p := range f.order {
		p.heardFacts.sweep(now)
		loss += int(p.loss)
	}
	f.loss = uint8(loss / max(len(f.order), 1)) //nolint:gosec // a mean
}

// unknownTo says whether a subscriber has not acknowledged the newest of a fact.
func (f *Feed) unknownTo(i int32, o *own) bool {
	for _, p := range f.order {
		if p.told.wants.Has(o.Key.Kind) && int(i) < len(p.told.marks) && p.told.marks[i].behind {
			return true
		}
	}
	return false
}

// listen takes datagrams until ctx ends.
func (f *Feed) listen(ctx context.Context, w wire) error {
	buf := make([]byte, 2048)
	failed := 0
	for {
		n, from, err := w.ReadFromUDPAddrPort(buf)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // asked to stop
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("live: %w", err)
		case err == nil:
			failed = 0
			f.receive(buf[:n], unmapped(from), time.Now())
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("live: %w", err)
		}
		// Such as ECONNREFUSED, which tells of an earlier datagram.
		if failed++; failed > 100 {
			return fmt.Errorf("live: %w", err)
		}
	}
}
