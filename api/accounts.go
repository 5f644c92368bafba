package api

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
)

// Org is an organization: it owns apps and tokens, and sees no other's.
type Org struct {
	Slug      string    `json:"slug"`
	Name      string    `json:"name"`
	AppCount  int       `json:"app_count"`
	CreatedAt time.Time `json:"created_at"`
}

// OrgList are the organizations a token may see.
type OrgList struct {
	Organizations []Org `json:"organizations"`
}

// CreateOrg is the body of POST /v1/orgs.
type CreateOrg struct {
	Slug string `json:"slug,omitempty"` // lower-case letters, digits and inner hyphens
	Name string `json:"name,omitempty"` // for people; the slug if empty
}

// Token is what may be shown of a token: never itself.
type Token struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	OrgSlug   string    `json:"org_slug"`           // "*": every organization
	AppName   string    `json:"app_name,omitempty"` // the only app it may act on
	Scopes    []string  `json:"scopes"`             // read, deploy, admin; each includes the ones before it
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`          // name of the token that made it
	ExpiresAt time.Time `json:"expires_at,omitzero"` // none: it does not expire
	Current   bool      `json:"current"`             // it is the one that asked
}

// TokenList are the tokens of the organizations that the caller administers.
type TokenList struct {
	Tokens []Token `json:"tokens"`
}

// CreateToken is the body of POST /v1/tokens.
type CreateToken struct {
	Name    string   `json:"name,omitempty"`
	OrgSlug string   `json:"org_slug,omitempty"` // the caller's if empty, personal for the root token; "*" for every one
	AppName string   `json:"app_name,omitempty"` // restricts it to one app
	Scopes  []string `json:"scopes,omitempty"`   // read, deploy, admin; deploy if empty
	Expiry  string   `json:"expiry,omitempty"`   // such as "24h"; a year if empty, never if "0s"
}

// CreatedToken answers a new token. It is shown this once.
type CreatedToken struct {
	Token
	Secret string `json:"token"`
}

// CreateDeployToken is the body of POST /v1/apps/{app}/deploy_token.
type CreateDeployToken struct {
	Expiry string `json:"expiry,omitempty"` // such as "24h"; a year if empty, never if "0s"
}

// DeployToken is a token that may deploy one app. It is shown this once.
type DeployToken struct {
	Token string `json:"token"`
}

// CurrentTokens say what the token of the request is.
type CurrentTokens struct {
	Tokens []TokenInfo `json:"tokens"`
}

// TokenInfo is a token as existing clients ask for it.
type TokenInfo struct {
	TokenID      string   `json:"token_id"`
	OrgSlug      string   `json:"org_slug"`
	Organization string   `json:"organization"`
	Apps         []string `json:"apps,omitempty"` // those it is restricted to
	User         string   `json:"user"`           // the token's name
}

// AuthenticateToken is the body of POST /v1/tokens/authenticate.
type AuthenticateToken struct {
	Header string `json:"header"` // an Authorization header
}

// VerifiedToken is a token that was found good.
type VerifiedToken struct {
	Header    string    `json:"header"`
	TokenID   string    `json:"token_id"`
	OrgSlug   string    `json:"org_slug"`
	Apps      []string  `json:"apps,omitempty"` // those it is restricted to
	Scopes    []string  `json:"scopes"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

// AuthorizeToken is the body of POST /v1/tokens/authorize.
type AuthorizeToken struct {
	Header string      `json:"header"` // an Authorization header
	Access TokenAccess `json:"access"`
}

// TokenAccess is what a token is to be used for.
type TokenAccess struct {
	Action    Action `json:"action,omitempty"`
	OrgSlug   string `json:"org_slug,omitempty"`
	AppName   string `json:"app_name,omitempty"`
	MachineID string `json:"machine_id,omitempty"`

	// What no token here is bounded by; naming one of them is refused.
	AppFeature     string   `json:"app_feature,omitempty"`
	Command        []string `json:"command,omitempty"`
	MachineFeature string   `json:"machine_feature,omitempty"`
	Mutation       string   `json:"mutation,omitempty"`
	OrgFeature     string   `json:"org_feature,omitempty"`
	SourceMachine  string   `json:"source_machine,omitempty"`
	StorageObject  string   `json:"storage_object,omitempty"`
	VolumeID       string   `json:"volume_id,omitempty"`
}

// AuthorizedToken answers an access that the token allows.
type AuthorizedToken struct {
	VerifiedToken VerifiedToken `json:"verified_token"`
	Access        TokenAccess   `json:"access"`
}

// Action is a sum of kinds of access. It reads a number or letters such as "rw".
type Action int

// The kinds of access.
const (
	ActionRead Action = 1 << iota
	ActionWrite
	ActionCreate
	ActionDelete
	ActionControl
)

const actionLetters = "rwcdC"

// UnmarshalJSON reads a number or letters.
func (a *Action) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) != nil {
		n, err := strconv.Atoi(string(b))
		if err != nil || n < 0 || n >= 1<<len(actionLetters) {
			return volant.Invalidf("action %s: use the sum of 1 (read), 2 (write), 4 (create), 8 (delete) and 16 (control)", short(b))
		}
		*a = Action(n)
		return nil
	}
	*a = 0
	for _, r := range text {
		i := strings.IndexRune(actionLetters, r)
		switch {
		case r == '*':
			*a |= 1<<len(actionLetters) - 1
		case i < 0:
			return volant.Invalidf("action %q: use letters of %q", short(b), actionLetters)
		default:
			*a |= 1 << i
		}
	}
	return nil
}

// short bounds what an error repeats.
func short(b []byte) string {
	if len(b) > 40 {
		return string(b[:40]) + "…"
	}
	return string(b)
}
