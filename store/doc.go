// Package store keeps the intent: the durable records of what should be.
//
//	control, scale, deploy ──Commit──► Store (etcd) ──Watch──► local copy ──► catalog
//
// It holds the interface that every engine implements, typed helpers over it for records, and terms:
// keys which live as long as their holder renews a lease.
//
// # Invariants
//
//   - Intent is ordered by Revision: the cluster epoch first, then the engine's revision. A reader which
//     has seen one revision accepts nothing older.
//   - A Commit applies all of its operations or none, each only if its key is still as expected.
//   - Absence is never an order. Records are not deleted but become tombstones, and IDs are not used again.
//   - A write keeps the fields it does not know, in every object of the record. A record of a newer
//     major schema is refused.
//   - A Term's token only grows, also over a restore, and its holder stops believing in it before the
//     store may give the key to somebody else.
//
// # Not here
//
// The engine: package store/etcd. The copy on every node's disk: package store/local. Lookups and live
// facts: package catalog. An implementation in memory and the conformance suite: package store/storetest.
package store
