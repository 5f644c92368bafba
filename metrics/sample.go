package metrics

import volant "github.com/volant-edge/volant"

// Sample is what a node measured at one moment.
type Sample struct {
	Node   volant.NodeID
	Region volant.Region
	Apps   []App
	Own    *Own // of the node itself; nil where the reader may not see it
}

// App is one app.
type App struct {
	Name     string
	Traffic  *Traffic // nil while no proxy answers
	Machines []Machine
}

// Traffic is what the proxy counted of an app.
type Traffic struct {
	Waiting, Slots    int
	Served, Ended     uint64
	Refused           map[string]uint64 // by the rule
	BytesIn, BytesOut uint64
	Connect           Histogram // seconds
	HTTP              []Responses
	HandshakeErrors   map[string]uint64 // by server name
	Handshakes        map[string]Histogram
}

// Responses are the HTTP responses of one status.
type Responses struct {
	Status int
	Time   Histogram // seconds
}

// Histogram has the counts of observations up to each bound.
type Histogram struct {
	Bounds []float64
	Counts []uint64 // by bound, each with the ones below
	Sum    float64
	Count  uint64
}

// Machine is one machine.
type Machine struct {
	ID    volant.MachineID
	Up    bool
	Slots int
	Exit  *volant.Exit // how its last run ended
	Boots uint64
	Guest *Guest // what an awake one says of itself
	// CPU is the seconds of CPU its VMM used since it was made, and Throttled those it wanted and did not get.
	CPU, Throttled float64
}

// Guest is what a guest counts, by names of the guest's own choice.
type Guest struct {
	Memory      map[string]uint64
	Load        [3]float64
	CPU         map[string]map[string]uint64
	Disks       map[string]map[string]uint64
	Links       map[string]map[string]uint64
	Files       map[string]uint64
	FileSystems map[string]map[string]uint64
}

// Own is the node itself.
type Own struct {
	Version                string
	MemoryMB, MemoryFreeMB int
	Machines, Awake        int
	ProxyUp                bool
	UptimeSeconds          float64
	Revision               uint64 // of the intent it has
	Live                   *Live  // what it tells other nodes and hears of them; nil on one that is alone
}

// Live is how facts travel between this node and others.
type Live struct {
	Peers, Silent   int
	Facts           int     // known of others
	Behind          int     // own ones that some node has not acknowledged
	LagSeconds      float64 // how long the oldest of them waits
	Sent, Received  uint64  // bytes
	Resent, Refused uint64  // facts, datagrams
	Mismatches      uint64  // digests of others that differed
}
