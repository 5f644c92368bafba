package memnet

import (
	"context"
	"net/netip"
	"syscall"
	"time"
)

// Wire is the way between two addresses.
type Wire struct {
	Delay time.Duration // one way
	Cut   bool          // nothing passes; what was sent is sent again until something does
}

// again is how often what did not pass a cut wire is sent again.
const again = 200 * time.Millisecond

// SetWire makes f the judge of the ways that connections and, without Weather, datagrams go from now on, at each byte.
// With nil there is no way: what is written is there.
func (n *Network) SetWire(f func(from, to netip.Addr) Wire) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wire = f
}

// passes returns when one packet has passed a wire, or with the error of ctx.
func passes(ctx context.Context, w func() Wire) error {
	for {
		now := w()
		wait := now.Delay
		if now.Cut {
			wait = again
		}
		if wait > 0 {
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return ctx.Err()
			}
		}
		if !now.Cut {
			return nil
		}
	}
}

// piece is what is on its way in one direction.
type piece struct {
	due  time.Time
	data []byte
	fin  bool
	rst  bool
}

// sendLocked puts something on the way.
func (h *half) sendLocked(p piece) {
	p.due = time.Now().Add(h.wire().Delay)
	h.way = append(h.way, p)
	h.flying += len(p.data)
	if len(h.way) == 1 {
		time.AfterFunc(time.Until(p.due), h.arrive)
	}
}

// arrive takes in what is due.
func (h *half) arrive() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.way) > 0 {
		p := h.way[0]
		wait := time.Until(p.due)
		if wait <= 0 && h.wire().Cut {
			wait = again // a reset too: the kernel answers what is sent later, keep-alives too, with another
		}
		if wait > 0 {
			time.AfterFunc(wait, h.arrive)
			return
		}
		h.way = h.way[1:]
		h.takeLocked(p)
	}
}

func (h *half) takeLocked(p piece) {
	h.flying -= len(p.data)
	switch {
	case p.rst:
		if !h.fin || len(h.buf) > 0 {
			h.err = syscall.ECONNRESET
		}
		go h.back.refuse() // the other direction is over as well
	case h.unread && len(p.data) > 0: // the kernel's answer to bytes for nobody is RST
		go h.back.answer()
	case p.fin:
		h.fin = true
	case !h.unread:
		h.buf = append(h.buf, p.data...)
	}
	h.changed.Broadcast()
}

// refuse ends what is written in this direction.
func (h *half) refuse() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.werr = syscall.ECONNRESET
	h.changed.Broadcast()
}

// answer sends a reset in this direction.
func (h *half) answer() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sendLocked(piece{rst: true})
}
