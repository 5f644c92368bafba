// Package peer carries calls between the servers of a cluster: HTTP over the mesh.
//
//	Client.Call ══ HTTP/1.1 over WireGuard ══► Server ─► handler, told which node calls
//
// # Invariants
//
//   - Who calls is known by its mesh address, which WireGuard lets only the node with that key have. A caller that is
//     no live node is refused, and so is one of another cluster's age.
//   - An error that a handler returns comes back as the same kind of volant.Error, with its remedy.
//   - Bodies are bounded; a call ends with its context.
//
// # Not here
//
// What is called: package node. Facts that many want to know: package live.
package peer
