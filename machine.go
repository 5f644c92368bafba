package volant

import (
	"net/netip"
	"time"
)

// Machine is the wish for one microVM. Its host writes what became of it in Have.
type Machine struct {
	Meta
	Name     string        `json:"name"`
	Node     NodeID        `json:"node"` // the host it is placed on; never changes
	Region   Region        `json:"region"`
	Run      Run           `json:"run"`
	Cordoned bool          `json:"cordoned,omitempty"` // the operator's flag
	Release  uint64        `json:"release,omitempty"`  // version it was created from; 0 if by hand
	Image    Digest        `json:"image"`
	Config   MachineConfig `json:"config"`
	Version  string        `json:"version"` // changes with each config change (ULID)
	// Launch says what its host does when it first sees Version; the zero value lets it be as awake as it was.
	Launch      Launch `json:"launch,omitempty"`
	SkipSecrets bool   `json:"skip_secrets,omitempty"` // its guest gets no secrets
	// Lost is when its host was found to be gone for good; zero: it is not. Such a machine is replaced under another
	// ID, counts for nothing any more, and ends empty if it comes back.
	Lost time.Time `json:"lost_at,omitzero"`
	// Last is the end of its history, the newest last, once it is a tombstone and its host has forgotten it.
	Last []Event `json:"last,omitempty"`
}

// Launch is what a new version of a machine begins with.
type Launch string

// The beginnings.
const (
	LaunchKeep  Launch = ""      // awake machines run again, sleeping ones sleep on
	LaunchStart Launch = "start" // it is started once, whoever asks for it later
	LaunchRest  Launch = "rest"  // it ends up stopped, until somebody asks for it
)

// Versions are the configs that a machine had before its present one. Its ID is the machine's.
type Versions struct {
	Meta
	Before []MachineVersion `json:"before"` // the newest first
}

// MachineVersion is one config of a machine.
type MachineVersion struct {
	Version string        `json:"version"`
	Image   Digest        `json:"image"`
	Config  MachineConfig `json:"config"`
}

// Run is the wish for a machine's running.
type Run string

// The wishes. In RunAuto, waking and sleeping are live facts of the host and never intent.
const (
	RunAuto      Run = "auto"      // asleep or awake as connections ask
	RunOn        Run = "on"        // awake
	RunOff       Run = "off"       // stopped
	RunDestroyed Run = "destroyed" // gone; kept as a tombstone
)

// MetadataManaged is the metadata key that marks machines made by scaling, with the value "scale".
const MetadataManaged = "volant_managed"

// Managed says whether the machine was made by scaling, so that scaling may destroy it.
func (m *Machine) Managed() bool { return m.Config.Metadata[MetadataManaged] == "scale" }

// MachineConfig has the shape of the Machines API's config object.
type MachineConfig struct {
	Image       string                  `json:"image"`
	Env         map[string]string       `json:"env,omitempty"`
	Init        Init                    `json:"init,omitzero"`
	Guest       Guest                   `json:"guest,omitzero"`
	Metadata    map[string]string       `json:"metadata,omitempty"`
	Services    []Service               `json:"services,omitempty"`
	Checks      map[string]MachineCheck `json:"checks,omitempty"` // of the machine as a whole, by name
	Files       []File                  `json:"files,omitempty"`
	Metrics     *Metrics                `json:"metrics,omitempty"`
	Restart     Restart                 `json:"restart,omitzero"`
	StopConfig  StopConfig              `json:"stop_config,omitzero"`
	AutoDestroy bool                    `json:"auto_destroy,omitempty"` // destroyed when its main process has ended for good
	Schedule    string                  `json:"schedule,omitempty"`     // hourly, daily, weekly, monthly
}

// Metadata keys that Fly's clients write and read.
const (
	// MetadataGroup names the process group of a machine; without one it is of GroupApp.
	MetadataGroup          = "fly_process_group"
	MetadataReleaseID      = "fly_release_id"
	MetadataReleaseVersion = "fly_release_version"
)

// GroupApp is the process group of an app that names none.
const GroupApp = "app"

// Group is the process group the machine belongs to.
func (c *MachineConfig) Group() string {
	if g := c.Metadata[MetadataGroup]; g != "" {
		return g
	}
	return GroupApp
}

// File is written into the guest before its main process starts. Exactly one of RawValue and SecretName is set.
type File struct {
	GuestPath  string `json:"guest_path"`            // absolute
	RawValue   string `json:"raw_value,omitempty"`   // base64
	SecretName string `json:"secret_name,omitempty"` // a secret whose value is base64
	Mode       uint32 `json:"mode,omitempty"`        // permission bits; 0644
}

// Metrics is where the app serves its own metrics in Prometheus' text form.
type Metrics struct {
	Port  int    `json:"port"`
	Path  string `json:"path"`
	HTTPS bool   `json:"https,omitempty"`
}

// MachineCheck probes an awake machine as a ServiceCheck does.
type MachineCheck struct {
	ServiceCheck
	// Kind says what a failing one does: informational (default), nothing; readiness, it takes the machine
	// out of routing.
	Kind string `json:"kind,omitempty"`
}

// Init overrides what the image says to run.
type Init struct {
	Exec       []string `json:"exec,omitempty"` // replaces entrypoint and cmd
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	User       string   `json:"user,omitempty"`
}

// Guest is the size of a machine.
type Guest struct {
	CPUKind  string `json:"cpu_kind,omitempty"`  // shared (default) or performance
	CPUs     int    `json:"cpus,omitempty"`      // vCPUs; 1
	MemoryMB int    `json:"memory_mb,omitempty"` // MiB; 512
}

// The kinds of CPUs.
const (
	CPUShared      = "shared"
	CPUPerformance = "performance"
)

// WithDefaults returns g with the default machine's values in place of zeros.
func (g Guest) WithDefaults() Guest {
	if g.CPUKind == "" {
		g.CPUKind = CPUShared
	}
	if g.CPUs == 0 {
		g.CPUs = 1
	}
	if g.MemoryMB == 0 {
		g.MemoryMB = 512
	}
	return g
}

// The bounds of a machine's size.
const (
	MinMemoryMB = 128 // a kernel, our init, and little else
	maxShared   = 8
	maxCores    = 16
)

// Check says what is wrong with g, or nil. Zero values mean the default machine's.
func (g Guest) Check() error {
	d := g.WithDefaults()
	top, perCPU := maxShared, 2048
	switch d.CPUKind {
	case CPUShared:
	case CPUPerformance:
		top, perCPU = maxCores, 8192
	default:
		return Invalidf("cpu_kind is %q: use one of %s, %s", g.CPUKind, CPUShared, CPUPerformance)
	}
	if d.CPUs < 1 || d.CPUs > top {
		return Invalidf("cpus is %d: a %s machine has 1 to %d", g.CPUs, d.CPUKind, top)
	}
	if d.MemoryMB < MinMemoryMB || d.MemoryMB > perCPU*d.CPUs {
		return Invalidf("memory is %d MB: a %s machine with %d vCPU has %d to %d MB",
			g.MemoryMB, d.CPUKind, d.CPUs, MinMemoryMB, perCPU*d.CPUs)
	}
	return nil
}

// Restart says what follows the exit of a machine's main process.
type Restart struct {
	Policy     string `json:"policy,omitempty"`      // on-failure (default), always, no
	MaxRetries int    `json:"max_retries,omitempty"` // within 5 minutes; 10
}

// The restart policies.
const (
	RestartAlways    = "always"
	RestartOnFailure = "on-failure"
	RestartNo        = "no"
)

// StopConfig says how a machine's main process is asked to end.
type StopConfig struct {
	Timeout Duration `json:"timeout,omitempty"` // then SIGKILL; 10s
	Signal  string   `json:"signal,omitempty"`  // SIGINT
}

// State is what a machine's host says of it. Names are those of the Machines API.
type State string

// The states.
const (
	StateCreated    State = "created" // never booted; asleep for the proxy
	StateStarting   State = "starting"
	StateStarted    State = "started"
	StateSuspending State = "suspending"
	StateSuspended  State = "suspended"
	StateStopping   State = "stopping"
	StateStopped    State = "stopped"
	StateFailed     State = "failed"
	StateDestroying State = "destroying"
	StateDestroyed  State = "destroyed"

	// StateUpdating is no host's word: the machine still is what it was before its newest config.
	StateUpdating State = "updating"
)

// Asleep says whether a wake can start the machine.
func (s State) Asleep() bool {
	return s == StateCreated || s == StateSuspended || s == StateStopped
}

// Awake says whether the machine's main process runs.
func (s State) Awake() bool { return s == StateStarted }

// Have is what a machine is, written by its host alone and ordered by (Epoch, Seq).
type Have struct {
	Machine MachineID `json:"machine"`
	App     AppID     `json:"app"`
	Node    NodeID    `json:"node"`
	Epoch   uint64    `json:"epoch"` // boot epoch of the host
	Seq     uint64    `json:"seq"`   // grows with every change of this machine
	State   State     `json:"state"`
	// Generation is the newest generation of the wish that the host has acted on.
	Generation uint64     `json:"generation"`
	Version    string     `json:"version"`             // of the config that State is of
	Since      time.Time  `json:"since"`               // when State began
	IP         netip.Addr `json:"ip,omitzero"`         // private IPv4 address; valid while there is one
	PrivateIP  netip.Addr `json:"ip6,omitzero"`        // 6PN address
	Drained    time.Time  `json:"drained_at,omitzero"` // since when it drains
	Draining   bool       `json:"draining"`            // scaling or a deploy; cleared when it falls asleep
	Checks     []Check    `json:"checks,omitempty"`    // of services, while awake
	Ready      bool       `json:"ready"`               // awake and, where it has checks, all passed once since it awoke
	Memory     int        `json:"memory_mb"`           // memory it holds now on its host; 0 asleep
	Boots      uint64     `json:"boots"`               // cold boots and restores so far
	Exit       *Exit      `json:"exit,omitempty"`      // how the last run ended
	Reason     string     `json:"reason,omitempty"`    // why it is in State, for a person
	Restarts   int        `json:"restarts,omitempty"`  // of its program, after exits within some minutes
	Failures   int        `json:"failures"`            // boots in a row which did not come to serve
	Orphan     bool       `json:"orphan,omitempty"`    // runs without a wish
	Cold       bool       `json:"cold,omitempty"`      // this run was booted, not restored: its app may be slow to listen
	Life       uint64     `json:"life,omitempty"`      // tells one guest from the next, kept over sleep by suspend; 0: there is none
}

// Check is the outcome of one service check.
type Check struct {
	Name    string    `json:"name"`
	Status  string    `json:"status"` // passing, warning (not run yet), critical
	Output  string    `json:"output,omitempty"`
	Updated time.Time `json:"updated_at"`
	// Informational ones are of the machine as a whole, and say nothing about routing.
	Informational bool `json:"informational,omitempty"`
}

// The outcomes of checks.
const (
	CheckPassing  = "passing"
	CheckWarning  = "warning"
	CheckCritical = "critical"
)

// Exit tells how a main process ended.
type Exit struct {
	Code      int       `json:"exit_code"`
	Signal    int       `json:"signal,omitempty"`
	OOM       bool      `json:"oom_killed,omitempty"`
	Requested bool      `json:"requested_stop,omitempty"`
	At        time.Time `json:"exited_at"`
}
