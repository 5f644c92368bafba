package join

import (
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	volant "github.com/volant-edge/volant"
)

// Bounds of what travels.
const (
	maxRequest = 16 << 10
	maxAnswer  = 16 << 20 // some hundred bytes for each node there is
	maxName    = 253
)

// version is the newest form of requests. A field that may be left out needs no other.
const version = 1

// Request is what a server says that wants to join.
type Request struct {
	Version  int            `json:"version"`
	Secret   []byte         `json:"secret"` // of the token
	Node     volant.NodeID  `json:"node"`
	Name     string         `json:"name"`
	Region   volant.Region  `json:"region"`
	Roles    []string       `json:"roles"`
	Key      string         `json:"key"`      // WireGuard public key, base64
	Endpoint netip.AddrPort `json:"endpoint"` // where its WireGuard listens; an unspecified address: the one that the request comes from
	API      string         `json:"api"`      // hash of the token that its own root has for the API
	Software string         `json:"software"` // version, for the record
}

// Answer is what it is told.
type Answer struct {
	Nodes       []volant.Node `json:"nodes"`                  // all that live, the new one too
	Secrets     []byte        `json:"secrets"`                // key of package secret
	CACert      []byte        `json:"ca_cert"`                // development CA, PEM
	CAKey       []byte        `json:"ca_key"`                 // PEM
	Stores      []string      `json:"stores"`                 // URLs of the intent's etcd
	Domain      string        `json:"domain"`                 // of apps' names
	Pool4       netip.Prefix  `json:"pool4"`                  // addresses of apps
	Pool6       netip.Prefix  `json:"pool6"`                  //
	Shared4     netip.Addr    `json:"shared4"`                //
	External    bool          `json:"external"`               // Stores is not of control nodes
	StorePrefix string        `json:"store_prefix,omitempty"` // of all keys in an external etcd
}

// DecodeRequest reads a request off the wire and checks all of it that can be checked without knowing the cluster.
func DecodeRequest(b []byte) (Request, error) {
	var r Request
	if len(b) > maxRequest {
		return r, volant.Invalidf("the request has %d bytes: at most %d are taken", len(b), maxRequest)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return Request{}, volant.Invalidf("the request is not the JSON expected here: %v", err)
	}
	if err := r.check(); err != nil {
		return Request{}, err
	}
	return r, nil
}

var (
	nodeID  = regexp.MustCompile(`^[0-9a-f]{8}$`)
	sha256x = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func (r *Request) check() error {
	switch {
	case r.Version != version:
		return volant.Errorf(volant.ErrPrecondition, "the server that wants to join speaks version %d of joining, and this one %d", r.Version, version).
			WithRemedy("run the same version of Volant on both")
	case len(r.Secret) != secretLen:
		return volant.Invalidf("the token's secret has %d bytes, not %d", len(r.Secret), secretLen)
	case !nodeID.MatchString(string(r.Node)):
		return volant.Invalidf("node ID %.40q is none", r.Node)
	case !r.Region.Valid():
		return volant.Invalidf("region %.40q: use 2 to 8 lower-case letters and digits", r.Region)
	case !sha256x.MatchString(r.API):
		return volant.Invalidf("the hash of the API's token is none")
	case r.Endpoint.Port() == 0 || r.Endpoint.Addr().Zone() != "":
		return volant.Invalidf("endpoint %s: write ADDRESS:PORT", r.Endpoint)
	case len(r.Software) > 100:
		return volant.Invalidf("the version of the software has %d bytes", len(r.Software))
	}
	if err := CheckName(r.Name); err != nil {
		return err
	}
	if err := CheckKey(r.Key); err != nil {
		return err
	}
	return CheckRoles(r.Roles)
}

// CheckName says what is wrong with a node's name, or nil.
func CheckName(name string) error {
	if name == "" || len(name) > maxName || !utf8.ValidString(name) ||
		strings.ContainsFunc(name, func(c rune) bool { return !unicode.IsPrint(c) || c == ' ' || c == '/' }) {
		return volant.Invalidf("node name %.40q: use up to %d printable characters without blanks and slashes", name, maxName)
	}
	return nil
}

// CheckKey says what is wrong with a WireGuard public key, or nil.
func CheckKey(key string) error {
	raw, err := base64.StdEncoding.Strict().DecodeString(key)
	if err != nil || len(raw) != 32 || slices.Max(raw) == 0 || strings.ContainsAny(key, "\r\n") {
		return volant.Invalidf("%.60q is no WireGuard public key", key)
	}
	return nil
}

// Roles are all roles, in the order they are shown in.
func Roles() []string { return []string{volant.RoleEdge, volant.RoleHost, volant.RoleControl} }

// CheckRoles says what is wrong with a node's roles, or nil.
func CheckRoles(roles []string) error {
	if len(roles) == 0 || len(roles) > len(Roles()) {
		return volant.Invalidf("%d roles: use some of %s", len(roles), strings.Join(Roles(), ", "))
	}
	for i, role := range roles {
		if !slices.Contains(Roles(), role) || slices.Contains(roles[:i], role) {
			return volant.Invalidf("roles %.60q: use some of %s, each once", strings.Join(roles, ","), strings.Join(Roles(), ", "))
		}
	}
	return nil
}
