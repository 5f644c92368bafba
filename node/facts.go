package node

import (
	"encoding/json"
	"fmt"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
	"github.com/volant-edge/volant/proxy"
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

// encodeRoom is r as the body of a fact.
func encodeRoom(r room) ([]byte, error) {
	b, err := json.Marshal(r)
	if err == nil && len(b) > live.MaxBody {
		r.RTT = nil // a nearest region is found by the map then
		b, err = json.Marshal(r)
	}
	if err == nil && len(b) > live.MaxBody {
		err = fmt.Errorf("the room takes %d bytes", len(b))
	}
	return b, err
}

func decodeRoom(b []byte) (r room, err error) {
	err = json.Unmarshal(b, &r)
	return r, err
}

func encodeHave(h volant.Have) ([]byte, error) { return json.Marshal(h) }

func decodeHave(b []byte) (h volant.Have, err error) {
	err = json.Unmarshal(b, &h)
	return h, err
}

func decodeLoad(b []byte) (l proxy.Load, err error) {
	err = json.Unmarshal(b, &l)
	return l, err
}

func decodeSlots(b []byte) (n int, err error) {
	err = json.Unmarshal(b, &n)
	return n, err
}
