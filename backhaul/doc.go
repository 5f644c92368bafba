// Package backhaul is the form of a client's connection between two proxies: the first frame that an edge sends on a new
// TCP connection to a host, and the host's answer. After both, the bytes are the client's and the machine's own.
//
//	edge ─► TCP ─► Request · client's first bytes ······► host: takes a slot, wakes the machine, connects to it
//	edge ◄────────────── Answer · the machine's bytes ◄── host
//
// # Invariants
//
//   - A request is read whole and bounded before anything is done about it; one of another version is answered so.
//   - A request is acted on once: the host knows (edge, edge epoch, stream) of all that it has taken, and one meant for
//     an earlier boot of the host is refused.
//   - Until the answer says OK, the edge keeps what it sent of the client's bytes, and may send it elsewhere.
//
// # Not here
//
// Slots, queues and sockets: package proxy. WireGuard below: package mesh.
package backhaul
