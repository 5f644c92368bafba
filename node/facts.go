package node

import (
	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
)

// room is what a node tells of its host, and of the way to other regions.
type room struct {
	Host       bool           `json:"host,omitempty"` // it takes machines
	MemoryMB   int            `json:"memory_mb,omitempty"`
	OverheadMB int            `json:"overhead_mb,omitempty"` // of each machine
	Shared     int            `json:"shared,omitempty"`      // shared vCPUs that may still be promised
	Cores      int            `json:"cores,omitempty"`       // whole cores that are free
	Isolates   bool           `json:"isolates,omitempty"`    // takes machines of several organizations
	Orgs       []volant.OrgID `json:"orgs,omitempty"`        // which have machines here, two at most; empty where it isolates
	// RTT is the round trip to other regions, in milliseconds.
	RTT   map[volant.Region]float64 `json:"rtt,omitempty"`
	Clock int64                     `json:"clock,omitempty"` // when it was told, in milliseconds of Unix time
}

// roomFact is a node's room as a fact.
func roomFact(node volant.NodeID, v live.Version, r room) (live.Fact, error) {
	f, err := live.EncodeRoom(node, v, r)
	if err != nil {
		r.RTT = nil // what is near is found by the map then
		f, err = live.EncodeRoom(node, v, r)
	}
	return f, err
}
