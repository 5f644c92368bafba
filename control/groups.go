package control

import (
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

const (
	maxGroups      = 32             // of one app
	maxReleaseTime = 24 * time.Hour // a release command may take
)

// checkGroups says what is wrong with the process groups of a release, or nil, and fills in what they leave out.
func checkGroups(in *api.CreateRelease) error {
	in.Config.Guest = in.Config.Guest.WithDefaults()
	if len(in.Others) >= maxGroups {
		return volant.Invalidf("%d process groups: an app has at most %d", len(in.Others)+1, maxGroups)
	}
	names := map[string]bool{}
	ports := map[int]string{}
	all := append([]volant.Group{{Name: in.Config.Group(), Config: in.Config}}, in.Others...)
	for i := range all {
		g := &all[i]
		if volant.CheckAppName(g.Name) != nil {
			return volant.Invalidf("process group %q: use 1 to 63 lower-case letters, digits and inner hyphens", g.Name)
		}
		if names[g.Name] {
			return volant.Invalidf("process group %s is there twice", g.Name).WithRemedy("name each group once")
		}
		names[g.Name] = true
		if in := g.Config.Metadata[volant.MetadataGroup]; in != "" && in != g.Name {
			return volant.Invalidf("the config of process group %s says it is of group %s", g.Name, in).
				WithRemedy("leave %s out of its metadata", volant.MetadataGroup)
		}
		if err := checkConfig(&g.Config); err != nil {
			return err
		}
		if err := onePort(ports, g); err != nil {
			return err
		}
	}
	for i := range in.Others {
		g := &in.Others[i]
		g.Config.Guest = g.Config.Guest.WithDefaults()
		g.Config.Metadata = maps.Clone(g.Config.Metadata)
		if g.Config.Metadata == nil {
			g.Config.Metadata = map[string]string{}
		}
		g.Config.Metadata[volant.MetadataGroup] = g.Name
	}
	for name := range in.GroupScale {
		if !names[name] {
			return volant.Invalidf("group_scale names %q, which is no process group of the app", name).
				WithRemedy("use %s", strings.Join(slices.Sorted(maps.Keys(names)), ", "))
		}
	}
	return nil
}

// onePort sees to it that a port outside leads to one group. A group names none twice: checkConfig.
func onePort(ports map[int]string, g *volant.Group) error {
	for i := range g.Config.Services {
		for _, p := range g.Config.Services[i].Ports {
			first, last := p.Range()
			for n := first; n <= last; n++ {
				if of, ok := ports[n]; ok && of != g.Name {
					return volant.Invalidf("port %d is named by services of the process groups %s and %s", n, of, g.Name).
						WithRemedy("give one of them another port")
				}
				ports[n] = g.Name
			}
		}
		if len(ports) > maxPorts {
			return volant.Invalidf("process group %s: an app has at most %d ports", g.Name, maxPorts)
		}
	}
	return nil
}

// checkStrategy says what is wrong with how a release is brought about, or nil.
func checkStrategy(in *api.CreateRelease) error {
	switch in.Strategy {
	case "", volant.StrategyRolling, volant.StrategyCanary, volant.StrategyBlueGreen, volant.StrategyImmediate:
	default:
		return volant.Invalidf("deploy strategy %q: use one of rolling, canary, bluegreen, immediate", in.Strategy)
	}
	n := in.MaxUnavailable
	switch {
	case math.IsNaN(n) || n < 0 || n > volant.MaxMachines || n > 1 && n != math.Trunc(n):
		return volant.Invalidf("max_unavailable is %v: use a count of machines, or a fraction between 0 and 1", n)
	case n > 0 && in.Strategy != "" && in.Strategy != volant.StrategyRolling && in.Strategy != volant.StrategyCanary:
		return volant.Invalidf("max_unavailable has no meaning with strategy %s", in.Strategy).
			WithRemedy("leave it out, or use rolling or canary")
	case in.WaitTimeout < 0 || in.WaitTimeout > volant.Duration(maxReleaseTime):
		return volant.Invalidf("wait_timeout is %s: use 1s to 24h", in.WaitTimeout)
	}
	c := in.ReleaseCommand
	if c == nil {
		return nil
	}
	switch {
	case len(c.Cmd) == 0:
		return volant.Invalidf("release_command has no words").WithRemedy("leave it out, or name a program")
	case c.Timeout < 0 || c.Timeout > volant.Duration(maxReleaseTime):
		return volant.Invalidf("release_command's timeout is %s: use 1s to 24h", c.Timeout)
	}
	return checkConfig(&volant.MachineConfig{Guest: c.Guest, Init: volant.Init{Cmd: c.Cmd}})
}

// checkReleaseScale checks the regions that a release names.
func (s *Server) checkReleaseScale(in *api.CreateRelease) error {
	if in.PrimaryRegion != "" {
		if err := s.checkRegions(&api.ScalePatch{Regions: []volant.Region{in.PrimaryRegion}}); err != nil {
			return err
		}
	}
	if in.Scale != nil {
		if err := s.checkRegions(in.Scale); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(in.GroupScale)) {
		p := in.GroupScale[name]
		if err := s.checkRegions(&p); err != nil {
			return err
		}
	}
	return nil
}

// scaleGroups brings what a release says of scale into its app.
func scaleGroups(a *volant.App, in *api.CreateRelease) (err error) {
	if in.PrimaryRegion != "" {
		a.PrimaryRegion = in.PrimaryRegion
	}
	def := in.Config.Group()
	if in.Scale != nil {
		if a.Scale, err = in.Scale.Apply(a.Scale); err != nil {
			return err
		}
	}
	unasked := (in.Scale == nil || in.Scale.Min == nil) && a.Scale.Least() == 0
	if a.Release == 0 && unasked && len(in.Config.Services) == 0 {
		a.Scale.Min = firstScale(&in.Config).Min
	}
	next := map[string]volant.Scale{}
	maps.Copy(next, a.GroupScale)
	for i := range in.Others {
		g := &in.Others[i]
		if _, ok := next[g.Name]; !ok {
			next[g.Name] = firstScale(&g.Config)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(in.GroupScale)) {
		p := in.GroupScale[name]
		if name == def {
			a.Scale, err = p.Apply(a.Scale)
		} else {
			next[name], err = p.Apply(next[name])
		}
		if err != nil {
			return volant.Invalidf("scale of process group %s: %v", name, err)
		}
	}
	if len(next) > 0 {
		a.GroupScale = next
	}
	return nil
}

// firstScale is the scale of a group that nobody has scaled yet: one that no connection wakes has one machine awake.
func firstScale(cfg *volant.MachineConfig) volant.Scale {
	if len(cfg.Services) == 0 {
		return volant.Scale{Min: 1}
	}
	return volant.Scale{}
}

// services are those of all groups of a release.
func services(r *volant.Release) []volant.Service {
	var out []volant.Service
	for _, g := range r.Groups() {
		out = append(out, g.Config.Services...)
	}
	return out
}
