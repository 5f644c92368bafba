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
	name   string // the token's, for the audit
	scopes []string
}

// AnyOrg as a token's organization lets it act for all; the root token is one.
const AnyOrg volant.OrgID = "*"

func (c caller) may(org volant.OrgID, s scope) bool {
	if c.org != AnyOrg && c.org != org {
		return false
	}
	return slices.Contains(c.scopes, string(scopeAdmin)) || slices.Contains(c.scopes, string(s)) ||
		s == scopeRead && slices.Contains(c.scopes, string(scopeDeploy))
}

// authenticate finds the token of a request by its hash.
func (s *Server) authenticate(r *http.Request) (caller, error) {
	kind, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if token == "" || !strings.EqualFold(kind, "Bearer") {
		return caller{}, volant.Errorf(volant.ErrUnauthorized, "the request has no token").
			WithRemedy("send `Authorization: Bearer TOKEN`; on the server's machine root finds one in the data directory's root.token")
	}
	t, ok := s.Catalog.Snapshot().TokenByHash(HashToken(strings.TrimSpace(token)))
	if !ok || t.Tombstone {
		return caller{}, volant.Errorf(volant.ErrUnauthorized, "the token is not known here").
			WithRemedy("it may be of another server, or was revoked: ask for a new one")
	}
	if !t.Expires.IsZero() && time.Now().After(t.Expires) {
		return caller{}, volant.Errorf(volant.ErrUnauthorized, "the token %q expired at %s", t.Name, t.Expires.Format(time.RFC3339)).
			WithRemedy("ask for a new one")
	}
	return caller{org: t.Org, name: t.Name, scopes: t.Scopes}, nil
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
