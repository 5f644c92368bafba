package proxy

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
)

// exchange is what is remembered of an HTTP request.
type exchange struct {
	id           string
	method, host string
	path         string // without the query, which may hold secrets

	mu     sync.Mutex // guards the following, which records are made of at any time
	status int        // of the response; 0 while there is none
	detail string     // what went wrong, for people
}

func (x *exchange) describe(attrs map[string]string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	attrs["request"] = x.method + " " + x.host + x.path
	if x.status != 0 {
		attrs["status"] = fmt.Sprint(x.status)
	}
	if x.detail != "" {
		attrs["detail"] = x.detail
	}
}

func (x *exchange) answered(status int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.status = status
}

func (x *exchange) failed(detail string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.detail = printable(detail)
}

// ServeHTTP leads one request to a machine.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(frontKey{}).(*frontConn) //nolint:forcetypeassert // ConnContext put it there
	p := s.f.p
	if !s.f.enter() {
		panic(http.ErrAbortHandler) // the proxy has stopped
	}
	defer p.sessions.Done()
	entry := p.route(c.at)
	began := time.Now()
	x := &exchange{
		id:     strings.ToLower(ulid.Make().String()) + "-" + string(entry.region),
		method: printable(r.Method), host: printable(r.Host), path: printable(r.URL.EscapedPath()),
	}
	own, refusal := entry.forRequest(c, r)
	if own == nil || refusal != ruleNone {
		answer(w, r, x, refusal, 0)
		p.fronts.refuseRequest(entry, c, x, refusal)
		return
	}
	if own.port == nil || !own.port.http { // the table changed since the connection was accepted
		answer(w, r, x, ruleNoRoute, 0)
		return
	}
	if own.port.forceHTTPS && r.TLS == nil && hostName(r.Host) != "" {
		own.port.edit(w.Header(), x)
		w.Header().Set("Location", "https://"+hostName(r.Host)+r.URL.RequestURI())
		w.WriteHeader(http.StatusMovedPermanently)
		own.app.counts.answered(http.StatusMovedPermanently, time.Since(began))
		return
	}
	if r.Method == http.MethodConnect {
		answer(w, r, x, ruleHandler, 0)
		return
	}
	g := &httpCaller{w: w, r: r, x: x, c: c, wish: wished(r.Header)}
	s.lead(g, own)
	if g.status > 0 {
		own.app.counts.answered(g.status, time.Since(began))
	}
	if g.broken || g.status == 0 {
		panic(http.ErrAbortHandler) // the client must not take what it has for the whole, or nothing for an answer
	}
}

// lead leads a request to a machine, and on to others where machines say so by fly-replay.
func (s *server) lead(g *httpCaller, r *route) {
	p := s.f.p
	defer func() {
		if g.body != nil {
			g.body.drop()
		}
	}()
	for n := 0; ; n++ {
		d := newNetRoad(g.c.ctx, p, r, g.c.at, g.c.client, g)
		d.wish, d.road.http = g.wish, g.x
		d.run()
		p.open.Add(-1)
		if g.again == nil || g.status > 0 {
			return
		}
		g.x = &exchange{id: g.x.id, method: g.x.method, host: g.x.host, path: g.x.path}
		next, refusal := s.follow(g, r, n)
		if refusal != ruleNone {
			g.answer(refusal, 0)
			p.fronts.refuseRequest(r, g.c, g.x, refusal)
			return
		}
		r = next
	}
}

// forRequest finds the app that a request is for. A connection by TLS belongs to the app of its server name;
// one without is led anew with each request.
func (r *route) forRequest(c *frontConn, req *http.Request) (*route, rule) {
	if r.hosts == nil {
		return r, r.refusal
	}
	host := hostName(req.Host)
	asked := r.of(host)
	if req.TLS == nil {
		if asked == nil {
			return nil, ruleNoName
		}
		return asked, asked.refusal
	}
	own := r.of(c.sni)
	switch {
	case own == nil || asked == nil:
		return nil, ruleNoName
	case own.app.id != asked.app.id:
		return nil, ruleMisdirected
	}
	return asked, asked.refusal
}

// refuseRequest leaves a record of a request that came to no app's queue.
func (f *fronts) refuseRequest(r *route, c *frontConn, x *exchange, why rule) {
	f.p.note(f.refused(r, c, x, why))
}

// answer answers a request in the proxy's own name.
func answer(w http.ResponseWriter, r *http.Request, x *exchange, why rule, wait time.Duration) {
	status := statusOf(why)
	x.answered(status)
	h := w.Header()
	for name := range h {
		if name != "Connection" {
			h.Del(name)
		}
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	own(h, x)
	if status == http.StatusServiceUnavailable {
		h.Set("Retry-After", fmt.Sprint(max(1, int(wait.Seconds()))))
	}
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	rd := road{rule: why, refusal: true, route: &route{}}
	fmt.Fprintf(w, "%d %s: %s.\nRequest %s\n", status, http.StatusText(status), refusalText(&rd), x.id) //nolint:errcheck // the client is gone
}

// own sets the headers by which every response says who served it.
func own(h http.Header, x *exchange) {
	h.Set("Server", "Volant")
	h.Set("Fly-Request-Id", x.id)
	h.Set("Volant-Request-Id", x.id)
}

func statusOf(why rule) int {
	switch why {
	case ruleNoName:
		return http.StatusNotFound
	case ruleMisdirected:
		return http.StatusMisdirectedRequest
	case ruleConnectTime, ruleBroken, ruleReplay, ruleReplays, ruleReplayBody, ruleReplayApp:
		return http.StatusBadGateway
	case ruleHandler:
		return http.StatusNotImplemented
	default:
		return http.StatusServiceUnavailable
	}
}

// edit sets our headers of a response and does the edits of the port's options.
func (p *port) edit(h http.Header, x *exchange) {
	if !p.pristine {
		own(h, x)
		h.Add("Via", "1.1 volant")
	}
	for _, e := range p.edits {
		h.Del(e.name)
		for _, v := range e.values {
			h.Add(e.name, v)
		}
	}
}

// inward makes the request's headers those that the app is to see.
func inward(h http.Header, r *http.Request, c *frontConn, x *exchange, region string) {
	hopByHop(h)
	client := c.client.Addr().Unmap().WithZone("").String()
	set := func(name, value string) { h.Set(name, value) }
	for name := range h { // what only the proxy says is not to be forged
		if trusted(name) {
			h.Del(name)
		}
	}
	set("Fly-Client-Ip", client)
	set("Volant-Client-Ip", client)
	forwarded := client
	if prior := strings.Join(h.Values("X-Forwarded-For"), ", "); prior != "" {
		forwarded = prior + ", " + client
	}
	set("X-Forwarded-For", forwarded+", "+c.at.Addr().String())
	proto, ssl := "http", "off"
	if r.TLS != nil {
		proto, ssl = "https", "on"
	}
	set("X-Forwarded-Proto", proto)
	set("X-Forwarded-Ssl", ssl)
	port := portText(c.at.Port())
	if h.Get("X-Forwarded-Port") == "" {
		set("X-Forwarded-Port", port)
	}
	set("Fly-Forwarded-Port", port)
	set("Volant-Forwarded-Port", port)
	set("Fly-Region", region)
	set("Volant-Region", region)
	set("Fly-Request-Id", x.id)
	set("Volant-Request-Id", x.id)
	h.Add("Via", fmt.Sprintf("%d.%d volant", r.ProtoMajor, r.ProtoMinor))
}

// trusted says whether an app may believe the header because only the proxy sets it.
func trusted(name string) bool {
	switch name {
	case "Fly-Client-Ip", "Fly-Region", "Fly-Forwarded-Port", "Fly-Request-Id", "Fly-Replay-Src", "Fly-Replay-Failed", "Fly-Src", "Fly-Src-Signature",
		"Fly-Preferred-Instance-Unavailable":
		return true
	}
	return strings.HasPrefix(name, "Volant-")
}

// hopByHop removes the headers that are for the next hop only (RFC 9110 §7.6.1).
func hopByHop(h http.Header) {
	for _, v := range h.Values("Connection") {
		for name := range strings.SplitSeq(v, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range []string{
		"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	} {
		h.Del(name)
	}
}

// upgrade is the protocol that a message asks to change to, "" for none.
func upgrade(h http.Header) string {
	for _, v := range h.Values("Connection") {
		for name := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(name), "Upgrade") {
				return h.Get("Upgrade")
			}
		}
	}
	return ""
}
