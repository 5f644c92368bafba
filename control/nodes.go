package control

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/why"
)

// maxControl bounds the control nodes: each write goes to all of them, and seven survive three losses.
const maxControl = 7

func (s *Server) listNodes(w http.ResponseWriter, _ *call) error {
	reply(w, http.StatusOK, s.Nodes())
	return nil
}

func (s *Server) getNode(w http.ResponseWriter, c *call) error {
	n, err := s.node(c)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, s.nodeView(n))
	return nil
}

// node is the server that the path names. Who asks acts for every organization: a server is of no one of them.
func (s *Server) node(c *call) (*volant.Node, error) {
	if err := c.grant(AnyOrg, ""); err != nil {
		return nil, err
	}
	return nodeNamed(s.Catalog.Snapshot(), c.r.PathValue("node"))
}

// nodeNamed finds a live server by its ID or its name.
func nodeNamed(snap *catalog.Snapshot, what string) (*volant.Node, error) {
	if n, ok := snap.Node(volant.NodeID(what)); ok && !n.Tombstone {
		return n, nil
	}
	var found []*volant.Node
	for _, n := range snap.Nodes() {
		if n.Name == what && !n.Tombstone {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 0:
		return nil, volant.Errorf(volant.ErrNotFound, "there is no node %q", cut(what)).WithRemedy("see `volant nodes list`")
	case 1:
		return found[0], nil
	}
	return nil, volant.Invalidf("%d nodes have the name %q", len(found), cut(what)).WithRemedy("use the ID, such as %s", found[0].ID)
}

// nodeEver finds a server by its ID or name, be it removed, or returns nil.
func nodeEver(snap *catalog.Snapshot, what string) *volant.Node {
	if n, err := nodeNamed(snap, what); err == nil {
		return n
	}
	var last *volant.Node
	for _, n := range snap.Nodes() {
		if (n.ID == what || n.Name == what) && (last == nil || n.Updated.After(last.Updated)) {
			last = n
		}
	}
	return last
}

// nodeView is a server as it is shown.
func (s *Server) nodeView(n *volant.Node) api.Node {
	for _, v := range s.Nodes() {
		if v.ID == n.ID {
			return v
		}
	}
	return api.Node{ID: n.ID, Name: n.Name, Region: string(n.Region), Roles: n.Roles, State: NodeUnknown, Draining: n.Draining}
}

// The states of a node.
const (
	NodeOK      = "ok"
	NodeSilent  = "silent"
	NodeUnknown = "unknown"
)

// auditNode records a change of a server.
func (s *Server) auditNode(c *call, node, rule, text string) {
	s.Reasons.Add(why.Record{
		Time: now(), Kind: why.Change, Org: AnyOrg, Rule: rule, Text: text,
		Attrs: map[string]string{"actor": c.who.name, "node": node},
	})
}

// changeNode edits a server's record, says so and answers with the server.
func (s *Server) changeNode(w http.ResponseWriter, c *call, n *volant.Node, rule, text string, fn func(*volant.Node) error) error {
	_, rev, err := store.Update(c.ctx(), s.Store, c.who.name, n.Key(), fn)
	if errors.Is(err, volant.ErrNotFound) {
		return volant.Errorf(volant.ErrNotFound, "node %s was removed", n.ID).WithRemedy("see `volant nodes list`")
	}
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	s.auditNode(c, n.ID, rule, text)
	reply(w, http.StatusOK, s.nodeView(n))
	return nil
}

func (s *Server) drainNode(w http.ResponseWriter, c *call) error {
	n, err := s.node(c)
	if err != nil {
		return err
	}
	return s.changeNode(w, c, n, "node_drained", "node "+label(n)+" drains: its machines go elsewhere", func(n *volant.Node) error {
		n.Draining = true
		return nil
	})
}

func (s *Server) undrainNode(w http.ResponseWriter, c *call) error {
	n, err := s.node(c)
	if err != nil {
		return err
	}
	return s.changeNode(w, c, n, "node_undrained", "node "+label(n)+" drains no longer", func(n *volant.Node) error {
		n.Draining = false
		return nil
	})
}

// rotateNodeKey asks a server for a new mesh key. It makes one itself, and uses it once all others know it.
func (s *Server) rotateNodeKey(w http.ResponseWriter, c *call) error {
	n, err := s.node(c)
	if err != nil {
		return err
	}
	if n.Mesh.Key == "" {
		return volant.Errorf(volant.ErrPrecondition, "node %s has no mesh key: it is alone", label(n)).
			WithRemedy("set mesh.endpoint in its configuration, so that others can join")
	}
	return s.changeNode(w, c, n, "node_key_asked", "node "+label(n)+" is to have a new mesh key", func(n *volant.Node) error {
		n.Mesh.Renew = true
		return nil
	})
}

// label is how messages name a server.
func label(n *volant.Node) string { return n.Name + " (" + n.ID + ")" }

func (s *Server) promoteNode(w http.ResponseWriter, c *call) error {
	n, err := s.node(c)
	if err != nil {
		return err
	}
	switch {
	case n.Mesh.Key == "" && !n.Has(volant.RoleControl):
		return volant.Errorf(volant.ErrPrecondition, "node %s has no mesh, over which the members of the store speak", label(n)).
			WithRemedy("set mesh.endpoint in its configuration and start it again")
	case len(s.controls()) >= maxControl && !n.Has(volant.RoleControl):
		return volant.Errorf(volant.ErrPrecondition, "there are %d control nodes, and more make writes slower and nothing safer", len(s.controls())).
			WithRemedy("demote another one first")
	}
	return s.changeNode(w, c, n, "node_promoted", "node "+label(n)+" is to be a control node", func(n *volant.Node) error {
		if !n.Has(volant.RoleControl) {
			n.Roles = append(n.Roles, volant.RoleControl)
		}
		return nil
	})
}

func (s *Server) demoteNode(w http.ResponseWriter, c *call) error {
	n, err := s.node(c)
	if err != nil {
		return err
	}
	if err := s.spare(n); err != nil {
		return err
	}
	return s.changeNode(w, c, n, "node_demoted", "node "+label(n)+" is to be a control node no longer", func(n *volant.Node) error {
		n.Roles = slices.DeleteFunc(n.Roles, func(r string) bool { return r == volant.RoleControl })
		if len(n.Roles) == 0 {
			return volant.Errorf(volant.ErrPrecondition, "node %s has no role but control", label(n)).WithRemedy("remove it with `volant nodes remove %s --force`", n.ID)
		}
		return nil
	})
}

// controls are the live nodes with the control role.
func (s *Server) controls() []*volant.Node {
	var out []*volant.Node
	for _, n := range s.Catalog.Snapshot().Nodes() {
		if n.Has(volant.RoleControl) && !n.Tombstone {
			out = append(out, n)
		}
	}
	return out
}

// spare says why the cluster cannot do without a control node, or nil. One that has yet to become a member of the
// store keeps no intent.
func (s *Server) spare(n *volant.Node) error {
	if !n.Has(volant.RoleControl) {
		return nil
	}
	if len(s.controls()) == 1 {
		return volant.Errorf(volant.ErrPrecondition, "node %s is the only control node: with it the cluster's intent would go", label(n)).
			WithRemedy("promote another one first: `volant nodes promote NODE`")
	}
	seated, others := false, 0
	for _, v := range s.Nodes() {
		switch {
		case v.ID == n.ID:
			seated = v.Control == seatMember || v.Control == seatDown
		case v.Control == seatMember:
			others++
		}
	}
	if seated && others == 0 {
		return volant.Errorf(volant.ErrPrecondition, "no control node but %s has the whole intent yet", label(n)).
			WithRemedy("wait until `volant nodes list` shows no other one as joining, learner or down")
	}
	return nil
}

// What a node is to the store, as api.Node says it.
const (
	seatMember = "member"
	seatDown   = "down"
)

// removeNode throws a server out: the tombstone of its record is what every other node acts on.
func (s *Server) removeNode(w http.ResponseWriter, c *call) error {
	n, err := s.node(c)
	if err != nil {
		return err
	}
	view, lost := s.nodeView(n), s.machinesAt(volant.NodeID(n.ID))
	if err := s.removable(n, view, lost, c.flag("force")); err != nil {
		return err
	}
	changes := []store.Change{store.Removal(n.Key())}
	if n.Token != "" {
		changes = append(changes, store.IfThere(store.Removal(volant.RecordKey(volant.KindToken, "", n.Token))))
	}
	rev, err := store.Apply(c.ctx(), s.Store, c.who.name, changes...)
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	out := api.RemovedNode{ID: n.ID, Name: n.Name, Apps: slices.Sorted(maps.Keys(lost))}
	for _, k := range lost {
		out.Machines += k
	}
	s.auditNode(c, n.ID, "node_removed", fmt.Sprintf("node %s was removed with %d machines", label(n), out.Machines))
	if out.Apps == nil {
		out.Apps = []string{}
	}
	reply(w, http.StatusOK, out)
	return nil
}

// removable says why a server is not to be removed, or nil. What is lost by it is said; force accepts that.
func (s *Server) removable(n *volant.Node, view api.Node, lost map[string]int, force bool) error {
	if view.Self {
		return volant.Errorf(volant.ErrPrecondition, "node %s answers this request and cannot remove itself", label(n)).
			WithRemedy("ask another server of the cluster")
	}
	if err := s.spare(n); err != nil {
		return err
	}
	if force || view.State == NodeSilent {
		return nil
	}
	if n.Has(volant.RoleControl) {
		return volant.Errorf(volant.ErrPrecondition, "node %s is alive and a control node", label(n)).
			WithRemedy("demote it first with `volant nodes demote %s`, or add --force", n.ID)
	}
	if len(lost) > 0 {
		var what []string
		for _, app := range slices.Sorted(maps.Keys(lost)) {
			what = append(what, fmt.Sprintf("%d of app %s", lost[app], app))
		}
		return volant.Errorf(volant.ErrPrecondition, "node %s is alive and runs machines, which would be lost with their connections: %s", label(n), cut(strings.Join(what, ", "))).
			WithRemedy("drain it first with `volant nodes drain %s`, and remove it when it has none; or add --force", n.ID)
	}
	return nil
}

// machinesAt counts the machines of a server by their apps' names.
func (s *Server) machinesAt(id volant.NodeID) map[string]int {
	snap, out := s.Catalog.Snapshot(), map[string]int{}
	for app, a := range snap.Apps() {
		for _, m := range snap.Machines(app) {
			if m.Node == id && !m.Tombstone && m.Run != volant.RunDestroyed {
				out[a.Name]++
			}
		}
	}
	return out
}

// setRegion describes a region.
func (s *Server) setRegion(w http.ResponseWriter, c *call) error {
	code, err := s.region(c)
	if err != nil {
		return err
	}
	var in api.SetRegion
	if err := c.read(w, &in); err != nil {
		return err
	}
	if in.Name == "" {
		in.Name = s.placeOf(code).name
	}
	switch {
	case len(in.Name) > 100 || strings.ContainsFunc(in.Name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return volant.Invalidf("name %q: use up to 100 printable characters", cut(in.Name))
	case !(in.Latitude >= -90 && in.Latitude <= 90) || !(in.Longitude >= -180 && in.Longitude <= 180):
		return volant.Invalidf("latitude %v and longitude %v: use -90 to 90 and -180 to 180 degrees", in.Latitude, in.Longitude)
	}
	rec := &volant.Place{Name: in.Name, Lat: in.Latitude, Long: in.Longitude}
	rec.Meta = volant.Meta{Kind: volant.KindPlace, Org: AnyOrg, ID: string(code)}
	for range 8 { // somebody else may set it at the same moment
		var rev store.Revision
		_, rev, err = store.Update(c.ctx(), s.Store, c.who.name, rec.Key(), func(p *volant.Place) error {
			p.Name, p.Lat, p.Long = rec.Name, rec.Lat, rec.Long
			return nil
		})
		if errors.Is(err, volant.ErrNotFound) {
			rev, err = store.Apply(c.ctx(), s.Store, c.who.name, store.Claim(rec))
		}
		if err == nil {
			err = s.seen(c, rev)
		}
		if !errors.Is(err, volant.ErrExists) && !errors.Is(err, volant.ErrNotFound) {
			break
		}
	}
	if err != nil {
		return err
	}
	s.audit(c, AnyOrg, "", "", "region_set", fmt.Sprintf("region %s is %s at %v, %v", code, in.Name, in.Latitude, in.Longitude))
	reply(w, http.StatusOK, s.regionView(code, 0))
	return nil
}

// region is the region that the path names.
func (s *Server) region(c *call) (volant.Region, error) {
	if err := c.grant(AnyOrg, ""); err != nil {
		return "", err
	}
	code := volant.Region(c.r.PathValue("region"))
	if !code.Valid() {
		return "", volant.Invalidf("region %q: use 2 to 8 lower-case letters and digits", cut(string(code)))
	}
	return code, nil
}

func (s *Server) removeRegion(w http.ResponseWriter, c *call) error {
	code, err := s.region(c)
	if err != nil {
		return err
	}
	rev, err := store.Delete(c.ctx(), s.Store, c.who.name, volant.RecordKey(volant.KindPlace, "", string(code)))
	if errors.Is(err, volant.ErrNotFound) {
		return volant.Errorf(volant.ErrNotFound, "region %s was not described", code).WithRemedy("see `volant regions list`")
	}
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	s.audit(c, AnyOrg, "", "", "region_removed", fmt.Sprintf("region %s is described no longer", code))
	w.WriteHeader(http.StatusNoContent)
	return nil
}
