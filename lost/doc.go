// Package lost decides when the machines of a host are gone for good, and what becomes of them.
//
//	leases in the store, who hears whom ─► Plan ─► the machine counts no more; if it comes back, it ends empty
//
// # Invariants
//
//   - A machine is lost only when its host's lease, which was there in this epoch of the cluster, has been gone for 10 s,
//     no node that can be asked hears its proxy, and who decides hears a majority of the nodes.
//   - What is lost is never taken back: another machine takes its place under another ID, so that an ID never runs on
//     two hosts. If it comes back it takes no new connections, and is destroyed when it is empty and its host knows.
//   - A machine made by hand is not given up: nobody else can say what was in it. It waits for its host, and a reason
//     says so.
//
// # Not here
//
// The machine in its place: package scale, which counts one less. Whose lease is gone: package store.
package lost
