// Package schedule looks after machines whose program is to end: it starts those with a schedule when they are
// due, and destroys those with auto_destroy when they have ended for good.
//
//	records, haves ─► Observe ─► Plan ─► Apply ─► host, store
//
// A schedule names an interval, not a moment: hourly, daily, weekly (from Monday) or monthly, in UTC. A machine
// is due some time into the interval after the one its last run ended in; how far into it its ID says, so that
// not all start at once. A run that was missed while no server was up is made up for, once.
//
// # Invariants
//
//   - A machine that its owner stopped is not started: it is off until its owner starts it.
//   - A machine whose restart policy has it run again has not ended for good; nor has one that sleeps for
//     idleness, or that was never started.
//
// # Not here
//
// The restart policy: package host. Machines that connections wake: packages proxy and scale.
package schedule
