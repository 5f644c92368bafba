package proxy

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// askWithin is the time over which the clients of a machine are asked to leave, each at a moment of its own: they
// come back all at once otherwise.
const askWithin = 5 * time.Second

// frames follows the frames of a websocket (RFC 6455 §5.2) as their bytes go by.
type frames struct {
	head    [14]byte
	n       int    // bytes of head that are there
	left    uint64 // bytes of the payload to come
	closing bool   // a Close frame went by
}

// between says whether the next byte begins a frame.
func (f *frames) between() bool { return f.n == 0 && f.left == 0 }

// pass notes bytes that go by, up to the end of the frame they are in, and returns how many.
func (f *frames) pass(p []byte) int {
	i := 0
	for f.left == 0 {
		if i == len(p) {
			return i
		}
		f.head[f.n] = p[i]
		f.n++
		i++
		if f.n < f.headLen() {
			continue
		}
		f.begin()
		if f.left == 0 {
			return i
		}
	}
	k := min(f.left, uint64(len(p)-i))
	f.left -= k
	return i + int(k) //nolint:gosec // at most len(p)
}

func (f *frames) headLen() int {
	if f.n < 2 {
		return 2
	}
	n := 2
	switch f.head[1] & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if f.head[1]&0x80 != 0 {
		n += 4
	}
	return n
}

// begin takes what a whole head says.
func (f *frames) begin() {
	switch l := f.head[1] & 0x7f; l {
	case 126:
		f.left = uint64(binary.BigEndian.Uint16(f.head[2:]))
	case 127:
		f.left = binary.BigEndian.Uint64(f.head[2:])
	default:
		f.left = uint64(l)
	}
	f.closing = f.closing || f.head[0]&0x0f == 8
	f.n = 0
}

// websocket is a client's side of one, whom the proxy can ask to leave between two frames of the app.
type websocket struct {
	net.Conn

	mu     sync.Mutex // guards the following, and writes
	frames frames
	asked  bool
	told   bool // Close was sent
}

// Write passes on what the app sends.
func (w *websocket) Write(p []byte) (n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n < len(p) {
		end := n
		for end < len(p) && (!w.asked || w.told || end == n) {
			end += w.frames.pass(p[end:])
		}
		m, err := w.Conn.Write(p[n:end])
		n += m
		if err != nil {
			return n, err
		}
		if err := w.tell(); err != nil {
			return n, err
		}
	}
	return n, nil
}

// ask asks the client to connect anew, as soon as no frame is on its way. What the app sends is passed on all
// the same, until one of both closes.
func (w *websocket) ask() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = true
	w.tell() //nolint:errcheck // a client that is gone is seen by the relay
}

// tell sends a Close frame with the code 1012, service restart, if it is due; w.mu is held.
func (w *websocket) tell() error {
	if !w.asked || w.told || w.frames.closing || !w.frames.between() {
		return nil
	}
	w.told = true
	_, err := w.Conn.Write([]byte{0x88, 2, 1012 >> 8, 1012 & 0xff})
	return err
}

// CloseWrite sends FIN.
func (w *websocket) CloseWrite() error {
	closeWrite(w.Conn)
	return nil
}

// SetLinger is net.TCPConn's, where the connection has it.
func (w *websocket) SetLinger(s int) error {
	if l, ok := w.Conn.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(s)
	}
	return nil
}

// askLater asks a moment after leave or stopping is closed, unless over is first.
func (w *websocket) askLater(leave, stopping, over <-chan struct{}) {
	select {
	case <-leave:
	case <-stopping:
	case <-over:
		return
	}
	select {
	case <-time.After(time.Duration(rand.Int64N(int64(askWithin)))):
		w.ask()
	case <-over:
	}
}
