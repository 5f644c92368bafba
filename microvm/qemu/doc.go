// Package qemu runs microVMs by QEMU's machine type microvm, with KVM where a guest really boots under
// it and by emulation (TCG) elsewhere.
//
//	Engine ─► Dir/vms/ID: sockets of QMP and link    ─┐
//	       ─► ShmDir/ID.mem: the guest's memory       ├─ qemu-system-x86_64, its own session
//	       ─► snapshot: state by migration, memory    ─┘
//
// # Invariants
//
//   - The process gets sockets that already listen, so nobody waits for a file to appear; it holds no
//     pipe of ours, and what it and the guest print goes to sealed memory that cannot grow.
//   - Memory is a shared file on a tmpfs. Migration leaves it out, so state is 100 KB; the file is
//     copied beside it, without its holes. Each VM restores into a copy of its own.
//   - A process is known by PID and start time and signalled by pidfd, never by PID alone.
//   - A command line of a snapshot's VM differs from that of its source in paths only. Its shape is
//     part of the build, so a changed shape refuses old snapshots.
//
// # Sources
//
// QEMU 7.2: docs/system/i386/microvm.rst, qapi/migration.json, docs/interop/qmp-spec.txt. The boot
// arguments are measured: without tsc_early_khz a busy host's guests hang at random in TSC calibration.
//
// # Weak spots
//
// TCG is no boundary between tenants by QEMU's own policy. QEMU starts as our user and
// becomes one of its own before a guest runs, under its seccomp filter, which also sets no_new_privs;
// it has no namespaces of its own yet. The pages of
// a restored memory file are charged to the cgroup of the server that copied them.
//
// # Not here
//
// What is said over the link: package guest. Taps: package hostnet.
package qemu
