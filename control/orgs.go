package control

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"unicode"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/store"
)

// knownOrg says that an organization does not exist, or nil.
func (s *Server) knownOrg(org volant.OrgID) error {
	if o, ok := s.Catalog.Snapshot().Org(org); !ok || o.Tombstone {
		return noOrg(string(org))
	}
	return nil
}

func noOrg(slug string) error {
	return volant.Errorf(volant.ErrNotFound, "organization %q does not exist", cut(slug)).
		WithRemedy("use %q or another of `volant orgs list`", volant.OrgPersonal)
}

// member says whether the caller belongs to an organization, be it by one app of it.
func (c caller) member(org volant.OrgID) bool { return c.may(org, c.app, scopeRead) }

func orgView(snap *catalog.Snapshot, o *volant.Org, who caller) api.Org {
	v := api.Org{Slug: o.ID, Name: o.Name, CreatedAt: o.Created}
	for _, a := range snap.Apps() {
		if !a.Tombstone && string(a.Org) == o.ID && who.sees(a) {
			v.AppCount++
		}
	}
	return v
}

func (s *Server) listOrgs(w http.ResponseWriter, c *call) error {
	snap := s.Catalog.Snapshot()
	out := api.OrgList{Organizations: []api.Org{}}
	for id, o := range snap.Orgs() {
		if !o.Tombstone && c.who.member(id) {
			out.Organizations = append(out.Organizations, orgView(snap, o, c.who))
		}
	}
	slices.SortFunc(out.Organizations, func(a, b api.Org) int { return cmp.Compare(a.Slug, b.Slug) })
	reply(w, http.StatusOK, out)
	return nil
}

func (s *Server) getOrg(w http.ResponseWriter, c *call) error {
	slug := c.r.PathValue("org")
	snap := s.Catalog.Snapshot()
	o, ok := snap.Org(volant.OrgID(slug))
	if !ok || o.Tombstone || !c.who.member(volant.OrgID(slug)) {
		return noOrg(slug)
	}
	reply(w, http.StatusOK, orgView(snap, o, c.who))
	return nil
}

// createOrg makes an organization. Only who acts for every organization may.
func (s *Server) createOrg(w http.ResponseWriter, c *call) error {
	if !c.who.may(AnyOrg, "", scopeAdmin) {
		return volant.Errorf(volant.ErrForbidden, "the token %q may not create organizations", c.who.name).
			WithRemedy("ask the operator of the server, who has its root token")
	}
	var in api.CreateOrg
	if err := c.read(w, &in); err != nil {
		return err
	}
	slug := cmp.Or(in.Slug, strings.ToLower(in.Name))
	if volant.CheckAppName(slug) != nil {
		return volant.Invalidf("organization %q: use 1 to 63 lower-case letters, digits and inner hyphens", cut(slug))
	}
	o := &volant.Org{Name: cmp.Or(in.Name, slug)}
	if len(o.Name) > 100 || strings.ContainsFunc(o.Name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return volant.Invalidf("name %q: use up to 100 printable characters", cut(o.Name))
	}
	o.Meta = volant.Meta{Kind: volant.KindOrg, Org: volant.OrgID(slug), ID: slug}
	rev, err := store.Create(c.ctx(), s.Store, c.who.name, o)
	if errors.Is(err, volant.ErrExists) {
		return volant.Errorf(volant.ErrExists, "the organization %q exists", slug).WithRemedy("choose another name")
	}
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	s.audit(c, volant.OrgID(slug), "", "", "org_created", fmt.Sprintf("organization %s was created", slug))
	reply(w, http.StatusCreated, orgView(s.Catalog.Snapshot(), o, c.who))
	return nil
}
