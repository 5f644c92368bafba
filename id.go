package volant

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"regexp"
)

// Typed IDs, so that the compiler tells them apart. None is ever reused.
type (
	// OrgID names an organization. The first is OrgPersonal.
	OrgID string
	// AppID is made once per app: "app_" and 16 hex digits.
	AppID string
	// MachineID is made once per machine: 14 hex digits, as Fly's clients expect.
	MachineID string
	// NodeID is made once per data directory: 8 hex digits, short since interface names carry it.
	NodeID string
	// Region is a short place code of 2 to 8 lower-case letters and digits, such as "ams".
	Region string
	// Digest is an OCI digest: "sha256:" and 64 hex digits.
	Digest string
)

// OrgPersonal is the organization that exists from the first start.
const OrgPersonal OrgID = "personal"

// NewAppID returns a fresh app ID.
func NewAppID() AppID { return AppID("app_" + randomHex(8)) }

// NewMachineID returns a fresh machine ID.
func NewMachineID() MachineID { return MachineID(randomHex(7)) }

// NewNodeID returns a fresh node ID.
func NewNodeID() NodeID { return NodeID(randomHex(4)) }

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails since Go 1.24
	return hex.EncodeToString(b)
}

var (
	appName    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	regionCode = regexp.MustCompile(`^[a-z0-9]{2,8}$`)
	machineID  = regexp.MustCompile(`^[0-9a-f]{14}$`)
	digest     = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// CheckAppName says why name cannot be an app's name, or nil. Names are DNS labels.
func CheckAppName(name string) error {
	if !appName.MatchString(name) {
		return Invalidf("app name %q: use 1 to 63 lower-case letters, digits and inner hyphens", name)
	}
	return nil
}

// Valid says whether r is a region code.
func (r Region) Valid() bool { return regionCode.MatchString(string(r)) }

// Valid says whether id has the form of a machine ID.
func (id MachineID) Valid() bool { return machineID.MatchString(string(id)) }

// Valid says whether d is a sha256 digest.
func (d Digest) Valid() bool { return digest.MatchString(string(d)) }

// Hex returns the digest's hex digits, and "" for an invalid one, so that a path made of it stays in its directory.
func (d Digest) Hex() string {
	if !d.Valid() {
		return ""
	}
	return string(d[len("sha256:"):])
}

// String makes fmt verbs print the digest shortened, as people read it.
func (d Digest) String() string {
	if !d.Valid() {
		return fmt.Sprintf("invalid digest %q", string(d))
	}
	return string(d[:19])
}
