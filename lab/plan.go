package lab

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/lab/wire"
)

// plan is a lab as its Config makes it: who has which names and addresses. It is pure.
type plan struct {
	Config
	Nodes []nodePlan
}

// nodePlan is a server of the plan.
type nodePlan struct {
	Name   string // dfw-1
	Region string
	host   int    // its number in the region, from 1
	Link   string // the router's interface to it
	Addr4  netip.Addr
	Addr6  netip.Addr
	gate4  netip.Addr // the router's address on the link
	gate6  netip.Addr
}

func newPlan(c Config) plan {
	p := plan{Config: c}
	for r, region := range c.Regions {
		for h := 1; h <= c.Hosts; h++ {
			p.Nodes = append(p.Nodes, nodePlan{
				Name: fmt.Sprintf("%s-%d", region, h), Region: region, host: h, Link: "n" + strconv.Itoa(h),
				gate4: addr("10.%d.%d.1", r+1, h), Addr4: addr("10.%d.%d.2", r+1, h),
				gate6: addr("fd00:5:%x:%x::1", r+1, h), Addr6: addr("fd00:5:%x:%x::2", r+1, h),
			})
		}
	}
	return p
}

func addr(format string, args ...any) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf(format, args...))
}

// number is the region's place in the plan, from 1.
func (p *plan) number(region string) int { return slices.Index(p.Regions, region) + 1 }

func (p *plan) node(name string) (nodePlan, bool) {
	i := slices.IndexFunc(p.Nodes, func(n nodePlan) bool { return n.Name == name })
	if i < 0 {
		return nodePlan{}, false
	}
	return p.Nodes[i], true
}

// check says what of the config names servers that are not there.
func (p *plan) check() error {
	for name := range p.Roles {
		if _, ok := p.node(name); !ok {
			return p.unknown(name)
		}
	}
	if first := p.Nodes[0].Name; p.Roles[first] != nil && !slices.Contains(p.Roles[first], volant.RoleControl) {
		return volant.Invalidf("%s is the first server of its cluster: it needs the role control", first)
	}
	return nil
}

// roles are those of a server.
func (p *plan) roles(n nodePlan) []string {
	if r := p.Roles[n.Name]; len(r) > 0 {
		return r
	}
	if p.control(n.Name) {
		return []string{volant.RoleEdge, volant.RoleHost, volant.RoleControl}
	}
	return []string{volant.RoleEdge, volant.RoleHost}
}

// control says whether a server keeps the intent where no roles say so: one of each region before a second one of any.
func (p *plan) control(node string) bool {
	var ns []nodePlan
	for _, n := range p.Nodes {
		switch r := p.Roles[n.Name]; {
		case slices.Contains(r, volant.RoleControl):
			return false
		case len(r) == 0:
			ns = append(ns, n)
		}
	}
	slices.SortStableFunc(ns, func(a, b nodePlan) int {
		return cmp.Or(cmp.Compare(a.host, b.host), cmp.Compare(p.number(a.Region), p.number(b.Region)))
	})
	return slices.ContainsFunc(ns[:min(p.Control, len(ns))], func(n nodePlan) bool { return n.Name == node })
}

// in are the region's servers.
func (p *plan) in(region string) []nodePlan {
	return slices.DeleteFunc(slices.Clone(p.Nodes), func(n nodePlan) bool { return n.Region != region })
}

// The names of namespaces.
func (p *plan) prefix() string                { return "vlab-" + p.Name + "-" }
func (p *plan) nodeNS(node string) string     { return p.prefix() + node }
func (p *plan) machineNS(node string) string  { return p.prefix() + node + "-m" }
func (p *plan) routerNS(region string) string { return p.prefix() + region + "-r" }
func (p *plan) clientNS(region string) string { return p.prefix() + region + "-c" }

// place is the namespace of a server, of its machines of the fake engine (dfw-1-m), or of a region's clients.
func (p *plan) place(name string) (string, error) {
	if node, ok := strings.CutSuffix(name, "-m"); ok && p.fake() {
		if _, ok := p.node(node); ok {
			return p.machineNS(node), nil
		}
	}
	if _, ok := p.node(name); ok {
		return p.nodeNS(name), nil
	}
	if slices.Contains(p.Regions, name) {
		return p.clientNS(name), nil
	}
	return "", p.unknown(name)
}

func (p *plan) unknown(name string) error {
	var names []string
	for _, n := range p.Nodes {
		names = append(names, n.Name)
	}
	return volant.Errorf(volant.ErrNotFound, "the lab has neither a region nor a server %q", name).
		WithRemedy("regions are %s; servers are %s", strings.Join(p.Regions, ", "), strings.Join(names, ", "))
}

// clients4 and clients6 hold the addresses of a region's clients, servers4 and servers6 of its servers.
func (p *plan) clients4(region string) string {
	return fmt.Sprintf("10.%d.0.0/24", 100+p.number(region))
}
func (p *plan) clients6(region string) string { return fmt.Sprintf("fd00:c:%x::/48", p.number(region)) }
func (p *plan) servers4(region string) string { return fmt.Sprintf("10.%d.0.0/16", p.number(region)) }
func (p *plan) servers6(region string) string { return fmt.Sprintf("fd00:5:%x::/48", p.number(region)) }

// clientAddrs is how many clients a region has.
const clientAddrs = 254

// client is the address of the region's client i, from 0. Each has a /64 of its own.
func (p *plan) client(region string, i int, six bool) netip.Addr {
	i = ((i % clientAddrs) + clientAddrs) % clientAddrs
	if six {
		return addr("fd00:c:%x:%x::1", p.number(region), i)
	}
	return addr("10.%d.0.%d", 100+p.number(region), i+1)
}

// namespaces are all of the plan.
func (p *plan) namespaces() []string {
	var out []string
	for _, r := range p.Regions {
		out = append(out, p.routerNS(r), p.clientNS(r))
	}
	for _, n := range p.Nodes {
		out = append(out, p.nodeNS(n.Name))
		if p.fake() {
			out = append(out, p.machineNS(n.Name))
		}
	}
	return out
}

// fake says whether machines are a process in a namespace of its own beside each server's.
func (p *plan) fake() bool { return p.Engine == "fake" && !p.Bare }

// regionIP are the lines for ip in a region's router: its servers and clients.
func (p *plan) regionIP(region string) []string {
	n := p.number(region)
	lines := []string{
		"link set lo up",
		"link add c type veth peer name eth0 netns " + p.clientNS(region),
		fmt.Sprintf("addr add 10.%d.255.1/30 dev c", 100+n),
		fmt.Sprintf("addr add fd00:1:%x::1/64 dev c nodad", n),
		"link set c up",
		fmt.Sprintf("route add %s via 10.%d.255.2", p.clients4(region), 100+n),
		fmt.Sprintf("route add %s via fd00:1:%x::2", p.clients6(region), n),
	}
	for _, s := range p.in(region) {
		lines = append(lines, p.linkIP(s)...)
	}
	return lines
}

// linkIP are the lines for ip in the router that plug a server in.
func (p *plan) linkIP(s nodePlan) []string {
	return []string{
		fmt.Sprintf("link add %s type veth peer name eth0 netns %s", s.Link, p.nodeNS(s.Name)),
		fmt.Sprintf("addr add %s/30 dev %s", s.gate4, s.Link),
		fmt.Sprintf("addr add %s/64 dev %s nodad", s.gate6, s.Link),
		fmt.Sprintf("link set %s up", s.Link),
	}
}

// clientIP are the lines for ip where a region's clients are. All their addresses are local there.
func (p *plan) clientIP(region string) []string {
	n := p.number(region)
	return []string{
		"link set lo up",
		fmt.Sprintf("addr add 10.%d.255.2/30 dev eth0", 100+n),
		fmt.Sprintf("addr add fd00:1:%x::2/64 dev eth0 nodad", n),
		fmt.Sprintf("addr add %s/32 dev eth0", p.client(region, 0, false)),
		fmt.Sprintf("addr add %s/128 dev eth0 nodad", p.client(region, 0, true)),
		"link set eth0 up",
		fmt.Sprintf("route add local %s dev lo", p.clients4(region)),
		fmt.Sprintf("route add local %s dev lo", p.clients6(region)),
		fmt.Sprintf("route add default via 10.%d.255.1 src %s", 100+n, p.client(region, 0, false)),
		fmt.Sprintf("route add default via fd00:1:%x::1 src %s", n, p.client(region, 0, true)),
	}
}

// nodeIP are the lines for ip in a server.
func (p *plan) nodeIP(s nodePlan) []string {
	return []string{
		"link set lo up",
		fmt.Sprintf("addr add %s/30 dev eth0", s.Addr4),
		fmt.Sprintf("addr add %s/64 dev eth0 nodad", s.Addr6),
		"link set eth0 up",
		"route add default via " + s.gate4.String(),
		"route add default via " + s.gate6.String(),
	}
}

// machinesIP are the lines for ip in a server which lead to its machines of the fake engine.
func (p *plan) machinesIP(node string) []string {
	return []string{
		"link add m0 type veth peer name eth0 netns " + p.machineNS(node),
		"addr add fd00:8::1/64 dev m0 nodad",
		"link set m0 up",
		"route add " + backendNet + " via fd00:8::2",
	}
}

// machineIP are the lines for ip where those machines are.
func machineIP() []string {
	return []string{
		"link set lo up",
		"addr add fd00:8::2/64 dev eth0 nodad",
		"link set eth0 up",
		"route add local " + backendNet + " dev lo",
		"route add default via fd00:8::1",
	}
}

// wireIP are the lines for ip in a region's router, once its wires are plugged in.
func (p *plan) wireIP(region string) []string {
	var lines []string
	for i, w := range p.wires() {
		a, b, _ := strings.Cut(w, "-")
		if region != a && region != b {
			continue
		}
		own, peer, other := 1, 2, b
		if region == b {
			own, peer, other = 2, 1, a
		}
		dev, hop4, hop6 := "w-"+other, fmt.Sprintf("10.200.%d.", i), fmt.Sprintf("fd00:2:%x::", i)
		mac := func(end int) string { return fmt.Sprintf("02:76:6c:61:%02x:%02x", i, end) }
		lines = append(lines,
			fmt.Sprintf("link set %s address %s", dev, mac(own)),
			fmt.Sprintf("addr add %s%d/30 dev %s", hop4, own, dev),
			fmt.Sprintf("addr add %s%d/64 dev %s nodad", hop6, own, dev),
			fmt.Sprintf("link set %s up", dev),
			// Nobody asks over the wire who is there: the question would take a round trip of its own.
			fmt.Sprintf("neigh replace %s%d lladdr %s dev %s nud permanent", hop4, peer, mac(peer), dev),
			fmt.Sprintf("neigh replace %s%d lladdr %s dev %s nud permanent", hop6, peer, mac(peer), dev),
			fmt.Sprintf("route add %s via %s%d", p.servers4(other), hop4, peer),
			fmt.Sprintf("route add %s via %s%d", p.clients4(other), hop4, peer),
			fmt.Sprintf("route add %s via %s%d", p.servers6(other), hop6, peer),
			fmt.Sprintf("route add %s via %s%d", p.clients6(other), hop6, peer),
		)
	}
	return lines
}

// hop is the far end of the wire from a region to another.
func (p *plan) hop(from, to string) (v4, v6 string) {
	name, _ := p.wire(from, to)
	i := slices.Index(p.wires(), name)
	peer := 2
	if strings.HasSuffix(name, "-"+from) {
		peer = 1
	}
	return fmt.Sprintf("10.200.%d.%d", i, peer), fmt.Sprintf("fd00:2:%x::%d", i, peer)
}

// wireSpecs are the wires as they are to be.
func (p *plan) wireSpecs(f faults) []wire.Spec {
	specs := []wire.Spec{}
	for _, w := range p.wires() {
		a, b, _ := strings.Cut(w, "-")
		specs = append(specs, wire.Spec{
			Name: w, Delay: p.Delays[w], Loss: f.Loss[w], Cut: f.cutWire(a, b),
			A: wire.End{Namespace: p.routerNS(a), Interface: "w-" + b},
			B: wire.End{Namespace: p.routerNS(b), Interface: "w-" + a},
		})
	}
	return specs
}
