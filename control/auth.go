package control

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
)

// scope is what a token may do; each includes the ones before it.
type scope string

const (
	scopeRead   scope = "read"
	scopeDeploy scope = "deploy"
	scopeAdmin  scope = "admin"
)

// caller is who a request speaks for.
type caller struct {
	org    volant.OrgID
	app    volant.AppID // the only one it may act on; empty: all of its organization
	id     string       // of the token
	name   string       // the token's, for the audit
	scopes []string
}

// root says whether the caller acts for every organization.
func (c caller) root() bool { return c.org == AnyOrg }

// sees says whether the caller may know of an app.
func (c caller) sees(a *volant.App) bool { return c.may(a.Org, a.App, scopeRead) }

// AnyOrg as a token's organization lets it act for all; the root token is one.
const AnyOrg volant.OrgID = "*"

// may says whether the caller may do s to an app, or with app empty to what belongs to no app of org. All of
// authorization comes down to it.
func (c caller) may(org volant.OrgID, app volant.AppID, s scope) bool {
	if c.org != AnyOrg && c.org != org || c.app != "" && c.app != app {
		return false
	}
	return slices.Contains(c.scopes, string(scopeAdmin)) || slices.Contains(c.scopes, string(s)) ||
		s == scopeRead && slices.Contains(c.scopes, string(scopeDeploy))
}

// authenticate finds the token of a request by its hash.
func (s *Server) authenticate(r *http.Request) (caller, error) {
	t, err := s.tokenOf(r.Header.Get("Authorization"))
	if err != nil {
		return caller{}, err
	}
	return callerOf(t), nil
}

func callerOf(t *volant.Token) caller {
	return caller{org: t.Org, app: t.App, id: t.ID, name: t.Name, scopes: t.Scopes}
}

// tokenOf finds the token that an Authorization header presents, and sees that it is good.
func (s *Server) tokenOf(header string) (*volant.Token, error) {
	kind, token, _ := strings.Cut(header, " ")
	if token == "" || !strings.EqualFold(kind, "Bearer") && kind != "FlyV1" {
		return nil, volant.Errorf(volant.ErrUnauthorized, "the request has no token").
			WithRemedy("send `Authorization: Bearer TOKEN`; on the server's machine root finds one in the data directory's root.token")
	}
	t, ok := s.Catalog.Snapshot().TokenByHash(HashToken(strings.TrimSpace(token)))
	if !ok || t.Tombstone {
		return nil, volant.Errorf(volant.ErrUnauthorized, "the token is not known here").
			WithRemedy("it may be of another server, or was revoked: ask for a new one")
	}
	if !t.Expires.IsZero() && time.Now().After(t.Expires) {
		return nil, volant.Errorf(volant.ErrUnauthorized, "the token %q expired at %s", t.Name, t.Expires.Format(time.RFC3339)).
			WithRemedy("ask for a new one")
	}
	return t, nil
}

// HashToken is the form in which a token is stored.
func HashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// NewToken returns a fresh token: 32 random bytes in hex behind a prefix that scanners can find.
func NewToken() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails since Go 1.24
	return "vol_" + hex.EncodeToString(b)
}
