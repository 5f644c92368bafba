package appfile

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"

	volant "github.com/volant-edge/volant"
)

func (p *parser) setScale(key string) {
	if !slices.Contains(p.f.ScaleSet, key) {
		p.f.ScaleSet = append(p.f.ScaleSet, key)
	}
}

// autoScale maps what the services say of starting and stopping to the app's scale. They must agree,
// since machines serve all services of an app.
func (p *parser) autoScale() {
	sc := &p.f.Scale
	for _, a := range p.auto {
		if a.stop != "" {
			if sc.OnIdle != "" && sc.OnIdle != a.stop {
				p.r.wrong(a.at, "services.auto_stop_machines means on_idle %s, and that of another service %s: machines serve all services, so make them agree", a.stop, sc.OnIdle)
			}
			sc.OnIdle = a.stop
			p.setScale("on_idle")
		}
		if a.start != nil {
			if slices.Contains(p.f.ScaleSet, "no_wake") && sc.NoWake == *a.start {
				p.r.wrong(a.startAt, "services.auto_start_machines differs between services: machines serve all services, so make them agree")
			}
			sc.NoWake = !*a.start
			p.setScale("no_wake")
		}
		if !a.minGiven {
			continue
		}
		if p.f.PrimaryRegion == "" {
			sc.Min = max(sc.Min, a.min)
			p.setScale("min")
			continue
		}
		sc.RegionMin = map[volant.Region]int{p.f.PrimaryRegion: max(sc.RegionMin[p.f.PrimaryRegion], a.min)}
		p.setScale("region_min")
	}
}

const day = 24 * time.Hour

func (p *parser) scale(file *section) {
	s := file.one("scale")
	if s == nil {
		return
	}
	sc := &p.f.Scale
	set := func(key string, ok bool) {
		if ok {
			p.setScale(key)
		}
	}
	set("min", s.integer("min", &sc.Min, 0, volant.MaxMachines))
	set("max", s.integer("max", &sc.Max, 1, volant.MaxMachines))
	p.regionCounts(s, "region_min", &sc.RegionMin)
	p.regionCounts(s, "region_max", &sc.RegionMax)
	var regions []string
	if s.strs("regions", &regions) {
		p.setScale("regions")
		sc.Regions = nil
		for _, r := range regions {
			if !volant.Region(r).Valid() {
				p.r.wrong(s.t.vals["regions"].pos, "scale.regions has %q in it: use region codes, such as \"ams\"", r)
			}
			sc.Regions = append(sc.Regions, volant.Region(r))
		}
	}
	set("idle_timeout", s.duration("idle_timeout", &sc.IdleTimeout, time.Second, time.Second, day))
	if before := sc.OnIdle; s.oneOf("on_idle", &sc.OnIdle, volant.OnIdleSuspend, volant.OnIdleStop, volant.OnIdleOff) {
		if before != "" && before != sc.OnIdle {
			p.r.wrong(s.t.vals["on_idle"].pos, "scale.on_idle is %q, and services.auto_stop_machines means %s: say it once", sc.OnIdle, before)
		}
		p.setScale("on_idle")
	}
	set("keep", s.duration("keep", &sc.Keep, time.Second, time.Second, 30*day))
	set("drain_timeout", s.duration("drain_timeout", &sc.DrainAfter, time.Second, 0, day))
	set("max_queue", s.integer("max_queue", &sc.MaxQueue, 1, volant.MaxWaiting))
	set("queue_timeout", s.duration("queue_timeout", &sc.QueueTime, time.Second, time.Second, 10*time.Minute))
	set("max_per_client", s.integer("max_per_client", &sc.MaxPerPeer, 1, volant.MaxWaiting))
	set("spill", s.oneOf("spill", &sc.Spill, volant.SpillSoft, volant.SpillHard))
	s.end(nil)
	if len(p.r.problems) == 0 {
		if err := sc.Check(); err != nil {
			p.r.wrong(s.t.pos, "scale: %s", err)
		}
	}
}

// regionCounts reads a table of numbers by region.
func (p *parser) regionCounts(s *section, key string, to *map[volant.Region]int) {
	t := s.one(key)
	if t == nil {
		return
	}
	out := maps.Clone(*to)
	if out == nil {
		out = map[volant.Region]int{}
	}
	for _, r := range t.t.keys {
		var n int
		if !volant.Region(r).Valid() {
			p.r.wrong(t.t.vals[r].pos, "%s is no region code: use one such as ams", t.name(r))
			continue
		}
		if t.integer(r, &n, 0, volant.MaxMachines) {
			out[volant.Region(r)] = n
		}
	}
	*to = out
	p.setScale(key)
}

var preset = regexp.MustCompile(`^(shared-cpu|performance)-([0-9]{1,2})x$`)

func (p *parser) vm(file *section) {
	key := "vm"
	if file.has("compute") && !file.has("vm") {
		key = "compute"
	}
	s := file.one(key)
	if s == nil {
		return
	}
	g := &p.f.Config.Guest
	var size string
	if s.str("size", &size) {
		p.preset(s, size, g)
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
	p.ofGroup(s)
	s.end(map[string]string{"gpus": "", "gpu_kind": "", "kernel_args": "", "persist_rootfs": "", "host_dedication_id": ""})
	if len(p.r.problems) == 0 {
		if err := g.Check(); err != nil {
			p.r.wrong(s.t.pos, "%s: %s", key, err)
		}
	}
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
		p.r.wrong(s.t.vals["size"].pos,
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
	if v.kind != unstable.String {
		return 0, false
	}
	s := strings.ToLower(strings.ReplaceAll(v.text, " ", ""))
	for _, unit := range []struct {
		end string
		mb  int
	}{{"gib", 1024}, {"mib", 1}, {"gb", 1024}, {"mb", 1}, {"g", 1024}, {"m", 1}, {"", 1}} {
		if digits, ok := strings.CutSuffix(s, unit.end); ok {
			n, err := strconv.Atoi(digits)
			return n * unit.mb, err == nil && n > 0 && n <= 1<<20
		}
	}
	return 0, false
}
