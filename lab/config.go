package lab

import (
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
)

// Config says which planet to build. Regions are required.
type Config struct {
	Name    string   `json:"name"`    // "default"
	Dir     string   `json:"dir"`     // everything of the lab; new or empty; /var/lib/volant-lab/NAME
	Regions []string `json:"regions"` // codes; see Places
	Hosts   int      `json:"hosts"`   // servers in each region; 1
	Control int      `json:"control"` // servers that keep the intent, the first of each region first: 1, 3 or 5; 1
	Engine  string   `json:"engine"`  // auto, qemu or fake
	Bin     string   `json:"bin"`     // the volant binary; this program if empty
	Kernel  string   `json:"kernel"`  // the guests' kernel; /var/lib/volant/kernel
	// Delays are of wires, one way, by "dfw-ord"; those of other wires follow from the distance.
	Delays map[string]time.Duration `json:"delays,omitempty"`
	// Pool4 and Pool6 are the anycast prefixes apps get addresses of; 198.51.100.0/24 and 2001:db8:100::/48.
	Pool4 netip.Prefix `json:"pool4"`
	Pool6 netip.Prefix `json:"pool6"`
	// Roles are of single servers, by name. The others are edge and host; the first Control of them are control too,
	// unless Roles gives that to some.
	Roles map[string][]string `json:"roles,omitempty"`
	// Bare builds the network and starts no node.
	Bare bool `json:"bare,omitempty"`
	// Server has more lines of server configuration, TOML, for each node; Host more keys of its [host] table.
	Server string `json:"server,omitempty"`
	Host   string `json:"host,omitempty"`
	// Env is more environment of each node's processes.
	Env []string `json:"env,omitempty"`
}

// What the address plan has room for.
const (
	maxRegions = 16
	maxHosts   = 16
	maxNodes   = 48
	maxDelay   = 10 * time.Second
)

var labName = regexp.MustCompile(`^[a-z0-9]{1,12}$`)

// DefaultDir is where the state of the lab with that name is.
func DefaultDir(name string) string { return filepath.Join("/var/lib/volant-lab", name) }

// withDefaults fills in what is not said, all but what the machine decides (Bin, Engine, Kernel).
func (c Config) withDefaults() (Config, error) {
	if c.Name == "" {
		c.Name = "default"
	}
	if c.Dir == "" {
		c.Dir = DefaultDir(c.Name)
	}
	for _, n := range []*int{&c.Hosts, &c.Control} {
		if *n == 0 {
			*n = 1
		}
	}
	if c.Engine == "" {
		c.Engine = "auto"
	}
	if c.Kernel == "" {
		c.Kernel = "/var/lib/volant/kernel"
	}
	if !c.Pool4.IsValid() {
		c.Pool4 = netip.MustParsePrefix("198.51.100.0/24")
	}
	if !c.Pool6.IsValid() {
		c.Pool6 = netip.MustParsePrefix("2001:db8:100::/48")
	}
	if err := c.check(); err != nil {
		return c, err
	}
	return c, c.fillDelays()
}

func (c *Config) check() error {
	switch {
	case !labName.MatchString(c.Name):
		return volant.Invalidf("lab name %q: use 1 to 12 lower-case letters and digits", c.Name)
	case len(c.Regions) == 0:
		return volant.Invalidf("a lab needs regions").WithRemedy("name some with --regions, such as dfw,ord,ams")
	case len(c.Regions) > maxRegions:
		return volant.Invalidf("%d regions: a lab has room for %d", len(c.Regions), maxRegions)
	case c.Hosts < 1 || c.Hosts > maxHosts || c.Hosts*len(c.Regions) > maxNodes:
		return volant.Invalidf("%d servers in each of %d regions: use 1 to %d, and %d in all", c.Hosts, len(c.Regions), maxHosts, maxNodes)
	case c.Control != 1 && c.Control != 3 && c.Control != 5:
		return volant.Invalidf("%d servers with control: use 1, 3 or 5", c.Control)
	case c.Control > c.Hosts*len(c.Regions):
		return volant.Invalidf("%d servers with control, and %d in all", c.Control, c.Hosts*len(c.Regions))
	case c.Engine != "auto" && c.Engine != "qemu" && c.Engine != "fake":
		return volant.Invalidf("engine %q: use auto, qemu or fake", c.Engine)
	case !c.Pool4.Addr().Is4() || !c.Pool6.Addr().Is6():
		return volant.Invalidf("the pools are an IPv4 and an IPv6 prefix, not %s and %s", c.Pool4, c.Pool6)
	}
	seen := map[string]bool{}
	for _, r := range c.Regions {
		switch {
		case !volant.Region(r).Valid():
			return volant.Invalidf("region %q: use 2 to 8 lower-case letters and digits", r)
		case seen[r]:
			return volant.Invalidf("region %s is named twice", r)
		}
		seen[r] = true
	}
	return nil
}

// fillDelays gives each wire its delay, and refuses one that is of no wire.
func (c *Config) fillDelays() error {
	given := c.Delays
	c.Delays = map[string]time.Duration{}
	for i, a := range c.Regions {
		for _, b := range c.Regions[i+1:] {
			d, ok := given[a+"-"+b]
			if !ok {
				d, ok = given[b+"-"+a]
			}
			if !ok {
				pa, oka := PlaceOf(a)
				pb, okb := PlaceOf(b)
				if !oka || !okb {
					return volant.Invalidf("nobody here knows how far it is from %s to %s", a, b).
						WithRemedy("say it: --delay %s-%s=10ms", a, b)
				}
				d = pa.delay(pb)
			}
			if d < 0 || d > maxDelay {
				return volant.Invalidf("a delay of %s: use 0 to %s", d, maxDelay)
			}
			c.Delays[a+"-"+b] = d
		}
	}
	for _, w := range slices.Sorted(maps.Keys(given)) {
		a, b, _ := strings.Cut(w, "-")
		if _, ok := c.wire(a, b); !ok {
			return volant.Invalidf("%q is no wire of this lab", w).WithRemedy("write a delay as dfw-ord=10ms, with two of %s", strings.Join(c.Regions, ", "))
		}
	}
	return nil
}

// wire is the name of the wire between two regions.
func (c *Config) wire(a, b string) (string, bool) {
	for _, name := range []string{a + "-" + b, b + "-" + a} {
		if _, ok := c.Delays[name]; ok {
			return name, true
		}
	}
	return "", false
}

// wires are the names of all wires, sorted by the order of regions.
func (c *Config) wires() []string {
	var out []string
	for i, a := range c.Regions {
		for _, b := range c.Regions[i+1:] {
			out = append(out, a+"-"+b)
		}
	}
	return out
}
