// Package scale decides how many machines an app has, where they are, and which of them sleep.
//
//	loads, haves, records ─► Observe ─► Plan ─► Apply ─► host, store
//
// One scaler acts for an app at a time: the holder of the app's term. Plan is a pure function; the
// loop around it is package perapp's.
//
// # Invariants
//
//   - Scaling never stops or destroys a machine that holds a connection: it drains, and the host
//     puts a drained machine to sleep once its last connection has ended.
//   - It destroys only machines made by scaling, and only asleep ones.
//   - It touches no machine that the operator cordoned, and none of a release other than the
//     current one: those are the deploy's.
//   - Until a scaler has watched an app for a whole idle timeout it only adds capacity.
//   - A step in flight, or done and not yet seen in the observation, is not planned again.
//
// # Not here
//
// The choice of a host: package place. Waking the first machine for a waiting connection when nothing
// serves: the edge does that itself, with no scaler alive. Replacing machines: package deploy.
package scale
