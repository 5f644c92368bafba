package mesh

import (
	"context"
	"encoding/hex"
	"net/netip"
	"strings"
	"time"

	"github.com/volant-edge/volant"
)

// Config is all that a node's end of the mesh is.
type Config struct {
	Name    string     `json:"name"` // of the network interface: Interface
	Private Private    `json:"private"`
	Port    uint16     `json:"port"` // UDP; volant.MeshPort
	Addr    netip.Addr `json:"addr"` // this node's mesh address
	MTU     int        `json:"mtu"`  // of the interface; 0 follows the links that lead to the peers
	Peers   []Peer     `json:"peers"`
}

// Peer is another node.
type Peer struct {
	Node volant.NodeID `json:"node"`
	Key  Key           `json:"key"`
	// Next is the key that the node is about to use. Addr moves to it when it is first used.
	Next     Key            `json:"next,omitzero"`
	Endpoint netip.AddrPort `json:"endpoint,omitzero"` // invalid: it calls us
	Addr     netip.Addr     `json:"addr"`
}

// PeerStatus is what the device knows of one key of a peer.
type PeerStatus struct {
	Node      volant.NodeID  `json:"node"`
	Key       Key            `json:"key"`
	Endpoint  netip.AddrPort `json:"endpoint,omitzero"` // where it was last heard
	Handshake time.Time      `json:"handshake,omitzero"`
	RX        int64          `json:"rx"`     // bytes
	TX        int64          `json:"tx"`     // bytes
	MTU       int            `json:"mtu"`    // of the route to it
	Active    bool           `json:"active"` // has the peer's address
}

// Status is what a device says of itself.
type Status struct {
	Engine string       `json:"engine"` // kernel or user
	PID    int          `json:"pid"`    // of the process that has it
	MTU    int          `json:"mtu"`    // of the interface; 0: not configured yet
	Peers  []PeerStatus `json:"peers"`
}

// A Device is the node's end of the mesh.
type Device interface {
	// Configure makes the device what cfg says. It changes only what differs.
	Configure(ctx context.Context, cfg Config) error
	Status(ctx context.Context) (Status, error)
	// Run looks after the device until ctx ends; the device stays.
	Run(ctx context.Context) error
	// Remove ends the device and takes away what it made.
	Remove(ctx context.Context) error
}

// The MTU of the mesh. What WireGuard adds is 80 bytes where it travels over IPv6, and 60 over IPv4; a packet is padded
// to a multiple of 16.
const (
	Overhead = 80
	MinMTU   = 1280 // IPv6 asks for it
	MaxMTU   = 1420
)

// keepalive keeps doors open in NATs and firewalls, tells where we are now, and brings a lost session back.
const keepalive = 5 * time.Second

// Interface is the name of a node's network interface.
func Interface(id volant.NodeID) string { return "vl" + string(id) + "w" }

// nodeOf is the inverse of Interface.
func nodeOf(name string) (volant.NodeID, bool) {
	id, ok := strings.CutPrefix(name, "vl")
	id, end := strings.CutSuffix(id, "w")
	b, err := hex.DecodeString(id)
	return volant.NodeID(id), ok && end && err == nil && len(b) == 4
}

// check refuses what no device could be made of.
func (c *Config) check() error {
	if _, ok := nodeOf(c.Name); !ok {
		return volant.Invalidf("mesh interface %q: it is vl, the node's ID, w", c.Name)
	}
	switch {
	case c.Private.IsZero():
		return volant.Invalidf("the mesh has no private key")
	case c.Port == 0:
		return volant.Invalidf("the mesh has no port")
	case !volant.MeshPrefix.Contains(c.Addr):
		return volant.Invalidf("mesh address %v: it is in %v", c.Addr, volant.MeshPrefix)
	case c.MTU != 0 && (c.MTU < MinMTU || c.MTU > maxMTU):
		return volant.Invalidf("mesh MTU %d: use %d to %d", c.MTU, MinMTU, maxMTU)
	}
	seen := map[any]volant.NodeID{c.Private.Public(): "this node", c.Addr: "this node"}
	for _, p := range c.Peers {
		if p.Key.IsZero() || !volant.MeshPrefix.Contains(p.Addr) {
			return volant.Invalidf("mesh peer %s has no key or no mesh address", p.Node)
		}
		for _, what := range []any{p.Key, p.Next, p.Addr} {
			if what == (Key{}) {
				continue
			}
			if other, ok := seen[what]; ok {
				return volant.Invalidf("mesh peers %s and %s have the same key or address", other, p.Node)
			}
			seen[what] = p.Node
		}
	}
	return nil
}

// maxMTU is what an operator may ask for: of links with jumbo frames.
const maxMTU = 9000 - Overhead
