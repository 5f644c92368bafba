// Package mesh connects the nodes of a cluster by WireGuard.
//
//	Config ─► plan ─► engine (the kernel's WireGuard, or wireguard-go)
//	            └───► link: address, routes, MTU, sysctls, guard
//
// Where the kernel has WireGuard, the server configures it itself. Elsewhere wireguard-go runs in a process of its own
// (Main, started by Ensure), which outlives the server and the proxy, keeps its last Config on disk and starts from it.
// Both are a Device, and Local is the one configuration path.
//
// # Invariants
//
//   - A peer that stays is never torn down: Configure changes what differs.
//   - A node that is no peer has no way in: its key is refused, and a packet which bears a mesh address but came another
//     way is dropped.
//   - A key is replaced without a gap: a peer's address moves to its next key before that key's first handshake is
//     answered (wireguard-go), or within some milliseconds of it (kernel).
//   - No packet is larger than the path carries: each peer's route has an MTU that was tried.
//   - Limits of the kernel are raised, never lowered.
//
// # Sources
//
// https://www.wireguard.com/papers/wireguard.pdf §5.4 (handshake), §6.1 (timers); Linux Documentation/networking/ip-sysctl.rst
// (tcp_fastopen, tcp_rmem); RFC 8899 (probing a path's MTU).
//
// # Not here
//
// Who is a peer: package node, out of the node records. What goes through: packages peer, backhaul, live.
package mesh
