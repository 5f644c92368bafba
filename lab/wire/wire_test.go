package wire_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant/lab/wire"
)

// pair is two files that keep the bounds of frames, as taps do.
func pair(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// cable is a lane with the two files that are outside of it.
func cable(t *testing.T, s wire.Spec) (in, out *os.File, l *wire.Lane) {
	t.Helper()
	in, from := pair(t)
	to, out := pair(t)
	l, err := wire.NewLane(from, to, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	if err := out.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return in, out, l
}

// frame is the n-th; every fifth is a large one.
func frame(n int) []byte {
	size := 60 + n%1000
	if n%5 == 0 {
		size = 60_000
	}
	b := bytes.Repeat([]byte{byte(n)}, size)
	binary.BigEndian.PutUint32(b, uint32(n))
	return b
}

// TestOrder changes the delay while frames are under way: each must come whole and in its turn.
func TestOrder(t *testing.T) {
	in, out, l := cable(t, wire.Spec{Delay: 3 * time.Millisecond})
	const n = 300
	go func() {
		for i := range n {
			switch i {
			case 100:
				l.Set(wire.Spec{})
			case 200:
				l.Set(wire.Spec{Delay: time.Millisecond})
			}
			if _, err := in.Write(frame(i)); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 1<<17)
	for i := range n {
		k, err := out.Read(buf)
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		if !bytes.Equal(buf[:k], frame(i)) {
			t.Fatalf("frame %d: got %d bytes of frame %d", i, k, binary.BigEndian.Uint32(buf))
		}
	}
}

func TestNotBeforeItIsDue(t *testing.T) {
	const delay = 20 * time.Millisecond
	in, out, _ := cable(t, wire.Spec{Delay: delay})
	begun := time.Now()
	if _, err := in.Write(frame(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < delay {
		t.Errorf("it came after %s, want at least %s", took, delay)
	}
}

func TestWhatIsCutOrLostDoesNotCome(t *testing.T) {
	for _, c := range []struct {
		name string
		s    wire.Spec
		min  uint64 // of 2000 frames, dropped
		max  uint64
	}{
		{"whole", wire.Spec{}, 0, 0},
		{"cut", wire.Spec{Cut: true}, 2000, 2000},
		{"all lost", wire.Spec{Loss: 1}, 2000, 2000},
		{"a tenth lost", wire.Spec{Loss: 0.1}, 100, 400}, // seven standard deviations
	} {
		t.Run(c.name, func(t *testing.T) {
			in, out, l := cable(t, c.s)
			go func() {
				for buf := make([]byte, 4096); ; {
					if _, err := out.Read(buf); err != nil {
						return
					}
				}
			}()
			for range 2000 {
				if _, err := in.Write(frame(1)); err != nil {
					t.Fatal(err)
				}
			}
			for {
				passed, dropped := l.Counts()
				if passed+dropped == 2000 {
					if dropped < c.min || dropped > c.max {
						t.Errorf("%d were dropped, want %d to %d", dropped, c.min, c.max)
					}
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "wires.json")
	want := []wire.Spec{{Name: "a-b", A: wire.End{Namespace: "x", Interface: "w"}, Delay: time.Second, Loss: 0.5, Cut: true}}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := wire.ReadFile(path)
	if err != nil || len(got) != 1 || got[0] != want[0] {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if err := os.WriteFile(path, []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := wire.ReadFile(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("half a file: %v", err)
	}
}
