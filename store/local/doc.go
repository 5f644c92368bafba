// Package local keeps on a node's disk all intent that the node has seen, so that it starts and serves
// with every store down.
//
//	store ──Watch, List──► Copy.Run ──► bbolt file ──Watch, List──► catalog
//
// # Invariants
//
//   - Nothing older than what the copy has is accepted: by (cluster epoch, revision), for the file and for
//     each record. A store that is behind is refused and alarmed, and the copy stays as it is.
//   - Absence is never an order. A live record that a store no longer has is kept and listed as missing;
//     only a tombstone that was swept goes.
//   - Each record carries a checksum of key, revisions and value. A bad one is refused, counted, logged and
//     fetched anew; it stops nothing.
//   - A damaged file is an error with a cure. Rebuild sets it aside, never deletes it.
//   - What watchers are told is on the disk.
//
// # Not here
//
// What the records mean: package catalog. Terms are not copied: they are worthless tomorrow.
package local
