// Package addrpool does the arithmetic of the pools that apps' addresses come out of. It is pure:
// who holds which address is written down by package control.
//
// # Invariants
//
//   - Next never gives an address that a client could take for a network's or a broadcast's: the first
//     and last of the pool and, with IPv4, every one that ends in .0 or .255.
package addrpool

import (
	"net/netip"

	"github.com/volant-edge/volant"
)

// The pools of a node whose operator configured none. They are reachable on the node itself only.
const (
	DefaultV4 = "127.77.0.0/16"
	DefaultV6 = "fd77::/64"
)

// Defaults returns the pools of a node whose operator configured none.
func Defaults() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix(DefaultV4), netip.MustParsePrefix(DefaultV6)}
}

// Next returns the lowest free address of the pool. An address just given back is best held in used
// for a while, since clients' resolvers still remember it.
func Next(pool netip.Prefix, used func(netip.Addr) bool) (netip.Addr, error) {
	if !pool.IsValid() {
		return netip.Addr{}, volant.Invalidf("address pool is not set")
	}
	pool = pool.Masked()
	last := Last(pool)
	// A run of more used addresses than this means that used is wrong, or a pool beyond all needs.
	const bound = 1 << 20
	a := pool.Addr()
	for range bound {
		if !pool.Contains(a) {
			break
		}
		if usable(pool, a, last) && !used(a) {
			return a, nil
		}
		a = a.Next()
	}
	return netip.Addr{}, volant.Errorf(volant.ErrNoCapacity, "address pool %v has no free address", pool).
		WithRemedy("release addresses that no app needs (volant ips list, volant ips release), or configure a further pool")
}

// Last returns the last address of the prefix.
func Last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b) // b has 4 or 16 bytes
	return a
}

func usable(pool netip.Prefix, a, last netip.Addr) bool {
	if pool.IsSingleIP() {
		return true
	}
	if a.Is4() {
		if pool.Bits() == 31 {
			return true // RFC 3021: both are hosts
		}
		end := a.As4()[3]
		return a != pool.Addr() && a != last && end != 0 && end != 255
	}
	return a != pool.Addr() // the subnet-router anycast address, RFC 4291 §2.6.1
}

// Overlap returns the first of the prefixes that shares addresses with p.
func Overlap(p netip.Prefix, others []netip.Prefix) (netip.Prefix, bool) {
	for _, o := range others {
		if p.Overlaps(o) {
			return o, true
		}
	}
	return netip.Prefix{}, false
}
