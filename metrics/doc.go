// Package metrics writes what a node measures in Prometheus' text form.
//
// The series of apps and machines bear the names that Fly's users have dashboards for (fly_edge_…, fly_app_…,
// fly_instance_…), with the labels app, region, host and instance. What those names have no word for begins
// with volant_.
//
// # Invariants
//
//   - Writing measures nothing and wakes nobody: it puts a Sample into words.
//   - Numbers that come out of a guest are shown under names of this package's list only, and for a bounded number
//     of devices, so that a guest cannot flood whoever scrapes.
//   - Fly's counters whose names break Prometheus' conventions (they lack "_total") are untyped, so that
//     promtool finds nothing to say; rate() takes them as they are.
//
// # Sources
//
// Prometheus text exposition format 0.0.4. Names: Fly's public documentation of metrics.
//
// # Not here
//
// Where the numbers come from: package node asks proxy and hosts. Who may see them: package control.
package metrics
