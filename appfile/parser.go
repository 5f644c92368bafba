package appfile

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

// parser reads the sections of a file.
type parser struct {
	r   *reader
	opt Options
	f   *File

	groups  []string // the process groups, the default one first
	named   bool     // the file has [processes]
	configs map[string]*volant.MachineConfig
	scales  map[string]*api.ScalePatch
	spans   []span // external ports given so far
}

func (p *parser) file(s *section) {
	if s.str("app", &p.f.App) {
		if err := volant.CheckAppName(p.f.App); err != nil {
			p.r.wrong(s.at("app"), "%s", err)
		}
	}
	p.region(s)
	p.processes(s.one("processes"))
	p.build(s.one("build"))
	p.everywhere(s)
	p.spread(s)
	p.services(s)
	p.checks(s)
	p.scale(s.tables("scale"))
	p.deploy(s.one("deploy"))
	s.end(unservedTop)
	p.release()
}

const (
	noVolumes = "machines have no volumes yet: keep data in a database outside"
	noStatics = "have the app itself serve its files"
)

var unservedTop = map[string]string{
	"swap_size_mb":       "machines have no swap: give them the memory they need in [[vm]]",
	"console_command":    "run it with `volant machine exec MACHINE -- COMMAND`",
	"host_dedication_id": "there are no dedicated hosts: leave it out",
	"machine_config":     "machines have one container: write its config in the keys of this file",
	"container":          "machines have one container: leave it out",
	"machine_checks":     "use checks of the service, which hold up a deploy too",
	"statics":            noStatics,
	"mounts":             noVolumes,
	"mount":              noVolumes,
}

func (p *parser) region(s *section) {
	var region string
	if s.str("primary_region", &region) && !volant.Region(region).Valid() {
		p.r.wrong(s.at("primary_region"), "primary_region is %q: use a region code, such as \"ams\"", region)
	}
	p.f.Release.PrimaryRegion = volant.Region(region)
	if p.opt.Region != "" {
		p.f.Release.PrimaryRegion = p.opt.Region
	}
}

// processes finds the process groups and their commands.
func (p *parser) processes(s *section) {
	p.configs, p.scales = map[string]*volant.MachineConfig{}, map[string]*api.ScalePatch{}
	if s != nil {
		for _, name := range s.t.keys {
			p.process(s, name)
		}
	}
	p.named = len(p.groups) > 0
	if !p.named {
		p.groups = []string{volant.GroupApp}
		p.configs[volant.GroupApp] = &volant.MachineConfig{}
	}
	slices.SortFunc(p.groups, func(a, b string) int {
		switch {
		case a == volant.GroupApp:
			return -1
		case b == volant.GroupApp:
			return 1
		}
		return strings.Compare(a, b)
	})
}

func (p *parser) process(s *section, name string) {
	var command string
	if !s.str(name, &command) {
		return
	}
	if volant.CheckAppName(name) != nil {
		p.r.wrong(s.at(name), "processes.%s: the name of a process group has 1 to 63 lower-case letters, digits and inner hyphens", name)
	}
	cfg := &volant.MachineConfig{Metadata: map[string]string{volant.MetadataGroup: name}}
	cfg.Init.Cmd = p.words(s, name, command)
	p.groups, p.configs[name] = append(p.groups, name), cfg
}

// words splits the command under a key; an empty one is none.
func (p *parser) words(s *section, key, command string) []string {
	words, err := splitWords(command)
	if err != nil {
		p.r.wrong(s.at(key), "%s is no command: %s", s.name(key), err)
	}
	return words
}

// groupsOf are the process groups that a section names; nil if it names none.
func (p *parser) groupsOf(s *section) []string {
	var names, out []string
	if !s.strs("processes", &names) {
		return nil
	}
	for _, name := range names {
		switch {
		case !slices.Contains(p.groups, name):
			text := fmt.Sprintf("%s names the process group %q: there is %s", s.name("processes"), name, strings.Join(p.groups, ", "))
			if near := nearest(name, p.groups); near != "" && len(p.groups) > 1 {
				text += fmt.Sprintf("; did you mean %s?", near)
			}
			p.r.wrong(s.at("processes"), "%s", text)
		case !slices.Contains(out, name):
			out = append(out, name)
		}
	}
	return out
}

// owners tells which of the sections each group has: the one that names it, else the one that names none.
func (p *parser) owners(ss []*section) map[string]*section {
	out := map[string]*section{}
	var rest *section
	for _, s := range ss {
		names := p.groupsOf(s)
		if !s.has("processes") {
			if rest != nil {
				p.r.wrong(s.t.pos, "%s is given twice for the same process groups: name them with processes, or give it once", s.path)
			}
			rest = s
		}
		for _, g := range names {
			if out[g] != nil {
				p.r.wrong(s.at("processes"), "%s is given twice for the process group %s: give it once", s.path, g)
			}
			out[g] = s
		}
	}
	for _, g := range p.groups {
		if out[g] == nil && rest != nil {
			out[g] = rest
		}
	}
	return out
}

// everywhere reads what is the same in all process groups.
func (p *parser) everywhere(s *section) {
	var all volant.MachineConfig
	stop := &all.StopConfig
	s.oneOf("kill_signal", &stop.Signal, "SIGINT", "SIGTERM", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGSTOP")
	s.duration("kill_timeout", &stop.Timeout, time.Second, 0, day)
	p.env(s.one("env"), &all)
	p.experimental(s.one("experimental"), &all)
	if r := p.f.Release.PrimaryRegion; r != "" {
		if all.Env == nil {
			all.Env = map[string]string{}
		}
		all.Env["PRIMARY_REGION"] = string(r)
	}
	for _, cfg := range p.configs {
		cfg.StopConfig, cfg.Env = all.StopConfig, maps.Clone(all.Env)
		cfg.Init.Exec, cfg.Init.Entrypoint = all.Init.Exec, all.Init.Entrypoint
		if len(cfg.Init.Cmd) == 0 {
			cfg.Init.Cmd = all.Init.Cmd
		}
	}
}

func (p *parser) env(s *section, cfg *volant.MachineConfig) {
	if s == nil {
		return
	}
	cfg.Env = map[string]string{}
	for _, k := range s.t.keys {
		v := s.t.vals[k]
		switch v.kind {
		case kindString, kindInt, kindFloat, kindBool:
		case kindList, kindTable, kindOther:
			p.r.wrong(v.pos, "env.%s is %s: write a string in quotes", k, v.what())
			continue
		}
		if strings.HasPrefix(k, "FLY_") || strings.HasPrefix(k, "VOLANT_") {
			p.r.wrong(v.pos, "env.%s: names that begin with FLY_ or VOLANT_ are the platform's", k)
		}
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v.text, "\x00") {
			p.r.wrong(v.pos, "env.%s: a name is not empty and has no =, and neither has a NUL", k)
		}
		cfg.Env[k] = v.text
	}
}

func (p *parser) experimental(s *section, cfg *volant.MachineConfig) {
	if s == nil {
		return
	}
	s.strs("cmd", &cfg.Init.Cmd)
	s.strs("entrypoint", &cfg.Init.Entrypoint)
	s.strs("exec", &cfg.Init.Exec)
	var back bool
	s.boolean("auto_rollback", &back) // true or not: a failed deploy leaves the old release serving
	s.end(map[string]string{
		"enable_consul":        "there is no Consul: leave it out",
		"enable_etcd":          "there is no etcd for apps: leave it out",
		"lazy_load_images":     "images are unpacked once for all machines: leave it out",
		"machine_config":       "write the machine's config in the keys of this file",
		"attached":             "set the secrets of this app",
		"allowed_public_ports": "use [[services.ports]]",
	})
}

// release brings all groups into the release.
func (p *parser) release() {
	rel := &p.f.Release
	for i, g := range p.groups {
		cfg := p.configs[g]
		cfg.Image = p.f.Image
		if i == 0 {
			rel.Config, rel.Scale = *cfg, p.scales[g]
			continue
		}
		rel.Others = append(rel.Others, volant.Group{Name: g, Config: *cfg})
		if s := p.scales[g]; s != nil {
			if rel.GroupScale == nil {
				rel.GroupScale = map[string]api.ScalePatch{}
			}
			rel.GroupScale[g] = *s
		}
	}
}
