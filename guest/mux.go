package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// ErrClosed is returned by calls on a session that has ended; the link's own error is wrapped too
// where there is one.
var ErrClosed = errors.New("the session with the guest has ended")

// errReset ends a stream whose caller or handler has gone.
var errReset = errors.New("the call was cancelled by the other side")

// mux is one session on a link, on either side: streams with substreams, each with a window.
// One goroutine reads frames and never waits for anybody; one writes them.
type mux struct {
	out   chan outgoing
	done  chan struct{} // closed by fail
	turns chan struct{} // holds one token: who has it may open a stream

	mu      sync.Mutex
	err     error
	streams map[uint32]*stream
	last    uint32
}

// outgoing is a frame in its bytes; written, if there, is closed when they are on the link.
type outgoing struct {
	bytes   []byte
	written chan struct{}
}

func newMux() *mux {
	return &mux{
		out: make(chan outgoing, 32), done: make(chan struct{}), turns: make(chan struct{}, 1),
		streams: map[uint32]*stream{},
	}
}

// fail ends the session; the first error stays.
func (m *mux) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err = err
		close(m.done)
	}
}

// cause is the error the session ended with.
func (m *mux) cause() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// writeLoop writes frames until the session ends, as many in one go as are there.
func (m *mux) writeLoop(w io.Writer) {
	var buf []byte
	var written []chan struct{}
	for {
		select {
		case <-m.done:
			return
		case o := <-m.out:
			buf, written = buf[:0], written[:0]
			for more := true; more; {
				buf = append(buf, o.bytes...)
				if o.written != nil {
					written = append(written, o.written)
				}
				if len(buf) > maxPayload {
					break
				}
				select {
				case o = <-m.out:
				default:
					more = false
				}
			}
			if _, err := w.Write(buf); err != nil {
				m.fail(err)
				return
			}
			for _, c := range written {
				close(c)
			}
		}
	}
}

// send queues a frame.
func (m *mux) send(ctx context.Context, f frame) error {
	select {
	case m.out <- outgoing{bytes: appendFrame(nil, f)}:
		return nil
	case <-m.done:
		return m.cause()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// flush waits until all that was queued before is on the link, or the session or ctx has ended.
func (m *mux) flush(ctx context.Context) {
	o := outgoing{written: make(chan struct{})}
	select {
	case m.out <- o:
	case <-m.done:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-o.written:
	case <-m.done:
	case <-ctx.Done():
	}
}

// open begins a stream. One at a time: the other side takes streams in the order of their numbers only.
func (m *mux) open(ctx context.Context, method string) (*stream, error) {
	select {
	case m.turns <- struct{}{}:
	case <-m.done:
		return nil, m.cause()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-m.turns }()
	m.mu.Lock()
	if m.err != nil {
		m.mu.Unlock()
		return nil, m.err
	}
	if len(m.streams) >= maxStreams {
		m.mu.Unlock()
		return nil, fmt.Errorf("%d calls to the guest are open", maxStreams)
	}
	m.last++
	s := newStream(m, m.last, maxReply)
	m.streams[s.id] = s
	m.mu.Unlock()
	if err := m.send(ctx, frame{kind: kindOpen, stream: s.id, payload: []byte(method)}); err != nil {
		s.forget()
		return nil, err
	}
	return s, nil
}

// accept adds a stream which the other side began.
func (m *mux) accept(id uint32) (*stream, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if id <= m.last || len(m.streams) >= maxStreams {
		return nil, fmt.Errorf("%w: stream %d", errProtocol, id)
	}
	m.last = id
	s := newStream(m, id, maxRequest)
	m.streams[id] = s
	return s, nil
}

// deliver hands a frame to its stream. It never waits. Frames of a stream which has ended are
// dropped: they were on their way.
func (m *mux) deliver(f frame) error {
	m.mu.Lock()
	s := m.streams[f.stream]
	m.mu.Unlock()
	if s == nil {
		return nil
	}
	switch f.kind {
	case kindData:
		return s.in[f.sub].push(f.payload)
	case kindEnd:
		s.in[f.sub].end()
	case kindWindow:
		if len(f.payload) != 4 {
			return fmt.Errorf("%w: window of %d bytes", errProtocol, len(f.payload))
		}
		return s.credit[f.sub].add(int(binary.BigEndian.Uint32(f.payload)))
	case kindReset:
		s.forget()
		s.reset()
	default:
		return fmt.Errorf("%w: frame kind %d", errProtocol, f.kind)
	}
	return nil
}

// stream is one call.
type stream struct {
	m      *mux
	id     uint32
	reset  func() // ends it: sets gone
	gone   chan struct{}
	in     [subs]buffer
	credit [subs]credit
}

func newStream(m *mux, id uint32, maxMessage int) *stream {
	s := &stream{m: m, id: id, gone: make(chan struct{})}
	s.reset = sync.OnceFunc(func() { close(s.gone) })
	for i := range s.in {
		s.in[i] = buffer{more: make(chan struct{}, 1), limit: window}
		s.credit[i] = credit{more: make(chan struct{}, 1), left: window}
	}
	s.in[subMessage].limit = maxMessage
	return s
}

// forget takes the stream out of its session: what still comes for it is dropped.
func (s *stream) forget() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	delete(s.m.streams, s.id)
}

// cancel ends the stream on both sides, without waiting for the link.
func (s *stream) cancel() {
	s.forget()
	s.reset()
	go func() {
		// It ends with the session at the latest, and then the stream has ended too.
		_ = s.m.send(context.Background(), frame{kind: kindReset, stream: s.id})
	}()
}

// wait blocks until c has something, or the stream, its session or ctx has ended.
func (s *stream) wait(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-s.gone:
		return errReset
	case <-s.m.done:
		return s.m.cause()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sendMessage sends all of b and the end of the message.
func (s *stream) sendMessage(ctx context.Context, b []byte) error {
	for len(b) > 0 {
		n := min(len(b), maxPayload)
		if err := s.m.send(ctx, frame{kind: kindData, stream: s.id, payload: b[:n]}); err != nil {
			return err
		}
		b = b[n:]
	}
	return s.m.send(ctx, frame{kind: kindEnd, stream: s.id})
}

// readMessage reads a message to its end. What has arrived counts, even if the session ended since.
func (s *stream) readMessage(ctx context.Context) ([]byte, error) {
	b := &s.in[subMessage]
	for {
		if all, ok := b.whole(); ok {
			return all, nil
		}
		if err := s.wait(ctx, b.more); err != nil {
			if all, ok := b.whole(); ok {
				return all, nil
			}
			return nil, err
		}
	}
}

// pipe is one substream as a reader or a writer.
type pipe struct {
	ctx context.Context //nolint:containedctx // a pipe lives as long as the call it is made in
	s   *stream
	sub uint8
}

// Read implements io.Reader; it opens the window as it goes.
func (p pipe) Read(b []byte) (int, error) {
	in := &p.s.in[p.sub]
	for {
		n, credit, err := in.take(b)
		if n > 0 || err != nil {
			if credit > 0 {
				f := frame{kind: kindWindow, sub: p.sub, stream: p.s.id, payload: binary.BigEndian.AppendUint32(nil, uint32(credit))}
				if serr := p.s.m.send(p.ctx, f); serr != nil && n == 0 {
					return 0, serr
				}
			}
			return n, err
		}
		if err := p.s.wait(p.ctx, in.more); err != nil {
			if n, _, terr := in.take(b); n > 0 || terr != nil {
				return n, terr
			}
			return 0, err
		}
	}
}

// Write implements io.Writer; it waits for the window.
func (p pipe) Write(b []byte) (int, error) {
	c, done := &p.s.credit[p.sub], 0
	for done < len(b) {
		n := c.take(min(len(b)-done, maxPayload))
		if n == 0 {
			if err := p.s.wait(p.ctx, c.more); err != nil {
				return done, err
			}
			continue
		}
		f := frame{kind: kindData, sub: p.sub, stream: p.s.id, payload: b[done : done+n]}
		if err := p.s.m.send(p.ctx, f); err != nil {
			return done, err
		}
		done += n
	}
	return done, nil
}

// Close says that no more bytes come.
func (p pipe) Close() error {
	return p.s.m.send(p.ctx, frame{kind: kindEnd, sub: p.sub, stream: p.s.id})
}

// buffer holds what has arrived on a substream and was not read.
type buffer struct {
	more  chan struct{} // has an item after each change
	limit int

	mu    sync.Mutex
	bytes []byte
	ended bool
	owed  int // read but not given back to the sender's window
}

func (b *buffer) push(p []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended || len(b.bytes)+b.owed+len(p) > b.limit {
		return fmt.Errorf("%w: more bytes than the window allows", errProtocol)
	}
	b.bytes = append(b.bytes, p...)
	poke(b.more)
	return nil
}

func (b *buffer) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	poke(b.more)
}

// take moves bytes into p. credit, if not 0, is to be sent to the other side; at the end err is io.EOF.
func (b *buffer) take(p []byte) (n, credit int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n = copy(p, b.bytes)
	if b.bytes = b.bytes[n:]; len(b.bytes) == 0 {
		b.bytes = nil
		if b.ended && n == 0 && len(p) > 0 {
			return 0, 0, io.EOF
		}
	}
	b.owed += n
	if b.owed >= window/4 && !b.ended {
		credit, b.owed = b.owed, 0
	}
	if len(b.bytes) > 0 || b.ended {
		poke(b.more)
	}
	return n, credit, nil
}

// whole returns all bytes once the substream has ended.
func (b *buffer) whole() ([]byte, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes, b.ended
}

// credit is what may still be sent on a substream.
type credit struct {
	more chan struct{}

	mu   sync.Mutex
	left int
}

func (c *credit) take(most int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := min(most, c.left)
	c.left -= n
	return n
}

func (c *credit) add(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > window || c.left+n > window {
		return fmt.Errorf("%w: window of %d bytes", errProtocol, c.left+n)
	}
	c.left += n
	poke(c.more)
	return nil
}

// poke leaves one item in c.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
