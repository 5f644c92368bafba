package proxy

import (
	"bytes"
	"net"
	"testing"
)

// sink collects what is written.
type sink struct {
	net.Conn
	bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) { return s.Buffer.Write(p) }
func (s *sink) Read([]byte) (int, error)    { return 0, net.ErrClosed }

// wsFrame is a frame of n bytes, masked if it says so.
func wsFrame(op byte, n int, masked bool) []byte {
	var b []byte
	switch {
	case n < 126:
		b = []byte{op, byte(n)}
	case n < 1<<16:
		b = []byte{op, 126, byte(n >> 8), byte(n)}
	default:
		b = []byte{op, 127, 0, 0, 0, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
	}
	if masked {
		b[1] |= 0x80
		b = append(b, 1, 2, 3, 4)
	}
	return append(b, bytes.Repeat([]byte{0x88}, n)...)
}

func TestAskingComesBetweenFrames(t *testing.T) {
	var stream []byte
	ends := map[int]bool{0: true}
	for _, f := range [][]byte{
		wsFrame(0x81, 5, false), wsFrame(0x02, 300, false), wsFrame(0x89, 0, false), wsFrame(0x80, 70_000, false), wsFrame(0x82, 3, true), wsFrame(0x81, 125, false),
	} {
		stream = append(stream, f...)
		ends[len(stream)] = true
	}
	for _, piece := range []int{1, 2, 3, 7, 1000, len(stream)} {
		for _, at := range []int{0, 1, 6, 7, 8, 9, 200, 310, 311, 312, 313, 50_000, len(stream) - 1} {
			s := &sink{}
			w := &websocket{Conn: s}
			asked := false
			for n := 0; n < len(stream); n += piece {
				if n >= at && !asked {
					asked = true
					w.ask()
				}
				p := stream[n:min(n+piece, len(stream))]
				if m, err := w.Write(p); m != len(p) || err != nil {
					t.Fatalf("wrote %d of %d: %v", m, len(p), err)
				}
			}
			w.ask()
			got := s.Bytes()
			where := -1
			for end := range ends {
				if bytes.HasPrefix(got[end:], []byte{0x88, 2, 3, 0xf4}) && bytes.Equal(got[:end], stream[:end]) && bytes.Equal(got[end+4:], stream[end:]) {
					where = end
				}
			}
			if where < 0 || len(got) != len(stream)+4 || asked && where < at-piece {
				t.Fatalf("pieces of %d, asked at %d: Close at %d, %d bytes of %d", piece, at, where, len(got), len(stream))
			}
		}
	}
}

func TestTheAppsOwnCloseIsTheOnlyOne(t *testing.T) {
	s := &sink{}
	w := &websocket{Conn: s}
	w.Write(wsFrame(0x88, 2, false)) //nolint:errcheck // a buffer
	w.ask()
	if got := s.Bytes(); !bytes.Equal(got, wsFrame(0x88, 2, false)) {
		t.Errorf("got %x", got)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(wsFrame(0x81, 200, false), uint8(3), uint8(1))
	f.Add([]byte{0x82, 0xff, 0xff, 0xff, 0xff, 0xff}, uint8(1), uint8(0))
	f.Fuzz(func(t *testing.T, stream []byte, piece, ask uint8) {
		s := &sink{}
		w := &websocket{Conn: s}
		step := int(piece) + 1
		for n := 0; n < len(stream); n += step {
			if n/step == int(ask) {
				w.ask()
			}
			w.Write(stream[n:min(n+step, len(stream))]) //nolint:errcheck // a buffer
		}
		got := s.Bytes()
		if w.told {
			if len(got) != len(stream)+4 {
				t.Fatalf("%d bytes of %d", len(got), len(stream))
			}
			return
		}
		if !bytes.Equal(got, stream) {
			t.Fatal("the stream was changed")
		}
	})
}
