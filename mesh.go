package volant

import (
	"encoding/hex"
	"net/netip"
	"time"
)

// Ports on a node's mesh address, and MeshPort outside: UDP for WireGuard, TCP for nodes that join.
const (
	MeshPort       = 4281
	PeerPort       = 4282 // calls between servers: package peer
	BackhaulPort   = 4283 // clients' connections between proxies: package backhaul
	LivePort       = 4284 // datagrams of live facts between proxies: package live
	EtcdClientPort = 4285
	EtcdPeerPort   = 4286
)

// MeshPrefix holds the mesh addresses of all nodes.
var MeshPrefix = netip.MustParsePrefix("fd76:6f6c:616e::/48")

// MeshAddr is the address of a node in the mesh. It follows from the ID, so that nobody has to give it out; it is
// invalid for an ID that is not one.
func MeshAddr(id NodeID) netip.Addr {
	raw, err := hex.DecodeString(string(id))
	if err != nil || len(raw) != 4 {
		return netip.Addr{}
	}
	a := MeshPrefix.Addr().As16()
	copy(a[6:], raw)
	a[15] = 1
	return netip.AddrFrom16(a)
}

// NodeAt is the node with a mesh address.
func NodeAt(addr netip.Addr) (NodeID, bool) {
	a := addr.Unmap()
	if !MeshPrefix.Contains(a) {
		return "", false
	}
	b := a.As16()
	id := NodeID(hex.EncodeToString(b[6:10]))
	return id, MeshAddr(id) == a
}

// Mesh is how other nodes reach a node.
type Mesh struct {
	Key string `json:"key,omitempty"` // WireGuard public key, base64; empty: the node has no mesh
	// NextKey is the key that the node is about to use; others take it when it is first used.
	NextKey  string         `json:"next_key,omitempty"`
	Endpoint netip.AddrPort `json:"endpoint,omitzero"` // where its WireGuard listens
	// Renew is the operator's wish for a new key. The node takes it back when it has made one.
	Renew bool `json:"renew,omitempty"`
}

// The roles of a node.
const (
	RoleEdge    = "edge"    // accepts clients
	RoleHost    = "host"    // runs machines
	RoleControl = "control" // keeps the intent, serves the API
)

// Place is what operators know of a region. Its ID is the region's code.
type Place struct {
	Meta
	Name string  `json:"name"`
	Lat  float64 `json:"latitude"`  // degrees, north positive
	Long float64 `json:"longitude"` // degrees, east positive
}

// JoinToken lets servers join the cluster: its hash, never itself. Its ID is the first 16 digits of Hash.
type JoinToken struct {
	Meta
	Name    string    `json:"name,omitempty"`
	Hash    string    `json:"hash"`             // hex sha256 of the token's secret
	Roles   []string  `json:"roles"`            // that a node may have which joins by it
	Region  Region    `json:"region,omitempty"` // the only one it may join; empty: any
	Uses    int       `json:"uses"`             // that are left
	Expires time.Time `json:"expires"`
	By      string    `json:"by,omitempty"`    // who made it
	Nodes   []NodeID  `json:"nodes,omitempty"` // that joined by it
}
