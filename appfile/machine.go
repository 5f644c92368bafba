package appfile

import (
	"encoding/base64"
	"regexp"
	"slices"
	"strconv"
	"strings"

	volant "github.com/volant-edge/volant"
)

// spread reads the sections of a machine that each process group has at most one of, and its files.
func (p *parser) spread(s *section) {
	key := "vm"
	if s.has("compute") && !s.has("vm") {
		key = "compute"
	}
	give(p, s.tables(key), p.guest, func(c *volant.MachineConfig, g volant.Guest) { c.Guest = g })
	give(p, s.tables("restart"), p.restart, func(c *volant.MachineConfig, r volant.Restart) { c.Restart = r })
	give(p, s.tables("metrics"), p.metrics, func(c *volant.MachineConfig, m *volant.Metrics) { c.Metrics = m })
	for _, f := range s.tables("files") {
		p.guestFile(f)
	}
}

// give reads each section once and gives it to its groups.
func give[T any](p *parser, ss []*section, read func(*section) T, set func(*volant.MachineConfig, T)) {
	owners := p.owners(ss)
	for _, s := range ss {
		v := read(s)
		for g, owner := range owners {
			if owner == s {
				set(p.configs[g], v)
			}
		}
	}
}

func (p *parser) restart(s *section) volant.Restart {
	var r volant.Restart
	if s.oneOf("policy", &r.Policy, "always", "never", "on-failure") && r.Policy == "never" {
		r.Policy = volant.RestartNo
	}
	s.integer("retries", &r.MaxRetries, 1, 1000)
	s.end(nil)
	return r
}

func (p *parser) metrics(s *section) *volant.Metrics {
	m := &volant.Metrics{Path: "/metrics"}
	if !s.integer("port", &m.Port, 1, 65535) && !s.has("port") {
		p.r.wrong(s.t.pos, "metrics has no port: write one, such as port = 9091")
	}
	p.path(s, "path", &m.Path)
	s.boolean("https", &m.HTTPS)
	s.end(nil)
	return m
}

// path reads the path of a URL.
func (p *parser) path(s *section, key string, to *string) {
	if s.str(key, to) && !strings.HasPrefix(*to, "/") {
		p.r.wrong(s.at(key), "%s is %q: write a path that begins with /", s.name(key), *to)
	}
}

func (p *parser) guestFile(s *section) {
	var f volant.File
	groups := p.groupsOf(s)
	if !s.has("processes") {
		groups = p.groups[:1]
	}
	if !s.str("guest_path", &f.GuestPath) && !s.has("guest_path") {
		p.r.wrong(s.t.pos, "files has no guest_path: write one, such as guest_path = \"/etc/app.conf\"")
	}
	if f.GuestPath != "" && (!strings.HasPrefix(f.GuestPath, "/") || strings.HasSuffix(f.GuestPath, "/") || strings.Contains(f.GuestPath, "\x00")) {
		p.r.wrong(s.at("guest_path"), "%s is %q: write the file's whole path, such as \"/etc/app.conf\"", s.name("guest_path"), f.GuestPath)
	}
	var mode int
	if s.integer("mode", &mode, 0, 0o7777) {
		f.Mode = uint32(mode)
	}
	sources := 0
	for _, k := range []string{"raw_value", "local_path", "secret_name"} {
		if s.has(k) {
			sources++
		}
	}
	if sources != 1 {
		p.r.wrong(s.t.pos, "files has %d of raw_value, local_path and secret_name: write one of them", sources)
	}
	s.str("secret_name", &f.SecretName)
	p.content(s, &f)
	s.end(nil)
	for _, g := range groups {
		p.configs[g].Files = append(p.configs[g].Files, f)
	}
}

// maxContent bounds a file for the guest. All texts of a config travel over a channel of 1 MiB.
const maxContent = 256 << 10

func (p *parser) content(s *section, f *volant.File) {
	if s.str("raw_value", &f.RawValue) {
		if _, err := base64.StdEncoding.DecodeString(f.RawValue); err != nil {
			p.r.wrong(s.at("raw_value"), "%s is not base64: encode it, or name a file with local_path", s.name("raw_value"))
		}
	}
	var path string
	if !s.str("local_path", &path) {
		return
	}
	if p.opt.ReadFile == nil {
		p.r.wrong(s.at("local_path"), "%s is a file of yours, which cannot be read here: use raw_value", s.name("local_path"))
		return
	}
	b, err := p.opt.ReadFile(path)
	switch {
	case err != nil:
		p.r.wrong(s.at("local_path"), "%s: %v", s.name("local_path"), err)
	case len(b) > maxContent:
		p.r.wrong(s.at("local_path"), "%s has %d bytes: the most is %d; put it into the image", s.name("local_path"), len(b), maxContent)
	}
	f.RawValue = base64.StdEncoding.EncodeToString(b)
}

var preset = regexp.MustCompile(`^(shared-cpu|performance)-([0-9]{1,2})x$`)

// guest reads the size of a machine.
func (p *parser) guest(s *section) volant.Guest {
	var g volant.Guest
	before := len(p.r.problems)
	var size string
	if s.str("size", &size) {
		p.preset(s, size, &g)
	}
	s.oneOf("cpu_kind", &g.CPUKind, volant.CPUShared, volant.CPUPerformance)
	s.integer("cpus", &g.CPUs, 1, 16)
	if v := s.get("memory"); v != nil {
		mb, ok := memory(v)
		if !ok {
			p.r.wrong(v.pos, "%s is %s: write megabytes, or a size such as \"512mb\" or \"2gb\"", s.name("memory"), v.what())
		}
		g.MemoryMB = mb
	}
	s.integer("memory_mb", &g.MemoryMB, volant.MinMemoryMB, 1<<20)
	var persist string
	if s.oneOf("persist_rootfs", &persist, "never", "restart", "always") && persist != "never" {
		p.r.unserved(s.at("persist_rootfs"), "%s is not acted on: a machine's disk begins anew with each boot", s.name("persist_rootfs"))
	}
	s.end(map[string]string{
		"gpus": "hosts have no GPUs: leave it out", "gpu_kind": "hosts have no GPUs: leave it out", "processes": "name groups in [[vm]]",
		"kernel_args": "the kernel's arguments are the platform's: leave it out", "host_dedication_id": "there are no dedicated hosts: leave it out",
	})
	if len(p.r.problems) == before {
		if err := g.Check(); err != nil {
			p.r.wrong(s.t.pos, "%s: %s", s.path, err)
		}
	}
	return g
}

// preset fills g from a named size.
func (p *parser) preset(s *section, size string, g *volant.Guest) {
	m := preset.FindStringSubmatch(size)
	allowed, kind, perCPU := []string{"1", "2", "4", "6", "8"}, volant.CPUShared, 256
	if m != nil && m[1] == "performance" {
		allowed = append(allowed, "10", "12", "14", "16")
		kind, perCPU = volant.CPUPerformance, 2048
	}
	if m == nil || !slices.Contains(allowed, m[2]) {
		p.r.wrong(s.at("size"),
			"%s is %q: use shared-cpu-1x, 2x, 4x, 6x or 8x, or performance-1x, 2x, 4x, 6x, 8x, 10x, 12x, 14x or 16x", s.name("size"), size)
		return
	}
	n, err := strconv.Atoi(m[2])
	if err != nil {
		return // the list above has numbers only
	}
	*g = volant.Guest{CPUKind: kind, CPUs: n, MemoryMB: perCPU * n}
}

// memory reads a number of megabytes, or a string with a unit.
func memory(v *value) (int, bool) {
	if n, ok := v.int(); ok {
		return n, n > 0 && n <= 1<<20
	}
	if v.kind != kindString {
		return 0, false
	}
	s := strings.ToLower(strings.ReplaceAll(v.text, " ", ""))
	for _, unit := range []struct {
		end string
		mb  int
	}{{"gib", 1024}, {"mib", 1}, {"gb", 1024}, {"mb", 1}, {"g", 1024}, {"m", 1}, {"", 1}} {
		if digits, ok := strings.CutSuffix(s, unit.end); ok {
			n, err := strconv.Atoi(digits)
			return n * unit.mb, err == nil && n > 0 && n <= 1<<20/unit.mb
		}
	}
	return 0, false
}
