// Package proxy is the data path: it accepts clients' connections, leads each to a machine of its
// app, and is the judge of the machines' limits.
//
//	accept ─► route ─► handle ─► pick ─┬─► connect ─► relay
//	                                   └─► queue, wake ─┘
//
// Plain TCP is served by loops: an epoll instance and one goroutine each, no goroutine per connection,
// and splice(2) for whatever is big. Connections to ports with handlers (TLS, HTTP, PROXY protocol) take the
// same road (session) on net.Conns, an HTTP request like a connection; so does a platform in memory under a test.
//
// A machine may be on another node. Then the connection goes to that node's proxy as a stream of the backhaul, in
// which it is an ordinary session whose client is the stream: the host is the judge. The edge only estimates what is
// held there.
//
//	edge: pick ─► call ══ backhaul ══► host: stream ─► slot, wake, connect ─► answer ─► relay
//
// It is told the world as one Table, tells in return what it sees as Events (Load, Wake, and
// why.Record), and needs nobody to go on with the last Table it had. The same Proxy runs inside a
// test or as a process of its own (Main), where Client has its methods.
//
// # Invariants
//
//   - A machine never holds more slots than its hard limit, per service port. A slot is taken before
//     anything reaches the machine and given back when its side of the connection has ended.
//   - No connection waits while a slot it may have is free; they are served in order of arrival.
//   - A new Table closes no established connection.
//   - A machine for which Seal returned true gets no connection until a newer Table says it serves.
//   - Every connection is served or refused, and a refusal has a record which names the rule.
//   - A request of another node is acted on once, and never one of or for an earlier boot. None of a client's bytes
//     reaches a machine of another node before its host has taken a slot.
//   - A stream is never led on to a third node.
//   - Nothing read off the control socket or the backhaul is trusted with a length.
//
// # Sources
//
// RFC 9110 and 9112 for HTTP, RFC 8446 for TLS, HAProxy's specification of the PROXY protocol.
// tcp(7) for keep-alive, splice(2), epoll(7); RFC 9293 §3.6 for half-closed connections; RFC 5482
// and RFC 1122 §4.2.3.6 for keep-alive's meaning; RFC 7413 for the first bytes in the SYN.
//
// # Not here
//
// How many machines there should be: package scale. How one boots and sleeps: package host.
package proxy
