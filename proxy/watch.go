package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// early is what a client sent before it had a machine.
type early struct {
	data []byte
	eof  bool // and it has closed its side after that
}

// earlyMost bounds what is read of a client that waits; the rest stays in the kernel.
const earlyMost = 4 << 10

// watcher reads a waiting client's first bytes, since that is how a net.Conn shows its end. They are kept
// and go to the machine first.
type watcher struct {
	data   chan struct{} // closed at the first byte
	gone   chan struct{} // closed when the client is gone: reset, or closed without a byte sent
	ctx    context.Context
	cancel context.CancelFunc
	conn   net.Conn
	mu     sync.Mutex // guards early until done is closed
	early  early
	done   chan struct{}
}

func watch(c net.Conn) *watcher {
	w := &watcher{conn: c, data: make(chan struct{}), gone: make(chan struct{}), done: make(chan struct{})}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	go w.read()
	return w
}

func (w *watcher) read() {
	defer close(w.done)
	buf := make([]byte, 512)
	for len(w.early.data) < earlyMost {
		n, err := w.conn.Read(buf[:min(len(buf), earlyMost-len(w.early.data))])
		if n > 0 {
			w.mu.Lock()
			first := w.early.data == nil
			w.early.data = append(w.early.data, buf[:n]...)
			w.mu.Unlock()
			if first {
				close(w.data)
			}
		}
		switch {
		case err == nil:
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, io.EOF) && w.early.data != nil:
			w.early.eof = true // a request, and it may still read the answer
		default:
			close(w.gone)
			w.cancel()
		}
		return
	}
}

// sofar is what was read so far.
func (w *watcher) sofar() []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.early.data)
}

// stop ends the watch and returns what was read.
func (w *watcher) stop() early {
	w.conn.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // a connection that cannot is closed
	<-w.done
	w.conn.SetReadDeadline(time.Time{}) //nolint:errcheck // the same
	w.cancel()
	return w.early
}
