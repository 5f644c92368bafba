package volant

import "fmt"

// Service is what clients reach: external ports of an app's addresses led to one port of its machines.
type Service struct {
	Protocol     string         `json:"protocol"` // tcp (udp comes later)
	InternalPort int            `json:"internal_port"`
	Ports        []Port         `json:"ports"`
	Concurrency  *Concurrency   `json:"concurrency,omitempty"`
	Checks       []ServiceCheck `json:"checks,omitempty"`
	WakeOn       string         `json:"wake_on,omitempty"` // connect (default without handlers), data (default with tls or http)

	// Fly's keys of starting and stopping. A release turns them into its app's Scale.
	Autostop   *Autostop `json:"autostop,omitempty"`
	Autostart  *bool     `json:"autostart,omitempty"`
	MinRunning int       `json:"min_machines_running,omitempty"`
}

// Autostop is what becomes of idle machines: off, stop or suspend. It reads a bool too, as older clients
// send it: false is off, true is stop.
type Autostop string

// UnmarshalJSON reads a word or a bool.
func (a *Autostop) UnmarshalJSON(b []byte) error {
	switch string(b) {
	case "false", `"off"`:
		*a = OnIdleOff
	case "true", `"stop"`:
		*a = OnIdleStop
	case `"suspend"`:
		*a = OnIdleSuspend
	default:
		return Invalidf("autostop is %s: use one of \"off\", \"stop\", \"suspend\"", b)
	}
	return nil
}

// Port is one external port, or a range of them.
type Port struct {
	Port      int      `json:"port,omitempty"`
	StartPort int      `json:"start_port,omitempty"`
	EndPort   int      `json:"end_port,omitempty"`
	Handlers  []string `json:"handlers,omitempty"` // none is raw TCP

	ForceHTTPS        bool               `json:"force_https,omitempty"` // with http: 301 to https
	HTTPOptions       *HTTPOptions       `json:"http_options,omitempty"`
	TLSOptions        *TLSOptions        `json:"tls_options,omitempty"`
	ProxyProtoOptions *ProxyProtoOptions `json:"proxy_proto_options,omitempty"`
}

// The handlers of a port. Their order in a config does not matter.
const (
	HandlerTLS        = "tls"         // terminate TLS, forward plain bytes
	HandlerHTTP       = "http"        // speak HTTP
	HandlerProxyProto = "proxy_proto" // tell the machine the client's address by the PROXY protocol
	HandlerPGTLS      = "pg_tls"      // Postgres' request for TLS, then TLS
)

// HTTPOptions refine the handler http.
type HTTPOptions struct {
	Compress           *bool         `json:"compress,omitempty"`
	H2Backend          bool          `json:"h2_backend,omitempty"`           // speak HTTP/2 without TLS to the machine
	IdleTimeout        int           `json:"idle_timeout,omitempty"`         // seconds a client's connection may idle; 60
	HeadersReadTimeout int           `json:"headers_read_timeout,omitempty"` // seconds; 10
	Response           *HTTPResponse `json:"response,omitempty"`
}

// HTTPResponse says how answers are changed on their way.
type HTTPResponse struct {
	Headers  map[string]any `json:"headers,omitempty"`  // false removes, a string sets, a list sets several
	Pristine bool           `json:"pristine,omitempty"` // add nothing of our own
}

// TLSOptions refine the handlers tls and pg_tls.
type TLSOptions struct {
	ALPN              []string `json:"alpn,omitempty"`     // h2 and http/1.1 with http, else none
	Versions          []string `json:"versions,omitempty"` // TLSv1.2, TLSv1.3
	DefaultSelfSigned *bool    `json:"default_self_signed,omitempty"`
}

// ProxyProtoOptions refine the handler proxy_proto.
type ProxyProtoOptions struct {
	Version string `json:"version,omitempty"` // v1 (default), v2
}

// Concurrency limits a machine's slots for one service.
type Concurrency struct {
	Type      string `json:"type,omitempty"` // connections (default), requests
	SoftLimit int    `json:"soft_limit,omitempty"`
	HardLimit int    `json:"hard_limit,omitempty"`
}

// DefaultSoft and DefaultHard are the limits per vCPU of a service which names none.
const (
	DefaultSoft = 20
	DefaultHard = 25
)

// MaxLimit bounds soft and hard limits that a config names.
const MaxLimit = 100_000

// Limits returns the soft and hard limit per machine: the default is 20 and 25 per vCPU; a number
// that is given is per machine; soft alone gives hard = ceil(1.25 × soft); hard alone gives soft =
// floor(0.8 × hard), at least 1.
func (s *Service) Limits(vcpus int) (soft, hard int) {
	if vcpus < 1 {
		vcpus = 1
	}
	c := s.Concurrency
	switch {
	case c == nil || c.SoftLimit == 0 && c.HardLimit == 0:
		return DefaultSoft * vcpus, DefaultHard * vcpus
	case c.HardLimit == 0:
		return c.SoftLimit, (c.SoftLimit*5 + 3) / 4
	case c.SoftLimit == 0:
		return max(1, c.HardLimit*4/5), c.HardLimit
	}
	return c.SoftLimit, c.HardLimit
}

// Range returns the first and last external port.
func (p Port) Range() (first, last int) {
	if p.StartPort != 0 || p.EndPort != 0 {
		return p.StartPort, p.EndPort
	}
	return p.Port, p.Port
}

// ServiceCheck probes an awake machine from its host. A failing one takes it out of routing.
type ServiceCheck struct {
	Type     string   `json:"type"`               // tcp, http
	Port     int      `json:"port,omitempty"`     // internal port of the service if 0
	Interval Duration `json:"interval,omitempty"` // 15s
	Timeout  Duration `json:"timeout,omitempty"`  // 2s
	Grace    Duration `json:"grace_period,omitempty"`

	// Of http checks. Success is a status of 2xx; redirects are not followed.
	Method        string        `json:"method,omitempty"`   // GET
	Path          string        `json:"path,omitempty"`     // /
	Protocol      string        `json:"protocol,omitempty"` // http (default), https
	TLSSkipVerify bool          `json:"tls_skip_verify,omitempty"`
	TLSServerName string        `json:"tls_server_name,omitempty"`
	Headers       []CheckHeader `json:"headers,omitempty"`
}

// CheckHeader is a header of an http check's request.
type CheckHeader struct {
	Name   string   `json:"name"`
	Values []string `json:"values"`
}

// Check says what is wrong with a service, or nil.
func (s *Service) Check() error {
	if s.Protocol != "tcp" {
		return Invalidf("service protocol %q: only \"tcp\" is served", s.Protocol)
	}
	if s.InternalPort < 1 || s.InternalPort > 65535 {
		return Invalidf("internal_port %d: use 1 to 65535", s.InternalPort)
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		first, last := p.Range()
		if first < 1 || last > 65535 || first > last {
			return Invalidf("ports %d to %d of internal port %d: use 1 to 65535, first before last", first, last, s.InternalPort)
		}
		if err := p.checkHandlers(); err != nil {
			return err
		}
	}
	if c := s.Concurrency; c != nil {
		if c.Type != "" && c.Type != ConcurrencyConnections && c.Type != ConcurrencyRequests {
			return Invalidf("concurrency type %q: use connections or requests", c.Type)
		}
		if c.SoftLimit < 0 || c.HardLimit < 0 || c.SoftLimit > MaxLimit || c.HardLimit > MaxLimit {
			return Invalidf("soft_limit %d and hard_limit %d: use 1 to %d", c.SoftLimit, c.HardLimit, MaxLimit)
		}
		if c.SoftLimit > 0 && c.HardLimit > 0 && c.SoftLimit > c.HardLimit {
			return Invalidf("soft_limit %d is above hard_limit %d: lower the one or raise the other", c.SoftLimit, c.HardLimit)
		}
	}
	for i := range s.Checks {
		if err := s.Checks[i].Check(fmt.Sprintf("check %d of internal port %d", i, s.InternalPort)); err != nil {
			return err
		}
	}
	return nil
}

// CheckName is the name of check i of the service, in the form Fly's clients know.
func (s *Service) CheckName(service, i int) string {
	c := s.Checks[i]
	port := c.Port
	if port == 0 {
		port = s.InternalPort
	}
	return fmt.Sprintf("servicecheck-%02d-%s-%d", service*10+i, c.Type, port)
}
