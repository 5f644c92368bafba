package proxy

import (
	"net/netip"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
)

// Table is all the proxy needs to know, whole, as the server says it. The proxy keeps the last one on
// disk and starts from it.
type Table struct {
	Version uint64        `json:"version"` // grows; an older one of the same Epoch is refused
	Epoch   uint64        `json:"epoch"`   // boot epoch of the server that wrote it
	Node    volant.NodeID `json:"node"`
	Region  volant.Region `json:"region"` // where connections enter
	Apps    []App         `json:"apps"`
	// Shared are addresses that several apps may have: connections to them are led by the host name that the
	// client asks for, so that only ports with a handler that knows one have a use there.
	Shared []netip.Addr `json:"shared,omitempty"`
	Certs  []Cert       `json:"certs,omitempty"`
	// Mesh is this node's address in the mesh: the backhaul and the live feed listen there. Invalid: it is alone.
	Mesh netip.Addr `json:"mesh,omitzero"`
	// Peers are the other nodes of the mesh. Who is not among them is not spoken to, and not listened to.
	Peers []Peer `json:"peers,omitempty"`
}

// Peer is another node.
type Peer struct {
	Node   volant.NodeID `json:"node"`
	Addr   netip.Addr    `json:"addr"` // in the mesh
	Region volant.Region `json:"region"`
	// Want are the kinds of live facts to be had from it.
	Want live.Kinds `json:"want,omitempty"`
}

// Cert is a certificate for a host name, which may begin with "*.".
type Cert struct {
	Hostname string `json:"hostname"`
	Chain    []byte `json:"chain"` // PEM, leaf first
	Key      []byte `json:"key"`   // PEM
}

// App is one process group of an app as the proxy sees it: there is an App for each group that has services,
// with the same ID and Name, and machines, queue and limits of its own. A port outside leads to one group alone.
type App struct {
	ID         volant.AppID    `json:"id"`
	Group      string          `json:"group,omitempty"`
	Name       string          `json:"name"`
	Org        volant.OrgID    `json:"org"`
	Hosts      []string        `json:"hosts,omitempty"` // names it answers to on shared addresses; may begin with "*."
	Services   []Service       `json:"services"`
	Machines   []Machine       `json:"machines"`
	NoWake     bool            `json:"no_wake,omitempty"`   // do not wake, do not wait for a machine to be made
	CanGrow    bool            `json:"can_grow,omitempty"`  // the scaler may still make or wake machines
	Unscaled   bool            `json:"unscaled,omitempty"`  // no scaler acts now: connections wake as many machines as they need
	Spill      string          `json:"spill,omitempty"`     // soft (default), hard
	SpillRTT   volant.Duration `json:"spill_rtt,omitempty"` // round trip up to which a machine is near; 50ms
	MaxQueue   int             `json:"max_queue"`           // 1024
	QueueTime  volant.Duration `json:"queue_timeout"`       // 30s
	MaxPerPeer int             `json:"max_per_client"`      // 64
}

// Service leads connections to addresses to one port of the app's machines.
type Service struct {
	Listen       []netip.AddrPort `json:"listen"`          // ports without handlers: raw TCP
	Ports        []Port           `json:"ports,omitempty"` // ports with handlers
	InternalPort uint16           `json:"internal_port"`
	Soft         int              `json:"soft"` // per machine
	Hard         int              `json:"hard"`
	WakeOn       string           `json:"wake_on,omitempty"`  // connect (default without handlers), data (default with)
	Requests     bool             `json:"requests,omitempty"` // slots are requests in flight, not connections to the machine
}

// Port is a port with handlers at some addresses.
type Port struct {
	Listen     []netip.AddrPort    `json:"listen"`
	Handlers   []string            `json:"handlers"` // volant.HandlerTLS, …
	ForceHTTPS bool                `json:"force_https,omitempty"`
	HTTP       *volant.HTTPOptions `json:"http,omitempty"`
	TLS        *volant.TLSOptions  `json:"tls,omitempty"`
	ProxyProto string              `json:"proxy_proto,omitempty"` // v1 (default), v2
}

// Machine is one machine an app's connections may go to.
type Machine struct {
	ID  volant.MachineID `json:"id"`
	Seq uint64           `json:"seq"` // of its Have; orders seals
	// Node is the host of a machine that is not on this node, and the zero value for those that are. Of such a
	// machine the host's own live facts count, and here only what intent says: ID, Cordoned, Absent and Limits.
	Node     volant.NodeID `json:"node,omitempty"`
	Phase    Phase         `json:"phase"`
	Addr     netip.Addr    `json:"addr,omitzero"` // valid while Serving
	Cordoned bool          `json:"cordoned,omitempty"`
	Draining bool          `json:"draining,omitempty"`
	// AskLeave says that it drains for longer than its app lets clients stay: they are asked to leave, as their
	// protocol can. None is closed.
	AskLeave bool `json:"ask_leave,omitempty"`
	// Failing are internal ports whose checks do not pass.
	Failing []uint16 `json:"failing,omitempty"`
	// Absent are internal ports of the app's services which this machine does not have.
	Absent []uint16 `json:"absent,omitempty"`
	// Limits are those of the machine's own services where they differ from the app's: a release that raises
	// a limit does not raise it for machines of the one before.
	Limits []Limit `json:"limits,omitempty"`
	// Cold says the machine was booted, not restored: its app may take up to 60 s to listen.
	Cold bool `json:"cold,omitempty"`
	// Life tells one guest of the machine from the next; 0 while it has none. Connections to a guest that is no
	// more are ended: it cannot do so itself.
	Life uint64 `json:"life,omitempty"`
}

// Limit bounds the slots of one internal port of a machine.
type Limit struct {
	Port uint16 `json:"port"`
	Soft int    `json:"soft"`
	Hard int    `json:"hard"`
}

// Phase is a machine's state as far as the proxy cares.
type Phase string

// The phases.
const (
	PhaseServing   Phase = "serving"   // its main process runs
	PhaseBooting   Phase = "booting"   // will be serving; counts as capacity
	PhaseSuspended Phase = "suspended" // a wake restores it
	PhaseStopped   Phase = "stopped"   // a wake boots it
	PhaseGone      Phase = "gone"      // stopping, suspending, failed, destroyed: neither serves nor wakes now

	phaseUnknown Phase = "" // of a machine on another node whose host was not heard yet
)

// Load is what the proxy tells of one group of an app: at once when a connection waits or a limit is crossed,
// else coalesced for 50 ms.
type Load struct {
	App      volant.AppID             `json:"app"`
	Group    string                   `json:"group,omitempty"`
	Waiting  map[volant.Region]int    `json:"waiting,omitempty"`  // by the region they entered
	Entering map[volant.Region]int    `json:"entering,omitempty"` // served ones, by the region they entered
	Spilled  map[volant.Region]int    `json:"spilled,omitempty"`  // those of Entering that are served farther away than is near
	Slots    map[volant.MachineID]int `json:"slots,omitempty"`    // held now, machines with none left out
	// Accepting machines have accepted a connection since they began to serve; Deaf ones have not in all the
	// time an app has for that.
	Accepting []volant.MachineID `json:"accepting,omitempty"`
	Deaf      []volant.MachineID `json:"deaf,omitempty"`
	Peak      int                `json:"peak"`    // most held and waiting at once since the Load before
	Refused   uint64             `json:"refused"` // in all since the proxy began
	// Avoid are hosts that connections from here do not reach now, though they may be heard.
	Avoid []volant.NodeID `json:"avoid,omitempty"`
}

// Wake asks the host of a machine to wake it, for a connection that waits.
type Wake struct {
	App     volant.AppID     `json:"app"`
	Machine volant.MachineID `json:"machine"`
	Reason  string           `json:"reason"`
}
