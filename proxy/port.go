package proxy

import (
	"cmp"
	"crypto/tls"
	"net/http"
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
)

// port is how connections to a port with handlers are served.
type port struct {
	tls, http, postgres bool
	proxyProto          byte // version of the PROXY protocol that the machine is told by; 0: none
	unknown             bool // it asks for a handler which this version does not have
	forceHTTPS          bool
	requests            bool // slots are requests in flight
	h2                  bool // the machine speaks HTTP/2 without TLS
	pristine            bool
	edits               []headerEdit
	idle, headers       time.Duration
	tlsKey              tlsKey
	selfSigned          bool
	hosts               []string // of the app
}

// headerEdit changes a header of responses: no values remove it.
type headerEdit struct {
	name   string
	values []string
}

// Times of HTTP, unless a port says else (design: data path).
const (
	idleTime    = time.Minute
	headersTime = 10 * time.Second
)

func newPort(s *Service, c *Port, hosts []string) *port {
	p := &port{idle: idleTime, headers: headersTime, requests: s.Requests, forceHTTPS: c.ForceHTTPS, hosts: hosts}
	for _, h := range c.Handlers {
		switch h {
		case volant.HandlerTLS:
			p.tls = true
		case volant.HandlerHTTP:
			p.http = true
		case volant.HandlerPGTLS:
			p.postgres = true
		case volant.HandlerProxyProto:
			p.proxyProto = 1
			if c.ProxyProto == "v2" {
				p.proxyProto = 2
			}
		default:
			p.unknown = true
		}
	}
	p.tlsKey = newTLSKey(c.TLS, p.http)
	p.selfSigned = c.TLS != nil && c.TLS.DefaultSelfSigned != nil && *c.TLS.DefaultSelfSigned
	if o := c.HTTP; o != nil {
		p.h2 = o.H2Backend
		p.idle = cmp.Or(time.Duration(o.IdleTimeout)*time.Second, p.idle)
		p.headers = cmp.Or(time.Duration(o.HeadersReadTimeout)*time.Second, p.headers)
		p.respond(o.Response)
	}
	return p
}

func (p *port) respond(r *volant.HTTPResponse) {
	if r == nil {
		return
	}
	p.pristine = r.Pristine
	for name, v := range r.Headers {
		if values, err := volant.HeaderChange(name, v); err == nil { // checked when it was written
			p.edits = append(p.edits, headerEdit{http.CanonicalHeaderKey(name), values})
		}
	}
	slices.SortFunc(p.edits, func(a, b headerEdit) int { return cmp.Compare(a.name, b.name) })
}

// speaks says whether the client has spoken before a machine is looked for.
func (p *port) speaks() bool { return p.tls || p.http || p.postgres }

// shared is the port of a shared address, before it is known which app a connection is for.
func (p *port) shared() *port {
	return &port{tls: p.tls, http: p.http, postgres: p.postgres, idle: idleTime, headers: headersTime, tlsKey: newTLSKey(nil, p.http)}
}

// alike says whether both can be at one shared address and port.
func (p *port) alike(q *port) bool {
	return p.tls == q.tls && p.http == q.http && p.postgres == q.postgres
}

// tlsKey tells TLS configs apart.
type tlsKey struct {
	alpn     string // separated by commas
	min, max uint16
}

func newTLSKey(o *volant.TLSOptions, isHTTP bool) tlsKey {
	k := tlsKey{min: tls.VersionTLS12, max: tls.VersionTLS13}
	if isHTTP {
		k.alpn = "h2,http/1.1"
	}
	if o == nil {
		return k
	}
	if len(o.ALPN) > 0 {
		k.alpn = strings.Join(o.ALPN, ",")
	}
	if len(o.Versions) > 0 && !slices.Contains(o.Versions, "TLSv1.2") {
		k.min = tls.VersionTLS13
	}
	if len(o.Versions) > 0 && !slices.Contains(o.Versions, "TLSv1.3") {
		k.max = tls.VersionTLS12
	}
	return k
}

// byHost finds a host name's value: its own, or that of the wildcard above it.
func byHost[V any](m map[string]V, host string) (v V, ok bool) {
	if v, ok = m[host]; ok {
		return v, true
	}
	if _, rest, found := strings.Cut(host, "."); found {
		v, ok = m["*."+rest]
	}
	return v, ok
}

// of is the route of a host name; nil if a shared address has none for it.
func (r *route) of(host string) *route {
	if r.hosts == nil {
		return r
	}
	found, _ := byHost(r.hosts, host)
	return found
}

// hostName makes a host name of what a client sent: lower case, without a port or a dot at the end.
func hostName(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	return strings.TrimSuffix(strings.ToLower(host), ".")
}
