// Package deploy brings a release about: machines of the new one come, those of the old one go, and no
// connection is dropped.
//
//	pending ─► running ─► new machines boot, unrouted ─► all serve ─► switch ─► old ones drain ─► complete
//	                                  └─ one fails ─► failed; the old release serves on
//
// A new machine is written with RunOn and cordoned, so that its host boots it and no proxy routes to it,
// and with the machine it replaces in its metadata. When all are ready the app's current release is
// switched, in one write; then they are routed: uncordoned, and RunAuto like any other. An old machine is
// drained when the one that replaces it is routed, and destroyed once it sleeps.
//
// # Invariants
//
//   - All state is in records: whoever holds the app's term after a crash goes on from them.
//   - Before the switch nothing of the old release is touched; after it the deploy only goes forward.
//   - An old machine is drained only when its replacement is routed, and never stopped with a connection.
//   - One release of an app is brought about at a time, in order of their versions.
//   - Machines made by hand, which belong to no release, are left alone.
//
// # Not here
//
// How many machines an app needs: package scale. Whether a machine is ready: its host says so.
package deploy
