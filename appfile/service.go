package appfile

import (
	"slices"
	"strconv"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
)

// services reads [http_service] and [[services]].
func (p *parser) services(s *section) {
	if h := s.one("http_service"); h != nil {
		p.service(h, true)
	}
	for _, v := range s.tables("services") {
		p.service(v, false)
	}
}

// service reads one service. That of http_service has its two ports by itself.
func (p *parser) service(s *section, http bool) {
	svc := volant.Service{Protocol: "tcp", InternalPort: 8080}
	groups := p.serviceGroups(s)
	s.integer("internal_port", &svc.InternalPort, 1, 65535)
	if s.oneOf("protocol", &svc.Protocol, "tcp", "udp") && svc.Protocol == "udp" {
		p.r.unserved(s.at("protocol"), "%s \"udp\" is not served yet: use \"tcp\"", s.name("protocol"))
		return
	}
	s.oneOf("wake_on", &svc.WakeOn, "connect", "data")
	if http {
		p.httpPorts(s, &svc)
	} else {
		for _, v := range s.tables("ports") {
			p.port(v, &svc)
		}
		if len(svc.Ports) == 0 && !s.has("ports") {
			p.r.warn(s.t.pos, "services of internal_port %d has no ports: nothing reaches it from outside", svc.InternalPort)
		}
	}
	p.concurrency(s, &svc)
	p.serviceChecks(s, &svc, http)
	auto := p.autoOf(s)
	s.end(map[string]string{
		"machine_checks": "use checks of the service, which hold up a deploy too",
		"script_checks":  "use tcp_checks or http_checks",
		"force_https":    "write it in the ports",
		"http_options":   "write them in the ports",
		"tls_options":    "write them in the ports",
	})
	for _, g := range groups {
		p.configs[g].Services = append(p.configs[g].Services, svc)
		p.autoScale(g, auto)
	}
}

// serviceGroups are the groups that a service is of. It names one where there are several.
func (p *parser) serviceGroups(s *section) []string {
	groups := p.groupsOf(s)
	switch {
	case !s.has("processes") && len(p.groups) == 1:
		return p.groups
	case len(s.t.vals) > 0 && !s.has("processes"):
		p.r.wrong(s.t.pos, "%s does not say which process group it is of: add processes = [%q]", s.path, p.groups[0])
	case len(groups) > 1:
		p.r.unserved(s.at("processes"), "%s names %d process groups, and a port leads to one: name one, and give the others services of their own",
			s.name("processes"), len(groups))
		return groups[:1]
	}
	return groups
}

// concurrency reads the limits of a machine. It comes after the ports, which say whether requests can be counted.
func (p *parser) concurrency(s *section, svc *volant.Service) {
	v := s.get("concurrency")
	if v == nil {
		return
	}
	var c volant.Concurrency
	if v.kind == kindString {
		soft, hard, ok := strings.Cut(v.text, ",")
		var err1, err2 error
		c.SoftLimit, err1 = strconv.Atoi(strings.TrimSpace(soft))
		c.HardLimit, err2 = strconv.Atoi(strings.TrimSpace(hard))
		if !ok || err1 != nil || err2 != nil || c.SoftLimit < 1 || c.HardLimit < 1 || c.HardLimit > volant.MaxLimit {
			p.r.wrong(v.pos, "%s is %s: write a table, such as { soft_limit = 20, hard_limit = 25 }", s.name("concurrency"), v.what())
			return
		}
		if speaksHTTP(svc) {
			c.Type = "requests" // what the old form means
		}
	} else {
		t := s.one("concurrency")
		if t == nil {
			return
		}
		if t.oneOf("type", &c.Type, "connections", "requests") && c.Type == "requests" && !speaksHTTP(svc) {
			p.r.wrong(t.at("type"), "%s \"requests\" needs the handler \"http\" on the ports: use \"connections\"", t.name("type"))
		}
		t.integer("soft_limit", &c.SoftLimit, 1, volant.MaxLimit)
		t.integer("hard_limit", &c.HardLimit, 1, volant.MaxLimit)
		t.end(nil)
	}
	if c.HardLimit > 0 && c.SoftLimit > c.HardLimit {
		p.r.wrong(v.pos, "%s: soft_limit %d is above hard_limit %d: lower the one or raise the other", s.name("concurrency"), c.SoftLimit, c.HardLimit)
	}
	svc.Concurrency = &c
}

func speaksHTTP(svc *volant.Service) bool {
	return slices.ContainsFunc(svc.Ports, func(p volant.Port) bool { return p.Has(volant.HandlerHTTP) })
}

func (p *parser) serviceChecks(s *section, svc *volant.Service, http bool) {
	add := func(key, kind string) {
		for _, v := range s.tables(key) {
			c := volant.ServiceCheck{Type: kind}
			v.clamped("interval", &c.Interval, time.Millisecond, time.Second, time.Minute)
			v.clamped("timeout", &c.Timeout, time.Millisecond, time.Second, time.Minute)
			p.check(v, &c)
			v.end(unservedCheck)
			svc.Checks = append(svc.Checks, c)
		}
	}
	if http {
		add("checks", "http")
		return
	}
	add("tcp_checks", "tcp")
	add("http_checks", "http")
}

var unservedCheck = map[string]string{
	"restart_limit":  "a failing check takes a machine out of routing and restarts nothing",
	"machine_checks": "use checks of the service",
}

// check reads what all checks have but interval and timeout, whose bounds differ.
func (p *parser) check(s *section, c *volant.ServiceCheck) {
	s.duration("grace_period", &c.Grace, time.Millisecond, 0, time.Hour)
	if c.Type != "http" {
		return
	}
	s.str("method", &c.Method)
	c.Method = strings.ToUpper(c.Method)
	if strings.ContainsFunc(c.Method, func(r rune) bool { return r < 'A' || r > 'Z' }) {
		p.r.wrong(s.at("method"), "%s is %q: write a method, such as \"GET\"", s.name("method"), c.Method)
	}
	p.path(s, "path", &c.Path)
	s.oneOf("protocol", &c.Protocol, "http", "https")
	s.boolean("tls_skip_verify", &c.TLSSkipVerify)
	s.str("tls_server_name", &c.TLSServerName)
	h := s.one("headers")
	if h == nil {
		return
	}
	for _, name := range h.t.keys {
		var values []string
		if h.t.vals[name].kind == kindList {
			h.strs(name, &values)
		} else {
			values = make([]string, 1)
			h.str(name, &values[0])
		}
		p.header(h, name, values...)
		c.Headers = append(c.Headers, volant.CheckHeader{Name: name, Values: values})
	}
}

// header sees to it that a header can be sent.
func (p *parser) header(s *section, name string, values ...string) {
	const extra = "!#$%&'*+-.^_`|~"
	odd := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(extra, r)
	}
	if name == "" || strings.ContainsFunc(name, odd) {
		p.r.wrong(s.at(name), "%s is no name of a header: write one such as X-Forwarded-Proto", s.name(name))
	}
	for _, v := range values {
		if strings.ContainsAny(v, "\r\n\x00") {
			p.r.wrong(s.at(name), "%s: a header's value has one line", s.name(name))
		}
	}
}

// checks reads [checks.NAME], which are of machines as a whole.
func (p *parser) checks(file *section) {
	port := 0
	if h := file.t.vals["http_service"]; h != nil && h.table != nil {
		port = 8080
		if v := h.table.vals["internal_port"]; v != nil {
			port, _ = v.int() // what is wrong with it is told where it is read
		}
	}
	for _, s := range file.named("checks") {
		c := volant.MachineCheck{ServiceCheck: volant.ServiceCheck{Port: port}}
		groups := p.groupsOf(s)
		if !s.has("processes") {
			groups = p.groups
		}
		if !s.oneOf("type", &c.Type, "http", "tcp") && !s.has("type") {
			p.r.wrong(s.t.pos, "%s has no type: write type = \"http\" or \"tcp\"", s.path)
		}
		if !s.integer("port", &c.Port, 1, 65535) && !s.has("port") && port == 0 {
			p.r.wrong(s.t.pos, "%s has no port: write the one that the app listens on, such as port = 8080", s.path)
		}
		s.duration("interval", &c.Interval, time.Millisecond, 2*time.Second, time.Minute)
		s.duration("timeout", &c.Timeout, time.Millisecond, time.Second, time.Minute)
		s.oneOf("kind", &c.Kind, "informational", "readiness")
		p.check(s, &c.ServiceCheck)
		s.end(unservedCheck)
		name := strings.TrimPrefix(s.path, "checks.")
		for _, g := range groups {
			if p.configs[g].Checks == nil {
				p.configs[g].Checks = map[string]volant.MachineCheck{}
			}
			p.configs[g].Checks[name] = c
		}
	}
}
