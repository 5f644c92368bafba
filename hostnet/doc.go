// Package hostnet connects machines to their server's kernel: a tap each, the firewall, NAT, and the
// addresses of apps.
//
//	guest ── tap v<node><index> ── source check ─┬─ to the host: replies only
//	                                             ├─ to other guests, link-local, denied ranges: dropped
//	                                             └─ to the outside: masqueraded
//
// Everything made here carries the node's ID, so that Cleanup finds exactly that: the taps' names, the
// firewall tables volant_<node>, and routes with our protocol number and the node's ID as metric.
//
// # Invariants
//
//   - A packet from a tap passes only with the source address of its machine; a tap that has no entry
//     yet passes nothing. So the rules never lag behind the taps.
//   - The whole rule set is replaced in one transaction; a machine is one element more in its sets.
//   - A machine keeps its address until Detach or Sweep, over restarts of the server and of the host,
//     since a snapshot of it has the address in its memory. Only where somebody else has taken it
//     meanwhile does Attach give another. For the same reason all guests have one MAC address, and all
//     gateways another.
//   - No table, chain, route or link of others is changed. net.ipv4.ip_forward is set and stays set.
//
// # Sources
//
// The nft hooks and priorities of the kernel (include/uapi/linux/netfilter_ipv4.h); RFC 4861 §7.1 for
// neighbour discovery; RFC 1918, 6598, 6890 for the ranges denied by default.
//
// # Not here
//
// The mesh between nodes: package backhaul. Who listens on an app's address: package proxy. Which
// address an app has: package control.
package hostnet
