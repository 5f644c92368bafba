// Package api holds what travels between Volant's HTTP API and its clients: the JSON shapes of the
// Machines API for apps and machines, and Volant's own for releases, scale, images, logs and reasons.
//
// # Sources
//
// The field names of apps, machines, events, checks and exec are those of Fly's public Machines API,
// so that existing clients work. Durations are strings such as "15s".
//
// # Not here
//
// Who may do what: package control. What a config means: package volant.
package api

import (
	"bytes"
	"strconv"
	"time"

	volant "github.com/volant-edge/volant"
)

// DefaultAddr is where the API listens unless told otherwise.
const DefaultAddr = "127.0.0.1:4280"

// Error is the body of every response that is not 2xx.
type Error struct {
	Error  string `json:"error"`            // what was wrong
	Status string `json:"status"`           // a word programs can match, such as "not_found"
	Remedy string `json:"remedy,omitempty"` // what to do about it
}

// App as the API shows it.
type App struct {
	ID           string       `json:"id"`
	Name         string       `json:"name"`
	Status       string       `json:"status"` // pending before the first deploy, then deployed
	Organization Organization `json:"organization"`
	MachineCount int          `json:"machine_count"`
	VolumeCount  int          `json:"volume_count"`
	Network      string       `json:"network"`
	Release      uint64       `json:"release"` // version that serves; 0: none
	Addresses    []string     `json:"addresses,omitempty"`
	CreatedAt    time.Time    `json:"created_at"`
}

// Organization of an app.
type Organization struct {
	Name string `json:"name"`
	Slug string `json:"slug"`
}

// AppList answers GET /v1/apps.
type AppList struct {
	TotalApps int   `json:"total_apps"`
	Apps      []App `json:"apps"`
}

// CreateApp is the body of POST /v1/apps.
type CreateApp struct {
	Name    string `json:"name,omitempty"`
	AppName string `json:"app_name,omitempty"` // older clients send this
	OrgSlug string `json:"org_slug,omitempty"` // personal if empty
	Network string `json:"network,omitempty"`
}

// CreatedApp answers POST /v1/apps.
type CreatedApp struct {
	ID        string `json:"id"`
	CreatedAt int64  `json:"created_at"` // Unix seconds
}

// Machine as the API shows it.
type Machine struct {
	ID         string               `json:"id"`
	Name       string               `json:"name"`
	State      string               `json:"state"`
	Region     string               `json:"region"`
	InstanceID string               `json:"instance_id"`
	Version    string               `json:"version"`
	PrivateIP  string               `json:"private_ip"`
	CreatedAt  time.Time            `json:"created_at"`
	UpdatedAt  time.Time            `json:"updated_at"`
	ImageRef   ImageRef             `json:"image_ref"`
	Config     volant.MachineConfig `json:"config,omitzero"`
	Events     []MachineEvent       `json:"events"`
	Checks     []volant.Check       `json:"checks"`
	HostStatus string               `json:"host_status"`     // ok, unknown, unreachable
	Nonce      string               `json:"nonce,omitempty"` // of the lease that the call which answers this made
	Cordoned   bool                 `json:"cordoned"`

	// Volant's own.
	Node     string       `json:"node"`
	Run      string       `json:"run"` // the wish: auto, on, off
	Release  uint64       `json:"release,omitempty"`
	Draining bool         `json:"draining"`
	Managed  bool         `json:"managed"` // made by scaling
	Slots    int          `json:"slots"`   // connections it holds
	Since    time.Time    `json:"since"`   // when State began
	Reason   string       `json:"reason,omitempty"`
	IP       string       `json:"ip,omitempty"` // private IPv4 address
	Exit     *volant.Exit `json:"exit,omitempty"`
	Boots    uint64       `json:"boots"`
}

// ImageRef names a machine's image.
type ImageRef struct {
	Registry   string `json:"registry"`
	Repository string `json:"repository"`
	Tag        string `json:"tag"`
	Digest     string `json:"digest"`
}

// MachineEvent is one entry of a machine's history, newest first.
type MachineEvent struct {
	ID        string        `json:"id"`
	Type      string        `json:"type"`
	Status    string        `json:"status"`
	Source    string        `json:"source"`
	Timestamp int64         `json:"timestamp"` // Unix milliseconds
	Request   *EventRequest `json:"request,omitempty"`
}

// EventRequest is what an event tells beside its type.
type EventRequest struct {
	ExitEvent    *ExitEvent `json:"exit_event,omitempty"`
	RestartCount int        `json:"restart_count"` // restarts before, within the policy's window
}

// ExitEvent tells how a run ended.
type ExitEvent struct {
	ExitCode      int       `json:"exit_code"`
	GuestExitCode int       `json:"guest_exit_code"`
	GuestSignal   int       `json:"guest_signal"`
	Signal        int       `json:"signal"`
	OOMKilled     bool      `json:"oom_killed"`
	RequestedStop bool      `json:"requested_stop"`
	Restarting    bool      `json:"restarting"` // it is run again
	ExitedAt      time.Time `json:"exited_at"`
}

// CreateMachine is the body of POST /v1/apps/{app}/machines.
type CreateMachine struct {
	Name                    string               `json:"name,omitempty"`
	Region                  string               `json:"region,omitempty"`
	Config                  volant.MachineConfig `json:"config"`
	LeaseTTL                int                  `json:"lease_ttl,omitempty"`                 // seconds; its nonce is in the answer
	SkipLaunch              bool                 `json:"skip_launch,omitempty"`               // it rests in stopped
	SkipServiceRegistration bool                 `json:"skip_service_registration,omitempty"` // it begins cordoned
	SkipSecrets             bool                 `json:"skip_secrets,omitempty"`              // its guest gets none
	MinSecretsVersion       uint64               `json:"min_secrets_version,omitempty"`       // of the app's secrets, else 412
}

// PatchMachine is the body of PATCH /v1/apps/{app}/machines/{id}.
type PatchMachine struct {
	// Config is a merge patch (RFC 7396): what it names is changed, null removes.
	Config                  map[string]any `json:"config"`
	CurrentVersion          string         `json:"current_version,omitempty"`           // 412 if the machine's is another
	LeaseTTL                int            `json:"lease_ttl,omitempty"`                 // seconds; its nonce is in the answer
	SkipLaunch              bool           `json:"skip_launch,omitempty"`               // it ends up stopped
	SkipServiceRegistration bool           `json:"skip_service_registration,omitempty"` // it is cordoned
	SkipSecrets             bool           `json:"skip_secrets,omitempty"`              // its guest gets none
	MinSecretsVersion       uint64         `json:"min_secrets_version,omitempty"`       // of the app's secrets, else 412
}

// UpdateMachine is the body of POST /v1/apps/{app}/machines/{id}. Its config is whole.
type UpdateMachine struct {
	CreateMachine
	CurrentVersion string `json:"current_version,omitempty"` // 412 if the machine's is another
}

// MachineVersion is a config that a machine has or had.
type MachineVersion struct {
	Version string               `json:"version"`
	Config  volant.MachineConfig `json:"user_config"`
}

// CreateLease is the body of POST …/lease. With a lease's nonce in the header fly-machine-lease-nonce it is
// renewed.
type CreateLease struct {
	Description string `json:"description,omitempty"`
	TTL         int    `json:"ttl,omitempty"` // seconds; 30
}

// Lease answers …/lease: the data in an envelope, as clients read it, and beside it, as the document says.
type Lease struct {
	Status string    `json:"status"` // success
	Data   LeaseData `json:"data"`
	LeaseData
}

// LeaseData is a machine lease.
type LeaseData struct {
	Nonce       string `json:"nonce,omitempty"` // told to who took it alone
	ExpiresAt   int64  `json:"expires_at"`      // Unix seconds
	Owner       string `json:"owner"`
	Description string `json:"description"`
	Version     string `json:"version"` // of the machine's config
}

// SetMetadata is the body of PUT and PATCH …/metadata. A null or empty value removes its key.
type SetMetadata struct {
	Metadata       map[string]*string `json:"metadata"`
	MachineVersion string             `json:"machine_version,omitempty"` // 412 if the machine's is another
	UpdatedAt      string             `json:"updated_at,omitempty"`      // 412 if the machine was changed since
}

// MetadataValue answers GET …/metadata/{key}.
type MetadataValue struct {
	Value string `json:"value"`
}

// SetMetadataValue is the body of POST …/metadata/{key}.
type SetMetadataValue struct {
	Value     *string `json:"value"`
	UpdatedAt string  `json:"updated_at,omitempty"`
}

// StopMachine is the body of POST …/stop.
type StopMachine struct {
	Signal  any     `json:"signal,omitempty"`  // a name such as SIGTERM, or its number; as the config says if missing
	Timeout Timeout `json:"timeout,omitempty"` // until it is killed; as the config says if 0 or missing
}

// Timeout is a time that is written as Go does ("10s") and read as a number of seconds too.
type Timeout time.Duration

// MarshalText writes Go's notation.
func (t Timeout) MarshalText() ([]byte, error) { return []byte(time.Duration(t).String()), nil }

// UnmarshalText reads Go's notation, or a number of seconds.
func (t *Timeout) UnmarshalText(b []byte) error {
	d, err := time.ParseDuration(string(b))
	if n, nerr := strconv.ParseFloat(string(b), 64); nerr == nil {
		if n >= float64(time.Millisecond) {
			n /= float64(time.Second) // nanoseconds, as older clients send a duration
		}
		d, err = time.Duration(n*float64(time.Second)), nil
	}
	if err != nil || d < 0 || d > 24*time.Hour {
		return volant.Invalidf("timeout %q: use a time of 0s to 24h such as \"10s\", or a number of seconds", b)
	}
	*t = Timeout(d)
	return nil
}

// UnmarshalJSON reads a string or a number.
func (t *Timeout) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	return t.UnmarshalText(bytes.Trim(b, `"`))
}

// SignalMachine is the body of POST …/signal.
type SignalMachine struct {
	Signal any `json:"signal"` // a name such as SIGTERM or TERM, or its number on Linux
}

// Done answers a change that has nothing else to tell.
type Done struct {
	OK bool `json:"ok"`
}

// Acted answers what was asked of a machine's host.
type Acted struct {
	OK            bool   `json:"ok"`
	PreviousState string `json:"previous_state"`
	Migrated      bool   `json:"migrated"` // always false: machines do not move
	NewHost       string `json:"new_host"` // always empty
}

// Waited answers GET …/wait.
type Waited struct {
	OK      bool   `json:"ok"`
	State   string `json:"state"`
	Version string `json:"version"`
	EventID string `json:"event_id,omitempty"` // the newest of the machine's events that belongs to it
}

// Exec is the body of POST …/exec.
type Exec struct {
	Command   []string `json:"command,omitempty"`
	Cmd       string   `json:"cmd,omitempty"` // older clients: one string, split at white space
	Stdin     string   `json:"stdin,omitempty"`
	Timeout   int      `json:"timeout,omitempty"`   // seconds; 60
	Container string   `json:"container,omitempty"` // 400: a machine has one image
	// Stream asks for frames (ExecFrame, one JSON object a line) instead of one ExecResult.
	Stream bool `json:"stream,omitempty"`
}

// ExecResult answers POST …/exec.
type ExecResult struct {
	ExitCode   int    `json:"exit_code"`
	ExitSignal int    `json:"exit_signal"`
	Stdout     string `json:"stdout"`
	Stderr     string `json:"stderr"`
	Truncated  bool   `json:"truncated,omitempty"` // over 1 MiB of output: use stream
}

// ExecFrame is a piece of a streamed exec: output, or at last the exit.
type ExecFrame struct {
	Stdout []byte      `json:"stdout,omitempty"`
	Stderr []byte      `json:"stderr,omitempty"`
	Exit   *ExecResult `json:"exit,omitempty"`
	Error  string      `json:"error,omitempty"`
}

// CreateRelease is the body of POST /v1/apps/{app}/releases.
type CreateRelease struct {
	Image       string               `json:"image"` // digest of an uploaded manifest, or a reference that is pulled; config.image if empty
	Config      volant.MachineConfig `json:"config"`
	Scale       *ScalePatch          `json:"scale,omitempty"` // what the config file's [scale] names
	WaitTimeout volant.Duration      `json:"wait_timeout,omitempty"`

	// Others are the process groups beside the default one, which Config is the template of, and GroupScale
	// what the config file says of their scale, by name.
	Others     []volant.Group        `json:"others,omitempty"`
	GroupScale map[string]ScalePatch `json:"group_scale,omitempty"`

	Strategy string `json:"strategy,omitempty"` // rolling (default), canary, bluegreen, immediate
	// MaxUnavailable bounds how many machines a rolling deploy replaces at once: 1 and more is a count, below
	// it a fraction; 0.33 if zero.
	MaxUnavailable float64                `json:"max_unavailable,omitempty"`
	ReleaseCommand *volant.ReleaseCommand `json:"release_command,omitempty"` // runs once, before any machine changes
	PrimaryRegion  volant.Region          `json:"primary_region,omitempty"`  // the app's, if named

	// FromRelease is an earlier release whose image, config, groups and strategy this one has: to bring new
	// secrets into the machines, or an older release back. Its release_command does not run again. Nothing
	// but wait_timeout may be named beside it.
	FromRelease uint64 `json:"from_release,omitempty"`
}

// Release as the API shows it.
type Release struct {
	Version   uint64    `json:"version"`
	Image     string    `json:"image"`
	Status    string    `json:"status"`
	Reason    string    `json:"reason,omitempty"`
	Actor     string    `json:"actor"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	Addresses []string  `json:"addresses,omitempty"` // of the app
}

// Scale answers GET /v1/apps/{app}/scale.
type Scale struct {
	App    string       `json:"app"`
	Scale  volant.Scale `json:"scale"` // with defaults filled in
	Awake  int          `json:"awake"`
	Total  int          `json:"total"` // machines not destroyed
	Slots  int          `json:"slots"`
	Queued int          `json:"queued"`
	// Groups is how the process groups beside the default one scale, by name.
	Groups map[string]GroupScale `json:"groups,omitempty"`
}

// GroupScale is the part of Scale that one process group has.
type GroupScale struct {
	Scale volant.Scale `json:"scale"` // with defaults filled in
	Awake int          `json:"awake"`
	Total int          `json:"total"`
}

// ScalePatch is the body of PATCH /v1/apps/{app}/scale: nil fields stay as they are.
type ScalePatch struct {
	Min         *int                  `json:"min,omitempty"`
	Max         *int                  `json:"max,omitempty"`
	RegionMin   map[volant.Region]int `json:"region_min,omitempty"`
	RegionMax   map[volant.Region]int `json:"region_max,omitempty"`
	Regions     []volant.Region       `json:"regions,omitempty"`
	IdleTimeout *volant.Duration      `json:"idle_timeout,omitempty"`
	OnIdle      *string               `json:"on_idle,omitempty"`
	Keep        *volant.Duration      `json:"keep,omitempty"`
	NoWake      *bool                 `json:"no_wake,omitempty"`
	DrainAfter  *volant.Duration      `json:"drain_timeout,omitempty"`
	MaxQueue    *int                  `json:"max_queue,omitempty"`
	QueueTime   *volant.Duration      `json:"queue_timeout,omitempty"`
	MaxPerPeer  *int                  `json:"max_per_client,omitempty"`
	Spill       *string               `json:"spill,omitempty"`
	SpillRTT    *volant.Duration      `json:"spill_rtt,omitempty"`
}

// Apply returns s with the named fields replaced, and an error if the outcome makes no sense.
func (p *ScalePatch) Apply(s volant.Scale) (volant.Scale, error) {
	if p.Max != nil && *p.Max == 0 { // in a record it means the default
		return s, volant.Invalidf("max is 0: use 1 to %d", volant.MaxMachines).
			WithRemedy("so that connections start no machine, set auto_start = false")
	}
	set(&s.Min, p.Min)
	set(&s.Max, p.Max)
	set(&s.IdleTimeout, p.IdleTimeout)
	set(&s.OnIdle, p.OnIdle)
	set(&s.Keep, p.Keep)
	set(&s.NoWake, p.NoWake)
	set(&s.DrainAfter, p.DrainAfter)
	set(&s.MaxQueue, p.MaxQueue)
	set(&s.QueueTime, p.QueueTime)
	set(&s.MaxPerPeer, p.MaxPerPeer)
	set(&s.Spill, p.Spill)
	set(&s.SpillRTT, p.SpillRTT)
	if p.RegionMin != nil {
		s.RegionMin = p.RegionMin
	}
	if p.RegionMax != nil {
		s.RegionMax = p.RegionMax
	}
	if p.Regions != nil {
		s.Regions = p.Regions
	}
	return s, s.Check()
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// ResolveImage is the body of POST /v1/images/resolve.
type ResolveImage struct {
	Image   string        `json:"image"` // reference, such as ghcr.io/acme/web:1
	Auth    *RegistryAuth `json:"auth,omitempty"`
	OrgSlug string        `json:"org_slug,omitempty"` // who may use it; the token's organization
}

// ImageList answers GET /v1/images.
type ImageList struct {
	Images []Image `json:"images"`
}

// Image is a tag of the server's own registry.
type Image struct {
	Name      string    `json:"name"` // ORGANIZATION/REPOSITORY
	Tag       string    `json:"tag"`
	Digest    string    `json:"digest"`
	Size      int64     `json:"size"` // bytes of the blobs it names
	UpdatedAt time.Time `json:"updated_at"`
	Actor     string    `json:"actor"` // name of the token that pushed it last
}

// RegistryAuth is the right to pull from one registry. The server forgets it with the request.
type RegistryAuth struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identity_token,omitempty"`
	RegistryToken string `json:"registry_token,omitempty"`
}

// Progress is one line of a streamed POST /v1/images/{digest}/prepare or /v1/images/resolve.
type Progress struct {
	Phase  string `json:"phase"`            // pull, convert, done, failed
	Done   int64  `json:"done"`             // bytes
	Total  int64  `json:"total"`            // bytes; 0 if unknown
	Digest string `json:"digest,omitempty"` // of the image's manifest, when it is done
	Error  *Error `json:"error,omitempty"`
}

// LogEntry is one line of a machine's log.
type LogEntry struct {
	App     string    `json:"app"`
	Machine string    `json:"machine"`
	Region  string    `json:"region"`
	Seq     uint64    `json:"seq"`
	Time    time.Time `json:"timestamp"`
	Source  string    `json:"source"` // stdout, stderr, init
	Message string    `json:"message"`
}

// IPList answers GET …/ip_assignments.
type IPList struct {
	IPs []IPAssignment `json:"ips"`
}

// Health answers GET /v1/health.
type Health struct {
	Status string `json:"status"` // ok
}

// IPAssignment is an address of an app.
type IPAssignment struct {
	IP        string    `json:"ip"`
	Region    string    `json:"region"`
	Service   string    `json:"service_name"`
	Shared    bool      `json:"shared"` // other apps have it too, told apart by their host names
	CreatedAt time.Time `json:"created_at"`
}

// AssignIP is the body of POST /v1/apps/{app}/ip_assignments.
type AssignIP struct {
	Type        string `json:"type"`                   // v4, shared_v4, v6
	Region      string `json:"region,omitempty"`       // global, or empty: addresses are of all regions
	OrgSlug     string `json:"org_slug,omitempty"`     // the app's, if named
	Network     string `json:"network,omitempty"`      // only of private addresses, which are not served yet
	ServiceName string `json:"service_name,omitempty"` // a note of what it is for
}
