package lab

import (
	"fmt"
	"slices"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
)

// faults is what was done to a lab.
type faults struct {
	Cuts []Cut    `json:"cuts,omitempty"`
	Dead []string `json:"dead,omitempty"` // servers that were killed
	// Away are servers that are heard, and to which routers do not send clients yet: they start.
	Away []string           `json:"away,omitempty"`
	Loss map[string]float64 `json:"loss,omitempty"` // of wires, by name
}

// Cut keeps two regions or servers from each other. With B empty A is cut off from everything.
type Cut struct {
	A string `json:"a"`
	B string `json:"b,omitempty"`
}

func (c Cut) same(d Cut) bool { return c == d || c == Cut{d.B, d.A} }

func (c Cut) String() string {
	if c.B == "" {
		return c.A + " from all"
	}
	return c.A + " from " + c.B
}

// cutWire says whether the wire between two regions is cut.
func (f *faults) cutWire(a, b string) bool {
	return slices.ContainsFunc(f.Cuts, func(c Cut) bool {
		return c.same(Cut{a, b}) || c.B == "" && (c.A == a || c.A == b)
	})
}

// silent says whether nothing of the server is heard.
func (f *faults) silent(node string) bool {
	return slices.Contains(f.Dead, node) || slices.Contains(f.Cuts, Cut{A: node})
}

// serves says whether a router may send clients to the server.
func (p *plan) serves(n nodePlan, f *faults) bool {
	return !f.silent(n.Name) && !slices.Contains(f.Away, n.Name) && slices.Contains(p.roles(n), volant.RoleEdge)
}

// firewall is the text for nft in a region's router: the packets that vanish.
func (p *plan) firewall(region string, f faults) string {
	var rules []string
	drop := func(format string, args ...any) { rules = append(rules, fmt.Sprintf(format, args...)+" drop") }
	for _, n := range p.in(region) {
		if f.silent(n.Name) {
			drop("iifname %q", n.Link)
			drop("oifname %q", n.Link)
			continue
		}
		for _, c := range f.Cuts {
			far := c.B
			if c.B == n.Name {
				far = c.A
			}
			if c.A != n.Name && c.B != n.Name {
				continue
			}
			v4, v6 := p.addresses(far)
			drop("iifname %q ip daddr { %s }", n.Link, v4)
			drop("oifname %q ip saddr { %s }", n.Link, v4)
			drop("iifname %q ip6 daddr { %s }", n.Link, v6)
			drop("oifname %q ip6 saddr { %s }", n.Link, v6)
		}
	}
	// The first line makes the second one succeed.
	return "table inet vlab\ndelete table inet vlab\ntable inet vlab {\n\tchain forward {\n" +
		"\t\ttype filter hook forward priority -300; policy accept;\n\t\t" + strings.Join(rules, "\n\t\t") + "\n\t}\n}\n"
}

// addresses are those of a region with its clients, or of a server.
func (p *plan) addresses(name string) (v4, v6 string) {
	if n, ok := p.node(name); ok {
		return n.Addr4.String(), n.Addr6.String()
	}
	return p.servers4(name) + ", " + p.clients4(name), p.servers6(name) + ", " + p.clients6(name)
}

// anycastIP are the lines for ip in a region's router which say where apps' addresses are.
func (p *plan) anycastIP(region string, f faults) []string {
	var hops4, hops6 []string
	for _, n := range p.in(region) {
		if p.serves(n, &f) {
			hops4, hops6 = append(hops4, n.Addr4.String()), append(hops6, n.Addr6.String())
		}
	}
	if len(hops4) == 0 {
		if near := p.nearest(region, f); near != "" {
			v4, v6 := p.hop(region, near)
			hops4, hops6 = []string{v4}, []string{v6}
		}
	}
	if len(hops4) == 0 {
		return []string{"route replace blackhole " + p.Pool4.String(), "route replace blackhole " + p.Pool6.String()}
	}
	// A blackhole of an earlier state would stay beside the IPv6 route.
	return []string{
		fmt.Sprintf("route replace %s%s", p.Pool4, nexthops(hops4)),
		fmt.Sprintf("route replace %s%s", p.Pool6, nexthops(hops6)),
	}
}

func nexthops(hops []string) string {
	if len(hops) == 1 {
		return " via " + hops[0]
	}
	var b strings.Builder
	for _, h := range hops {
		b.WriteString(" nexthop via " + h)
	}
	return b.String()
}

// nearest is the region with a live server to which the wire is the shortest, or "".
func (p *plan) nearest(region string, f faults) string {
	best, took := "", time.Duration(0)
	for _, r := range p.Regions {
		if r == region || f.cutWire(region, r) || !slices.ContainsFunc(p.in(r), func(n nodePlan) bool { return p.serves(n, &f) }) {
			continue
		}
		w, _ := p.wire(region, r)
		if d := p.Delays[w]; best == "" || d < took {
			best, took = r, d
		}
	}
	return best
}

// checkCut says why something cannot be cut.
func (p *plan) checkCut(c Cut) error {
	for _, name := range []string{c.A, c.B} {
		if _, ok := p.node(name); !ok && !slices.Contains(p.Regions, name) && (name != "" || c.A == "") {
			return p.unknown(name)
		}
	}
	if c.A == c.B {
		return volant.Invalidf("%s cannot be cut off from itself", c.A).WithRemedy("name two regions or servers, or one to cut it off from all")
	}
	return nil
}

// checkWire returns the name of the wire between two regions.
func (p *plan) checkWire(a, b string) (string, error) {
	for _, r := range []string{a, b} {
		if !slices.Contains(p.Regions, r) {
			return "", volant.Errorf(volant.ErrNotFound, "the lab has no region %q; wires are between two regions", r).
				WithRemedy("regions are %s", strings.Join(p.Regions, ", "))
		}
	}
	w, ok := p.wire(a, b)
	if !ok {
		return "", volant.Invalidf("there is no wire from %s to itself", a).WithRemedy("name two regions")
	}
	return w, nil
}
