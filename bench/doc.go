// Command bench measures what Volant promises, one row per number, against the peer that a user would
// compare it with. It prints a table and writes build/bench.json.
//
//	go run ./bench [-run NAME] [-short]
//
// # Invariants
//
//   - Every load is bounded in time and count.
//   - A measure whose load leaves something behind is not made: see live.Server.Close.
//   - A number out of reach is a row that says so, not a failure. A number that could not be taken is.
//   - What our own counters say is checked against the guest's and the kernel's.
//
// # Not here
//
// What each row does and how to repeat it: docs/guide/benchmarks.md. The bare QEMU script: package
// bareqemu. Plain TCP and HTTP: bench/tcp and
// bench/http, which also run alone.
package main
