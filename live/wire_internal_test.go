package live

import (
	"bytes"
	"net/netip"
	"testing"
	"time"
)

func sampleDatagram() []byte {
	b := (&head{epoch: 3, you: 2, number: 70, sent: 9, echo: 8, hold: 100, loss: 4, want: KindsOf(Route, Slots)}).append(nil)
	b = appendAcks(b, []uint64{90, 88, 3})
	b = appendResync(b, 2)
	d := digest{gen: 4, had: KindsOf(Route), whole: KindsOf(Route), exact: true, sum: sum{1, 2}}
	b = d.append(b)
	at := len(b)
	b = append(b, sectionFacts, 0, 0, 4)
	b = appendFact(b, &Fact{Key: Key{Route, "m1"}, Version: Version{3, 4}, Body: []byte("body")})
	b = appendFact(b, &Fact{Key: Key{Slots, "m2"}, Version: Version{3, 5}, Gone: true})
	return endSection(b, at)
}

func TestDatagramsComeBack(t *testing.T) {
	var d datagram
	if err := d.parse(sampleDatagram()); err != nil {
		t.Fatal(err)
	}
	if d.epoch != 3 || d.you != 2 || d.number != 70 || d.sent != 9 || d.echo != 8 || d.hold != 100 || d.loss != 4 || d.want != KindsOf(Route, Slots) {
		t.Errorf("head: %+v", d.head)
	}
	if len(d.acks) != 3 || d.acks[0] != 90 || d.acks[1] != 88 || d.acks[2] != 3 || d.resync != 2 || d.gen != 4 {
		t.Errorf("acks %v, resync %d, generation %d", d.acks, d.resync, d.gen)
	}
	if !d.hasDigest || d.digest != (digest{gen: 4, had: KindsOf(Route), whole: KindsOf(Route), exact: true, sum: sum{1, 2}}) {
		t.Errorf("digest %+v", d.digest)
	}
	if len(d.facts) != 2 || string(d.facts[0].body) != "body" || !d.facts[1].gone || string(d.facts[1].id) != "m2" {
		t.Errorf("facts %+v", d.facts)
	}
}

func TestTheLargestFactFits(t *testing.T) {
	f := Fact{Key: Key{Route, string(make([]byte, MaxID))}, Version: Version{1 << 30, 1 << 34}, Body: make([]byte, MaxBody)}
	if n := factSize(&f); n > factMost || n != len(appendFact(nil, &f)) {
		t.Errorf("%d bytes, at most %d", n, factMost)
	}
	h := head{epoch: 1<<64 - 1, you: 1<<64 - 1, number: 1<<64 - 1, hold: 1<<32 - 1, want: 1<<16 - 1}
	if n := len(h.append(nil)); n != headMost {
		t.Errorf("the longest head has %d bytes, not %d", n, headMost)
	}
}

// FuzzReceive gives a Feed a datagram of a peer, as it may come from one that is broken.
func FuzzReceive(f *testing.F) {
	whole := sampleDatagram()
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add([]byte{wireVersion, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 6, sectionFacts, 0xff, 0xff, 1})
	f.Add([]byte{wireVersion, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 6, sectionAcks, 0, 6, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var d datagram
		if d.parse(b) == nil && len(b) < datagramMost {
			for _, x := range d.facts {
				if len(x.id) > MaxID || len(x.body) > MaxBody || x.kind >= kindsMost {
					t.Errorf("out of bounds: %+v", x)
				}
			}
		}
		from := netip.MustParseAddrPort("[fd00::2]:1")
		feed := New(Config{Node: "a", Epoch: 2})
		feed.SetPeers([]Peer{{Node: "b", Addr: from, Want: allKinds}})
		if err := feed.SetAll(KindsOf(Route), Fact{Key: Key{Route, "m"}, Body: bytes.Repeat([]byte{1}, 100)}); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		for i := range 3 {
			feed.receive(b, from, now)
			now = now.Add(time.Duration(i) * time.Second)
			feed.round(now)
		}
		for _, l := range feed.out.mail {
			if l.size > datagramMost {
				t.Errorf("a datagram of %d bytes", l.size)
			}
		}
	})
}
