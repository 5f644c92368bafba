package host

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cgroup"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/why"
)

// Config is what a host is told. Zero values mean the defaults given here.
type Config struct {
	Node     volant.NodeID
	Region   volant.Region
	Epoch    uint64       // of the node; required, grows with each start
	Dir      string       // for records, scratch disks, snapshots, templates and logs
	Kernel   Kernel       // of all machines
	Template volant.Guest // size whose template is made at start; the default machine's

	MemoryMB   int     // of the server; required
	ReserveMB  int     // kept from machines; an eighth, at least 512
	Cores      [][]int // logical CPUs of each physical core; none: CPUs are not counted
	AllowMixed bool    // organizations side by side on an engine that does not isolate them

	ScratchMB int    // size of a machine's writable disk; 8192
	LogBytes  int64  // of a machine's log, two files of it are kept; 1 MiB
	OldLogs   int64  // bytes of an app's destroyed machines' logs, kept for a week; 8 MiB
	HostBoot  string // boot ID of the server; read from /proc

	NoTemplates bool // always boot cold
	NoQuota     bool // shared machines share by weight alone, and are not held to their baseline
	Preparing   int  // sleeping machines that are prepared at once; 2

	// DiskUsed says how full the disk of a directory is, from 0 to 1. The disk itself by default.
	DiskUsed func(dir string) (float64, error)

	// Crash is called before and after each write-ahead record, with the name of its point. A test stops
	// the process there.
	Crash func(point, when string)
}

// Kernel is what machines boot.
type Kernel struct {
	Vmlinux, Initrd string
	Sum             string // of both
}

// Deps are the powers a host needs. All but Seal, Publish, Why, Log, Open, Dial and App are required.
type Deps struct {
	Engine  microvm.Engine
	Images  Images
	Net     Net
	Cgroups Cgroups
	Seal    Sealer // nil: nothing is ever routed here, so all is sealed
	// Publish is called with each change of a machine, in order for each machine. It must not block.
	Publish func(volant.Have)
	Why     why.Log
	Log     *slog.Logger
	// Open opens a session with a guest's agent; guest.Open by default.
	Open func(ctx context.Context, link io.ReadWriteCloser) (Session, error)
	// Dial connects for checks; net.Dialer's by default.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// App tells what guests of an app's machines are told of it, as it stands now. Nil knows nothing. An error
	// keeps a machine from booting.
	App func(volant.AppID) (App, error)
}

// App is an app as its machines' guests are told of it.
type App struct {
	Name          string        // its ID if empty
	PrimaryRegion volant.Region // the host's if empty
	Secrets       map[string]string
}

// Images makes disks.
type Images interface {
	// Rootfs returns the root disk of an image, converting it the first time.
	Rootfs(ctx context.Context, d volant.Digest) (Rootfs, error)
	// Scratch makes an empty writable disk at path, in place of what is there.
	Scratch(ctx context.Context, path string, sizeMB int) error
}

// Rootfs is the read-only root disk of an image and what the image says to run.
type Rootfs struct {
	Path       string
	Type       string // erofs
	Entrypoint []string
	Cmd        []string
	Env        []string // KEY=value
	User       string
	WorkDir    string
	StopSignal string
}

// Net makes the links of machines.
type Net interface {
	// Attach makes the machine's link, or finds it. Idempotent.
	Attach(ctx context.Context, id volant.MachineID, org volant.OrgID) (Link, error)
	// Detach removes it and forgets its addresses. Idempotent.
	Detach(ctx context.Context, id volant.MachineID) error
	// Sweep removes the links of machines that keep does not name.
	Sweep(ctx context.Context, keep func(volant.MachineID) bool) (removed []string, err error)
}

// Link is a machine's network link.
type Link struct {
	Tap string
	MAC net.HardwareAddr
	Net guest.Net
}

// IP is the address of the machine that connections go to.
func (l Link) IP() netip.Addr { return l.Net.Addr.Addr() }

// Cgroups bounds what a VMM may use.
type Cgroups interface {
	// Add moves a process into the machine's cgroup, which is made if it is missing.
	Add(ctx context.Context, id volant.MachineID, pid int) error
	// Limit sets the machine's limits.
	Limit(ctx context.Context, id volant.MachineID, l Limits) error
	// Pin binds a thread to a CPU.
	Pin(tid, cpu int) error
	// Remove removes the machine's cgroup, which is empty. Idempotent.
	Remove(ctx context.Context, id volant.MachineID) error
	// Sweep removes the cgroups of machines that keep does not name.
	Sweep(ctx context.Context, keep func(volant.MachineID) bool) (removed []string, err error)
}

// Limits bound a machine's CPUs.
type Limits = cgroup.Limits

// meter is what a Cgroups may be beside: it tells what a machine has used.
type meter interface {
	Usage(id volant.MachineID) (cgroup.Usage, error)
}

// Sealer is the proxy as far as the host needs it.
type Sealer interface {
	// Seal reports whether no slot of the machine is held. If so none is granted until the proxy sees a
	// newer seq of the machine that serves.
	Seal(ctx context.Context, id volant.MachineID, seq uint64) (bool, error)
}

// Session is a session with a guest's agent, as guest.Session is.
type Session interface {
	Hello() guest.Hello
	Configure(ctx context.Context, c guest.Config) error
	Put(ctx context.Context, f guest.File) error
	Start(ctx context.Context) error
	Thaw(ctx context.Context, t guest.Thaw) error
	Freeze(ctx context.Context) error
	Wait(ctx context.Context) (guest.Exit, error)
	Signal(ctx context.Context, sig int) error
	Exec(ctx context.Context, e guest.Exec) (guest.Exit, error)
	Logs(ctx context.Context, from uint64, fn func(guest.LogLine)) error
	Stats(ctx context.Context) (guest.Stats, error)
	Processes(ctx context.Context) ([]guest.Process, error)
	Shutdown(ctx context.Context) error
	Done() <-chan struct{}
	Close() error
}
