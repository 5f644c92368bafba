package volant

import (
	"slices"
	"strings"
)

// ConcurrencyRequests as a service's Concurrency.Type makes a slot a request in flight, and lets connections to
// the machine be used again. ConcurrencyConnections, the default, makes it a connection.
const (
	ConcurrencyConnections = "connections"
	ConcurrencyRequests    = "requests"
)

// Has says whether the port has a handler.
func (p *Port) Has(handler string) bool { return slices.Contains(p.Handlers, handler) }

// Bounds of a port's options.
const (
	maxIdle     = 3600 // seconds
	maxHeadRead = 300  // seconds
	maxHeaders  = 64   // changes of response headers
	maxALPN     = 8
)

// checkHandlers says what is wrong with a port's handlers and their options, or nil.
func (p *Port) checkHandlers() error {
	first, _ := p.Range()
	for i, h := range p.Handlers {
		switch h {
		case HandlerTLS, HandlerHTTP, HandlerProxyProto, HandlerPGTLS:
		default:
			return Invalidf("handler %q of port %d: use some of tls, http, proxy_proto, pg_tls, or none for raw TCP", h, first)
		}
		if slices.Contains(p.Handlers[:i], h) {
			return Invalidf("handler %q of port %d is named twice", h, first)
		}
	}
	switch {
	case p.Has(HandlerPGTLS) && (p.Has(HandlerTLS) || p.Has(HandlerHTTP)):
		return Invalidf("port %d has pg_tls beside tls or http: pg_tls is TLS already, and Postgres is not HTTP", first)
	case p.Has(HandlerHTTP) && p.Has(HandlerProxyProto):
		return Invalidf("port %d has http and proxy_proto: an app behind http finds the client in Fly-Client-IP and X-Forwarded-For", first)
	case p.ForceHTTPS && !p.Has(HandlerHTTP):
		return Invalidf("force_https of port %d needs the handler http", first)
	case p.ForceHTTPS && p.Has(HandlerTLS):
		return Invalidf("force_https of port %d, which has TLS: set it on the port without", first)
	case p.HTTPOptions != nil && !p.Has(HandlerHTTP):
		return Invalidf("http_options of port %d need the handler http", first)
	case p.TLSOptions != nil && !p.Has(HandlerTLS) && !p.Has(HandlerPGTLS):
		return Invalidf("tls_options of port %d need the handler tls", first)
	case p.ProxyProtoOptions != nil && !p.Has(HandlerProxyProto):
		return Invalidf("proxy_proto_options of port %d need the handler proxy_proto", first)
	}
	if o := p.ProxyProtoOptions; o != nil && o.Version != "" && o.Version != "v1" && o.Version != "v2" {
		return Invalidf("proxy_proto_options.version %q of port %d: use v1 or v2", o.Version, first)
	}
	if err := p.HTTPOptions.check(first); err != nil {
		return err
	}
	return p.TLSOptions.check(first)
}

func (o *HTTPOptions) check(port int) error {
	switch {
	case o == nil:
		return nil
	case o.IdleTimeout < 0 || o.IdleTimeout > maxIdle:
		return Invalidf("http_options.idle_timeout %d of port %d: use 1 to %d seconds", o.IdleTimeout, port, maxIdle)
	case o.HeadersReadTimeout < 0 || o.HeadersReadTimeout > maxHeadRead:
		return Invalidf("http_options.headers_read_timeout %d of port %d: use 1 to %d seconds", o.HeadersReadTimeout, port, maxHeadRead)
	case o.Compress != nil && *o.Compress:
		return Invalidf("http_options.compress of port %d: responses are passed on as the app sends them", port).
			WithRemedy("let the app compress, and leave it out or set it to false")
	case o.Response == nil:
		return nil
	case len(o.Response.Headers) > maxHeaders:
		return Invalidf("http_options.response.headers of port %d: %d headers, use at most %d", port, len(o.Response.Headers), maxHeaders)
	}
	for name, v := range o.Response.Headers {
		if _, err := HeaderChange(name, v); err != nil {
			return err
		}
	}
	return nil
}

// HeaderChange reads a value of HTTPResponse.Headers: the values that the header is to have, none to remove it.
func HeaderChange(name string, v any) ([]string, error) {
	if !isToken(name) {
		return nil, Invalidf("response header %q is no name of a header", name)
	}
	var out []string
	switch v := v.(type) {
	case bool:
		if v {
			return nil, Invalidf("response header %s is true: use false to remove it, a text, or a list of texts", name)
		}
		return nil, nil
	case string:
		out = []string{v}
	case []string:
		out = v
	case []any:
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, Invalidf("response header %s has a value that is no text", name)
			}
			out = append(out, s)
		}
	default:
		return nil, Invalidf("response header %s: use false to remove it, a text, or a list of texts", name)
	}
	for _, s := range out {
		if strings.ContainsAny(s, "\r\n\x00") || len(s) > 8<<10 {
			return nil, Invalidf("response header %s has a value with a line break, or over 8 KiB", name)
		}
	}
	if len(out) == 0 || len(out) > maxHeaders {
		return nil, Invalidf("response header %s has %d values: use 1 to %d, or false to remove it", name, len(out), maxHeaders)
	}
	return out, nil
}

// isToken says whether s is a token of HTTP (RFC 9110 §5.6.2).
func isToken(s string) bool {
	if s == "" || len(s) > 256 {
		return false
	}
	for _, c := range s {
		if c <= ' ' || c > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c) {
			return false
		}
	}
	return true
}

func (o *TLSOptions) check(port int) error {
	if o == nil {
		return nil
	}
	if len(o.ALPN) > maxALPN {
		return Invalidf("tls_options.alpn of port %d names %d protocols: use at most %d", port, len(o.ALPN), maxALPN)
	}
	for _, a := range o.ALPN {
		if a == "" || len(a) > 255 {
			return Invalidf("tls_options.alpn of port %d: a protocol's name has 1 to 255 bytes", port)
		}
	}
	for _, v := range o.Versions {
		if v != "TLSv1.2" && v != "TLSv1.3" {
			return Invalidf("tls_options.versions %q of port %d: use TLSv1.2 and TLSv1.3", v, port)
		}
	}
	return nil
}
