package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
	"github.com/volant-edge/volant/why"
)

// writeWithin bounds how long the control socket's other end may not read.
const writeWithin = 10 * time.Second

// api serves a Proxy on the control socket.
type api struct {
	p        *Proxy
	log      *slog.Logger
	tabled   func()                      // called when a table or a seal was taken
	shutdown func(context.Context) error // asks the process to end
}

// serve accepts until ctx ends.
func (s *api) serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { l.Close() })() //nolint:errcheck // Accept tells
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("control socket: %w", err)
		}
		if err != nil {
			s.log.Warn("control socket did not accept", "err", err)
			time.Sleep(acceptFirst)
			continue
		}
		conns.Go(func() {
			if err := s.conn(ctx, c); err != nil && ctx.Err() == nil {
				s.log.Warn("control connection ended", "err", err)
			}
		})
	}
}

// conn answers one connection's requests in their order.
func (s *api) conn(ctx context.Context, c net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { c.Close() })() //nolint:errcheck // reads and writes tell
	if err := allowed(c); err != nil {
		return err
	}
	r := bufio.NewReader(c)
	for {
		f, err := readFrame(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if f.Op == opWatch {
			return s.watch(ctx, c, r)
		}
		answer := frame{ID: f.ID}
		body, err := s.answer(ctx, f)
		if err == nil {
			answer.Body, err = marshal(body)
		}
		if err != nil {
			answer.Error = volant.ToWire(err)
		}
		if err := send(c, answer); err != nil {
			return err
		}
	}
}

// allowed refuses users other than root and the proxy's own.
func allowed(c net.Conn) error {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil
	}
	rc, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := rc.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return volant.Errorf(volant.ErrForbidden, "user %d may not control the proxy", cred.Uid)
	}
	return nil
}

func send(c net.Conn, f frame) error {
	if err := c.SetWriteDeadline(time.Now().Add(writeWithin)); err != nil {
		return err
	}
	return writeFrame(c, f)
}

func (s *api) answer(ctx context.Context, f frame) (any, error) {
	switch f.Op {
	case opHello:
		return s.p.Hello(ctx)
	case opSetTable:
		var t Table
		if err := unmarshal(f.Body, &t); err != nil {
			return nil, err
		}
		err := s.p.SetTable(ctx, t)
		if err == nil {
			s.tabled()
		}
		return nil, err
	case opSeal:
		var r sealRequest
		if err := unmarshal(f.Body, &r); err != nil {
			return nil, err
		}
		ok, err := s.p.Seal(ctx, r.Machine, r.Seq)
		if ok {
			s.tabled()
		}
		return ok, err
	case opSlots:
		return s.p.Slots(ctx)
	case opPicture:
		var id volant.AppID
		if err := unmarshal(f.Body, &id); err != nil {
			return nil, err
		}
		return s.p.Picture(ctx, id)
	case opNumbers:
		return s.p.Numbers(ctx)
	case opQuery:
		var q why.Query
		if err := unmarshal(f.Body, &q); err != nil {
			return nil, err
		}
		return s.p.Query(ctx, q)
	case opTell:
		var r tellRequest
		if err := unmarshal(f.Body, &r); err != nil {
			return nil, err
		}
		if r.All != 0 {
			return nil, s.p.TellAll(ctx, r.All, r.Facts)
		}
		return nil, s.p.Tell(ctx, r.Facts)
	case opShutdown:
		return nil, s.shutdown(ctx)
	}
	return nil, volant.Invalidf("control operation %q is unknown", f.Op)
}

// watch makes the connection a stream of events until either side closes it.
func (s *api) watch(ctx context.Context, c net.Conn, r io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		r.Read(make([]byte, 1)) //nolint:errcheck // whatever comes ends the watch
		cancel()
	}()
	var failed error
	tell := func(name string, v any) {
		body, err := marshal(v)
		if err == nil && failed == nil {
			err = send(c, frame{Event: name, Body: body})
		}
		if err != nil && failed == nil {
			failed = err
			cancel()
		}
	}
	err := s.p.Watch(ctx, Events{
		Load: func(l Load) { tell(eventLoad, l) },
		Wake: func(w Wake) { tell(eventWake, w) },
		Why:  func(r why.Record) { tell(eventWhy, r) },
		Peer: func(s live.PeerState) { tell(eventPeer, s) },

		facts: func(fs []live.Fact) { tell(eventFacts, fs) },
	})
	if err != nil {
		return errors.Join(err, send(c, frame{Error: volant.ToWire(err)}))
	}
	return failed
}
