package guest

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"
)

// ErrVersion is returned by Open when the guest speaks another version of the protocol: boot cold.
var ErrVersion = errors.New("the guest speaks another version of the protocol")

const (
	hailEvery = 20 * time.Millisecond
	linkBuf   = 64 << 10
)

// Session is the host's side of the channel. Its methods may be called from several goroutines.
type Session struct {
	m     *mux
	link  io.Closer
	loops sync.WaitGroup

	mu    sync.Mutex
	hello Hello
}

// Open does the handshake and returns the session. The link is the session's from then on, and is
// closed if Open fails. It waits for a guest that boots or is being restored until ctx ends.
func Open(ctx context.Context, link io.ReadWriteCloser) (*Session, error) {
	var n nonce
	binary.LittleEndian.PutUint64(n[:], rand.Uint64())
	binary.LittleEndian.PutUint64(n[8:], rand.Uint64())

	r := bufio.NewReaderSize(link, linkBuf)
	type answer struct {
		hello Hello
		err   error
	}
	answers, stop := make(chan answer, 2), make(chan struct{})
	var hails sync.WaitGroup
	go func() {
		hello, err := awaitEcho(r, n)
		answers <- answer{hello, err}
	}()
	hails.Go(func() {
		if err := sendHails(link, n, stop); err != nil {
			answers <- answer{err: err}
		}
	})

	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		a.err = ctx.Err()
	}
	close(stop)
	if a.err != nil {
		err := errors.Join(a.err, link.Close())
		hails.Wait()
		return nil, fmt.Errorf("open the guest's channel: %w", err)
	}
	hails.Wait() // a hail that is being written must not end up inside a frame
	s := &Session{m: newMux(), link: link, hello: a.hello}
	s.loops.Go(func() { s.m.writeLoop(link) })
	s.loops.Go(func() { s.readLoop(r) })
	return s, nil
}

// sendHails sends the hail until stop is closed. Some are led by padding as long as a frame, for a
// guest that waits for the rest of a frame of an earlier session.
func sendHails(link io.Writer, n nonce, stop <-chan struct{}) error {
	msg := appendSync(nil, hail, Version, n)
	t := time.NewTicker(hailEvery)
	defer t.Stop()
	for i, padAt := 0, 1; ; i++ {
		b := msg
		if i == padAt {
			padAt *= 4
			b = append(make([]byte, headerLen+maxPayload), msg...)
		}
		if _, err := link.Write(b); err != nil {
			return err
		}
		select {
		case <-stop:
			return nil
		case <-t.C:
		}
	}
}

func awaitEcho(r *bufio.Reader, n nonce) (Hello, error) {
	var h Hello
	for {
		version, got, err := scanSync(r, echo)
		if err != nil {
			return h, err
		}
		if got != n {
			continue
		}
		if version != Version {
			return h, fmt.Errorf("%w: %d, not %d", ErrVersion, version, Version)
		}
		f, err := readFrame(r)
		if err != nil {
			return h, err
		}
		if f.kind != kindHello {
			return h, fmt.Errorf("%w: frame kind %d in place of hello", errProtocol, f.kind)
		}
		return h, json.Unmarshal(f.payload, &h)
	}
}

func (s *Session) readLoop(r *bufio.Reader) {
	for {
		f, err := readFrame(r)
		if err == nil {
			err = s.m.deliver(f)
		}
		if err != nil {
			s.m.fail(fmt.Errorf("%w: %w", ErrClosed, err))
			_ = s.link.Close() // the session has its error already
			return
		}
	}
}

// Hello is what the guest said when the session opened, or after Configure.
func (s *Session) Hello() Hello {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hello
}

// Done is closed when the session has ended. Err says why.
func (s *Session) Done() <-chan struct{} { return s.m.done }

// Err is why the session ended; nil while it lives.
func (s *Session) Err() error { return s.m.cause() }

// Close ends the session and closes the link. Calls that are under way return ErrClosed.
func (s *Session) Close() error {
	s.m.fail(ErrClosed)
	err := s.link.Close()
	s.loops.Wait()
	return err
}

// Configure tells the guest what it is. Once in each boot; a guest in which it failed is of no use.
func (s *Session) Configure(ctx context.Context, c Config) error {
	var h Hello
	if err := s.call(ctx, callConfigure, c, &h); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hello = h
	return nil
}

// Put writes a file into the configured guest, in place of what is there, before its app starts.
func (s *Session) Put(ctx context.Context, f File) error {
	if err := f.Check(); err != nil {
		return err
	}
	return s.call(ctx, callPut, f, nil)
}

// Start starts the app: first, or again after it ended.
func (s *Session) Start(ctx context.Context) error { return s.call(ctx, callStart, nil, nil) }

// Wait returns how the app ended, at once if it has ended before.
func (s *Session) Wait(ctx context.Context) (Exit, error) {
	var e Exit
	err := s.call(ctx, callWait, nil, &e)
	return e, err
}

// Signal sends a signal to the app's process.
func (s *Session) Signal(ctx context.Context, sig int) error {
	return s.call(ctx, callSignal, signalRequest{sig}, nil)
}

type signalRequest struct {
	Signal int `json:"signal"`
}

// Thaw gives the guest time and entropy after a restore.
func (s *Session) Thaw(ctx context.Context, t Thaw) error { return s.call(ctx, callThaw, t, nil) }

// Freeze makes the guest write out what it has for its disks, before a suspend.
func (s *Session) Freeze(ctx context.Context) error { return s.call(ctx, callFreeze, nil, nil) }

// Stats says what the guest uses.
func (s *Session) Stats(ctx context.Context) (Stats, error) {
	var st Stats
	err := s.call(ctx, callStats, nil, &st)
	return st, err
}

// Processes are the processes of the app and those beside it.
func (s *Session) Processes(ctx context.Context) ([]Process, error) {
	var ps []Process
	err := s.call(ctx, callProcesses, nil, &ps)
	return ps, err
}

// Shutdown ends all processes of the guest at once, unmounts and ends the VM. The app has got its
// stop signal before, by Signal. It returns when the guest has written its disks, or has gone.
func (s *Session) Shutdown(ctx context.Context) error {
	err := s.call(ctx, callShutdown, nil, nil)
	if errors.Is(err, ErrClosed) {
		return nil
	}
	return err
}

// Exec runs a command beside the app and copies its stdio. The command is killed when ctx or the
// session ends. A Read of e.Stdin which blocks may outlive the call, as in os/exec.
func (s *Session) Exec(ctx context.Context, e Exec) (Exit, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	st, err := s.begin(ctx, callExec, e)
	if err != nil {
		return Exit{}, err
	}
	in := pipe{ctx, st, subIn}
	go func() {
		if e.Stdin != nil {
			// A command which does not read its input to the end is none of our errors.
			_, _ = io.Copy(struct{ io.Writer }{in}, e.Stdin)
		}
		_ = in.Close() // fails only with the session, and then the call does
	}()
	var copies sync.WaitGroup
	var werr [2]error
	for i, w := range []io.Writer{e.Stdout, e.Stderr} {
		copies.Go(func() {
			if w == nil {
				w = io.Discard
			}
			// The end or a failure of the stream is seen by finish; here a writer's counts.
			if _, err := io.Copy(w, struct{ io.Reader }{pipe{ctx, st, subOut + uint8(i)}}); err != nil && ctx.Err() == nil {
				werr[i] = err
				st.cancel()
			}
		})
	}
	var exit Exit
	err = s.finish(ctx, st, &exit)
	if err != nil {
		stop()
	}
	copies.Wait()
	if errors.Is(err, errReset) {
		err = errors.Join(werr[:]...)
	}
	if err != nil {
		return Exit{}, fmt.Errorf("exec: %w", err)
	}
	return exit, nil
}

// Logs calls fn for each line the guest has from the given sequence number on, and for those to
// come, until ctx or the session ends. Its error is never nil.
func (s *Session) Logs(ctx context.Context, from uint64, fn func(LogLine)) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	st, err := s.begin(ctx, callLogs, logsRequest{from})
	if err != nil {
		return err
	}
	defer st.cancel()
	p := pipe{ctx, st, subOut}
	buf := make([]byte, maxPayload)
	var have []byte
	for {
		n, err := p.Read(buf)
		have = append(have, buf[:n]...)
		for {
			l, rest, ok, perr := parseLine(have)
			if perr != nil {
				return fmt.Errorf("logs: %w", perr)
			}
			if have = rest; !ok {
				break
			}
			fn(l)
		}
		have = append([]byte(nil), have...)
		if err != nil {
			return fmt.Errorf("logs: %w", err)
		}
	}
}

type logsRequest struct {
	From uint64 `json:"from"`
}

// call sends a request and waits for the reply.
func (s *Session) call(ctx context.Context, method string, req, answer any) error {
	st, err := s.begin(ctx, method, req)
	if err == nil {
		err = s.finish(ctx, st, answer)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	return nil
}

// begin opens a stream and sends the request.
func (s *Session) begin(ctx context.Context, method string, req any) (*stream, error) {
	msg := appendJSON(nil, req)
	if len(msg) > maxRequest {
		return nil, Errorf(KindInvalid, "%d bytes are more than the guest takes: at most %d", len(msg), maxRequest)
	}
	st, err := s.m.open(ctx, method)
	if err != nil {
		return nil, err
	}
	if err := st.sendMessage(ctx, msg); err != nil {
		st.cancel()
		return nil, err
	}
	return st, nil
}

// finish waits for the reply and ends the stream.
func (s *Session) finish(ctx context.Context, st *stream, answer any) error {
	reply, err := st.readMessage(ctx)
	if err != nil {
		st.cancel()
		return err
	}
	st.forget()
	return decodeReply(reply, answer)
}
