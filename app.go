package volant

import "time"

// App is what a user deploys.
type App struct {
	Meta
	Name    string `json:"name"`
	Release uint64 `json:"release"` // version of the current release; 0 before the first deploy
	Scale   Scale  `json:"scale"`
	// GroupScale is the scale of process groups other than the default one.
	GroupScale map[string]Scale `json:"group_scale,omitempty"`
	// Network separates apps of one organization: none reaches those of another network. The default is empty.
	Network string `json:"network,omitempty"`
	// PrimaryRegion is where machines go that no client's region asks for; the first node's if empty.
	PrimaryRegion Region `json:"primary_region,omitempty"`
}

// Scale is how an app's machines come and go. Zero values mean the defaults given here.
type Scale struct {
	Min         int            `json:"min"`                      // awake machines in all; 0
	Max         int            `json:"max,omitempty"`            // machines in all; 10
	RegionMin   map[Region]int `json:"region_min,omitempty"`     // awake machines per region
	RegionMax   map[Region]int `json:"region_max,omitempty"`     // machines per region
	Regions     []Region       `json:"regions,omitempty"`        // where machines may be created; all
	IdleTimeout Duration       `json:"idle_timeout,omitempty"`   // calm before scale-in; 60s
	OnIdle      string         `json:"on_idle,omitempty"`        // suspend (default), stop, off (never scale in)
	Keep        Duration       `json:"keep,omitempty"`           // asleep beyond min before destroyed; 1h
	NoWake      bool           `json:"no_wake,omitempty"`        // auto_start = false: no wake, no create
	DrainAfter  Duration       `json:"drain_timeout,omitempty"`  // clients are asked to leave earlier; 0 never
	MaxQueue    int            `json:"max_queue,omitempty"`      // waiting connections per app and edge; 1024
	QueueTime   Duration       `json:"queue_timeout,omitempty"`  // the longest wait; 30s
	MaxPerPeer  int            `json:"max_per_client,omitempty"` // waiting connections per client /32 or /56; 64
	Spill       string         `json:"spill,omitempty"`          // soft (default), hard: when connections go to other regions
	SpillRTT    Duration       `json:"spill_rtt,omitempty"`      // round trip up to which a machine is near; 50ms
}

// Values for Scale.OnIdle.
const (
	OnIdleSuspend = "suspend"
	OnIdleStop    = "stop"
	OnIdleOff     = "off"
)

// Values for Scale.Spill.
const (
	SpillSoft = "soft" // as soon as all machines near are at their soft limit
	SpillHard = "hard" // when all machines near are at their hard limit
)

// WithDefaults returns s with every zero value that means a default replaced by it.
func (s Scale) WithDefaults() Scale {
	def := func(d *Duration, v time.Duration) {
		if *d == 0 {
			*d = Duration(v)
		}
	}
	defInt := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	defInt(&s.Max, 10)
	defInt(&s.MaxQueue, 1024)
	defInt(&s.MaxPerPeer, 64)
	def(&s.IdleTimeout, time.Minute)
	def(&s.Keep, time.Hour)
	def(&s.QueueTime, 30*time.Second)
	def(&s.SpillRTT, 50*time.Millisecond)
	if s.OnIdle == "" {
		s.OnIdle = OnIdleSuspend
	}
	if s.Spill == "" {
		s.Spill = SpillSoft
	}
	return s
}

// Least is the least number of awake machines over all regions.
func (s Scale) Least() int {
	n := 0
	for _, m := range s.RegionMin {
		n += m
	}
	return max(n, s.Min)
}

// Check says what is wrong with s, or nil.
func (s Scale) Check() error {
	d := s.WithDefaults()
	for r, n := range s.RegionMin {
		if !r.Valid() || n < 0 {
			return Invalidf("min of region %q is %d: use region codes such as \"ams\", and 0 or more", r, n)
		}
		if top, ok := s.RegionMax[r]; ok && n > top {
			return Invalidf("min of region %s is %d, above its max %d: lower the one or raise the other", r, n, top)
		}
	}
	for r, n := range s.RegionMax {
		if !r.Valid() || n < 0 {
			return Invalidf("max of region %q is %d: use region codes such as \"ams\", and 0 or more", r, n)
		}
	}
	for _, r := range s.Regions {
		if !r.Valid() {
			return Invalidf("region %q: use 2 to 8 lower-case letters and digits, such as \"ams\"", r)
		}
	}
	switch {
	case s.Min < 0 || s.Min > MaxMachines:
		return Invalidf("min is %d: use 0 to %d", s.Min, MaxMachines)
	case s.Max < 0 || s.Max > MaxMachines:
		return Invalidf("max is %d: use 1 to %d", s.Max, MaxMachines)
	case s.Least() > d.Max:
		return Invalidf("min is %d, above max %d: lower the one or raise the other", s.Least(), d.Max)
	case d.OnIdle != OnIdleSuspend && d.OnIdle != OnIdleStop && d.OnIdle != OnIdleOff:
		return Invalidf("on_idle is %q: use one of suspend, stop, off", s.OnIdle)
	case d.Spill != SpillSoft && d.Spill != SpillHard:
		return Invalidf("spill is %q: use one of soft, hard", s.Spill)
	case s.SpillRTT < 0 || s.SpillRTT > Duration(time.Second):
		return Invalidf("spill_rtt is %s: use 1ms to 1s", s.SpillRTT)
	case s.MaxQueue < 0 || s.MaxQueue > MaxWaiting:
		return Invalidf("max_queue is %d: use 1 to %d", s.MaxQueue, MaxWaiting)
	case s.MaxPerPeer < 0 || s.MaxPerPeer > MaxWaiting:
		return Invalidf("max_per_client is %d: use 1 to %d", s.MaxPerPeer, MaxWaiting)
	case d.IdleTimeout < Duration(time.Second) || d.IdleTimeout > Duration(day):
		return Invalidf("idle_timeout is %s: use 1s to 24h", s.IdleTimeout)
	case s.QueueTime < 0 || s.QueueTime > Duration(10*time.Minute):
		return Invalidf("queue_timeout is %s: use 1s to 10m", s.QueueTime)
	case s.Keep < 0 || s.Keep > Duration(30*day):
		return Invalidf("keep is %s: use 1s to 720h", s.Keep)
	case s.DrainAfter < 0 || s.DrainAfter > Duration(day):
		return Invalidf("drain_timeout is %s: use 0s to 24h", s.DrainAfter)
	}
	return nil
}

// Bounds of an app's scale.
const (
	day         = 24 * time.Hour
	MaxMachines = 1000    // of one app
	MaxWaiting  = 100_000 // connections of one app on one edge
)

// Release is one config of an app, with the image pinned by digest. Machines are created from it.
type Release struct {
	Meta
	Version uint64        `json:"version"` // 1, 2, …
	Image   Digest        `json:"image"`   // manifest digest
	Config  MachineConfig `json:"config"`  // template of its machines
	Status  ReleaseStatus `json:"status"`
	Reason  string        `json:"reason,omitempty"` // why it failed, for a person
	// WaitTimeout bounds how long one new machine may take to be healthy; 5m if zero.
	WaitTimeout Duration `json:"wait_timeout,omitempty"`

	// Others are the process groups beside the default one, which Config is the template of.
	Others   []Group `json:"others,omitempty"`
	Strategy string  `json:"strategy,omitempty"` // rolling (default), canary, bluegreen, immediate
	// MaxUnavailable bounds how many machines are replaced at once: 1 and more is a count, below it a
	// fraction; 0.33 if zero.
	MaxUnavailable float64         `json:"max_unavailable,omitempty"`
	Command        *ReleaseCommand `json:"release_command,omitempty"`
	CommandDone    bool            `json:"release_command_done,omitempty"`
	// Previous is the version that was current when this one became it.
	Previous uint64 `json:"previous,omitempty"`
}

// Group is a process group of a release.
type Group struct {
	Name   string        `json:"name"`
	Config MachineConfig `json:"config"`
}

// Groups are all process groups of the release, the default one first.
func (r *Release) Groups() []Group {
	return append([]Group{{Name: r.Config.Group(), Config: r.Config}}, r.Others...)
}

// ReleaseCommand runs once in a machine of its own before any machine changes. If it fails, so does the release.
type ReleaseCommand struct {
	Cmd     []string `json:"cmd"` // replaces the image's CMD; its ENTRYPOINT is kept
	Guest   Guest    `json:"guest,omitzero"`
	Timeout Duration `json:"timeout,omitempty"` // 5m
}

// The strategies of a release.
const (
	StrategyRolling   = "rolling"
	StrategyCanary    = "canary"
	StrategyBlueGreen = "bluegreen"
	StrategyImmediate = "immediate"
)

// ScaleOf is the scale of one process group; def is the name of the default group.
func (a *App) ScaleOf(group, def string) Scale {
	if group == def {
		return a.Scale
	}
	return a.GroupScale[group]
}

// ReleaseStatus tells how far a release has come.
type ReleaseStatus string

// The statuses of a release.
const (
	ReleasePending  ReleaseStatus = "pending"  // waits for the one before
	ReleaseRunning  ReleaseStatus = "running"  // machines are being replaced
	ReleaseComplete ReleaseStatus = "complete" // serves alone
	ReleaseFailed   ReleaseStatus = "failed"   // the old release serves on
)
