// Package deploy brings a release about: machines of the new one come, those of the old one go, and no
// connection is dropped.
//
//	pending ─► running ─► command ─► first machines boot, unrouted ─► switch ─► routed, old ones drain ─► complete
//	                        └──────────┴─ one fails: failed, nothing changed        └─ one fails: taken back
//
// A new machine is written with RunOn and cordoned, so that its host boots it and no proxy routes to it, and with
// the machine it replaces in its metadata. The app's current release is switched in one write. A machine that
// serves is then routed: uncordoned, and RunAuto where connections wake it. An old machine is drained when the one
// that replaces it is routed, and destroyed once it sleeps. Each process group is replaced by itself, all of them
// side by side; the switch waits for all.
//
// # Strategies
//
// All of them add before they take away, and drain what goes: none closes a connection. They differ in what is
// made before the switch, how many follow at once, and what a later failure does.
//
//   - rolling: one machine of each group serves before the switch; then max_unavailable of a group's machines are
//     replaced at a time, a third where it says nothing. A machine that fails takes the release back.
//   - canary: the same, but the first machine of a group serves beside the old ones for 10 s before another is
//     replaced.
//   - bluegreen: all machines serve, unrouted, before the switch; then all are routed and all old ones drain.
//   - immediate: the switch comes first; new machines are routed and old ones drain without waiting for boots.
//     Connections that come meanwhile wait. Nothing is taken back.
//
// A group whose ports the old machines do not serve is replaced as by bluegreen, since its old machines could take
// no connection after the switch. The first release with min = 0 boots none. Where there is no room for all
// machines that bluegreen makes, it goes over to those that serve.
//
// Taken back means: the release before is current again, in one write with the reason; the machines it had drained,
// which are kept asleep until a release is complete, are awake and routed again before those of the failed one
// drain.
//
// # Invariants
//
//   - All state is in records: whoever holds the app's term after a crash goes on from them.
//   - Before the switch nothing of the old release is touched.
//   - An old machine is drained only when its replacement is routed, and never stopped with a connection.
//   - A release's command runs once, before any machine changes, and its exit is read from its machine's have. A
//     server that boots anew while it runs runs it again.
//   - One release of an app is brought about at a time, in order of their versions.
//   - Machines made by hand, which belong to no release, are left alone.
//
// # Not here
//
// How many machines an app needs: package scale. Whether a machine is ready: its host says so.
package deploy
