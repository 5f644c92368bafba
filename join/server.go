package join

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	volant "github.com/volant-edge/volant"
)

// Admitter decides who is let in.
type Admitter interface {
	// Admit lets a server in that asks from an address, or says why not.
	Admit(ctx context.Context, r Request, from netip.Addr) (Answer, error)
	// Removed says whether a node was removed from the cluster.
	Removed(node volant.NodeID) bool
}

// Bounds of the listener: nobody needs more, and who guesses gets no further.
const (
	joinPath    = "/v1/join"
	removedPath = "/v1/removed/"
	readWithin  = 10 * time.Second
	maxConns    = 64
	eachConns   = 8
	eachPerMin  = 20 // requests of one source
	allPerSec   = 20
	maxSources  = 4096
	certLife    = 10 * 365 * 24 * time.Hour
)

// Server is the join listener.
type Server struct {
	admit Admitter
	cert  tls.Certificate
	log   *slog.Logger
	all   *rate.Limiter

	mu      sync.Mutex // guards sources
	sources map[netip.Prefix]*rate.Limiter
}

// NewServer returns a listener that proves itself by the cluster's key.
func NewServer(key ed25519.PrivateKey, admit Admitter, log *slog.Logger) (*Server, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	cert, err := certificate(key, time.Now())
	if err != nil {
		return nil, err
	}
	return &Server{admit: admit, cert: cert, log: log, all: rate.NewLimiter(allPerSec, allPerSec), sources: map[netip.Prefix]*rate.Limiter{}}, nil
}

// certificate is a self-signed one of the key: who joins looks at the key alone.
func certificate(key ed25519.PrivateKey, now time.Time) (tls.Certificate, error) {
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Volant cluster"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(certLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate of the join listener: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Run answers on l until ctx ends.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: s, ReadTimeout: readWithin, WriteTimeout: time.Minute, IdleTimeout: readWithin, MaxHeaderBytes: 8 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	end := context.AfterFunc(ctx, func() { _ = srv.Close() }) // a join that is cut off is done again
	defer end()
	conf := &tls.Config{Certificates: []tls.Certificate{s.cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}
	err := srv.Serve(tls.NewListener(&bounded{Listener: l, each: map[netip.Prefix]int{}}, conf))
	if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
		return nil
	}
	return err
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	from, err := sourceOf(r)
	if err == nil && !s.within(from, time.Now()) {
		err = volant.Errorf(volant.ErrLimited, "too many requests to join").WithRemedy("try again in a minute")
	}
	if err != nil {
		fail(w, err)
		return
	}
	switch node := volant.NodeID(r.URL.Path[min(len(removedPath), len(r.URL.Path)):]); {
	case r.Method == http.MethodPost && r.URL.Path == joinPath:
		s.join(w, r, from)
	case r.Method == http.MethodGet && r.URL.Path == removedPath+string(node) && nodeID.MatchString(string(node)):
		answer(w, http.StatusOK, map[string]bool{"removed": s.admit.Removed(node)})
	default:
		fail(w, volant.Errorf(volant.ErrNotFound, "this is where servers join, and nothing else").WithRemedy("the API listens elsewhere"))
	}
}

func (s *Server) join(w http.ResponseWriter, r *http.Request, from netip.Addr) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		fail(w, volant.Invalidf("the request cannot be read: %v", err))
		return
	}
	req, err := DecodeRequest(b)
	if err != nil {
		fail(w, err)
		return
	}
	if req.Endpoint.Addr().IsUnspecified() {
		req.Endpoint = netip.AddrPortFrom(from, req.Endpoint.Port())
	}
	out, err := s.admit.Admit(r.Context(), req, from)
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, out)
}

func sourceOf(r *http.Request) (netip.Addr, error) {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}, volant.Invalidf("the request comes from no address")
	}
	return from.Addr().Unmap().WithZone(""), nil
}

// within counts a request of a source.
func (s *Server) within(from netip.Addr, now time.Time) bool {
	p := network(from)
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.sources[p]
	if l == nil {
		if len(s.sources) >= maxSources { // all begin anew; what holds then is the bound for all
			clear(s.sources)
		}
		l = rate.NewLimiter(eachPerMin/60.0, eachPerMin)
		s.sources[p] = l
	}
	return l.AllowN(now, 1) && s.all.AllowN(now, 1) // one source alone does not use up what is for all
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the caller is gone: nobody to tell
}

// fail answers an error. Of one without a kind the text stays here.
func fail(w http.ResponseWriter, err error) {
	wire := volant.ToWire(err)
	if wire.Kind == "" {
		wire = &volant.WireError{Kind: "unavailable", Text: "the cluster cannot let servers in now", Remedy: "look into the log of the server that was asked, and try again"}
	}
	answer(w, http.StatusForbidden, wire)
}

// bounded accepts as many connections at once, in all and of one source, as there is room for.
type bounded struct {
	net.Listener

	mu   sync.Mutex // guards the fields below
	all  int
	each map[netip.Prefix]int
}

func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if free := b.take(networkOf(c.RemoteAddr().String())); free != nil {
			return &boundedConn{Conn: c, free: sync.OnceFunc(free)}, nil
		}
		_ = c.Close() // there is no room for it
	}
}

// take takes room for a connection, and returns what gives it back; nil if there is none.
func (b *bounded) take(p netip.Prefix) (free func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all >= maxConns || b.each[p] >= eachConns {
		return nil
	}
	b.all++
	b.each[p]++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.all--
		if b.each[p]--; b.each[p] == 0 {
			delete(b.each, p)
		}
	}
}

type boundedConn struct {
	net.Conn
	free func()
}

func (c *boundedConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}

// networkOf is the source that an address counts as: an IPv4 address, or a network of 64 bits, which one host has to
// itself. It is invalid for what is no address.
func networkOf(addrPort string) netip.Prefix {
	a, err := netip.ParseAddrPort(addrPort)
	if err != nil {
		return netip.Prefix{}
	}
	return network(a.Addr().Unmap().WithZone(""))
}

func network(from netip.Addr) netip.Prefix {
	bits := 64
	if from.Is4() {
		bits = 32
	}
	p, err := from.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
