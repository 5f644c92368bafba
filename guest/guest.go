// Package guest is the channel between a host and the agent in its microVM, and what is said on it.
//
//	host: Open(link) ─► Session ═════ link: virtio-serial, vsock, pipe ═════ Serve(link, Backend): guest
//
// The guest's side, PID 1 and the agent, is in guest/agent; its binary is made from guest/cmd/init.
// The fake engine answers with a Backend of its own.
//
// # Invariants
//
//   - Configuration and secrets travel in the channel only, never on a command line or disk.
//   - Bytes of an earlier session are discarded by the handshake: a nonce of the host, echoed.
//   - Nothing read off the link is trusted with a length: frames are at most 64 KiB, streams 256.
//   - The app's write never blocks on a host that does not read: its lines go into a Ring.
//   - One goroutine reads the link and waits for nobody, so that a slow stream holds up no other.
package guest

import (
	"io"
	"net/netip"
	"time"
)

// Config is all that a guest must know to run its app. It is sent once, before Start.
type Config struct {
	Hostname string    `json:"hostname"`
	Now      time.Time `json:"now"`
	Entropy  []byte    `json:"entropy"` // 32 bytes or more
	// RootFS is the file system of the first disk, mounted read-only under the overlay: "erofs".
	RootFS string `json:"root_fs"`
	// Scratch says that the second disk is the writable layer (ext4); else it is memory.
	Scratch bool              `json:"scratch"`
	Net     Net               `json:"net"`
	Args    []string          `json:"args"` // argv; Args[0] is looked up in PATH of Env inside the image
	Env     map[string]string `json:"env"`
	User    string            `json:"user"` // name, uid, name:group or uid:gid; "" is root
	WorkDir string            `json:"work_dir"`
	Hosts   map[string]string `json:"hosts,omitempty"` // name → address, for /etc/hosts
}

// Net is the guest's first link.
type Net struct {
	Addr     netip.Prefix `json:"addr,omitzero"` // IPv4 address; /32 with a gateway outside it is fine
	Gateway  netip.Addr   `json:"gateway,omitzero"`
	Addr6    netip.Prefix `json:"addr6,omitzero"`
	Gateway6 netip.Addr   `json:"gateway6,omitzero"`
	MTU      int          `json:"mtu,omitempty"`
	DNS      []netip.Addr `json:"dns,omitempty"`
}

// Thaw is sent after every restore, before any traffic.
type Thaw struct {
	Now     time.Time `json:"now"`
	Entropy []byte    `json:"entropy"`
}

// Hello is what the agent says of itself when a session opens.
type Hello struct {
	Version    int    `json:"version"`
	BootID     string `json:"boot_id"`    // new with each Configure, the same after a restore
	Configured bool   `json:"configured"` // Configure was done in this boot
	Running    bool   `json:"running"`    // the app runs
	Exit       *Exit  `json:"exit,omitempty"`
}

// Exit tells how a process in the guest ended.
type Exit struct {
	Code   int  `json:"code"`
	Signal int  `json:"signal,omitempty"`
	OOM    bool `json:"oom,omitempty"`
}

// Exec is a command to run beside the app, in its root with its environment.
type Exec struct {
	Args []string          `json:"args"`
	Env  map[string]string `json:"env,omitempty"`
	User string            `json:"user,omitempty"`
	Dir  string            `json:"dir,omitempty"`
	// Stdio is not sent; it is copied over the stream while the command runs. Nil Stdin is empty.
	Stdin          io.Reader `json:"-"`
	Stdout, Stderr io.Writer `json:"-"`
}

// LogLine is one line, or piece of a long one, that the app or init wrote.
type LogLine struct {
	Seq    uint64    `json:"seq"`
	Time   time.Time `json:"time"`
	Source string    `json:"source"` // stdout, stderr, init
	Text   string    `json:"text"`
}

// Stats is what the guest uses, by the guest's own word: its reader bounds what it believes.
type Stats struct {
	Processes   int                 `json:"processes"`
	Memory      Counters            `json:"memory"` // bytes
	Load        [3]float64          `json:"load"`   // over 1, 5 and 15 minutes
	CPU         map[string]Counters `json:"cpu"`    // hundredths of a second, by CPU
	Disks       map[string]Counters `json:"disks"`  // by device
	Links       map[string]Counters `json:"links"`  // by network device
	Files       Counters            `json:"files"`
	FileSystems map[string]Counters `json:"file_systems"` // by where they are mounted
}

// Counters are numbers by name.
type Counters = map[string]uint64

// Version is the protocol's. A host refuses a guest of another major version and boots cold.
const Version = 1

// Process is a process in the guest.
type Process struct {
	PID     int       `json:"pid"`
	Command string    `json:"command"`
	Dir     string    `json:"dir"`
	Started time.Time `json:"started"`
	CPU     int64     `json:"cpu_ms"`    // time on CPUs so far
	RSS     uint64    `json:"rss_bytes"` // memory
	Listens []Listen  `json:"listens,omitempty"`
}

// Listen is a socket that a process listens on.
type Listen struct {
	Proto   string `json:"proto"` // tcp, udp
	Address string `json:"address"`
}

// Bounds of what is told of processes.
const (
	MaxProcesses = 500 // the first by their IDs
	MaxListens   = 8   // of one process
	maxCommand   = 120 // bytes of a command
)

// Bound cuts off what goes beyond the bounds.
func (p *Process) Bound() {
	p.Command, p.Dir = p.Command[:min(len(p.Command), maxCommand)], p.Dir[:min(len(p.Dir), maxCommand)]
	p.Listens = p.Listens[:min(len(p.Listens), MaxListens)]
}

// fit keeps as many processes as fit into one answer.
func fit(ps []Process) []Process {
	size := 0
	for i := range ps {
		ps[i].Bound()
		if size += len(appendJSON(nil, ps[i])) + 1; size > maxReply/4*3 {
			return ps[:i]
		}
	}
	return ps
}
