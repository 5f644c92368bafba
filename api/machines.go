package api

import (
	"time"

	volant "github.com/volant-edge/volant"
)

// Process is a process in a machine.
type Process struct {
	PID           int            `json:"pid"`
	STime         int64          `json:"stime"` // when it started, Unix seconds
	RTime         int64          `json:"rtime"` // how long it runs, seconds
	Command       string         `json:"command"`
	Directory     string         `json:"directory"`
	CPU           int64          `json:"cpu"` // time on CPUs so far, milliseconds
	RSS           uint64         `json:"rss"` // memory, bytes
	ListenSockets []ListenSocket `json:"listen_sockets"`
}

// ListenSocket is a socket that a process listens on.
type ListenSocket struct {
	Proto   string `json:"proto"` // tcp, udp
	Address string `json:"address"`
}

// Memory answers GET …/memory.
type Memory struct {
	AvailableMB int `json:"available_mb"` // its guest could still use
	LimitMB     int `json:"limit_mb"`
}

// OrgMachine is a machine in a list of an organization's.
type OrgMachine struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	AppName    string            `json:"app_name"`
	State      string            `json:"state"`
	Region     string            `json:"region"`
	InstanceID string            `json:"instance_id"`
	Version    string            `json:"version"`
	PrivateIP  string            `json:"private_ip"`
	CreatedAt  time.Time         `json:"created_at"`
	UpdatedAt  time.Time         `json:"updated_at"`
	Config     *OrgMachineConfig `json:"config,omitempty"`
}

// OrgMachineConfig is the part of a machine's config that such a list shows.
type OrgMachineConfig struct {
	Image    string            `json:"image"`
	Guest    volant.Guest      `json:"guest"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// OrgMachines answers GET /v1/orgs/{org}/machines.
type OrgMachines struct {
	Machines      []OrgMachine `json:"machines"`
	NextCursor    string       `json:"next_cursor"` // for the next part; empty: there is none
	LastMachineID string       `json:"last_machine_id"`
	LastUpdatedAt string       `json:"last_updated_at"`
	ErrorRegions  []string     `json:"error_regions"` // always empty: none is asked
}

// Regions answers GET /v1/platform/regions.
type Regions struct {
	Nearest string   `json:"nearest"`
	Regions []Region `json:"regions"`
}

// Region is a place that machines run in.
type Region struct {
	Code             string  `json:"code"`
	Name             string  `json:"name"`
	Latitude         float64 `json:"latitude"` // 0 and 0 where the place is not known
	Longitude        float64 `json:"longitude"`
	GatewayAvailable bool    `json:"gateway_available"`
	RequiresPaidPlan bool    `json:"requires_paid_plan"`
	Deprecated       bool    `json:"deprecated"`
	Capacity         int     `json:"capacity"` // machines of the size asked for, or the default one, that have room now
	GeoRegion        string  `json:"geo_region"`
}

// PlacementRequest is the body of POST /v1/platform/placements.
type PlacementRequest struct {
	Org     string         `json:"org_slug"`
	Compute volant.Guest   `json:"compute,omitzero"`
	Region  string         `json:"region,omitempty"`  // codes with commas between, in order; "any" is the rest. All if empty
	Count   int            `json:"count,omitempty"`   // machines; 0 asks for all that have room
	Weights map[string]int `json:"weights,omitempty"` // taken, and without effect while one server is asked

	VolumeName string `json:"volume_name,omitempty"` // 400: there are no volumes yet
	VolumeSize uint64 `json:"volume_size_bytes,omitempty"`
}

// Placements answers it.
type Placements struct {
	Regions []Placement `json:"regions"`
}

// Placement is how many machines go to a region.
type Placement struct {
	Region      string `json:"region"`
	Count       int    `json:"count"`
	Concurrency int    `json:"concurrency"` // of them that may be created at once
}
