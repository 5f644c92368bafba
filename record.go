package volant

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"
)

// Kind names a kind of intent record. It is the first part of the record's key.
type Kind string

// The kinds of records.
const (
	KindOrg     Kind = "org"
	KindApp     Kind = "app"
	KindRelease Kind = "release"
	KindMachine Kind = "machine"
	KindAddress Kind = "address"
	KindToken   Kind = "token"
	KindNode    Kind = "node"
	KindImage   Kind = "image"
	KindAppName Kind = "appname"
	KindSecrets Kind = "secrets"
	KindCert    Kind = "certificate"
	KindLease   Kind = "lease"
	// KindVersions are the earlier configs of a machine.
	KindVersions Kind = "versions"
	KindPlace    Kind = "place"
	KindJoin     Kind = "join"
)

// SchemaMajor is the newest major version of records this binary reads. A reader refuses newer
// majors and keeps unknown fields of newer minors.
const SchemaMajor = 1

// Meta heads every record of intent.
type Meta struct {
	Kind       Kind      `json:"kind"`
	Schema     int       `json:"schema"`          // major version; SchemaMajor when written
	Org        OrgID     `json:"org"`             // owner
	App        AppID     `json:"app,omitempty"`   // app it belongs to, if any
	ID         string    `json:"id"`              // unique within kind and app
	Generation uint64    `json:"generation"`      // grows by one with each change
	Actor      string    `json:"actor,omitempty"` // who made the last change: a token's name, "scaler", "deploy"
	Created    time.Time `json:"created_at"`
	Updated    time.Time `json:"updated_at"`
	Tombstone  bool      `json:"tombstone,omitempty"` // deleted; the only thing that deletes
}

// Key is the record's key in the store: kind/app/id, with "-" where there is no app.
func (m *Meta) Key() string { return RecordKey(m.Kind, m.App, m.ID) }

// Head returns the record's own Meta; it makes every type that embeds Meta a Record.
func (m *Meta) Head() *Meta { return m }

// Record is a pointer to a type that embeds Meta.
type Record interface{ Head() *Meta }

// RecordKey builds the store key of a record.
func RecordKey(kind Kind, app AppID, id string) string {
	if app == "" {
		app = "-"
	}
	return string(kind) + "/" + string(app) + "/" + id
}

// Org is a tenant.
type Org struct {
	Meta
	Name string `json:"name"`
}

// Token is a bearer token's stored half: its hash, never itself. One whose App is set is for that app alone.
type Token struct {
	Meta
	Name    string    `json:"name"`
	Hash    string    `json:"hash"`             // hex sha256 of the token
	Scopes  []string  `json:"scopes"`           // read, deploy, admin
	Expires time.Time `json:"expires,omitzero"` // zero: never
}

// AppName holds an app's name, so that no other app takes it. Its ID is the name, it belongs to no app by
// its key, and when it is a tombstone the name is free again.
type AppName struct {
	Meta
	Owner AppID `json:"owner"`
}

// Address is an address given to an app. Its ID is the address, so that it is given once; like a name
// it can be taken again when it is a tombstone. A shared address has a record without an owner, which holds
// it, and one more for each app that has it, whose ID is SharedID.
type Address struct {
	Meta
	Owner   AppID  `json:"owner"`
	IP      string `json:"ip"`
	Type    string `json:"type"` // v4, v6, shared_v4, private_v6
	Service string `json:"service_name,omitempty"`
}

// AddressSharedV4 is the Type of an IPv4 address that many apps have, told apart by their host names.
const AddressSharedV4 = "shared_v4"

// SharedID is the ID of the record by which an app has a shared address.
func SharedID(ip string, app AppID) string { return ip + "@" + string(app) }

// Node is one server.
type Node struct {
	Meta
	Name   string   `json:"name"`
	Region Region   `json:"region"`
	Roles  []string `json:"roles"` // RoleEdge, …
	Mesh   Mesh     `json:"mesh,omitzero"`
	// Draining is the operator's flag: no new machines come here, and those that are here go elsewhere.
	Draining bool `json:"draining,omitempty"`
	// Token is the ID of the API token of the server's own root; empty on the first server of a cluster.
	Token string `json:"token,omitempty"`
}

// Has says whether the node has a role.
func (n *Node) Has(role string) bool { return slices.Contains(n.Roles, role) }

// Secrets are all secrets of an app. Its ID is SecretsID. Values are sealed with the servers' key.
type Secrets struct {
	Meta
	Version uint64            `json:"version"` // grows with each change
	Values  map[string]Secret `json:"values"`  // by name
}

// SecretsID is the ID of the one Secrets record of an app.
const SecretsID = "all"

// Secret is one secret: what may be shown of it, and its sealed value.
type Secret struct {
	Digest  string    `json:"digest"` // of the value; equal values of different apps have different ones
	Sealed  []byte    `json:"sealed"`
	Type    string    `json:"type,omitempty"`   // of a key that signs or encrypts for its app
	Public  []byte    `json:"public,omitempty"` // its public half, if it has one
	Version uint64    `json:"version"`          // of Secrets, at its last change
	Created time.Time `json:"created_at"`
	Updated time.Time `json:"updated_at"`
}

// Certificate is a host name that an app serves, and the certificate for it if there is one. Its ID is the
// host name, so that no two apps serve one; it belongs to no app by its key.
type Certificate struct {
	Meta
	Owner    AppID  `json:"owner"`
	Hostname string `json:"hostname"`        // lower case; may begin with "*."
	Source   string `json:"source"`          // custom, local (by the development CA), none
	Chain    []byte `json:"chain,omitempty"` // PEM, leaf first
	Sealed   []byte `json:"sealed_key,omitempty"`
}

// Lease is a machine lease of the API: it holds off changes of the config, stop and destruction by others,
// never a wake. Its ID is the machine's.
type Lease struct {
	Meta
	Nonce       string    `json:"nonce"`
	Owner       string    `json:"owner"` // name of the token
	Description string    `json:"description,omitempty"`
	Expires     time.Time `json:"expires_at"`
	Version     string    `json:"version"` // ULID
}

// Live says whether the lease holds others off at this moment.
func (l *Lease) Live(now time.Time) bool { return l != nil && !l.Tombstone && now.Before(l.Expires) }

// Image is a tag of the servers' own registry. Its ID is ImageID; it belongs to no app.
type Image struct {
	Meta
	Repository string `json:"repository"` // without the organization
	Tag        string `json:"tag"`
	Digest     Digest `json:"digest"` // of a manifest, or of an index of manifests
	Size       int64  `json:"size"`   // of the blobs it names
}

// ImageID is the ID of a tag's record: the same for the same name, and free of characters that keys have.
func ImageID(org OrgID, repository, tag string) string {
	sum := sha256.Sum256([]byte(string(org) + "/" + repository + ":" + tag))
	return hex.EncodeToString(sum[:16])
}
