// Package microvm is the interface between the host room and the engines that run microVMs.
//
//	host ─► Engine.Create/Restore ─► VM ─► Resume, OpenLink, Snapshot, Kill
//
// # Invariants
//
//   - A VMM process lives in a session of its own, holds no pipe of ours and outlives the server.
//   - Order is identity: Drives[0] is the guest's first disk, NICs[0] its first link.
//   - A cancelled Create or Restore leaves nothing behind.
//   - A snapshot appears atomically; its manifest is written last.
//   - The engine never speaks to the agent in the guest: package guest does, over OpenLink.
//
// # Not here
//
// Disks and their content: package image. Taps: package hostnet. When to sleep: package host.
package microvm

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
)

// The errors an engine returns, beside plain ones.
var (
	ErrGone         = errors.New("the VMM is gone")                     // Adopt of a dead process
	ErrIncompatible = errors.New("the snapshot does not fit this host") // Restore; boot cold instead
	ErrState        = errors.New("wrong state for this call")
)

// Engine makes microVMs. All methods may be called from several goroutines.
type Engine interface {
	// Name is "qemu", "firecracker" or "fake".
	Name() string
	// Probe says what the engine can do here; its error says why it cannot be used. It is slow
	// the first time (a canary guest may boot) and cached then.
	Probe(ctx context.Context) (Capabilities, error)
	// Create makes files and process for a VM; no guest instruction runs before Resume.
	Create(ctx context.Context, spec Spec) (VM, error)
	// Restore makes a VM from a snapshot; it is Paused until Resume. Any error means: boot cold.
	Restore(ctx context.Context, snap Snapshot, spec Spec) (VM, error)
	// Adopt attaches to a VM which an earlier process of ours made; ErrGone if it is dead.
	Adopt(ctx context.Context, h Handle) (VM, error)
	// Sweep kills and removes what this engine made under its directories and keep does not
	// name. It returns what it removed, for the log.
	Sweep(ctx context.Context, keep func(id string) bool) (removed []string, err error)
}

// VM is one microVM. Calls that change it are serialised by the VM itself.
type VM interface {
	ID() string
	Handle() Handle
	// Resume runs the vCPUs, first or again. Idempotent.
	Resume(ctx context.Context) error
	// Pause stops the vCPUs. Idempotent.
	Pause(ctx context.Context) error
	// Snapshot writes memory and device state into dir, which must not exist yet, so that no
	// process and no memory are needed after Kill. It pauses the VM first; the VM stays Paused
	// and can still be resumed. On error dir is gone.
	Snapshot(ctx context.Context, dir string) (Snapshot, error)
	// OpenLink opens the byte stream to the agent in the guest. One is open at a time: a new one
	// ends the one before. It may carry stale bytes; package guest's handshake discards them.
	OpenLink(ctx context.Context) (io.ReadWriteCloser, error)
	// VCPUThreads are the host thread IDs of the vCPUs, for pinning.
	VCPUThreads(ctx context.Context) ([]int, error)
	// Kill ends the process and waits for it. Idempotent.
	Kill(ctx context.Context) error
	// Done is closed when the process has ended, for whatever reason.
	Done() <-chan struct{}
	// Exit says how the process ended; valid after Done.
	Exit() VMExit
	// Remove deletes what the engine made for the VM (directory, sockets, memory file), never a
	// drive or a snapshot. After Done only.
	Remove(ctx context.Context) error
}

// Spec is what a VM is made of.
type Spec struct {
	ID        string // unique on this host; names directories, so letters, digits, '-' and '_' only
	VCPUs     int
	MemoryMiB int
	Kernel    string // ELF vmlinux
	Initrd    string
	// KernelSum identifies the content of both; where it is empty the engine hashes the files, once.
	KernelSum string
	Drives    []Drive
	NICs      []NIC
	// Placed is called with the VMM's process ID before any guest instruction runs, to put it into
	// its cgroup. Its error fails the call. May be nil.
	Placed func(pid int) error
}

// Drive is a disk. A template is made with the drives' number and order and placeholder files;
// Restore takes other paths for them.
type Drive struct {
	Path     string
	ReadOnly bool
}

// NIC is a network link by a tap device that exists already.
type NIC struct {
	Tap string
	MAC net.HardwareAddr
	MTU int
}

// Capabilities is what Probe found.
type Capabilities struct {
	Accel       string // "kvm", "tcg", "none"
	Version     string // of the engine
	Build       string // identifies the engine's binary for snapshots
	MultiTenant bool   // isolates tenants well enough to mix organizations
	Snapshots   bool
	Why         string // for people: what was found and why this was picked
	OverheadMiB int    // memory of the VMM beside the guest's
}

// Snapshot is a suspended VM or a template. It is JSON in its directory's manifest too.
type Snapshot struct {
	Dir       string    `json:"dir"`
	Engine    string    `json:"engine"`
	Build     string    `json:"build"` // Capabilities.Build that made it
	VMID      string    `json:"vm"`    // the VM it was taken of
	VCPUs     int       `json:"vcpus"`
	MemoryMiB int       `json:"memory_mib"`
	Drives    int       `json:"drives"`
	NICs      int       `json:"nics"`
	KernelSum string    `json:"kernel_sum"` // of kernel and initrd
	StateSum  string    `json:"state_sum"`  // sha256 of the state file, checked before each restore
	MemSize   int64     `json:"mem_size"`
	MemSum    string    `json:"mem_sum"`             // of the memory file's content, checked only after the host's reboot
	HostBoot  string    `json:"host_boot"`           // the host's boot ID when it was taken
	ClockKHz  int       `json:"clock_khz,omitempty"` // the guest's clock rate, where the engine gave it the host's
	Taken     time.Time `json:"taken"`
	// Template is set by the caller for a snapshot that may be restored many times; Restore then
	// works on a copy. Any other snapshot may be consumed by its Restore.
	Template bool `json:"template"`
}

// Handle finds a VM again after a restart of the server. It is kept as JSON.
type Handle struct {
	Engine    string `json:"engine"`
	ID        string `json:"id"`
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // field 22 of /proc/PID/stat, so that a reused PID is not taken for it
	VCPUs     int    `json:"vcpus"`
	MemoryMiB int    `json:"memory_mib"`
	Drives    int    `json:"drives"`
	NICs      int    `json:"nics"`
	KernelSum string `json:"kernel_sum"`
}

// VMExit tells how a VMM ended.
type VMExit struct {
	Code   int
	Signal int
	Killed bool   // by Kill
	Log    string // last lines of console and VMM, at most 4 KiB
}
