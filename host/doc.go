// Package host is the life cycle of the machines on one server: one loop per machine drives what it
// has towards what it is wished to be.
//
//	wishes, wakes, drains ─► facts ─► Plan ─► step ─► journal ─► engine, network, disks, guest ─► Have
//
// Asleep machines are prepared (image, disk, network), so that a wake only restores or boots:
//
//	created, stopped ── boot (template, else cold) ──► starting ──► started
//	suspended ───────── restore, else as above ─────► starting ──► started
//	started ── drained and empty, or asked ──► suspending, stopping ──► suspended, stopped
//
// # Invariants
//
//   - What a step is about to do is on record before it does it. Each record is a crash point with a name
//     (Points); a host which starts again finishes or undoes what it finds half done.
//   - A machine's Have is written here alone. (Epoch, Seq) orders it; Seq grows over restarts too.
//   - Absence of a wish stops nothing; only RunOff, RunDestroyed or a tombstone do.
//   - Scaling never stops a machine with open connections: the proxy seals it first.
//   - A snapshot is never the only way: whatever is wrong with it, the machine boots cold.
//   - A snapshot is resumed at most once: it is struck off the record before its guest runs.
//   - Memory of awake, booting and reserved machines never exceeds what the host may give.
//   - When Run ends, machines run on. The next Run adopts them.
//
// # Not here
//
// Which machine to wake, drain or create: package scale. Connections: package proxy. How a VM is made:
// package microvm. Root disks: package image. Taps and rules: package hostnet.
package host
