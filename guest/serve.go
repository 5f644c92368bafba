package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// ErrDetached is returned by the Read of a link which has no host at the moment: the session has
// ended, a later Read waits for the next host.
var ErrDetached = errors.New("no host is connected")

// ErrShutdown is returned by Serve when a Shutdown was done and answered.
var ErrShutdown = errors.New("the guest was shut down")

// Backend does what the host asks for. Its methods may be called from several goroutines; they
// return when their ctx ends, which is with the session too.
type Backend interface {
	Hello() Hello
	Configure(ctx context.Context, c Config) error
	// Put writes a file that passed its Check.
	Put(ctx context.Context, f File) error
	Start(ctx context.Context) error
	Wait(ctx context.Context) (Exit, error)
	Signal(ctx context.Context, sig int) error
	// Exec runs a command; Stdin, Stdout and Stderr are set, and its Exit means that all output
	// was written.
	Exec(ctx context.Context, e Exec) (Exit, error)
	// Logs calls fn for each line from a sequence number on and goes on until fn fails or ctx ends.
	Logs(ctx context.Context, from uint64, fn func(LogLine) error) error
	Thaw(ctx context.Context, t Thaw) error
	Freeze(ctx context.Context) error
	Stats(ctx context.Context) (Stats, error)
	// Processes are those of the app and of execs, by ID, within the bounds of Process.
	Processes(ctx context.Context) ([]Process, error)
	// Shutdown ends all processes and writes out the disks. The VM ends after its answer is sent.
	Shutdown(ctx context.Context) error
}

// Serve is the guest's side: it answers one session after the other on the link, until ctx ends
// (nil), the link fails, or a Shutdown was answered (ErrShutdown). It closes the link.
func Serve(ctx context.Context, link io.ReadWriteCloser, b Backend) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = link.Close() }) // to end Read; nobody is left to tell
	defer stop()
	s := server{link: link, r: bufio.NewReaderSize(link, linkBuf), b: b}
	err := s.sessions(ctx)
	cancel()
	_ = link.Close() // it has failed, or is of no more use
	s.handlers.Wait()
	if s.down.Load() {
		return ErrShutdown
	}
	return err
}

type server struct {
	link     io.ReadWriteCloser
	r        *bufio.Reader
	b        Backend
	handlers sync.WaitGroup
	down     atomic.Bool // Shutdown was done
}

// sessions serves one session after the other.
func (s *server) sessions(ctx context.Context) error {
	for {
		err := s.session(ctx)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // asked to end
		case errors.Is(err, ErrDetached), errors.Is(err, errProtocol), errors.Is(err, errSync):
		default:
			return err
		}
	}
}

// session waits for a host's hail, answers it, and serves until that session ends.
func (s *server) session(ctx context.Context) error {
	version, n, err := scanSync(s.r, hail)
	if err != nil {
		return err
	}
	msg := appendSync(nil, echo, Version, n)
	if version == Version {
		msg = appendFrame(msg, frame{kind: kindHello, payload: appendJSON(nil, s.b.Hello())})
	}
	if _, err := s.link.Write(msg); err != nil || version != Version {
		return errors.Join(err, errProtocol)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m := newMux()
	var writer sync.WaitGroup
	// Nothing of this session may be written after the next one's echo.
	defer writer.Wait()
	writer.Go(func() { m.writeLoop(s.link) })
	err = s.read(ctx, m, n)
	m.fail(fmt.Errorf("%w: %w", ErrClosed, err))
	return err
}

// read hands on frames until the session ends.
func (s *server) read(ctx context.Context, m *mux, n nonce) error {
	for {
		f, err := readFrame(s.r)
		switch {
		case errors.Is(err, errSync):
			b, perr := s.r.Peek(syncLen)
			if perr != nil {
				return perr
			}
			if _, again, ok := parseSync(b, hail); !ok || again != n {
				return err
			}
			if _, err := s.r.Discard(syncLen); err != nil {
				return err
			}
		case err != nil:
			return err
		case f.kind == kindOpen:
			if len(f.payload) > maxMethod {
				return fmt.Errorf("%w: method of %d bytes", errProtocol, len(f.payload))
			}
			st, err := m.accept(f.stream)
			if err != nil {
				return err
			}
			s.handlers.Go(func() { s.handle(ctx, st, string(f.payload)) })
		default:
			if err := m.deliver(f); err != nil {
				return err
			}
		}
	}
}

// handle answers one call.
func (s *server) handle(ctx context.Context, st *stream, method string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer st.forget()
	s.handlers.Go(func() {
		select {
		case <-st.gone:
			cancel()
		case <-ctx.Done():
		}
	})
	req, err := st.readMessage(ctx)
	if err != nil {
		return
	}
	answer, err := s.dispatch(ctx, st, method, req)
	sent := ctx.Err()
	if sent == nil {
		sent = st.sendMessage(ctx, encodeReply(answer, err))
	}
	if method == callShutdown && err == nil {
		if sent == nil {
			bye, stop := context.WithTimeout(ctx, farewell)
			st.m.flush(bye)
			stop()
		}
		// The VM goes, whether the host has heard of it or left.
		s.down.Store(true)
		_ = s.link.Close() // ends the reader
	}
}

const farewell = time.Second // for the answer to Shutdown to get out

func (s *server) dispatch(ctx context.Context, st *stream, method string, req []byte) (any, error) {
	switch method {
	case callConfigure:
		return decoded(req, func(c Config) (any, error) {
			err := s.b.Configure(ctx, c)
			return s.b.Hello(), err
		})
	case callPut:
		return decoded(req, func(f File) (any, error) {
			if err := f.Check(); err != nil {
				return nil, err
			}
			return nil, s.b.Put(ctx, f)
		})
	case callStart:
		return nil, s.b.Start(ctx)
	case callWait:
		return s.b.Wait(ctx)
	case callSignal:
		return decoded(req, func(r signalRequest) (any, error) { return nil, s.b.Signal(ctx, r.Signal) })
	case callExec:
		return decoded(req, func(e Exec) (any, error) { return s.exec(ctx, st, e) })
	case callLogs:
		return decoded(req, func(r logsRequest) (any, error) { return nil, s.logs(ctx, st, r.From) })
	case callThaw:
		return decoded(req, func(t Thaw) (any, error) { return nil, s.b.Thaw(ctx, t) })
	case callFreeze:
		return nil, s.b.Freeze(ctx)
	case callStats:
		return s.b.Stats(ctx)
	case callProcesses:
		ps, err := s.b.Processes(ctx)
		return fit(ps), err
	case callShutdown:
		return nil, s.b.Shutdown(ctx)
	}
	return nil, Errorf(KindInvalid, "the guest knows no call %q", method)
}

// decoded calls fn with the request read into a T.
func decoded[T any](req []byte, fn func(T) (any, error)) (any, error) {
	var v T
	if err := json.Unmarshal(req, &v); err != nil {
		return nil, Errorf(KindInvalid, "bad request: %v", err)
	}
	return fn(v)
}

func (s *server) exec(ctx context.Context, st *stream, e Exec) (any, error) {
	out, errOut := pipe{ctx, st, subOut}, pipe{ctx, st, subErr}
	e.Stdin, e.Stdout, e.Stderr = pipe{ctx, st, subIn}, out, errOut
	exit, err := s.b.Exec(ctx, e)
	return exit, errors.Join(err, out.Close(), errOut.Close())
}

// logs sends lines, as many in one frame as are there.
func (s *server) logs(ctx context.Context, st *stream, from uint64) error {
	out := pipe{ctx, st, subOut}
	defer func() { _ = out.Close() }() // fails only with the session
	return s.b.Logs(ctx, from, func(l LogLine) error {
		_, err := out.Write(appendLine(nil, l))
		return err
	})
}
