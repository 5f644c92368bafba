package control

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/store"
)

// app finds the app of the path and authorizes the call for its organization. Where the caller may
// not see it the answer is that of an app which does not exist.
func (s *Server) app(c *call) (*volant.App, *catalog.Snapshot, error) {
	name := c.r.PathValue("app")
	snap := s.Catalog.Snapshot()
	a, ok := snap.AppByName(name)
	if !ok {
		a, ok = snap.App(volant.AppID(name))
	}
	if !ok || a.Tombstone || !c.who.sees(a) {
		return nil, nil, noApp(name)
	}
	return a, snap, c.grant(a.Org, a.App)
}

func noApp(name string) error {
	return volant.Errorf(volant.ErrNotFound, "app %q does not exist", name).
		WithRemedy("see `volant apps list`, or make it with `volant apps create %s`", name)
}

func (s *Server) appView(snap *catalog.Snapshot, a *volant.App) api.App {
	status := "pending"
	if a.Release > 0 {
		status = "deployed"
	}
	v := api.App{
		ID: a.ID, Name: a.Name, Status: status, Release: a.Release, CreatedAt: a.Created,
		Organization: api.Organization{Name: string(a.Org), Slug: string(a.Org)},
		Addresses:    addresses(snap, a.App),
	}
	for _, m := range snap.Machines(a.App) {
		if !gone(m) {
			v.MachineCount++
		}
	}
	return v
}

func gone(m *volant.Machine) bool { return m.Tombstone || m.Run == volant.RunDestroyed }

func addresses(snap *catalog.Snapshot, app volant.AppID) []string {
	var out []string
	for _, a := range snap.Addresses(app) {
		if !a.Tombstone {
			out = append(out, a.IP)
		}
	}
	slices.SortFunc(out, byAddress)
	return out
}

func (s *Server) listApps(w http.ResponseWriter, c *call) error {
	snap := s.Catalog.Snapshot()
	out := api.AppList{Apps: []api.App{}}
	org := c.r.URL.Query().Get("org_slug")
	for _, a := range snap.Apps() {
		if a.Tombstone || !c.who.sees(a) || org != "" && string(a.Org) != org {
			continue
		}
		out.Apps = append(out.Apps, s.appView(snap, a))
	}
	slices.SortFunc(out.Apps, func(a, b api.App) int { return cmp.Compare(a.Name, b.Name) })
	out.TotalApps = len(out.Apps)
	reply(w, http.StatusOK, out)
	return nil
}

func (s *Server) createApp(w http.ResponseWriter, c *call) error {
	var in api.CreateApp
	if err := c.read(w, &in); err != nil {
		return err
	}
	name := cmp.Or(in.Name, in.AppName)
	if err := volant.CheckAppName(name); err != nil {
		return err
	}
	org := volant.OrgID(cmp.Or(in.OrgSlug, string(volant.OrgPersonal)))
	if err := c.grant(org, ""); err != nil {
		return err
	}
	if err := s.knownOrg(org); err != nil {
		return err
	}
	id := volant.NewAppID()
	a := &volant.App{Name: name}
	a.Meta = volant.Meta{Kind: volant.KindApp, Org: org, App: id, ID: string(id)}
	rev, err := writeApp(c.ctx(), s.Store, c.who.name, a)
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	s.audit(c, org, id, "", "app_created", fmt.Sprintf("app %s was created", name))
	reply(w, http.StatusCreated, api.CreatedApp{ID: string(id), CreatedAt: a.Created.Unix()})
	return nil
}

// seen waits until the catalog holds what was written at rev, so that the caller's next read sees it.
func (s *Server) seen(c *call, rev store.Revision) error {
	if err := s.Catalog.Wait(c.ctx(), rev); err != nil {
		return volant.Errorf(volant.ErrUnavailable, "written, but not read back yet: %v", err).WithRemedy("look again in a moment")
	}
	return nil
}

func (s *Server) getApp(w http.ResponseWriter, c *call) error {
	a, snap, err := s.app(c)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, s.appView(snap, a))
	return nil
}

// destroyApp ends the app's machines first and its own record last, so that a stop in between leaves an
// app which can be destroyed again.
func (s *Server) destroyApp(w http.ResponseWriter, c *call) error {
	a, snap, err := s.app(c)
	if err != nil {
		return err
	}
	id := a.App
	for _, m := range snap.Machines(id) {
		if l, _ := snap.Lease(volant.MachineID(m.ID)); !gone(m) && l.Live(time.Now()) && !c.holds(l) {
			return leasedError(l)
		}
		have, _ := snap.Have(volant.MachineID(m.ID))
		if !gone(m) && !have.State.Asleep() && have.State != volant.StateFailed && have.State != "" && !c.flag("force") {
			return volant.Errorf(volant.ErrPrecondition, "machine %s of app %s is %s", m.ID, a.Name, have.State).
				WithRemedy("stop it first, or force the app's destruction (`volant apps destroy %s --force`)", a.Name)
		}
	}
	rev, err := eraseApp(c.ctx(), s.Store, c.who.name, a)
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	s.audit(c, a.Org, id, "", "app_destroyed", fmt.Sprintf("app %s was destroyed", a.Name))
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func (s *Server) getScale(w http.ResponseWriter, c *call) error {
	a, snap, err := s.app(c)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, s.scaleView(snap, a))
	return nil
}

func (s *Server) scaleView(snap *catalog.Snapshot, a *volant.App) api.Scale {
	id := a.App
	v := api.Scale{App: a.Name, Scale: a.Scale.WithDefaults(), Queued: s.Traffic.Waiting(id)}
	for _, n := range s.Traffic.Slots(id) {
		v.Slots += n
	}
	for name, of := range a.GroupScale {
		if v.Groups == nil {
			v.Groups = map[string]api.GroupScale{}
		}
		v.Groups[name] = api.GroupScale{Scale: of.WithDefaults()}
	}
	for _, m := range snap.Machines(id) {
		if gone(m) {
			continue
		}
		have, _ := snap.Have(volant.MachineID(m.ID))
		awake := 0
		if have.State.Awake() {
			awake = 1
		}
		v.Total++
		v.Awake += awake
		if g, ok := v.Groups[m.Config.Group()]; ok {
			g.Total, g.Awake = g.Total+1, g.Awake+awake
			v.Groups[m.Config.Group()] = g
		}
	}
	return v
}

func (s *Server) patchScale(w http.ResponseWriter, c *call) error {
	a, snap, err := s.app(c)
	if err != nil {
		return err
	}
	var p api.ScalePatch
	if err := c.read(w, &p); err != nil {
		return err
	}
	if err := s.checkRegions(&p); err != nil {
		return err
	}
	def, group := volant.GroupApp, c.r.URL.Query().Get("group")
	if r, ok := snap.Release(a.App, a.Release); ok {
		def = r.Config.Group()
	}
	if _, known := a.GroupScale[group]; group != "" && group != def && !known {
		return volant.Errorf(volant.ErrNotFound, "app %s has no process group %q", a.Name, group).
			WithRemedy("use %s", strings.Join(append([]string{def}, slices.Sorted(maps.Keys(a.GroupScale))...), ", "))
	}
	_, rev, err := store.Update(c.ctx(), s.Store, c.who.name, a.Key(), func(a *volant.App) error {
		if group == "" || group == def {
			next, err := p.Apply(a.Scale)
			a.Scale = next
			return err
		}
		next, err := p.Apply(a.GroupScale[group])
		a.GroupScale[group] = next
		return err
	})
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	s.audit(c, a.Org, a.App, "", "scale_set", fmt.Sprintf("the scale settings of app %s were changed", a.Name))
	return s.getScale(w, c)
}

// checkRegions says which region of scale settings has no server, or nil: what is asked for there would
// never come about.
func (s *Server) checkRegions(p *api.ScalePatch) error {
	known := map[volant.Region]bool{}
	for _, n := range s.Catalog.Snapshot().Nodes() {
		if !n.Tombstone {
			known[n.Region] = true
		}
	}
	named := slices.Concat(p.Regions, slices.Collect(maps.Keys(p.RegionMin)), slices.Collect(maps.Keys(p.RegionMax)))
	slices.Sort(named)
	for _, r := range named {
		if !known[r] {
			return volant.Invalidf("region %q has no server", r).
				WithRemedy("use one of %v; in a config file primary_region names one too", slices.Sorted(maps.Keys(known)))
		}
	}
	return nil
}

// untilSnapshot looks at each new snapshot until ok says it is enough, or the time is over.
func (s *Server) untilSnapshot(c *call, timeout time.Duration, ok func(*catalog.Snapshot) (bool, error)) error {
	changed, cancel := s.Catalog.Subscribe()
	defer cancel()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		done, err := ok(s.Catalog.Snapshot())
		if done || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-timer.C:
			return errTimeout
		case <-c.ctx().Done():
			return c.ctx().Err()
		}
	}
}
