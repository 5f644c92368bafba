package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	proxyproto "github.com/pires/go-proxyproto"

	"github.com/volant-edge/volant/why"
)

// frontConn is a client's connection to a port with handlers.
type frontConn struct {
	net.Conn
	ctx        context.Context //nolint:containedctx // of the proxy's serving
	at, client netip.AddrPort
	sni        string      // asked for in a handshake
	refusal    rule        // why the handshake was refused
	unread     atomic.Bool // it is closed while its client may still send
}

// Close closes it; if its client may still send, a moment later, since closing over unread bytes would reset it
// and take from the client what it has not read yet.
func (c *frontConn) Close() error {
	if !c.unread.CompareAndSwap(true, false) {
		return c.Conn.Close()
	}
	go func() {
		sayFarewell(c.ctx, c.Conn)
		c.Conn.Close() //nolint:errcheck // there is nothing left to do with it
	}()
	return nil
}

// CloseWrite sends FIN.
func (c *frontConn) CloseWrite() error {
	closeWrite(c.Conn)
	return nil
}

// SetLinger is net.TCPConn's, where the connection has it.
func (c *frontConn) SetLinger(s int) error {
	if l, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(s)
	}
	return nil
}

// fronts serve the connections to ports with handlers.
type fronts struct {
	p       *Proxy
	self    selfSigned
	leaving chan struct{} // closed when all clients are asked to leave
	once    sync.Once

	mu      sync.Mutex // guards what follows
	configs map[tlsKey]*tls.Config
	servers map[serverKey]*server
	closed  bool
}

// serverKey tells HTTP servers apart: a net/http server has its times for all its connections.
type serverKey struct{ idle, headers time.Duration }

// adopt takes a connection that a loop accepted to a port with handlers.
func (p *Proxy) adopt(fd int32, at netip.AddrPort) {
	f := os.NewFile(uintptr(fd), "client")
	c, err := net.FileConn(f)
	f.Close() //nolint:errcheck // c has a descriptor of its own
	if err != nil {
		p.log.Warn("connection was dropped", "err", err)
		return
	}
	if t, ok := c.(*net.TCPConn); ok {
		if err := t.SetKeepAliveConfig(keepAlive); err != nil {
			p.log.Warn("keep-alive was not set", "err", err)
		}
	}
	p.mu.Lock()
	ctx := p.serving
	p.mu.Unlock()
	p.handle(ctx, at, c)
}

// handle serves a connection to a port with handlers.
func (p *Proxy) handle(ctx context.Context, at netip.AddrPort, c net.Conn) {
	p.open.Add(1)
	fc := &frontConn{Conn: c, ctx: ctx, at: at, client: clientOf(c)}
	p.sessions.Go(func() {
		if !p.fronts.serve(ctx, fc) { // else its server closes it
			c.Close() //nolint:errcheck // closed before in every orderly end
			p.open.Add(-1)
		}
	})
}

// serve handles a connection. It returns true if an HTTP server goes on with it.
func (f *fronts) serve(ctx context.Context, c *frontConn) (kept bool) {
	r := f.p.route(c.at)
	pt := r.port
	switch {
	case pt == nil || pt.unknown:
		f.refuse(ctx, r, c, ruleHandler, "")
		return false
	case pt.postgres:
		if err := startPostgres(c); err != nil {
			f.refuse(ctx, r, c, ruleNoTLS, err.Error())
			return false
		}
	}
	conn := net.Conn(c)
	if pt.tls || pt.postgres {
		tc, err := f.handshake(ctx, c, pt.tlsKey)
		if err != nil {
			why := c.refusal
			if why == ruleNone {
				why = ruleHandshake
			}
			f.refuse(ctx, r, c, why, err.Error())
			return false
		}
		conn = tc
	}
	if pt.http {
		return f.server(serverKey{pt.idle, pt.headers}).take(conn)
	}
	own := f.p.route(c.at).of(c.sni)
	if own == nil {
		f.refuse(ctx, r, c, ruleNoName, "")
		return false
	}
	g := &tcpCaller{conn: conn}
	if pt := own.port; pt != nil && pt.proxyProto > 0 {
		g.head = proxyHeader(pt.proxyProto, c.client, c.at)
	}
	d := newNetRoad(ctx, f.p, own, c.at, c.client, g)
	defer f.p.open.Add(-1)
	d.run()
	if conn != net.Conn(c) {
		conn.Close() //nolint:errcheck // it says farewell in TLS; closed before in every orderly end
	}
	return false
}

// refused makes the record of a connection, or of a request x on it, that came to no app's queue.
func (f *fronts) refused(r *route, c *frontConn, x *exchange, by rule) why.Record {
	now := time.Now()
	rd := road{id: f.p.lastID.Add(1), epoch: f.p.cfg.Epoch, start: now, route: r, client: c.client, local: c.at, http: x}
	rd.refused(by, now)
	f.p.roads.put(&rd)
	return rd.record()
}

// refuse leaves a record of a connection that came to no app's queue.
func (f *fronts) refuse(ctx context.Context, r *route, c *frontConn, why rule, detail string) {
	if own := r.of(c.sni); own != nil {
		r = own
	}
	rec := f.refused(r, c, nil, why)
	if r.app != nil {
		r.app.counts.refused[why].Add(1)
	}
	if c.sni != "" {
		rec.Attrs["host"] = printable(c.sni)
	}
	if detail != "" {
		rec.Text += ": " + printable(detail)
	}
	f.p.note(rec)
	if why == ruleHandler || why == ruleNoName {
		sayFarewell(ctx, c.Conn)
	}
}

// printable bounds a text that a client had a hand in.
func printable(s string) string {
	s = fmt.Sprintf("%q", s[:min(len(s), 200)])
	return s[1 : len(s)-1]
}

// proxyHeader is the PROXY protocol's header for a connection from client to at.
func proxyHeader(version byte, client, at netip.AddrPort) []byte {
	h := proxyproto.HeaderProxyFromAddrs(version, net.TCPAddrFromAddrPort(client), net.TCPAddrFromAddrPort(at))
	b, err := h.Format()
	if err != nil { // addresses of two families, or none: the protocol has a word for that
		b, _ = (&proxyproto.Header{Version: version, Command: proxyproto.LOCAL}).Format()
	}
	return b
}

// server is a net/http server that is fed with connections.
type server struct {
	f    *fronts
	http *http.Server
	feed chan net.Conn
	done chan struct{} // closed when it takes no more
	once sync.Once
}

func (f *fronts) server(k serverKey) *server {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.servers[k]; s != nil {
		return s
	}
	s := &server{f: f, feed: make(chan net.Conn), done: make(chan struct{})}
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: k.headers, IdleTimeout: k.idle, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(f.p.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, frontKey{}, frontOf(c))
		},
		ConnState: func(_ net.Conn, st http.ConnState) {
			if st == http.StateClosed || st == http.StateHijacked {
				f.p.open.Add(-1)
			}
		},
	}
	if f.servers == nil {
		f.servers = map[serverKey]*server{}
	}
	if f.closed {
		s.once.Do(func() { close(s.done) })
		return s
	}
	f.servers[k] = s
	f.p.sessions.Go(func() {
		if err := s.http.Serve(s); !errors.Is(err, http.ErrServerClosed) {
			f.p.log.Error("http server ended", "err", err)
		}
	})
	return s
}

type frontKey struct{}

// frontOf finds the client's connection below TLS.
func frontOf(c net.Conn) *frontConn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	fc, _ := c.(*frontConn) // always one: take gets no other
	return fc
}

// take hands a connection to the server; false if it takes no more.
func (s *server) take(c net.Conn) bool {
	select {
	case s.feed <- c:
		return true
	case <-s.done:
		return false
	}
}

// Accept, Close and Addr are net.Listener's.
func (s *server) Accept() (net.Conn, error) {
	select {
	case c := <-s.feed:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// Close makes Accept end.
func (s *server) Close() error {
	s.once.Do(func() { close(s.done) })
	return nil
}

// Addr has no meaning here.
func (s *server) Addr() net.Addr { return &net.UnixAddr{Name: "proxy", Net: "unix"} }

func (f *fronts) all() []*server {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []*server
	for _, s := range f.servers {
		out = append(out, s)
	}
	return out
}

// leave asks clients to leave: idle connections are closed, busy ones after their request.
func (f *fronts) leave() {
	f.once.Do(func() { close(f.leaving) })
	for _, s := range f.all() {
		f.p.sessions.Go(func() {
			if err := s.http.Shutdown(context.Background()); err != nil {
				f.p.log.Warn("http server did not shut down", "err", err)
			}
		})
	}
}

// enter counts a request among what Run waits for; false when it waits already. A server's goroutines are not
// counted otherwise.
func (f *fronts) enter() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.p.sessions.Add(1)
	return true
}

// close ends all that is left.
func (f *fronts) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	for _, s := range f.all() {
		s.http.Close() //nolint:errcheck // nothing is to be saved
	}
}
