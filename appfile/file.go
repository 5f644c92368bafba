package appfile

import (
	"errors"
	"fmt"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
)

// File is what a config file says.
type File struct {
	App           string        // name of the app; may be empty
	PrimaryRegion volant.Region // may be empty
	Config        volant.MachineConfig
	Scale         volant.Scale
	// ScaleSet names the keys of Scale, as in its JSON, which the file sets. A deploy leaves the others
	// as they are.
	ScaleSet    []string
	WaitTimeout volant.Duration // 0 where the file says nothing
	// Ignored tells of keys which are not acted on, where Options allow those.
	Ignored []string
}

// Options of Parse.
type Options struct {
	AllowUnsupported bool // keys of Fly's which are not acted on yet are told in Ignored, and no error
}

const (
	// maxFile bounds a config file. Real ones have a few KiB.
	maxFile = 256 << 10
	// maxProblems bounds how many problems are told at once.
	maxProblems = 20
)

// Parse reads a config file; name is the file's, for messages.
func Parse(name string, b []byte, opt Options) (*File, error) {
	if len(b) > maxFile {
		return nil, volant.Invalidf("%s has %d bytes: the most is %d", name, len(b), maxFile)
	}
	root, err := parse(b)
	if err != nil {
		if p, ok := errors.AsType[*problem](err); ok {
			return nil, volant.Invalidf("%s", p.at(name))
		}
		return nil, err
	}
	p := &parser{r: &reader{}, f: &File{}}
	p.file(p.r.section(root, ""))
	wrong := p.r.problems
	if !opt.AllowUnsupported {
		wrong = append(wrong, p.r.ignored...)
	}
	sortProblems(wrong)
	var lines []string
	for _, w := range wrong {
		if len(lines) == maxProblems {
			lines = append(lines, fmt.Sprintf("%s: and %d more problems", name, len(wrong)-maxProblems))
			break
		}
		lines = append(lines, w.at(name))
	}
	if len(lines) > 0 {
		if len(p.r.problems) == 0 {
			lines = append(lines, "remove these, or deploy without what they ask for by --allow-unsupported")
		}
		return nil, volant.Invalidf("%s", strings.Join(lines, "\n"))
	}
	sortProblems(p.r.ignored)
	for _, w := range p.r.ignored {
		p.f.Ignored = append(p.f.Ignored, w.at(name))
	}
	return p.f, nil
}

func (p *problem) at(name string) string {
	return fmt.Sprintf("%s:%d:%d: %s", name, p.pos.line, p.pos.column, p.text)
}

// ApplyScale returns s with what the file sets.
func (f *File) ApplyScale(s volant.Scale) volant.Scale {
	for _, k := range f.ScaleSet {
		switch k {
		case "min":
			s.Min = f.Scale.Min
		case "max":
			s.Max = f.Scale.Max
		case "region_min":
			s.RegionMin = f.Scale.RegionMin
		case "region_max":
			s.RegionMax = f.Scale.RegionMax
		case "regions":
			s.Regions = f.Scale.Regions
		case "idle_timeout":
			s.IdleTimeout = f.Scale.IdleTimeout
		case "on_idle":
			s.OnIdle = f.Scale.OnIdle
		case "keep":
			s.Keep = f.Scale.Keep
		case "no_wake":
			s.NoWake = f.Scale.NoWake
		case "drain_timeout":
			s.DrainAfter = f.Scale.DrainAfter
		case "max_queue":
			s.MaxQueue = f.Scale.MaxQueue
		case "queue_timeout":
			s.QueueTime = f.Scale.QueueTime
		case "max_per_client":
			s.MaxPerPeer = f.Scale.MaxPerPeer
		case "spill":
			s.Spill = f.Scale.Spill
		}
	}
	return s
}

// parser reads the sections of a file.
type parser struct {
	r     *reader
	f     *File
	group string // the process group, where the file names one
	auto  []auto // what services say of starting and stopping
	spans []span // external ports given so far
}

// auto is what one service says of starting and stopping by itself.
type auto struct {
	at       pos
	startAt  pos
	stop     string // on_idle's word; empty where nothing is said
	start    *bool
	min      int
	minGiven bool
}

func (p *parser) file(s *section) {
	if s.str("app", &p.f.App) {
		if err := volant.CheckAppName(p.f.App); err != nil {
			p.r.wrong(s.t.vals["app"].pos, "%s", err)
		}
	}
	var region string
	if s.str("primary_region", &region) {
		p.f.PrimaryRegion = volant.Region(region)
		if !p.f.PrimaryRegion.Valid() {
			p.r.wrong(s.t.vals["primary_region"].pos, "primary_region is %q: use a region code, such as \"ams\"", region)
		}
	}
	stop := &p.f.Config.StopConfig
	s.oneOf("kill_signal", &stop.Signal, "SIGINT", "SIGTERM", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGSTOP")
	s.duration("kill_timeout", &stop.Timeout, time.Second, 0, 5*time.Minute)
	p.build(s.one("build"))
	p.deploy(s.one("deploy"))
	p.env(s)
	p.processes(s)
	p.experimental(s.one("experimental"))
	for _, v := range s.tables("services") {
		p.service(v)
	}
	p.vm(s)
	p.restart(s.one("restart"))
	p.autoScale()
	p.scale(s)
	s.end(flyTop)
}

var flyTop = map[string]string{
	"http_service": "HTTP handlers are not served yet; use [[services]] with ports that have no handlers",
	"swap_size_mb": "", "console_command": "", "host_dedication_id": "", "machine_config": "", "container": "",
	"machine_checks": "", "metrics": "", "statics": "", "files": "",
	"checks": "use [[services.tcp_checks]]",
	"mounts": "machines have no volumes yet", "mount": "machines have no volumes yet",
}

func (p *parser) build(s *section) {
	if s == nil {
		return
	}
	s.str("image", &p.f.Config.Image)
	const cure = "build the image first, and name it by build.image"
	s.end(map[string]string{
		"dockerfile": cure, "ignorefile": cure, "build-target": cure, "args": cure, "builder": cure, "buildpacks": cure,
		"builtin": cure, "settings": cure, "compose": cure, "compression": "", "compression_level": "",
	})
}

func (p *parser) deploy(s *section) {
	if s == nil {
		return
	}
	s.duration("wait_timeout", &p.f.WaitTimeout, time.Second, time.Second, time.Hour)
	var strategy string
	if s.oneOf("strategy", &strategy, "rolling", "immediate", "canary", "bluegreen") && strategy != "rolling" {
		p.r.ignored = append(p.r.ignored, &problem{
			s.t.vals["strategy"].pos,
			fmt.Sprintf("deploy.strategy %q is one of Fly's that is not done yet: leave it out, or use \"rolling\"", strategy),
		})
	}
	s.end(map[string]string{
		"max_unavailable": "a deploy never has fewer machines than before", "release_command": "",
		"release_command_timeout": "", "release_command_vm": "", "seed_command": "",
	})
}

func (p *parser) env(file *section) {
	s := file.one("env")
	if s == nil {
		return
	}
	p.f.Config.Env = map[string]string{}
	for _, k := range s.t.keys {
		var v string
		if !s.str(k, &v) {
			continue
		}
		if strings.HasPrefix(k, "FLY_") || strings.HasPrefix(k, "VOLANT_") {
			p.r.wrong(s.t.vals[k].pos, "env.%s: names that begin with FLY_ or VOLANT_ are the platform's", k)
		}
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
			p.r.wrong(s.t.vals[k].pos, "env.%s: a name is not empty and has no =, and neither has a NUL", k)
		}
		p.f.Config.Env[k] = v
	}
}

func (p *parser) processes(file *section) {
	s := file.one("processes")
	if s == nil {
		return
	}
	for i, name := range s.t.keys {
		var command string
		if !s.str(name, &command) {
			continue
		}
		at := s.t.vals[name].pos
		if i > 0 {
			p.r.ignored = append(p.r.ignored, &problem{at, fmt.Sprintf(
				"processes.%s is a second process group, and one is all there is yet: make it an app of its own", name)})
			continue
		}
		p.group = name
		words, err := splitWords(command)
		if err != nil {
			p.r.wrong(at, "processes.%s is no command: %s", name, err)
		}
		p.f.Config.Init.Cmd = words
	}
	if p.group != "" {
		p.f.Config.Metadata = map[string]string{"fly_process_group": p.group}
	}
}

// ofGroup reads the key processes, and says whether the section is for the one group there is.
func (p *parser) ofGroup(s *section) {
	var groups []string
	if !s.strs("processes", &groups) {
		return
	}
	want := p.group
	if want == "" {
		want = "app"
	}
	for _, g := range groups {
		if g != want {
			p.r.wrong(s.t.vals["processes"].pos, "%s names the process group %q, and there is only %q", s.name("processes"), g, want)
		}
	}
}

func (p *parser) experimental(s *section) {
	if s == nil {
		return
	}
	s.strs("cmd", &p.f.Config.Init.Cmd)
	s.strs("entrypoint", &p.f.Config.Init.Entrypoint)
	s.strs("exec", &p.f.Config.Init.Exec)
	s.end(map[string]string{
		"auto_rollback": "a failing deploy always leaves the old release serving", "enable_consul": "", "enable_etcd": "",
		"lazy_load_images": "", "machine_config": "", "attached": "",
	})
}

func (p *parser) restart(s *section) {
	if s == nil {
		return
	}
	var policy string
	if s.oneOf("policy", &policy, "always", "never", "on-failure") {
		p.f.Config.Restart.Policy = policy
		if policy == "never" {
			p.f.Config.Restart.Policy = volant.RestartNo
		}
	}
	s.integer("retries", &p.f.Config.Restart.MaxRetries, 1, 1000)
	p.ofGroup(s)
	s.end(nil)
}
