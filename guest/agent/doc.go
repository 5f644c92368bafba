// Package agent is the inside of a microVM: PID 1 and the agent that answers the host.
//
//	kernel ─► Init (PID 1): mounts, modules, reaps orphans ─► Main (agent): guest.Serve on the port "ctl"
//	                                                            └─► the app and execs, in the image's root
//
// # Invariants
//
//   - Two processes of one binary: PID 1 waits for any child, the agent for those it has started,
//     so that no exit status is taken by the wrong one.
//   - Nothing is read of a disk before Configure: in a clone of a template, the disks are others than those
//     it was made with, and smaller.
//   - The app ends, the VM stays: the host decides what is next. The agent ends, the VM ends.
//   - Nothing of Config is written to a disk.
//   - The agent's root becomes the image's with Configure; PID 1 stays in the initrd.
//
// # Sources
//
// virtio_console's port: drivers/char/virtio_console.c. Handing the root over:
// Documentation/filesystems/ramfs-rootfs-initramfs.rst. OOM kills: memory.events in
// Documentation/admin-guide/cgroup-v2.rst. All in the kernel's tree.
package agent
