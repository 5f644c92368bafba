package control

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/catalog"
)

func releaseView(snap *catalog.Snapshot, r *volant.Release) api.Release {
	return api.Release{
		Version: r.Version, Image: string(r.Image), Status: string(r.Status), Reason: r.Reason, Actor: r.Actor,
		CreatedAt: r.Created, UpdatedAt: r.Updated, Addresses: addresses(snap, r.App),
	}
}

func (s *Server) listReleases(w http.ResponseWriter, c *call) error {
	a, snap, err := s.app(c)
	if err != nil {
		return err
	}
	out := []api.Release{}
	for _, r := range snap.Releases(a.App) {
		out = append(out, releaseView(snap, r))
	}
	slices.SortFunc(out, func(a, b api.Release) int { return cmp.Compare(b.Version, a.Version) })
	reply(w, http.StatusOK, out)
	return nil
}

func (s *Server) getRelease(w http.ResponseWriter, c *call) error {
	a, snap, err := s.app(c)
	if err != nil {
		return err
	}
	version, err := parseVersion(c.r.PathValue("version"))
	if err != nil {
		return err
	}
	r, ok := snap.Release(a.App, version)
	if !ok {
		return volant.Errorf(volant.ErrNotFound, "app %s has no release %d", a.Name, version)
	}
	reply(w, http.StatusOK, releaseView(snap, r))
	return nil
}

func (s *Server) createRelease(w http.ResponseWriter, c *call) error {
	a, _, err := s.app(c)
	if err != nil {
		return err
	}
	var in api.CreateRelease
	if err := c.read(w, &in); err != nil {
		return err
	}
	if err := s.fromRelease(a, &in); err != nil {
		return err
	}
	if err := s.checkRelease(a, &in); err != nil {
		return err
	}
	in.Image = cmp.Or(in.Image, in.Config.Image)
	image, err := s.image(c.ctx(), c, a.Org, in.Image)
	if err != nil {
		return err
	}
	in.Config.Image = cmp.Or(in.Config.Image, in.Image)
	next := volant.Release{
		Image: image, Config: in.Config, Status: volant.ReleasePending, WaitTimeout: in.WaitTimeout,
		Others: in.Others, Strategy: in.Strategy, MaxUnavailable: in.MaxUnavailable, Command: in.ReleaseCommand,
	}
	if err := s.assignAddresses(c, a, services(&next)); err != nil {
		return err
	}
	r, rev, err := writeRelease(c.ctx(), s.Store, c.who.name, a, next, func(a *volant.App) error { return scaleGroups(a, &in) })
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	s.audit(c, a.Org, a.App, "", "release_created", fmt.Sprintf("release %d of app %s was created", r.Version, a.Name))
	reply(w, http.StatusCreated, releaseView(s.Catalog.Snapshot(), r))
	return nil
}

// fromRelease fills in what a release takes over from an earlier one.
func (s *Server) fromRelease(a *volant.App, in *api.CreateRelease) error {
	if in.FromRelease == 0 {
		return nil
	}
	if named := (&api.CreateRelease{FromRelease: in.FromRelease, WaitTimeout: in.WaitTimeout}); !reflect.DeepEqual(in, named) {
		return volant.Invalidf("from_release stands beside an image or config").WithRemedy("name the one or the other")
	}
	old, ok := s.Catalog.Snapshot().Release(a.App, in.FromRelease)
	if !ok || old.Tombstone {
		return volant.Errorf(volant.ErrNotFound, "app %s has no release %d", a.Name, in.FromRelease).
			WithRemedy("see `volant releases %s`", a.Name)
	}
	in.Image, in.Config, in.Others = string(old.Image), old.Config, slices.Clone(old.Others)
	in.Strategy, in.MaxUnavailable = old.Strategy, old.MaxUnavailable
	in.WaitTimeout = cmp.Or(in.WaitTimeout, old.WaitTimeout)
	return nil
}

func (s *Server) checkRelease(a *volant.App, in *api.CreateRelease) error {
	if err := checkConfig(&in.Config); err != nil {
		return err
	}
	if err := checkGroups(in); err != nil {
		return err
	}
	if err := checkStrategy(in); err != nil {
		return err
	}
	if err := s.checkReleaseScale(in); err != nil {
		return err
	}
	trial := *a
	trial.GroupScale = maps.Clone(a.GroupScale)
	return scaleGroups(&trial, in)
}

// Bounds of a config. Each port is a socket of the proxy, which all apps share.
const (
	maxPorts  = 1000
	maxChecks = 16
	maxFiles  = 64
	maxText   = 128 << 10 // of one variable, argument or metadata, as in Linux
	maxTexts  = 512 << 10 // of all; the guest's channel takes 1 MiB
)

// checkTexts refuses what no program can be started with.
func checkTexts(cfg *volant.MachineConfig) error {
	all := 0
	look := func(what, text string) error {
		all += len(text)
		switch {
		case strings.ContainsRune(text, 0):
			return volant.Invalidf("%s has a zero byte in it", what)
		case len(text) > maxText, all > maxTexts:
			return volant.Invalidf("%s is too long: one text has at most %d bytes, and all of a config %d", what, maxText, maxTexts)
		}
		return nil
	}
	for k, v := range cfg.Env {
		if k == "" || strings.Contains(k, "=") {
			return volant.Invalidf("env: %q is no name of a variable", k)
		}
		if err := errors.Join(look("env", k), look("env "+k, v)); err != nil {
			return err
		}
	}
	for k, v := range cfg.Metadata {
		if err := errors.Join(look("metadata", k), look("metadata "+k, v)); err != nil {
			return err
		}
	}
	for _, arg := range slices.Concat(cfg.Init.Exec, cfg.Init.Entrypoint, cfg.Init.Cmd, []string{cfg.Init.User, cfg.Image}) {
		if err := look("init", arg); err != nil {
			return err
		}
	}
	return nil
}

func checkChecks(cs []volant.ServiceCheck) error {
	if len(cs) > maxChecks {
		return volant.Invalidf("%d checks of one service: use at most %d", len(cs), maxChecks)
	}
	for _, c := range cs {
		for name, d := range map[string]volant.Duration{"interval": c.Interval, "timeout": c.Timeout} {
			if d != 0 && (d < volant.Duration(time.Second) || d > volant.Duration(time.Minute)) {
				return volant.Invalidf("check %s %s: use 1s to 60s", name, d)
			}
		}
		if c.Port < 0 || c.Port > 65535 || c.Grace < 0 || c.Grace > volant.Duration(time.Hour) {
			return volant.Invalidf("check of port %d with grace_period %s: use a port up to 65535, and 0s to 1h", c.Port, c.Grace)
		}
	}
	return nil
}

// checkMachineChecks says what is wrong with the checks of a machine as a whole, or nil.
func checkMachineChecks(all map[string]volant.MachineCheck) error {
	for name, c := range all {
		what := fmt.Sprintf("check %q", name)
		switch {
		case name == "" || len(name) > 63:
			return volant.Invalidf("%s: a check's name has 1 to 63 bytes", what)
		case c.Kind != "" && c.Kind != volant.CheckInformational && c.Kind != volant.CheckReadiness:
			return volant.Invalidf("%s has kind %q: use informational or readiness", what, c.Kind)
		case c.Port == 0:
			return volant.Invalidf("%s has no port", what)
		}
		if err := errors.Join(c.Check(what), checkChecks([]volant.ServiceCheck{c.ServiceCheck})); err != nil {
			return err
		}
	}
	if len(all) > maxChecks {
		return volant.Invalidf("%d checks of a machine: use at most %d", len(all), maxChecks)
	}
	return nil
}

// checkConfig says what is wrong with a machine's config, or nil.
func checkConfig(cfg *volant.MachineConfig) error {
	if s := cfg.Schedule; s != "" && !slices.Contains([]string{"hourly", "daily", "weekly", "monthly"}, s) {
		return volant.Invalidf("schedule %q: use hourly, daily, weekly or monthly", s)
	}
	g := cfg.Guest.WithDefaults()
	switch {
	case g.CPUKind != volant.CPUShared && g.CPUKind != volant.CPUPerformance:
		return volant.Invalidf("guest.cpu_kind %q: use shared or performance", g.CPUKind)
	case g.CPUs < 1 || g.CPUs > 32 || g.CPUs > 1 && g.CPUs%2 == 1:
		return volant.Invalidf("guest.cpus %d: use 1 or an even number up to 32", g.CPUs)
	case g.MemoryMB < 128 || g.MemoryMB > 64<<10:
		return volant.Invalidf("guest.memory_mb %d: use 128 to 65536", g.MemoryMB)
	}
	switch cfg.Restart.Policy {
	case "", volant.RestartAlways, volant.RestartNo, volant.RestartOnFailure:
	default:
		return volant.Invalidf("restart.policy %q: use always, on-failure or no", cfg.Restart.Policy)
	}
	if err := checkTexts(cfg); err != nil {
		return err
	}
	if t := cfg.StopConfig.Timeout; t < 0 || t > volant.Duration(24*time.Hour) {
		return volant.Invalidf("stop_config.timeout %s: use 0s to 24h", t)
	}
	if err := checkMachineChecks(cfg.Checks); err != nil {
		return err
	}
	if len(cfg.Files) > maxFiles {
		return volant.Invalidf("%d files: use at most %d", len(cfg.Files), maxFiles)
	}
	for i := range cfg.Files {
		if err := cfg.Files[i].Check(); err != nil {
			return err
		}
	}
	used := map[int]bool{}
	for i := range cfg.Services {
		if err := cfg.Services[i].Check(); err != nil {
			return err
		}
		if err := checkChecks(cfg.Services[i].Checks); err != nil {
			return err
		}
		for _, p := range cfg.Services[i].Ports {
			first, last := p.Range()
			if len(used)+last-first >= maxPorts {
				return volant.Invalidf("ports %d to %d: an app has at most %d ports", first, last, maxPorts)
			}
			for n := first; n <= last; n++ {
				if used[n] {
					return volant.Invalidf("port %d is named by two services", n)
				}
				used[n] = true
			}
		}
	}
	return nil
}
