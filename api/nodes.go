package api

import "time"

// Node is one server.
type Node struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Region   string   `json:"region"`
	Roles    []string `json:"roles"`    // edge, host, control
	State    string   `json:"state"`    // ok, silent (it does not answer the node that was asked), unknown
	Draining bool     `json:"draining"` // its machines go elsewhere, and no new ones come
	Self     bool     `json:"self"`     // it answers this request
	// Control says what it is to the intent's store: empty (nothing, or not known), member, down (a member that does
	// not answer), learner (it catches up), joining (it is to become one), leaving.
	Control string `json:"control"`
	Mesh    string `json:"mesh_address"`     // its address in the mesh
	At      string `json:"endpoint"`         // where other servers reach it; empty: it has no mesh
	RTT     int64  `json:"rtt_ns,omitempty"` // from the node that was asked

	// Of the node that was asked, and of those that tell it.
	Version    string        `json:"version"`
	Engine     string        `json:"engine"`
	EngineWhy  string        `json:"engine_why"`
	Memory     int           `json:"memory_mb"`      // machines may hold
	MemoryFree int           `json:"memory_free_mb"` // of it, free
	Machines   int           `json:"machines"`
	Awake      int           `json:"awake"`
	Proxy      string        `json:"proxy"` // "running", or what is wrong
	ProxyPID   int           `json:"proxy_pid"`
	Uptime     time.Duration `json:"uptime_ns"`
}

// RemovedNode says what went with a node.
type RemovedNode struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Machines int      `json:"machines"` // that ran there
	Apps     []string `json:"apps"`     // whose they were
}

// CreateJoinToken is the body of POST /v1/join-tokens.
type CreateJoinToken struct {
	Name   string   `json:"name,omitempty"`
	Roles  []string `json:"roles,omitempty"`  // that servers may have which join by it; edge and host if empty
	Region string   `json:"region,omitempty"` // the only one they may join in; any if empty
	TTL    string   `json:"ttl,omitempty"`    // how long it is good, 1m to 720h; 1h
	Uses   int      `json:"uses,omitempty"`   // servers that may join by it, 1 to 1000; 1
}

// JoinToken is what may be shown of a join token: never itself.
type JoinToken struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Roles     []string  `json:"roles"`
	Region    string    `json:"region"` // empty: any
	Uses      int       `json:"uses"`   // that are left
	Nodes     []string  `json:"nodes"`  // that joined by it
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"` // name of the API token that made it
	ExpiresAt time.Time `json:"expires_at"`
}

// CreatedJoinToken answers a new join token. It is shown this once.
type CreatedJoinToken struct {
	JoinToken
	Token     string   `json:"token"`
	Addresses []string `json:"addresses"` // of the servers that let others in
}

// JoinTokenList are the join tokens that are good or were used.
type JoinTokenList struct {
	Tokens []JoinToken `json:"tokens"`
}

// SetRegion is the body of PUT /v1/platform/regions/{region}.
type SetRegion struct {
	Name      string  `json:"name"`
	Latitude  float64 `json:"latitude"`  // degrees, north positive
	Longitude float64 `json:"longitude"` // degrees, east positive
}
