// Package bareqemu starts microVMs as a script would: one QEMU command line, cp and a few monitor
// commands, and no engine, host or proxy of ours. It is what the platform's starts are measured against.
//
//	Cold:     qemu ─► agent ─► configure, start ─► first byte
//	Template: cp memory, qemu -incoming ─► agent ─► configure, start ─► first byte
//	Wake:     cp memory, qemu -incoming ─► agent ─► thaw ─► first byte
//
// # Invariants
//
//   - Time runs from before the first command to the first byte of the app's answer.
//   - Kernel, guest, disk and arguments are those the platform uses.
//   - Close removes the tap, the processes and the files it made.
//
// # Not here
//
// The same through the platform, and the comparison: package bench.
package bareqemu
