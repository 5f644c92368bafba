// Package node builds the rooms for this server's roles, hands each what it asks for, and starts and stops
// them in order. It alone knows them all.
//
//	data directory ─► copy, etcd ─► catalog ─► engine, network, images ─► host ─► proxy ─► scaler, deploys ─► API
//
// # Invariants
//
//   - A server whose store is down or damaged still starts: it serves from its copy of the intent.
//   - The proxy and the machines are processes of their own; the end of the server does not touch them.
//   - What the proxy is told is always a whole table, so that each message repairs a lost one.
//
// # Not here
//
// Any decision: the rooms take them.
package node
