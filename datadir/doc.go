// Package datadir opens a node's data directory: the one place on disk that Volant calls its own.
//
//	FORMAT      version of the layout; a newer one is refused
//	node-id     made once, never changed; names of taps, cgroups and rules carry it
//	lock/NAME   held by the running process of that name, with its process ID inside
//	count/NAME  counters that only grow
//	secrets/    readable by root alone, like every other directory not listed in Sub
//
// # Invariants
//
//   - At most one process holds a lock. The kernel gives it back when the process ends, however it ends.
//   - A counter's new value is on disk before anyone sees it, so no value is ever given twice.
//   - A directory which is not ours (not empty, no FORMAT) is never written to.
//   - Migrations go forward only; each is repeatable, and FORMAT is written after it.
//
// # Not here
//
// What the files in the sub-directories mean: the room that asked for the sub-directory.
package datadir
