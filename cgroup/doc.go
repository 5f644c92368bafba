// Package cgroup bounds what the process of a machine may use: CPU time, CPUs, memory, processes.
//
//	v2    /sys/fs/cgroup/volant-NODE/MACHINE
//	v1    /sys/fs/cgroup/CONTROLLER/<our own group>/volant-NODE/MACHINE, for each controller
//	none  nothing is bounded; Missing says why
//
// # Invariants
//
//   - Every group of a node is below a directory with the node's ID, and no other group is touched.
//   - A controller that is missing takes its limits with it and nothing else; Missing tells.
//   - A limit that was not set is the kernel's default, which is none.
//
// With v2 the groups are beside the service's own group, not inside it: a service whose group has
// children with controllers cannot be started again in it by systemd before version 254, and machines
// must outlive the service.
//
// # Sources
//
// Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of the kernel; scheduler/sched-bwc.rst for
// quota and burst.
//
// # Not here
//
// Which machine gets which CPUs and limits: package host.
package cgroup
