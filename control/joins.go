package control

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/join"
	"github.com/volant-edge/volant/store"
)

const (
	joinLife    = time.Hour // of a join token that names none
	maxJoinLife = 720 * time.Hour
	maxJoinUses = 1000
)

func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

func (s *Server) createJoinToken(w http.ResponseWriter, c *call) error {
	if err := c.grant(AnyOrg, ""); err != nil {
		return err
	}
	var in api.CreateJoinToken
	if err := c.read(w, &in); err != nil {
		return err
	}
	rec, err := joinToken(&in)
	if err != nil {
		return err
	}
	if s.Joining == nil {
		return volant.Errorf(volant.ErrPrecondition, "this server has no mesh, so no other can join it").
			WithRemedy("set mesh.endpoint in its configuration to the address at which others reach it, and start it again")
	}
	cluster, addrs, err := s.Joining()
	if err != nil {
		return err
	}
	t := join.NewToken(cluster)
	rec.Hash, rec.By = t.Hash(), c.who.name
	rec.Meta = volant.Meta{Kind: volant.KindJoin, Org: AnyOrg, ID: t.ID()}
	rev, err := store.Create(c.ctx(), s.Store, c.who.name, rec)
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	s.audit(c, AnyOrg, "", "", "join_token_created", fmt.Sprintf("join token %s was made: %d servers may join by it as %s until %s",
		rec.ID, rec.Uses, strings.Join(rec.Roles, ","), rec.Expires.Format(time.RFC3339)))
	if addrs == nil {
		addrs = []string{}
	}
	reply(w, http.StatusCreated, api.CreatedJoinToken{JoinToken: joinView(rec), Token: t.String(), Addresses: addrs})
	return nil
}

// joinToken checks what is asked of a new join token.
func joinToken(in *api.CreateJoinToken) (*volant.JoinToken, error) {
	t := &volant.JoinToken{Name: in.Name, Roles: in.Roles, Region: volant.Region(in.Region), Uses: cmp.Or(in.Uses, 1)}
	if len(t.Roles) == 0 {
		t.Roles = []string{volant.RoleEdge, volant.RoleHost}
	}
	if err := join.CheckRoles(t.Roles); err != nil {
		return nil, err
	}
	life := joinLife
	if in.TTL != "" {
		var err error
		if life, err = time.ParseDuration(in.TTL); err != nil || life < minTokenLife || life > maxJoinLife {
			return nil, volant.Invalidf("ttl %q: use 1m to %dh", cut(in.TTL), int(maxJoinLife.Hours()))
		}
	}
	t.Expires = now().Add(life)
	switch {
	case len(t.Name) > 100 || strings.ContainsFunc(t.Name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return nil, volant.Invalidf("name %q: use up to 100 printable characters", cut(t.Name))
	case t.Region != "" && !t.Region.Valid():
		return nil, volant.Invalidf("region %q: use 2 to 8 lower-case letters and digits", cut(in.Region))
	case t.Uses < 1 || t.Uses > maxJoinUses:
		return nil, volant.Invalidf("uses is %d: use 1 to %d", t.Uses, maxJoinUses)
	}
	return t, nil
}

func joinView(t *volant.JoinToken) api.JoinToken {
	v := api.JoinToken{
		ID: t.ID, Name: t.Name, Roles: t.Roles, Region: string(t.Region), Uses: t.Uses, Nodes: []string{},
		CreatedAt: t.Created, CreatedBy: t.By, ExpiresAt: t.Expires,
	}
	for _, n := range t.Nodes {
		v.Nodes = append(v.Nodes, string(n))
	}
	return v
}

func (s *Server) listJoinTokens(w http.ResponseWriter, c *call) error {
	if err := c.grant(AnyOrg, ""); err != nil {
		return err
	}
	out := api.JoinTokenList{Tokens: []api.JoinToken{}}
	for _, t := range s.Catalog.Snapshot().JoinTokens() {
		if !t.Tombstone {
			out.Tokens = append(out.Tokens, joinView(t))
		}
	}
	slices.SortFunc(out.Tokens, func(a, b api.JoinToken) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	reply(w, http.StatusOK, out)
	return nil
}

func (s *Server) revokeJoinToken(w http.ResponseWriter, c *call) error {
	if err := c.grant(AnyOrg, ""); err != nil {
		return err
	}
	id := c.r.PathValue("token")
	var t *volant.JoinToken
	for _, k := range s.Catalog.Snapshot().JoinTokens() {
		if k.ID == id && !k.Tombstone {
			t = k
		}
	}
	if t == nil {
		return volant.Errorf(volant.ErrNotFound, "there is no join token %q", cut(id)).WithRemedy("see `volant join-token list`")
	}
	rev, err := store.Delete(c.ctx(), s.Store, c.who.name, t.Key())
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	s.audit(c, AnyOrg, "", "", "join_token_revoked", fmt.Sprintf("join token %s was revoked; what joined by it stays", t.ID))
	w.WriteHeader(http.StatusNoContent)
	return nil
}
