package appfile

import (
	"maps"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

// auto is what one service says of starting and stopping.
type auto struct {
	at       pos
	startAt  pos
	stop     string // on_idle's word; empty where nothing is said
	start    *bool
	min      int
	minGiven bool
}

// autoOf reads a service's keys of starting and stopping.
func (p *parser) autoOf(s *section) auto {
	a := auto{at: s.t.pos}
	if v := s.get("auto_stop_machines"); v != nil {
		a.at = v.pos
		switch {
		case v.kind == kindBool && v.text == "true", v.kind == kindString && v.text == "stop":
			a.stop = volant.OnIdleStop
		case v.kind == kindBool, v.kind == kindString && v.text == "off":
			a.stop = volant.OnIdleOff
		case v.kind == kindString && v.text == "suspend":
			a.stop = volant.OnIdleSuspend
		default:
			p.r.wrong(v.pos, "%s is %s: use one of off, stop, suspend", s.name("auto_stop_machines"), v.what())
		}
	}
	var start bool
	if s.boolean("auto_start_machines", &start) {
		a.start, a.startAt = &start, s.at("auto_start_machines")
	}
	a.minGiven = s.integer("min_machines_running", &a.min, 0, volant.MaxMachines)
	return a
}

// scaleOf is what is said of a group's scale so far.
func (p *parser) scaleOf(group string) *api.ScalePatch {
	if p.scales[group] == nil {
		p.scales[group] = &api.ScalePatch{}
	}
	return p.scales[group]
}

// autoScale maps what a service says of starting and stopping to its group's scale. Services of one group
// must agree, since its machines serve them all.
func (p *parser) autoScale(group string, a auto) {
	if a.stop == "" && a.start == nil && !a.minGiven {
		return
	}
	sc := p.scaleOf(group)
	if a.stop != "" {
		if sc.OnIdle != nil && *sc.OnIdle != a.stop {
			p.r.wrong(a.at, "auto_stop_machines means on_idle %s, and that of another service %s: machines serve all services, so make them agree", a.stop, *sc.OnIdle)
		}
		sc.OnIdle = new(a.stop)
	}
	if a.start != nil {
		if sc.NoWake != nil && *sc.NoWake == *a.start {
			p.r.wrong(a.startAt, "auto_start_machines differs between services: machines serve all services, so make them agree")
		}
		sc.NoWake = new(!*a.start)
	}
	if !a.minGiven {
		return
	}
	region := p.f.Release.PrimaryRegion
	if region == "" {
		if sc.Min == nil || *sc.Min < a.min {
			sc.Min = new(a.min)
		}
		return
	}
	sc.RegionMin = map[volant.Region]int{region: max(sc.RegionMin[region], a.min)}
}

const day = 24 * time.Hour

// scale reads [scale], or several of it, each for some process groups. One that names none is the default group's.
func (p *parser) scale(ss []*section) {
	seen := map[string]bool{}
	for _, s := range ss {
		groups := p.groupsOf(s)
		if !s.has("processes") {
			groups = p.groups[:1]
		}
		own := p.scalePatch(s)
		for _, g := range groups {
			if seen[g] {
				p.r.wrong(s.t.pos, "scale is given twice for the process group %s: give it once", g)
			}
			seen[g] = true
			p.joinScale(s, p.scaleOf(g), own)
		}
	}
}

func (p *parser) scalePatch(s *section) *api.ScalePatch {
	sc := &api.ScalePatch{}
	integer := func(key string, to **int, least, most int) {
		var n int
		if s.integer(key, &n, least, most) {
			*to = &n
		}
	}
	duration := func(key string, to **volant.Duration, least, most time.Duration) {
		var d volant.Duration
		if s.duration(key, &d, time.Second, least, most) {
			*to = &d
		}
	}
	word := func(key string, to **string, words ...string) {
		var w string
		if s.oneOf(key, &w, words...) {
			*to = &w
		}
	}
	integer("min", &sc.Min, 0, volant.MaxMachines)
	integer("max", &sc.Max, 1, volant.MaxMachines)
	sc.RegionMin = p.regionCounts(s, "region_min")
	sc.RegionMax = p.regionCounts(s, "region_max")
	var regions []string
	if s.strs("regions", &regions) {
		sc.Regions = []volant.Region{}
		for _, r := range regions {
			if !volant.Region(r).Valid() {
				p.r.wrong(s.at("regions"), "scale.regions has %q in it: use region codes, such as \"ams\"", r)
			}
			sc.Regions = append(sc.Regions, volant.Region(r))
		}
	}
	duration("idle_timeout", &sc.IdleTimeout, time.Second, day)
	word("on_idle", &sc.OnIdle, volant.OnIdleSuspend, volant.OnIdleStop, volant.OnIdleOff)
	duration("keep", &sc.Keep, time.Second, 30*day)
	duration("drain_timeout", &sc.DrainAfter, 0, day)
	integer("max_queue", &sc.MaxQueue, 1, volant.MaxWaiting)
	duration("queue_timeout", &sc.QueueTime, time.Second, 10*time.Minute)
	integer("max_per_client", &sc.MaxPerPeer, 1, volant.MaxWaiting)
	word("spill", &sc.Spill, volant.SpillSoft, volant.SpillHard)
	duration("spill_rtt", &sc.SpillRTT, time.Millisecond, time.Second)
	s.end(nil)
	return sc
}

// regionCounts reads a table of numbers by region.
func (p *parser) regionCounts(s *section, key string) map[volant.Region]int {
	t := s.one(key)
	if t == nil {
		return nil
	}
	out := map[volant.Region]int{}
	for _, r := range t.t.keys {
		var n int
		if !volant.Region(r).Valid() {
			p.r.wrong(t.at(r), "%s is no region code: use one such as ams", t.name(r))
			continue
		}
		if t.integer(r, &n, 0, volant.MaxMachines) {
			out[volant.Region(r)] = n
		}
	}
	return out
}

// joinScale adds what [scale] says to what the services of a group say.
func (p *parser) joinScale(s *section, all, own *api.ScalePatch) {
	if all.OnIdle != nil && own.OnIdle != nil && *all.OnIdle != *own.OnIdle {
		p.r.wrong(s.at("on_idle"), "scale.on_idle is %q, and auto_stop_machines of a service means %s: say it once", *own.OnIdle, *all.OnIdle)
	}
	regionMin := maps.Clone(all.RegionMin)
	if regionMin != nil {
		maps.Copy(regionMin, own.RegionMin)
	} else {
		regionMin = maps.Clone(own.RegionMin)
	}
	least := all.Min
	if own.Min != nil {
		least = own.Min
	}
	onIdle, noWake := all.OnIdle, all.NoWake
	*all = *own
	all.RegionMin, all.Min, all.NoWake = regionMin, least, noWake
	if all.OnIdle == nil {
		all.OnIdle = onIdle
	}
	if len(p.r.problems) == 0 {
		if _, err := all.Apply(volant.Scale{}); err != nil {
			p.r.wrong(s.t.pos, "scale: %s", err)
		}
	}
}
