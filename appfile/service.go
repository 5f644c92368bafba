package appfile

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"

	volant "github.com/volant-edge/volant"
)

func (p *parser) service(s *section) {
	svc := volant.Service{Protocol: "tcp", InternalPort: 8080}
	s.integer("internal_port", &svc.InternalPort, 1, 65535)
	if s.oneOf("protocol", &svc.Protocol, "tcp", "udp") && svc.Protocol == "udp" {
		p.r.ignored = append(p.r.ignored, &problem{s.t.vals["protocol"].pos, "services.protocol \"udp\" is not served yet: use \"tcp\""})
		return
	}
	s.oneOf("wake_on", &svc.WakeOn, "connect", "data")
	p.concurrency(s, &svc)
	for _, v := range s.tables("ports") {
		p.port(v, &svc)
	}
	for _, v := range s.tables("tcp_checks") {
		c := volant.ServiceCheck{Type: "tcp"}
		v.duration("interval", &c.Interval, time.Millisecond, time.Second, time.Minute)
		v.duration("timeout", &c.Timeout, time.Millisecond, 100*time.Millisecond, time.Minute)
		v.duration("grace_period", &c.Grace, time.Millisecond, 0, time.Minute)
		v.end(map[string]string{"restart_limit": ""})
		svc.Checks = append(svc.Checks, c)
	}
	p.auto = append(p.auto, p.autoOf(s))
	p.ofGroup(s)
	s.end(map[string]string{
		"http_checks": "use [[services.tcp_checks]]", "machine_checks": "", "script_checks": "", "http_options": "", "tls_options": "",
		"force_https": "HTTP handlers are not served yet",
	})
	p.f.Config.Services = append(p.f.Config.Services, svc)
}

func (p *parser) port(s *section, svc *volant.Service) {
	var port volant.Port
	one := s.integer("port", &port.Port, 1, 65535)
	start := s.integer("start_port", &port.StartPort, 1, 65535)
	end := s.integer("end_port", &port.EndPort, 1, 65535)
	switch {
	case s.has("port") && (s.has("start_port") || s.has("end_port")):
		p.r.wrong(s.t.pos, "services.ports has port beside start_port or end_port: write one port, or a range")
		return
	case start != end && s.has("start_port") != s.has("end_port"):
		p.r.wrong(s.t.pos, "services.ports has only one end of a range: write start_port and end_port")
		return
	case start && end && port.StartPort > port.EndPort:
		p.r.wrong(s.t.pos, "services.ports: start_port %d is above end_port %d", port.StartPort, port.EndPort)
		return
	case !s.has("port") && !s.has("start_port"):
		p.r.wrong(s.t.pos, "services.ports has no port: write port, such as port = 5432")
		return
	}
	var handlers []string
	if s.strs("handlers", &handlers) && len(handlers) > 0 {
		p.r.ignored = append(p.r.ignored, &problem{s.t.vals["handlers"].pos, fmt.Sprintf(
			"services.ports.handlers %q are not served yet: leave them out, and the port takes raw TCP", handlers)})
	}
	const cure = "HTTP and TLS handlers are not served yet"
	s.end(map[string]string{"force_https": cure, "http_options": cure, "tls_options": cure, "proxy_proto_options": ""})
	if one || start && end {
		p.claim(s.t.pos, port, svc.InternalPort)
		svc.Ports = append(svc.Ports, port)
	}
}

// span is a range of external ports and the internal port they lead to.
type span struct{ first, last, internal int }

// claim says where an external port is given twice.
func (p *parser) claim(at pos, port volant.Port, internal int) {
	first, last := port.Range()
	for _, o := range p.spans {
		if first <= o.last && o.first <= last {
			p.r.wrong(at, "port %d is given twice, for internal_port %d and %d", max(first, o.first), o.internal, internal)
			return
		}
	}
	p.spans = append(p.spans, span{first, last, internal})
}

const maxLimit = volant.MaxLimit

func (p *parser) concurrency(s *section, svc *volant.Service) {
	v := s.get("concurrency")
	if v == nil {
		return
	}
	var c volant.Concurrency
	if v.kind == unstable.String {
		soft, hard, ok := strings.Cut(v.text, ",")
		var err1, err2 error
		c.SoftLimit, err1 = strconv.Atoi(strings.TrimSpace(soft))
		c.HardLimit, err2 = strconv.Atoi(strings.TrimSpace(hard))
		if !ok || err1 != nil || err2 != nil || c.SoftLimit < 1 || c.HardLimit > maxLimit {
			p.r.wrong(v.pos, "services.concurrency is %s: write a table, such as { soft_limit = 20, hard_limit = 25 }", v.what())
			return
		}
	} else {
		t := s.one("concurrency")
		if t == nil {
			return
		}
		if t.oneOf("type", &c.Type, "connections", "requests") && c.Type == "requests" {
			p.r.ignored = append(p.r.ignored, &problem{
				t.t.vals["type"].pos,
				"services.concurrency.type \"requests\" is not served yet: leave it out, and connections are counted",
			})
			c.Type = ""
		}
		t.integer("soft_limit", &c.SoftLimit, 1, maxLimit)
		t.integer("hard_limit", &c.HardLimit, 1, maxLimit)
		t.end(nil)
	}
	if c.HardLimit > 0 && c.SoftLimit > c.HardLimit {
		p.r.wrong(v.pos, "services.concurrency: soft_limit %d is above hard_limit %d: lower the one or raise the other", c.SoftLimit, c.HardLimit)
	}
	svc.Concurrency = &c
}

// autoOf reads a service's keys of starting and stopping.
func (p *parser) autoOf(s *section) auto {
	a := auto{at: s.t.pos}
	if v := s.get("auto_stop_machines"); v != nil {
		a.at = v.pos
		switch {
		case v.kind == unstable.Bool && v.text == "true", v.kind == unstable.String && v.text == "stop":
			a.stop = volant.OnIdleStop
		case v.kind == unstable.Bool, v.kind == unstable.String && v.text == "off":
			a.stop = volant.OnIdleOff
		case v.kind == unstable.String && v.text == "suspend":
			a.stop = volant.OnIdleSuspend
		default:
			p.r.wrong(v.pos, "%s is %s: use one of off, stop, suspend", s.name("auto_stop_machines"), v.what())
		}
	}
	var start bool
	if s.boolean("auto_start_machines", &start) {
		a.start, a.startAt = &start, s.t.vals["auto_start_machines"].pos
	}
	a.minGiven = s.integer("min_machines_running", &a.min, 0, volant.MaxMachines)
	return a
}
