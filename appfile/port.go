package appfile

import (
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
)

// httpPorts makes the ports of [http_service]: 80 for HTTP and 443 for HTTPS.
func (p *parser) httpPorts(s *section, svc *volant.Service) {
	plain := volant.Port{Port: 80, Handlers: []string{volant.HandlerHTTP}}
	tls := volant.Port{Port: 443, Handlers: []string{volant.HandlerTLS, volant.HandlerHTTP}}
	s.boolean("force_https", &plain.ForceHTTPS)
	plain.HTTPOptions = p.httpOptions(s.one("http_options"))
	tls.HTTPOptions = plain.HTTPOptions
	tls.TLSOptions = p.tlsOptions(s.one("tls_options"))
	for _, port := range []volant.Port{plain, tls} {
		p.claim(s.t.pos, port, svc.InternalPort)
		svc.Ports = append(svc.Ports, port)
	}
}

// port reads one of [[services.ports]].
func (p *parser) port(s *section, svc *volant.Service) {
	var port volant.Port
	ok := p.portNumbers(s, &port)
	p.handlers(s, &port)
	if s.boolean("force_https", &port.ForceHTTPS) && port.ForceHTTPS && port.Has(volant.HandlerTLS) {
		p.r.warn(s.at("force_https"), "%s has no meaning on a port with the handler tls: everything there is HTTPS", s.name("force_https"))
		port.ForceHTTPS = false
	}
	port.HTTPOptions = p.httpOptions(s.one("http_options"))
	port.TLSOptions = p.tlsOptions(s.one("tls_options"))
	if t := s.one("proxy_proto_options"); t != nil && len(t.t.keys) > 0 {
		port.ProxyProtoOptions = &volant.ProxyProtoOptions{}
		t.oneOf("version", &port.ProxyProtoOptions.Version, "v1", "v2")
		t.end(nil)
	}
	for _, n := range []struct {
		key     string
		handler []string
	}{
		{"force_https", []string{volant.HandlerHTTP}},
		{"http_options", []string{volant.HandlerHTTP}},
		{"tls_options", []string{volant.HandlerTLS, volant.HandlerPGTLS}},
		{"proxy_proto_options", []string{volant.HandlerProxyProto}},
	} {
		if s.has(n.key) && !s.t.vals[n.key].nothing() && !slices.ContainsFunc(n.handler, port.Has) {
			p.r.wrong(s.at(n.key), "%s needs the handler %q: add it to handlers, or leave this out", s.name(n.key), n.handler[0])
		}
	}
	s.end(nil)
	if ok {
		p.claim(s.t.pos, port, svc.InternalPort)
		svc.Ports = append(svc.Ports, port)
	}
}

// portNumbers reads the port or the range.
func (p *parser) portNumbers(s *section, port *volant.Port) bool {
	one := s.integer("port", &port.Port, 1, 65535)
	start := s.integer("start_port", &port.StartPort, 1, 65535)
	end := s.integer("end_port", &port.EndPort, 1, 65535)
	switch {
	case s.has("port") && (s.has("start_port") || s.has("end_port")):
		p.r.wrong(s.t.pos, "services.ports has port beside start_port or end_port: write one port, or a range")
		return false
	case start != end && s.has("start_port") != s.has("end_port"):
		p.r.wrong(s.t.pos, "services.ports has only one end of a range: write start_port and end_port")
		return false
	case start && end && port.StartPort > port.EndPort:
		p.r.wrong(s.t.pos, "services.ports: start_port %d is above end_port %d", port.StartPort, port.EndPort)
		return false
	case !s.has("port") && !s.has("start_port"):
		p.r.wrong(s.t.pos, "services.ports has no port: write port, such as port = 5432")
		return false
	}
	return one || start && end
}

var handlerWords = []string{volant.HandlerHTTP, volant.HandlerTLS, volant.HandlerPGTLS, volant.HandlerProxyProto}

func (p *parser) handlers(s *section, port *volant.Port) {
	var words []string
	if !s.strs("handlers", &words) {
		return
	}
	at := s.at("handlers")
	for _, w := range words {
		if w == "edge_http" { // as it was called once
			w = volant.HandlerHTTP
		}
		switch {
		case !slices.Contains(handlerWords, w):
			p.r.wrong(at, "%s has %q in it: use http, tls, pg_tls and proxy_proto, or none for raw TCP", s.name("handlers"), w)
		case !slices.Contains(port.Handlers, w):
			port.Handlers = append(port.Handlers, w)
		}
	}
	switch {
	case port.Has(volant.HandlerPGTLS) && (port.Has(volant.HandlerTLS) || port.Has(volant.HandlerHTTP)):
		p.r.wrong(at, "%s has pg_tls beside tls or http: Postgres' own way to TLS goes with neither", s.name("handlers"))
	case port.Has(volant.HandlerHTTP) && port.Has(volant.HandlerProxyProto):
		p.r.wrong(at, "%s has proxy_proto beside http: an app behind http finds the client in X-Forwarded-For", s.name("handlers"))
	}
}

func (p *parser) httpOptions(s *section) *volant.HTTPOptions {
	if s == nil || len(s.t.keys) == 0 {
		return nil
	}
	var o volant.HTTPOptions
	var compress bool
	if s.boolean("compress", &compress) && compress {
		p.r.unserved(s.at("compress"), "%s is not acted on: answers are passed on as the app sends them; have the app compress", s.name("compress"))
	}
	s.boolean("h2_backend", &o.H2Backend)
	o.IdleTimeout = p.seconds(s, "idle_timeout", time.Hour)
	o.HeadersReadTimeout = p.seconds(s, "headers_read_timeout", 5*time.Minute)
	if t := s.one("response"); t != nil {
		o.Response = &volant.HTTPResponse{}
		t.boolean("pristine", &o.Response.Pristine)
		p.responseHeaders(t.one("headers"), o.Response)
		t.end(nil)
	}
	s.end(map[string]string{"replay_cache": "where a request goes is not remembered yet"})
	return &o
}

// seconds reads a whole number of seconds, or a duration.
func (p *parser) seconds(s *section, key string, most time.Duration) int {
	var d volant.Duration
	if s.duration(key, &d, time.Second, time.Second, most) && d.D()%time.Second != 0 {
		p.r.wrong(s.at(key), "%s is %s: write whole seconds", s.name(key), d)
	}
	return int(d.D() / time.Second)
}

func (p *parser) responseHeaders(s *section, r *volant.HTTPResponse) {
	if s == nil {
		return
	}
	r.Headers = map[string]any{}
	for _, name := range s.t.keys {
		v := s.t.vals[name]
		var change any
		switch v.kind {
		case kindBool:
			change = v.text == "true" // which is refused below
		case kindString:
			change = v.text
		case kindList:
			var values []string
			s.strs(name, &values)
			change = values
		default:
			p.r.wrong(v.pos, "%s is %s: write a string, a list of strings, or false to remove the header", s.name(name), v.what())
			continue
		}
		if _, err := volant.HeaderChange(name, change); err != nil {
			p.r.wrong(v.pos, "%s", err)
		}
		r.Headers[name] = change
	}
}

func (p *parser) tlsOptions(s *section) *volant.TLSOptions {
	if s == nil || len(s.t.keys) == 0 {
		return nil
	}
	var o volant.TLSOptions
	if s.strs("alpn", &o.ALPN) {
		for _, a := range o.ALPN {
			if a == "" || len(a) > 255 {
				p.r.wrong(s.at("alpn"), "%s has %q in it: a protocol's name has 1 to 255 bytes, such as \"h2\"", s.name("alpn"), a)
			}
		}
	}
	if s.strs("versions", &o.Versions) {
		for _, v := range o.Versions {
			if v != "TLSv1.2" && v != "TLSv1.3" {
				p.r.wrong(s.at("versions"), "%s has %q in it: use %s", s.name("versions"), v, strings.Join([]string{"TLSv1.2", "TLSv1.3"}, " and "))
			}
		}
	}
	var self bool
	if s.boolean("default_self_signed", &self) {
		o.DefaultSelfSigned = &self
	}
	s.end(nil)
	return &o
}

// span is a range of external ports and the internal port they lead to.
type span struct{ first, last, internal int }

// claim says where an external port is given twice.
func (p *parser) claim(at pos, port volant.Port, internal int) {
	first, last := port.Range()
	for _, o := range p.spans {
		if first <= o.last && o.first <= last {
			p.r.wrong(at, "port %d is given twice, for internal_port %d and %d: give one of the services another port", max(first, o.first), o.internal, internal)
			return
		}
	}
	p.spans = append(p.spans, span{first, last, internal})
}
