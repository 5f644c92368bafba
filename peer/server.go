package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	volant "github.com/volant-edge/volant"
)

const (
	// MaxBody bounds the body of a call and of its answer. Streams are not bounded: their readers are.
	MaxBody = 8 << 20
	// headerError marks answers whose body is a volant.WireError.
	headerError = "Volant-Error"
	// closing bounds how long calls that run may go on when the server ends.
	closing = 2 * time.Second
)

// Config configures a Server.
type Config struct {
	// Known says whether a node may call: a live one of this cluster.
	Known func(volant.NodeID) bool
	Log   *slog.Logger // nil discards
}

// Server answers calls of other nodes.
type Server struct {
	cfg Config
	mux *http.ServeMux
}

// Request is one call.
type Request struct {
	From volant.NodeID
	*http.Request
}

// New returns a Server without handlers.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, mux: http.NewServeMux()}
}

// Handle answers calls of a pattern, such as "POST /host/wake", by fn: what it reads of the body, what it returns as the
// answer's. All handlers are added before Run.
func Handle[In any](s *Server, pattern string, fn func(ctx context.Context, from volant.NodeID, in In) (any, error)) {
	s.Raw(pattern, func(w http.ResponseWriter, r Request) error {
		var in In
		if err := decode(http.MaxBytesReader(w, r.Body, MaxBody), &in); err != nil {
			return err
		}
		out, err := fn(r.Context(), r.From, in)
		if err != nil {
			return err
		}
		b, err := json.Marshal(out)
		if err != nil {
			return fmt.Errorf("answer %s: %w", r.Pattern, err)
		}
		w.Header().Set("Content-Type", "application/json")
		_, err = w.Write(b)
		return err
	})
}

// Raw answers requests of a pattern by fn, which reads and writes as it likes: blobs, logs. An error that fn returns
// before it has written is told to the caller; one after that breaks the connection, so that nobody takes
// half an answer for a whole one.
func (s *Server) Raw(pattern string, fn func(w http.ResponseWriter, r Request) error) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		from, err := s.caller(r)
		began := &begun{ResponseWriter: w}
		if err == nil {
			err = fn(began, Request{from, r})
		}
		switch {
		case err == nil:
		case began.began:
			if r.Context().Err() == nil {
				s.cfg.Log.Warn("answer to a node broke off", "node", from, "call", pattern, "err", err)
			}
			panic(http.ErrAbortHandler)
		default:
			refuse(w, err)
		}
	})
}

// begun notes whether an answer has begun.
type begun struct {
	http.ResponseWriter
	began bool
}

func (b *begun) WriteHeader(code int) { b.began = true; b.ResponseWriter.WriteHeader(code) }

func (b *begun) Write(p []byte) (int, error) { b.began = true; return b.ResponseWriter.Write(p) }

// Unwrap lets http.ResponseController flush.
func (b *begun) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// caller is the node that a request comes from.
func (s *Server) caller(r *http.Request) (volant.NodeID, error) {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return "", volant.Errorf(volant.ErrForbidden, "the caller's address %q is none", r.RemoteAddr)
	}
	id, ok := volant.NodeAt(ap.Addr())
	if !ok || !s.cfg.Known(id) {
		return "", volant.Errorf(volant.ErrForbidden, "%s is no node of this cluster, or no longer", ap.Addr()).
			WithRemedy("let the server join again")
	}
	return id, nil
}

func refuse(w http.ResponseWriter, err error) {
	b, merr := json.Marshal(volant.ToWire(err))
	if merr != nil {
		b = []byte(`{"text":"error"}`)
	}
	w.Header().Set(headerError, "1")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusInternalServerError)
	_, _ = w.Write(b) // who called is gone if this fails
}

// decode reads one JSON value; an empty body is the zero value.
func decode(r io.Reader, v any) error {
	err := json.NewDecoder(r).Decode(v)
	var big *http.MaxBytesError
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return nil
	case errors.As(err, &big):
		return volant.Invalidf("the call has more than %d bytes", big.Limit)
	}
	return volant.Invalidf("the call cannot be read: %v", err)
}

// Run answers calls on a listener, which it closes, until ctx ends.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: s.mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog:    slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("peer: %w", err)
	case <-ctx.Done():
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), closing)
	defer cancel()
	if srv.Shutdown(bound) != nil {
		_ = srv.Close() // its calls end with their connections
	}
	<-served
	return nil
}
