package volant

import "time"

// App is what a user deploys.
type App struct {
	Meta
	Name    string `json:"name"`
	Release uint64 `json:"release"` // version of the current release; 0 before the first deploy
	Scale   Scale  `json:"scale"`
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
}

// Values for Scale.OnIdle.
const (
	OnIdleSuspend = "suspend"
	OnIdleStop    = "stop"
	OnIdleOff     = "off"
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
	if s.OnIdle == "" {
		s.OnIdle = OnIdleSuspend
	}
	return s
}

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
