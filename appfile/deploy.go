package appfile

import (
	"math"
	"strconv"
	"time"

	volant "github.com/volant-edge/volant"
)

func (p *parser) build(s *section) {
	if s == nil {
		return
	}
	s.str("image", &p.f.Image)
	for _, k := range s.t.keys {
		switch k {
		case "dockerfile", "ignorefile", "build-target", "args", "builder", "buildpacks", "builtin", "settings", "compose":
		case "compression", "compression_level":
		default:
			continue
		}
		v := s.get(k)
		switch {
		case v.nothing():
		case p.f.Image != "":
			p.r.warn(v.pos, "%s is not used: build.image names an image that is built", s.name(k))
		case p.opt.HasImage:
			p.r.warn(v.pos, "%s is not used: images are built elsewhere", s.name(k))
		default:
			p.r.unserved(v.pos, "%s is not acted on: build it and push it with `volant image push`, and name it by --image or build.image", s.name(k))
		}
	}
	s.end(nil)
}

func (p *parser) deploy(s *section) {
	if s == nil {
		return
	}
	rel := &p.f.Release
	s.duration("wait_timeout", &rel.WaitTimeout, time.Second, time.Second, day)
	s.oneOf("strategy", &rel.Strategy, volant.StrategyRolling, volant.StrategyImmediate, volant.StrategyCanary, volant.StrategyBlueGreen)
	p.maxUnavailable(s)
	p.releaseCommand(s)
	s.end(map[string]string{"seed_command": "run it with `volant machine exec` after the first deploy"})
}

func (p *parser) maxUnavailable(s *section) {
	v := s.get("max_unavailable")
	if v == nil {
		return
	}
	n, err := strconv.ParseFloat(v.text, 64)
	if i, ok := v.int(); ok {
		n, err = float64(i), nil
	}
	if (v.kind != kindFloat && v.kind != kindInt) || err != nil || !(n > 0 && n <= volant.MaxMachines) || n > 1 && n != math.Trunc(n) {
		p.r.wrong(v.pos, "%s is %s: write a count of machines from 1 to %d, or a fraction below 1 such as 0.33",
			s.name("max_unavailable"), v.what(), volant.MaxMachines)
		return
	}
	if st := p.f.Release.Strategy; st == volant.StrategyImmediate || st == volant.StrategyBlueGreen {
		p.r.wrong(v.pos, "%s has no meaning with strategy %s: leave it out, or use rolling or canary", s.name("max_unavailable"), st)
		return
	}
	p.f.Release.MaxUnavailable = n
}

func (p *parser) releaseCommand(s *section) {
	var c volant.ReleaseCommand
	var command string
	given := s.str("release_command", &command)
	if given {
		c.Cmd = p.words(s, "release_command", command)
	}
	s.duration("release_command_timeout", &c.Timeout, time.Second, time.Second, day)
	if vm := s.one("release_command_vm"); vm != nil {
		c.Guest = p.guest(vm)
	}
	if len(c.Cmd) > 0 {
		p.f.Release.ReleaseCommand = &c
		return
	}
	for _, k := range []string{"release_command_timeout", "release_command_vm"} {
		if s.has(k) {
			p.r.warn(s.at(k), "%s is not used: there is no release_command", s.name(k))
		}
	}
}
