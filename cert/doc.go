// Package cert makes and judges certificates: a development authority of this node, the leaves it issues,
// and chains that operators bring.
//
//	Open ─► Authority ─ Issue ─► Pair
//	operator's PEM ─ Parse ─────► Pair ─ Covers, Stage
//
// # Invariants
//
//   - The authority's key is made once, on this node, and readable by root alone.
//   - The authority may sign for names of development and of the node's own domain only. A machine that
//     trusts it trusts it for nothing else: the constraint is critical, in the certificate itself.
//   - Bytes of operators are bounded; a Pair that Parse returns has a key that fits its leaf, and a chain in
//     order.
//   - Nothing here reads a clock: the time is an argument.
//
// # Sources
//
// RFC 5280 §4.2.1.10 (name constraints); RFC 6761, RFC 6762 and RFC 8375 (names for special use); ICANN's
// reservation of "internal" for private use (2024); RFC 6125 §6.4.3 (wildcards).
//
// # Not here
//
// Who serves which name: package node, out of the records. The handshake: package proxy.
package cert
