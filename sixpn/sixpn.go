// Package sixpn does the arithmetic of private IPv6 networks: each organization has one, and each
// machine a /112 in it.
//
//	bits   16     32        32     32        16
//	part   fdaa   network   node   machine   free (2 is the machine)
//
// # Invariants
//
//   - Addr is a pure function: the same organization, node and index give the same address.
//
// # Sources
//
// The layout is the one that clients of Fly's private networks know.
package sixpn

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net/netip"

	"github.com/volant-edge/volant"
)

// Prefix holds all private networks.
func Prefix() netip.Prefix { return netip.MustParsePrefix("fdaa::/16") }

// Network returns the organization's network, a /48.
func Network(org volant.OrgID) netip.Prefix {
	var b [16]byte
	fill(&b, org)
	return netip.PrefixFrom(netip.AddrFrom16(b), 48)
}

// Addr returns the address of the machine that has the given index on the node.
func Addr(org volant.OrgID, node volant.NodeID, index uint32) (netip.Addr, error) {
	id, err := hex.DecodeString(string(node))
	if err != nil || len(id) != 4 {
		return netip.Addr{}, volant.Invalidf("node ID %q: it has 8 hex digits", string(node))
	}
	var b [16]byte
	fill(&b, org)
	copy(b[6:], id)
	binary.BigEndian.PutUint32(b[10:], index)
	b[15] = 2
	return netip.AddrFrom16(b), nil
}

func fill(b *[16]byte, org volant.OrgID) {
	b[0], b[1] = 0xfd, 0xaa
	sum := sha256.Sum256([]byte(org))
	copy(b[2:6], sum[:4])
}
