package guest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/volant-edge/volant/guest"
)

// backend is a guest of memory: its exec runs the function named by the first argument.
type backend struct {
	ring *guest.Ring
	exit chan guest.Exit

	atShutdown func()

	mu      sync.Mutex
	config  guest.Config
	thaw    guest.Thaw
	files   map[string]guest.File
	started int
	signals []int
	execs   map[string]func(context.Context, guest.Exec) (guest.Exit, error)
}

func newBackend() *backend {
	return &backend{ring: guest.NewRing(1 << 20), exit: make(chan guest.Exit, 1), execs: map[string]func(context.Context, guest.Exec) (guest.Exit, error){
		"cat": func(_ context.Context, e guest.Exec) (guest.Exit, error) {
			n, err := io.Copy(e.Stdout, e.Stdin)
			_, err2 := fmt.Fprintf(e.Stderr, "%d bytes", n)
			return guest.Exit{Code: 3}, errors.Join(err, err2)
		},
		"sleep": func(ctx context.Context, _ guest.Exec) (guest.Exit, error) {
			<-ctx.Done()
			return guest.Exit{Signal: 9}, ctx.Err()
		},
	}}
}

func (b *backend) Hello() guest.Hello {
	b.mu.Lock()
	defer b.mu.Unlock()
	return guest.Hello{Version: guest.Version, BootID: "boot", Configured: b.config.Hostname != "", Running: b.started > 0}
}

func (b *backend) Configure(_ context.Context, c guest.Config) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.config = c
	return nil
}

func (b *backend) Put(_ context.Context, f guest.File) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.files == nil {
		b.files = map[string]guest.File{}
	}
	b.files[f.Path] = f
	return nil
}

func (b *backend) Start(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.config.Hostname == "" {
		return guest.Errorf(guest.KindPrecondition, "not configured")
	}
	b.started++
	return nil
}

func (b *backend) Wait(ctx context.Context) (guest.Exit, error) {
	select {
	case e := <-b.exit:
		return e, nil
	case <-ctx.Done():
		return guest.Exit{}, ctx.Err()
	}
}

func (b *backend) Signal(_ context.Context, sig int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.signals = append(b.signals, sig)
	return nil
}

func (b *backend) Exec(ctx context.Context, e guest.Exec) (guest.Exit, error) {
	if fn := b.execs[e.Args[0]]; fn != nil {
		return fn(ctx, e)
	}
	return guest.Exit{}, guest.Errorf(guest.KindNotFound, "no program %q", e.Args[0])
}

func (b *backend) Logs(ctx context.Context, from uint64, fn func(guest.LogLine) error) error {
	return b.ring.Follow(ctx, from, fn)
}

func (b *backend) Thaw(_ context.Context, t guest.Thaw) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.thaw = t
	return nil
}

func (b *backend) Freeze(context.Context) error { return nil }

func (b *backend) Stats(context.Context) (guest.Stats, error) {
	return guest.Stats{Memory: guest.Counters{"mem_total": 512 << 20}, Processes: 3}, nil
}

func (b *backend) Processes(context.Context) ([]guest.Process, error) {
	return []guest.Process{{PID: 7, Command: "app", Listens: []guest.Listen{{Proto: "tcp", Address: "0.0.0.0:80"}}}}, nil
}

func (b *backend) Shutdown(context.Context) error {
	if b.atShutdown != nil {
		b.atShutdown()
	}
	return nil
}

// serial is a link whose guest's end stays while hosts come and go, as a virtio-serial port: what a
// host did not read waits for the next one, and so does what the guest did not read.
type serial struct {
	toGuest, toHost *fifo
	host            *serialHost
}

func newSerial() *serial { return &serial{toGuest: newFifo(), toHost: newFifo()} }

func (s *serial) Read(b []byte) (int, error)  { return s.toGuest.read(b, nil) }
func (s *serial) Write(b []byte) (int, error) { return s.toHost.write(b) }
func (s *serial) Close() error                { s.toGuest.close(); s.toHost.close(); return nil }

// attach is a host's end; it ends the one before.
func (s *serial) attach() *serialHost {
	if s.host != nil {
		_ = s.host.Close()
	}
	s.host = &serialHost{s: s, gone: make(chan struct{})}
	return s.host
}

type serialHost struct {
	s    *serial
	once sync.Once
	gone chan struct{}
}

func (h *serialHost) Read(b []byte) (int, error) { return h.s.toHost.read(b, h.gone) }
func (h *serialHost) Write(b []byte) (int, error) {
	select {
	case <-h.gone:
		return 0, net.ErrClosed
	default:
	}
	return h.s.toGuest.write(b)
}
func (h *serialHost) Close() error { h.once.Do(func() { close(h.gone) }); return nil }

// fifo is an unbounded queue of bytes.
type fifo struct {
	mu     sync.Mutex
	bytes  []byte
	closed bool
	news   chan struct{}
}

func newFifo() *fifo { return &fifo{news: make(chan struct{})} }

func (f *fifo) write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, io.ErrClosedPipe
	}
	f.bytes = append(f.bytes, b...)
	close(f.news)
	f.news = make(chan struct{})
	return len(b), nil
}

func (f *fifo) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		close(f.news)
	}
}

func (f *fifo) read(b []byte, gone <-chan struct{}) (int, error) {
	for {
		f.mu.Lock()
		n, closed, news := copy(b, f.bytes), f.closed, f.news
		f.bytes = f.bytes[n:]
		f.mu.Unlock()
		if n > 0 {
			return n, nil
		}
		if closed {
			return 0, io.EOF
		}
		select {
		case <-news:
		case <-gone:
			return 0, net.ErrClosed
		}
	}
}

// serve runs the guest's side until the test ends.
func serve(t *testing.T, link io.ReadWriteCloser, b guest.Backend) {
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := guest.Serve(ctx, link, b); err != nil && ctx.Err() == nil {
			t.Logf("Serve: %v", err)
		}
	}()
	t.Cleanup(func() { stop(); <-done })
}

func open(t *testing.T, link io.ReadWriteCloser) *guest.Session {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	s, err := guest.Open(ctx, link)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() }) // closed already by some tests
	return s
}
