package control

import (
	"cmp"
	"net/http"
	"slices"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

// RegistryCaller is who a request to the registry speaks for.
type RegistryCaller struct {
	Org  volant.OrgID
	Any  bool   // acts for all organizations
	Only string // name of the one app that the token is for; empty: all
	Push bool
	Name string // of the token
}

// registry lets requests to /v2/ in. Docker's tools know no bearer tokens of ours: they send the token
// as a password.
func (s *Server) registry(w http.ResponseWriter, r *http.Request) {
	if s.Registry == nil {
		s.handle(Route{Scope: string(scopeRead), Action: "none", handle: func(http.ResponseWriter, *call) error {
			return volant.Errorf(volant.ErrNotFound, "this server has no registry")
		}})(w, r)
		return
	}
	header := r.Header.Get("Authorization")
	if _, password, ok := r.BasicAuth(); ok {
		header = "Bearer " + password
	}
	t, err := s.tokenOf(header)
	if err != nil {
		s.Registry.Unauthorized(w, err)
		return
	}
	who := callerOf(t)
	if !who.may(who.org, who.app, scopeRead) {
		s.Registry.Unauthorized(w, nil)
		return
	}
	in := RegistryCaller{Org: who.org, Any: who.root(), Push: who.may(who.org, who.app, scopeDeploy), Name: who.name}
	if who.app != "" {
		a, ok := s.Catalog.Snapshot().App(who.app)
		if !ok || a.Tombstone {
			s.Registry.Unauthorized(w, nil)
			return
		}
		in.Only = a.Name
	}
	s.Registry.Serve(w, r, in)
}

// listImages lists the tags of the registry that the token may see.
func (s *Server) listImages(w http.ResponseWriter, c *call) error {
	org := volant.OrgID(c.r.URL.Query().Get("org_slug"))
	if org != "" {
		if err := c.grant(org, c.who.app); err != nil {
			return err
		}
	}
	only := ""
	if a, ok := s.Catalog.Snapshot().App(c.who.app); ok {
		only = a.Name
	}
	out := []api.Image{}
	for i := range s.Catalog.Snapshot().Images() {
		if org != "" && i.Org != org || !c.who.may(i.Org, c.who.app, c.need) || only != "" && i.Repository != only {
			continue
		}
		out = append(out, api.Image{
			Name: string(i.Org) + "/" + i.Repository, Tag: i.Tag, Digest: string(i.Digest), Size: i.Size, UpdatedAt: i.Updated, Actor: i.Actor,
		})
	}
	slices.SortFunc(out, func(a, b api.Image) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Tag, b.Tag)) })
	reply(w, http.StatusOK, api.ImageList{Images: out})
	return nil
}
