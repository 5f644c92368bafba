package guest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Bounds of the wire. Whatever breaks one ends the session.
const (
	headerLen  = 8
	maxPayload = 32 << 10  // of one frame
	maxStreams = 256       // open at once
	window     = 256 << 10 // bytes of a substream which nobody has read yet
	maxRequest = 1 << 20   // a message to the guest
	maxReply   = 64 << 10  // a message to the host
	maxMethod  = 32
)

// kind is a frame's first byte. A zero byte where a frame could begin is padding and skipped.
type kind uint8

const (
	kindOpen   kind = iota + 1 // host: begins a stream; payload: the method
	kindData                   // bytes of a substream
	kindEnd                    // no more bytes on a substream
	kindWindow                 // payload: bytes that may be sent in addition, 32 bits
	kindReset                  // ends a stream at once
	kindHello                  // guest: first frame of a session; payload: Hello
)

// Substreams of a stream.
const (
	subMessage = iota // request and reply
	subIn             // stdin
	subOut            // stdout, and log lines
	subErr            // stderr
	subs
)

// frame is the unit on the link: kind, substream, length (16 bits), stream (32 bits), payload.
type frame struct {
	kind    kind
	sub     uint8
	stream  uint32
	payload []byte
}

var (
	errProtocol = errors.New("protocol error")
	errSync     = errors.New("a handshake begins") // where a frame was expected
)

// appendFrame adds f's bytes to b.
func appendFrame(b []byte, f frame) []byte {
	b = append(b, byte(f.kind), f.sub)
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.payload)))
	b = binary.BigEndian.AppendUint32(b, f.stream)
	return append(b, f.payload...)
}

// readFrame reads the next frame. A handshake in its place is errSync and stays unread.
func readFrame(r *bufio.Reader) (frame, error) {
	for {
		c, err := r.Peek(1)
		if err != nil {
			return frame{}, err
		}
		if c[0] != 0 {
			break
		}
		if _, err := r.Discard(1); err != nil {
			return frame{}, err
		}
	}
	if c, err := r.Peek(1); err != nil {
		return frame{}, err
	} else if c[0] == syncMagic[0] {
		return frame{}, errSync
	}
	h, err := r.Peek(headerLen)
	if err != nil {
		return frame{}, err
	}
	f := frame{kind: kind(h[0]), sub: h[1], stream: binary.BigEndian.Uint32(h[4:])}
	n := int(binary.BigEndian.Uint16(h[2:]))
	if f.kind > kindHello || f.sub >= subs || n > maxPayload {
		return frame{}, fmt.Errorf("%w: frame %x", errProtocol, h)
	}
	if _, err := r.Discard(headerLen); err != nil {
		return frame{}, err
	}
	f.payload = make([]byte, n)
	for got := 0; got < n; {
		m, err := r.Read(f.payload[got:])
		if err != nil {
			return frame{}, err
		}
		got += m
	}
	return f, nil
}

// The handshake. The host sends hail with a nonce of its own until the guest answers echo with the
// same nonce: what comes before is of an earlier session. A guest that sees a hail with another
// nonce ends the session it is in; one with the same nonce it skips.
//
//	magic (7) | hail or echo (1) | version (1) | nonce (16) | FNV-1a of these (4)
const (
	syncMagic = "\xf5volant"
	syncLen   = len(syncMagic) + 2 + nonceLen + 4
	nonceLen  = 16
	hail      = 'H'
	echo      = 'E'
)

type nonce [nonceLen]byte

func appendSync(b []byte, dir, version byte, n nonce) []byte {
	start := len(b)
	b = append(b, syncMagic...)
	b = append(b, dir, version)
	b = append(b, n[:]...)
	return binary.BigEndian.AppendUint32(b, fnv(b[start:]))
}

func fnv(b []byte) uint32 {
	h := uint32(2166136261)
	for _, c := range b {
		h = (h ^ uint32(c)) * 16777619
	}
	return h
}

// parseSync reads a handshake of the given direction out of b.
func parseSync(b []byte, dir byte) (version byte, n nonce, ok bool) {
	if len(b) < syncLen || string(b[:len(syncMagic)]) != syncMagic || b[len(syncMagic)] != dir {
		return 0, n, false
	}
	body, sum := b[:syncLen-4], binary.BigEndian.Uint32(b[syncLen-4:syncLen])
	if fnv(body) != sum {
		return 0, n, false
	}
	copy(n[:], body[len(syncMagic)+2:])
	return body[len(syncMagic)+1], n, true
}

// scanSync discards input up to and with the next handshake of the given direction.
func scanSync(r *bufio.Reader, dir byte) (version byte, n nonce, err error) {
	for {
		if _, err := r.Peek(1); err != nil {
			return 0, n, err
		}
		b, _ := r.Peek(r.Buffered()) // cannot fail: it asks for what is there
		i := bytes.IndexByte(b, syncMagic[0])
		if i < 0 {
			i = len(b)
		}
		if i > 0 {
			if _, err := r.Discard(i); err != nil {
				return 0, n, err
			}
			continue
		}
		// Compare byte by byte, so that a lone first byte does not wait for a whole handshake.
		if l := min(len(b), len(syncMagic)); string(b[:l]) != syncMagic[:l] {
			if _, err := r.Discard(1); err != nil {
				return 0, n, err
			}
			continue
		}
		if b, err = r.Peek(syncLen); err != nil {
			return 0, n, err
		}
		version, n, ok := parseSync(b, dir)
		skip := 1
		if ok {
			skip = syncLen
		}
		if _, err := r.Discard(skip); err != nil {
			return 0, n, err
		}
		if ok {
			return version, n, nil
		}
	}
}
