package live

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
)

// A datagram is a head and sections, each a type, two bytes of length and that many bytes; unknown ones are skipped.
//
//	head    version (1 byte), epoch, you, number, sent (4 bytes), echo (4 bytes), hold, loss (1 byte), want
//	acks    count, the greatest number, then how far below the one before each is
//	facts   generation, then facts to the end: kind (1 byte, top bit: gone), ID, epoch, sequence, body
//	digest  generation, kinds had, whole kinds, exact (1 byte), sum (16 bytes)
//	resync  generation
//
// All other numbers are varints; an ID and a body are their length and their bytes.
const (
	wireVersion  = 1
	datagramMost = 1200 // inside the mesh's MTU of 1280 with the headers of IPv6 and UDP
	headMost     = 1 + 3*binary.MaxVarintLen64 + 8 + 5 + 1 + 3
	sectionHead  = 3
	acksMost     = 32 // in one datagram
	goneBit      = 0x80

	sectionAcks   = 1
	sectionFacts  = 2
	sectionDigest = 3
	sectionResync = 4
)

// factMost is what a fact may take, so that it always fits into a datagram of its own.
const factMost = datagramMost - headMost - sectionHead - binary.MaxVarintLen64

var errMalformed = errors.New("malformed datagram")

// head begins every datagram.
type head struct {
	epoch  uint64 // of the sender
	you    uint64 // the receiver's epoch, as the sender knows it; 0: it does not
	number uint64 // of the datagram, from 1
	sent   uint32 // the sender's clock, in microseconds; 0 stands for none
	echo   uint32 // sent of the newest datagram it has
	hold   uint32 // microseconds since that came
	loss   uint8  // share of the receiver's datagrams that were lost of late, in 1/255
	want   Kinds  // what the sender subscribes to
}

func (h *head) append(b []byte) []byte {
	b = append(b, wireVersion)
	b = binary.AppendUvarint(b, h.epoch)
	b = binary.AppendUvarint(b, h.you)
	b = binary.AppendUvarint(b, h.number)
	b = binary.BigEndian.AppendUint32(b, h.sent)
	b = binary.BigEndian.AppendUint32(b, h.echo)
	b = binary.AppendUvarint(b, uint64(h.hold))
	b = append(b, h.loss)
	return binary.AppendUvarint(b, uint64(h.want))
}

// wireFact is a fact on the wire; its bytes are the datagram's.
type wireFact struct {
	kind    Kind
	gone    bool
	id      []byte
	version Version
	body    []byte
}

func appendFact(b []byte, f *Fact) []byte {
	k := byte(f.Key.Kind)
	if f.Gone {
		k |= goneBit
	}
	b = append(b, k)
	b = binary.AppendUvarint(b, uint64(len(f.Key.ID)))
	b = append(b, f.Key.ID...)
	b = binary.AppendUvarint(b, f.Version.Epoch)
	b = binary.AppendUvarint(b, f.Version.Seq)
	b = binary.AppendUvarint(b, uint64(len(f.Body)))
	return append(b, f.Body...)
}

// factSize is the length of what appendFact appends.
func factSize(f *Fact) int {
	return 1 + uvarintSize(uint64(len(f.Key.ID))) + len(f.Key.ID) + uvarintSize(f.Version.Epoch) + uvarintSize(f.Version.Seq) +
		uvarintSize(uint64(len(f.Body))) + len(f.Body)
}

func uvarintSize(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

// digest tells a subscriber what it should have.
type digest struct {
	gen   uint64
	had   Kinds // it has had every fact of these kinds that this epoch knows
	whole Kinds // and that there is
	exact bool  // sum is that of all it should have
	sum   sum
}

func (d *digest) append(b []byte) []byte {
	at := len(b)
	b = append(b, sectionDigest, 0, 0)
	b = binary.AppendUvarint(b, d.gen)
	b = binary.AppendUvarint(b, uint64(d.had))
	b = binary.AppendUvarint(b, uint64(d.whole))
	exact := byte(0)
	if d.exact {
		exact = 1
	}
	b = append(b, exact)
	b = binary.BigEndian.AppendUint64(b, d.sum[0])
	b = binary.BigEndian.AppendUint64(b, d.sum[1])
	return endSection(b, at)
}

// endSection writes the length of the section that begins at.
func endSection(b []byte, at int) []byte {
	binary.BigEndian.PutUint16(b[at+1:], uint16(len(b)-at-sectionHead)) //nolint:gosec // a datagram is shorter
	return b
}

// appendAcks appends numbers, which are in descending order.
func appendAcks(b []byte, numbers []uint64) []byte {
	at := len(b)
	b = append(b, sectionAcks, 0, 0)
	b = binary.AppendUvarint(b, uint64(len(numbers)))
	last := uint64(0)
	for i, n := range numbers {
		if i == 0 {
			b = binary.AppendUvarint(b, n)
		} else {
			b = binary.AppendUvarint(b, last-n)
		}
		last = n
	}
	return endSection(b, at)
}

func appendResync(b []byte, gen uint64) []byte {
	at := len(b)
	b = append(b, sectionResync, 0, 0)
	b = binary.AppendUvarint(b, gen)
	return endSection(b, at)
}

// sum is a digest of facts: the order in which they are added does not matter, and adding one again takes it away.
type sum [2]uint64

func (s *sum) add(o sum) { s[0], s[1] = s[0]^o[0], s[1]^o[1] }

// sumOf is the digest of one fact.
func sumOf(k Key, v Version) sum {
	var buf [1 + MaxID + 20]byte
	b := append(buf[:0], byte(k.Kind))
	b = append(b, k.ID...)
	b = binary.BigEndian.AppendUint64(b, v.Epoch)
	b = binary.BigEndian.AppendUint64(b, v.Seq)
	h := sha256.Sum256(b)
	return sum{binary.BigEndian.Uint64(h[:]), binary.BigEndian.Uint64(h[8:])}
}

// datagram is what was read; it is used again for the next one.
type datagram struct {
	head
	acks      []uint64
	gen       uint64 // of facts; 0: there are none
	facts     []wireFact
	digest    digest
	hasDigest bool
	resync    uint64 // 0: none
}

// Scanner reads bytes that nobody has vouched for: a datagram here, the body of a fact where its reader is. What is read
// after the first mistake is zero.
type Scanner struct {
	b   []byte
	bad bool
}

// NewScanner returns a Scanner of b.
func NewScanner(b []byte) *Scanner { return &Scanner{b: b} }

// Bad says whether something was not there, or not what it should be.
func (s *Scanner) Bad() bool { return s.bad }

// Fail notes that what was read is not what it should be.
func (s *Scanner) Fail() { s.bad, s.b = true, nil }

// Uvarint reads a number.
func (s *Scanner) Uvarint() uint64 {
	v, n := binary.Uvarint(s.b)
	if n <= 0 {
		s.Fail()
		return 0
	}
	s.b = s.b[n:]
	return v
}

func (s *Scanner) take(n uint64) []byte {
	if n > uint64(len(s.b)) {
		s.Fail()
		return nil
	}
	b := s.b[:n:n]
	s.b = s.b[n:]
	return b
}

// Byte reads a byte.
func (s *Scanner) Byte() byte {
	if b := s.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (s *Scanner) uint32() uint32 {
	if b := s.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (s *Scanner) uint64() uint64 {
	if b := s.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// parse reads a datagram. What it holds afterwards is part of b.
func (d *datagram) parse(b []byte) error {
	*d = datagram{acks: d.acks[:0], facts: d.facts[:0]}
	s := Scanner{b: b}
	if len(b) > datagramMost || s.Byte() != wireVersion {
		return errMalformed
	}
	d.epoch, d.you, d.number = s.Uvarint(), s.Uvarint(), s.Uvarint()
	d.sent, d.echo = s.uint32(), s.uint32()
	hold := s.Uvarint()
	d.loss = s.Byte()
	want := s.Uvarint()
	if s.bad || d.epoch == 0 || d.number == 0 || hold > 1<<32-1 || want > 1<<16-1 {
		return errMalformed
	}
	d.hold, d.want = uint32(hold), Kinds(want)
	for len(s.b) > 0 {
		kind := s.Byte()
		n := s.take(2)
		if s.bad {
			return errMalformed
		}
		in := Scanner{b: s.take(uint64(binary.BigEndian.Uint16(n)))}
		if s.bad {
			return errMalformed
		}
		d.section(kind, &in)
		if in.bad {
			return errMalformed
		}
	}
	return nil
}

func (d *datagram) section(kind byte, s *Scanner) {
	switch kind {
	case sectionAcks:
		d.parseAcks(s)
	case sectionFacts:
		d.gen = s.Uvarint()
		for len(s.b) > 0 && !s.bad {
			d.parseFact(s)
		}
		s.bad = s.bad || d.gen == 0
	case sectionDigest:
		d.digest = digest{gen: s.Uvarint(), had: Kinds(s.Uvarint()), whole: Kinds(s.Uvarint()), exact: s.Byte() == 1, sum: sum{s.uint64(), s.uint64()}} //nolint:gosec // kinds that nobody knows matter not
		d.hasDigest = true
		s.bad = s.bad || d.digest.gen == 0
	case sectionResync:
		d.resync = s.Uvarint()
	}
}

func (d *datagram) parseAcks(s *Scanner) {
	n := s.Uvarint()
	if n > acksMost {
		s.bad = true
		return
	}
	last := uint64(0)
	for i := range n {
		v := s.Uvarint()
		if i > 0 {
			if v == 0 || v > last {
				s.bad = true
				return
			}
			v = last - v
		}
		if s.bad {
			return
		}
		d.acks = append(d.acks, v)
		last = v
	}
}

func (d *datagram) parseFact(s *Scanner) {
	k := s.Byte()
	f := wireFact{kind: Kind(k &^ goneBit), gone: k&goneBit != 0}
	f.id = s.bounded(MaxID)
	f.version = Version{Epoch: s.Uvarint(), Seq: s.Uvarint()}
	f.body = s.bounded(MaxBody)
	if f.kind == 0 || f.kind >= kindsMost || len(f.id) == 0 || f.gone && len(f.body) > 0 {
		s.bad = true
	}
	if !s.bad {
		d.facts = append(d.facts, f)
	}
}

// bounded reads a length and that many bytes, at most so many.
func (s *Scanner) bounded(most uint64) []byte {
	n := s.Uvarint()
	if n > most {
		s.bad = true
		return nil
	}
	return s.take(n)
}
