package lab

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	volant "github.com/volant-edge/volant"
)

func planned(t *testing.T, c Config) plan {
	t.Helper()
	c, err := c.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return newPlan(c)
}

func two(t *testing.T) plan {
	return planned(t, Config{Regions: []string{"dfw", "ord"}, Hosts: 2})
}

func three(t *testing.T) plan {
	return planned(t, Config{Regions: []string{"dfw", "ord", "ams"}})
}

// text compares lines with what is written in a test, without its indentation.
func text(t *testing.T, what string, got []string, want string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(want) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if diff := cmp.Diff(lines, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestNetwork(t *testing.T) {
	p := two(t)
	text(t, "router", p.regionIP("ord"), `
		link set lo up
		link add c type veth peer name eth0 netns vlab-default-ord-c
		addr add 10.102.255.1/30 dev c
		addr add fd00:1:2::1/64 dev c nodad
		link set c up
		route add 10.102.0.0/24 via 10.102.255.2
		route add fd00:c:2::/48 via fd00:1:2::2
		link add n1 type veth peer name eth0 netns vlab-default-ord-1
		addr add 10.2.1.1/30 dev n1
		addr add fd00:5:2:1::1/64 dev n1 nodad
		link set n1 up
		link add n2 type veth peer name eth0 netns vlab-default-ord-2
		addr add 10.2.2.1/30 dev n2
		addr add fd00:5:2:2::1/64 dev n2 nodad
		link set n2 up`)
	text(t, "client", p.clientIP("ord"), `
		link set lo up
		addr add 10.102.255.2/30 dev eth0
		addr add fd00:1:2::2/64 dev eth0 nodad
		addr add 10.102.0.1/32 dev eth0
		addr add fd00:c:2::1/128 dev eth0 nodad
		link set eth0 up
		route add local 10.102.0.0/24 dev lo
		route add local fd00:c:2::/48 dev lo
		route add default via 10.102.255.1 src 10.102.0.1
		route add default via fd00:1:2::1 src fd00:c:2::1`)
	text(t, "server", p.nodeIP(p.Nodes[3]), `
		link set lo up
		addr add 10.2.2.2/30 dev eth0
		addr add fd00:5:2:2::2/64 dev eth0 nodad
		link set eth0 up
		route add default via 10.2.2.1
		route add default via fd00:5:2:2::1`)
	text(t, "to machines", p.machinesIP("ord-2"), `
		link add m0 type veth peer name eth0 netns vlab-default-ord-2-m
		addr add fd00:8::1/64 dev m0 nodad
		link set m0 up
		route add fd00:9::/64 via fd00:8::2`)
	text(t, "wire", p.wireIP("ord"), `
		link set w-dfw address 02:76:6c:61:00:02
		addr add 10.200.0.2/30 dev w-dfw
		addr add fd00:2:0::2/64 dev w-dfw nodad
		link set w-dfw up
		neigh replace 10.200.0.1 lladdr 02:76:6c:61:00:01 dev w-dfw nud permanent
		neigh replace fd00:2:0::1 lladdr 02:76:6c:61:00:01 dev w-dfw nud permanent
		route add 10.1.0.0/16 via 10.200.0.1
		route add 10.101.0.0/24 via 10.200.0.1
		route add fd00:5:1::/48 via fd00:2:0::1
		route add fd00:c:1::/48 via fd00:2:0::1`)
}

// Names of interfaces have room for 15 bytes, and each wire plugs in at both ends.
func TestWires(t *testing.T) {
	var regions []string
	for i := range maxRegions {
		regions = append(regions, "region"+string(rune('a'+i/10))+string(rune('0'+i%10)))
	}
	delays := map[string]time.Duration{}
	for i, a := range regions {
		for _, b := range regions[i+1:] {
			delays[b+"-"+a] = time.Millisecond
		}
	}
	p := planned(t, Config{Name: "twelveletter", Regions: regions, Hosts: 3, Delays: delays})
	specs := p.wireSpecs(faults{})
	if got, want := len(specs), maxRegions*(maxRegions-1)/2; got != want {
		t.Errorf("%d wires, want %d", got, want)
	}
	seen := map[string]bool{}
	for _, s := range specs {
		for _, e := range []string{s.A.Namespace + " " + s.A.Interface, s.B.Namespace + " " + s.B.Interface} {
			if seen[e] {
				t.Errorf("two wires at %s", e)
			}
			seen[e] = true
		}
		if len(s.A.Interface) > 15 || len(s.B.Interface) > 15 {
			t.Errorf("interfaces %s and %s are too long for the kernel", s.A.Interface, s.B.Interface)
		}
		if s.Delay != time.Millisecond {
			t.Errorf("wire %s: delay %s", s.Name, s.Delay)
		}
	}
}

func TestAnycast(t *testing.T) {
	for _, c := range []struct {
		name   string
		faults faults
		plan   func(*testing.T) plan
		want   string
	}{
		{"its own servers, all of them", faults{}, two, `
			route replace 198.51.100.0/24 nexthop via 10.1.1.2 nexthop via 10.1.2.2
			route replace 2001:db8:100::/48 nexthop via fd00:5:1:1::2 nexthop via fd00:5:1:2::2`},
		{"not a dead one", faults{Dead: []string{"dfw-1"}}, two, `
			route replace 198.51.100.0/24 via 10.1.2.2
			route replace 2001:db8:100::/48 via fd00:5:1:2::2`},
		{"not one that is cut off from all", faults{Cuts: []Cut{{A: "dfw-2"}}}, two, `
			route replace 198.51.100.0/24 via 10.1.1.2
			route replace 2001:db8:100::/48 via fd00:5:1:1::2`},
		{"one that only some do not reach", faults{Cuts: []Cut{{A: "dfw-2", B: "ord"}}, Dead: []string{"dfw-1"}}, two, `
			route replace 198.51.100.0/24 via 10.1.2.2
			route replace 2001:db8:100::/48 via fd00:5:1:2::2`},
		{"the nearest region", faults{Dead: []string{"dfw-1"}}, three, `
			route replace 198.51.100.0/24 via 10.200.0.2
			route replace 2001:db8:100::/48 via fd00:2:0::2`},
		{"the next, where the wire is cut", faults{Dead: []string{"dfw-1"}, Cuts: []Cut{{"ord", "dfw"}}}, three, `
			route replace 198.51.100.0/24 via 10.200.1.2
			route replace 2001:db8:100::/48 via fd00:2:1::2`},
		{"the next, where all are dead", faults{Dead: []string{"dfw-1", "ord-1"}}, three, `
			route replace 198.51.100.0/24 via 10.200.1.2
			route replace 2001:db8:100::/48 via fd00:2:1::2`},
		{"not one that starts", faults{Away: []string{"dfw-1"}}, two, `
			route replace 198.51.100.0/24 via 10.1.2.2
			route replace 2001:db8:100::/48 via fd00:5:1:2::2`},
		{"only edges", faults{}, func(t *testing.T) plan {
			return planned(t, Config{Regions: []string{"dfw", "ord"}, Hosts: 2, Roles: map[string][]string{"dfw-1": {"host", "control"}}})
		}, `
			route replace 198.51.100.0/24 via 10.1.2.2
			route replace 2001:db8:100::/48 via fd00:5:1:2::2`},
		{"nowhere", faults{Dead: []string{"dfw-1"}, Cuts: []Cut{{A: "dfw"}}}, three, `
			route replace blackhole 198.51.100.0/24
			route replace blackhole 2001:db8:100::/48`},
	} {
		p := c.plan(t)
		text(t, c.name, p.anycastIP("dfw", c.faults), c.want)
	}
}

func TestFirewall(t *testing.T) {
	p := two(t)
	rules := func(region string, f faults) []string {
		var out []string
		for line := range strings.Lines(p.firewall(region, f)) {
			if strings.HasSuffix(line, "drop\n") {
				out = append(out, strings.TrimSpace(line))
			}
		}
		return out
	}
	text(t, "nothing", rules("dfw", faults{}), "")
	text(t, "a wire is cut by the wire", rules("dfw", faults{Cuts: []Cut{{"dfw", "ord"}}}), "")
	text(t, "the dead are silent", rules("dfw", faults{Dead: []string{"dfw-2", "ord-1"}}), `
		iifname "n2" drop
		oifname "n2" drop`)
	text(t, "a server from another region", rules("dfw", faults{Cuts: []Cut{{"ord", "dfw-1"}}}), `
		iifname "n1" ip daddr { 10.2.0.0/16, 10.102.0.0/24 } drop
		oifname "n1" ip saddr { 10.2.0.0/16, 10.102.0.0/24 } drop
		iifname "n1" ip6 daddr { fd00:5:2::/48, fd00:c:2::/48 } drop
		oifname "n1" ip6 saddr { fd00:5:2::/48, fd00:c:2::/48 } drop`)
	text(t, "two servers", rules("ord", faults{Cuts: []Cut{{"ord-2", "dfw-1"}}}), `
		iifname "n2" ip daddr { 10.1.1.2 } drop
		oifname "n2" ip saddr { 10.1.1.2 } drop
		iifname "n2" ip6 daddr { fd00:5:1:1::2 } drop
		oifname "n2" ip6 saddr { fd00:5:1:1::2 } drop`)
}

func TestDistances(t *testing.T) {
	p := planned(t, Config{Regions: []string{"dfw", "ord", "ams", "syd"}, Delays: map[string]time.Duration{"ord-dfw": 3 * time.Millisecond}})
	for wire, want := range map[string][2]time.Duration{ // one way; what is measured between such cities
		"dfw-ord": {3 * time.Millisecond, 3 * time.Millisecond},
		"ord-ams": {40 * time.Millisecond, 60 * time.Millisecond},
		"dfw-syd": {80 * time.Millisecond, 120 * time.Millisecond},
		"ams-syd": {110 * time.Millisecond, 160 * time.Millisecond},
	} {
		if got := p.Delays[wire]; got < want[0] || got > want[1] {
			t.Errorf("wire %s: %s, want %s to %s", wire, got, want[0], want[1])
		}
	}
}

func TestControl(t *testing.T) {
	p := planned(t, Config{Regions: []string{"dfw", "ord", "ams"}, Hosts: 2, Control: 5})
	var got []string
	for _, n := range p.Nodes {
		if p.control(n.Name) {
			got = append(got, n.Name)
		}
	}
	if diff := cmp.Diff([]string{"dfw-1", "dfw-2", "ord-1", "ord-2", "ams-1"}, got); diff != "" {
		t.Errorf("servers with control (-want +got):\n%s", diff)
	}
}

func TestClients(t *testing.T) {
	p := three(t)
	for _, c := range []struct {
		i    int
		six  bool
		want string
	}{
		{0, false, "10.103.0.1"},
		{253, false, "10.103.0.254"},
		{254, false, "10.103.0.1"},
		{-1, false, "10.103.0.254"},
		{0, true, "fd00:c:3::1"},
		{17, true, "fd00:c:3:11::1"},
	} {
		if got := p.client("ams", c.i, c.six).String(); got != c.want {
			t.Errorf("client %d: %s, want %s", c.i, got, c.want)
		}
	}
}

func TestMistakes(t *testing.T) {
	regions := []string{"dfw", "ord"}
	for _, c := range []struct {
		name string
		c    Config
		want string
	}{
		{"no region", Config{}, "needs regions"},
		{"a region twice", Config{Regions: []string{"dfw", "dfw"}}, "named twice"},
		{"no region's code", Config{Regions: []string{"D-F-W"}}, "lower-case"},
		{"a name that is no part of others'", Config{Name: "a-b", Regions: regions}, "lab name"},
		{"too many servers", Config{Regions: regions, Hosts: 17}, "servers in each"},
		{"two with control", Config{Regions: regions, Control: 2}, "use 1, 3 or 5"},
		{"more with control than there are", Config{Regions: regions, Control: 3}, "2 in all"},
		{"an engine", Config{Regions: regions, Engine: "firecracker"}, "engine"},
		{"unknown places", Config{Regions: []string{"dfw", "moon"}}, "--delay dfw-moon=10ms"},
		{"a delay of no wire", Config{Regions: regions, Delays: map[string]time.Duration{"dfw-ams": 1}}, "no wire"},
		{"a delay below 0", Config{Regions: regions, Delays: map[string]time.Duration{"dfw-ord": -1}}, "delay of"},
	} {
		_, err := c.c.withDefaults()
		if !errors.Is(err, volant.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	p := three(t)
	for _, c := range []Cut{{"dfw", "dfw"}, {"dfw", "nobody"}, {"nobody", ""}, {"", ""}} {
		if err := p.checkCut(c); err == nil {
			t.Errorf("cut %q: no error", c)
		}
	}
	for _, w := range [][2]string{{"dfw", "dfw"}, {"dfw", "dfw-1"}, {"dfw", ""}} {
		if _, err := p.checkWire(w[0], w[1]); err == nil {
			t.Errorf("wire %q: no error", w)
		}
	}
}
