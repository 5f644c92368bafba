package node

import (
	"cmp"
	"maps"
	"slices"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
)

// group is one process group of an app: what its machines are made from, and how it scales.
type group struct {
	name  string
	mold  mold
	ok    bool // there is something to make machines from
	scale volant.Scale
}

func (g *group) worker() bool { return g.ok && len(g.mold.cfg.Services) == 0 }

// mold is what a new machine is made from.
type mold struct {
	release uint64
	image   volant.Digest
	cfg     volant.MachineConfig
}

// groupsOf are the groups of an app's current release, the default one first. Without a release they are those
// of its machines, and the newest machine of each is what others are made from.
func groupsOf(snap *catalog.Snapshot, a *volant.App) []group {
	if r, ok := snap.Release(a.App, a.Release); ok {
		return groupsOfRelease(a, r)
	}
	newest := map[string]*volant.Machine{}
	for _, m := range snap.Machines(a.App) {
		// One of a release is not proven, or on its way out.
		if m.Tombstone || m.Run == volant.RunDestroyed || m.Release != 0 {
			continue
		}
		name := m.Config.Group()
		if old := newest[name]; old == nil || m.Created.After(old.Created) {
			newest[name] = m
		}
	}
	if newest[volant.GroupApp] == nil {
		newest[volant.GroupApp] = nil
	}
	var out []group
	for _, name := range slices.Sorted(maps.Keys(newest)) {
		g := group{name: name, scale: a.Scale}
		if own, ok := a.GroupScale[name]; ok {
			g.scale = own
		}
		if m := newest[name]; m != nil {
			g.ok, g.mold = true, mold{m.Release, m.Image, m.Config}
		}
		out = append(out, g)
	}
	return out
}

func groupsOfRelease(a *volant.App, r *volant.Release) []group {
	def := r.Config.Group()
	var out []group
	for _, g := range r.Groups() {
		out = append(out, group{name: g.Name, mold: mold{r.Version, r.Image, g.Config}, ok: true, scale: a.ScaleOf(g.Name, def)})
	}
	return out
}

// groupOf is the group a machine is of: one that names none is of the default group.
func groupOf(m *volant.Machine, def string) string {
	if m.Config.Metadata[volant.MetadataGroup] == "" {
		return def
	}
	return m.Config.Group()
}

// primary is where machines of an app go that no client's region asks for: the region its owner names, else that of
// the oldest host, so that it is the same whoever acts for the app.
func primary(snap *catalog.Snapshot, a *volant.App, here volant.Region) volant.Region {
	if a.PrimaryRegion != "" {
		return a.PrimaryRegion
	}
	var oldest *volant.Node
	for _, n := range snap.Nodes() {
		if n.Tombstone || n.Draining || !n.Has(volant.RoleHost) {
			continue
		}
		if oldest == nil || cmp.Or(n.Created.Compare(oldest.Created), cmp.Compare(n.ID, oldest.ID)) < 0 {
			oldest = n
		}
	}
	if oldest == nil {
		return here
	}
	return oldest.Region
}

// home is where machines made by hand go that name no region: here if there are hosts, else where the app is at home.
func (p *Platform) home(a *volant.App) volant.Region {
	snap := p.cat.Snapshot()
	for _, n := range snap.Nodes() {
		if !n.Tombstone && !n.Draining && n.Region == p.Region && n.Has(volant.RoleHost) {
			return p.Region
		}
	}
	return primary(snap, a, p.Region)
}

// least is how many machines of an app are awake in all.
func least(snap *catalog.Snapshot, a *volant.App) int {
	n := 0
	for _, g := range groupsOf(snap, a) {
		n += g.scale.Least()
	}
	return n
}
