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
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/store"
)

const (
	tokenLife    = 365 * 24 * time.Hour      // of a token that names none
	maxTokenLife = 20 * 365 * 24 * time.Hour // that a token may name
	minTokenLife = time.Minute
)

// expiry reads how long a token is to live, and returns its end, or zero for never.
func expiry(text string) (time.Time, error) {
	life := tokenLife
	if text != "" {
		var err error
		if life, err = time.ParseDuration(text); err != nil || life != 0 && (life < minTokenLife || life > maxTokenLife) {
			return time.Time{}, volant.Invalidf("expiry %q: use 1m to %dh, or 0s for never", cut(text), int(maxTokenLife.Hours()))
		}
	}
	if life == 0 {
		return time.Time{}, nil
	}
	return time.Now().Add(life).UTC().Truncate(time.Second), nil
}

func (s *Server) tokenView(snap *catalog.Snapshot, t *volant.Token, c *call) api.Token {
	v := api.Token{
		ID: t.ID, Name: t.Name, OrgSlug: string(t.Org), Scopes: t.Scopes, CreatedAt: t.Created, CreatedBy: t.Actor,
		ExpiresAt: t.Expires, Current: t.ID == c.who.id,
	}
	v.AppName = strings.Join(appNames(snap, t), "")
	return v
}

// appNames are the apps a token is restricted to, none if it is not.
func appNames(snap *catalog.Snapshot, t *volant.Token) []string {
	if t.App == "" {
		return nil
	}
	if a, ok := snap.App(t.App); ok {
		return []string{a.Name}
	}
	return []string{string(t.App)}
}

// listTokens lists what the caller administers.
func (s *Server) listTokens(w http.ResponseWriter, c *call) error {
	snap := s.Catalog.Snapshot()
	out := api.TokenList{Tokens: []api.Token{}}
	for t := range snap.Tokens() {
		if !t.Tombstone && c.who.may(t.Org, t.App, scopeAdmin) {
			out.Tokens = append(out.Tokens, s.tokenView(snap, t, c))
		}
	}
	slices.SortFunc(out.Tokens, func(a, b api.Token) int {
		return cmp.Or(cmp.Compare(a.OrgSlug, b.OrgSlug), a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	reply(w, http.StatusOK, out)
	return nil
}

func (s *Server) createToken(w http.ResponseWriter, c *call) error {
	var in api.CreateToken
	if err := c.read(w, &in); err != nil {
		return err
	}
	t := &volant.Token{Name: in.Name, Scopes: in.Scopes}
	if len(t.Scopes) == 0 {
		t.Scopes = []string{string(scopeDeploy)}
	}
	if err := checkToken(t); err != nil {
		return err
	}
	t.Org = volant.OrgID(cmp.Or(in.OrgSlug, string(c.who.org)))
	if in.OrgSlug == "" && c.who.root() { // one for every organization has to be asked for by name
		t.Org = volant.OrgPersonal
	}
	snap := s.Catalog.Snapshot()
	if in.AppName != "" {
		a, ok := snap.AppByName(in.AppName)
		if !ok || !c.who.sees(a) || in.OrgSlug != "" && a.Org != t.Org {
			return noApp(in.AppName)
		}
		t.Org, t.App = a.Org, a.App
	} else if c.who.app != "" && in.OrgSlug == "" {
		t.App = c.who.app // nobody gives more than he has
	}
	if err := c.grant(t.Org, t.App); err != nil {
		return err
	}
	if t.Org != AnyOrg {
		if err := s.knownOrg(t.Org); err != nil {
			return err
		}
	}
	secret, err := s.writeToken(c, t, in.Expiry)
	if err != nil {
		return err
	}
	reply(w, http.StatusCreated, api.CreatedToken{Token: s.tokenView(s.Catalog.Snapshot(), t, c), Secret: secret})
	return nil
}

// createDeployToken makes a token that deploys one app and does nothing else.
func (s *Server) createDeployToken(w http.ResponseWriter, c *call) error {
	a, _, err := s.app(c)
	if err != nil {
		return err
	}
	var in api.CreateDeployToken
	if err := c.read(w, &in); err != nil {
		return err
	}
	t := &volant.Token{Name: "deploy " + a.Name, Scopes: []string{string(scopeDeploy)}}
	t.Org, t.App = a.Org, a.App
	secret, err := s.writeToken(c, t, in.Expiry)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, api.DeployToken{Token: secret})
	return nil
}

func checkToken(t *volant.Token) error {
	if len(t.Name) > 100 || strings.ContainsFunc(t.Name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return volant.Invalidf("token name %q: use up to 100 printable characters", cut(t.Name))
	}
	for _, sc := range t.Scopes {
		switch scope(sc) {
		case scopeRead, scopeDeploy, scopeAdmin:
		default:
			return volant.Invalidf("scope %q: use read, deploy or admin", cut(sc))
		}
	}
	slices.Sort(t.Scopes)
	t.Scopes = slices.Compact(t.Scopes)
	return nil
}

// writeToken writes a new token and returns its secret, which nobody keeps.
func (s *Server) writeToken(c *call, t *volant.Token, life string) (string, error) {
	var err error
	if t.Expires, err = expiry(life); err != nil {
		return "", err
	}
	secret := NewToken()
	t.Hash = HashToken(secret)
	t.Kind, t.ID = volant.KindToken, t.Hash[:16]
	t.Name = cmp.Or(t.Name, "token "+t.ID[:6])
	rev, err := store.Create(c.ctx(), s.Store, c.who.name, t)
	if err != nil {
		return "", err
	}
	if err := s.seen(c, rev); err != nil {
		return "", err
	}
	s.audit(c, t.Org, t.App, "", "token_created", fmt.Sprintf("token %s (%q) was made: it may %s", t.ID, t.Name, strings.Join(t.Scopes, ", ")))
	return secret, nil
}

func (s *Server) deleteToken(w http.ResponseWriter, c *call) error {
	id := c.r.PathValue("token")
	t, ok := s.Catalog.Snapshot().Token(id)
	if !ok || t.Tombstone || !c.who.may(t.Org, t.App, scopeAdmin) && t.ID != c.who.id {
		return volant.Errorf(volant.ErrNotFound, "there is no token %q", cut(id)).WithRemedy("see `volant tokens list`")
	}
	if t.ID == c.who.id && c.who.root() {
		return volant.Errorf(volant.ErrPrecondition, "the token %q acts for every organization and cannot revoke itself", t.Name).
			WithRemedy("revoke it with another one; to change the server's own, remove its root.token and start it again")
	}
	rev, err := store.Delete(c.ctx(), s.Store, c.who.name, t.Key())
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	s.audit(c, t.Org, t.App, "", "token_revoked", fmt.Sprintf("token %s (%q) was revoked", t.ID, t.Name))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) currentToken(w http.ResponseWriter, c *call) error {
	snap := s.Catalog.Snapshot()
	t, ok := snap.Token(c.who.id)
	if !ok {
		return volant.Errorf(volant.ErrUnauthorized, "the token was revoked").WithRemedy("ask for a new one")
	}
	info := api.TokenInfo{TokenID: t.ID, OrgSlug: string(t.Org), Organization: string(t.Org), Apps: appNames(snap, t), User: t.Name}
	if o, ok := snap.Org(t.Org); ok {
		info.Organization = o.Name
	}
	reply(w, http.StatusOK, api.CurrentTokens{Tokens: []api.TokenInfo{info}})
	return nil
}

// verified looks at a token that is not the request's own.
func (s *Server) verified(header string) (*volant.Token, api.VerifiedToken, error) {
	t, err := s.tokenOf(header)
	if err != nil {
		return nil, api.VerifiedToken{}, volant.Invalidf("header holds no good token: %v", err)
	}
	return t, api.VerifiedToken{
		Header: header, TokenID: t.ID, OrgSlug: string(t.Org), Apps: appNames(s.Catalog.Snapshot(), t), Scopes: t.Scopes, ExpiresAt: t.Expires,
	}, nil
}

func (s *Server) authenticateToken(w http.ResponseWriter, c *call) error {
	var in api.AuthenticateToken
	if err := c.read(w, &in); err != nil {
		return err
	}
	_, v, err := s.verified(in.Header)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, []api.VerifiedToken{v})
	return nil
}

// authorizeToken says whether a token may do something, by the same rule as the token's own calls.
func (s *Server) authorizeToken(w http.ResponseWriter, c *call) error {
	var in api.AuthorizeToken
	if err := c.read(w, &in); err != nil {
		return err
	}
	t, v, err := s.verified(in.Header)
	if err != nil {
		return err
	}
	x := &in.Access
	if x.AppFeature != "" || x.MachineFeature != "" || x.OrgFeature != "" || x.Mutation != "" || x.StorageObject != "" ||
		x.VolumeID != "" || x.SourceMachine != "" || len(x.Command) > 0 {
		return volant.Invalidf("access names what no token here is bounded by").WithRemedy("use action, org_slug, app_name and machine_id")
	}
	asked := &call{r: c.r, who: callerOf(t), need: scopeRead}
	if x.Action&^api.ActionRead != 0 {
		asked.need = scopeDeploy
	}
	if err := s.allowed(asked, x); err != nil {
		return err
	}
	reply(w, http.StatusOK, api.AuthorizedToken{VerifiedToken: v, Access: *x})
	return nil
}

func (s *Server) allowed(c *call, x *api.TokenAccess) error {
	snap := s.Catalog.Snapshot()
	if x.MachineID != "" && x.AppName == "" {
		return volant.Invalidf("access names machine_id without app_name").WithRemedy("name its app too")
	}
	if x.AppName == "" {
		if x.OrgSlug == "" {
			return volant.Invalidf("access names neither org_slug nor app_name").WithRemedy("name one")
		}
		return c.grant(volant.OrgID(x.OrgSlug), "")
	}
	a, ok := snap.AppByName(x.AppName)
	if !ok || !c.who.sees(a) || x.OrgSlug != "" && string(a.Org) != x.OrgSlug {
		return noApp(x.AppName)
	}
	if m, ok := snap.Machine(volant.MachineID(x.MachineID)); x.MachineID != "" && (!ok || m.App != a.App) {
		return volant.Errorf(volant.ErrNotFound, "app %s has no machine %q", a.Name, cut(x.MachineID))
	}
	return c.grant(a.Org, a.App)
}
