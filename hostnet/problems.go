package hostnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/netdump"
)

// Problem is something on this server that keeps machines from a working or a safe network.
type Problem struct {
	Found   string
	Remedy  string
	Serious bool // machines do not work; else some do not, or are less well shut in
}

// Problems looks for what is wrong and changes nothing. An error means that it could not look.
func (n *Net) Problems(ctx context.Context) ([]Problem, error) {
	ps, err := Problems(ctx, n.cfg)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fw != nil && n.fw.arpErr != nil {
		ps = append(ps, Problem{
			Found:  fmt.Sprintf("no firewall for ARP: %v", n.fw.arpErr),
			Remedy: "load the kernel's nf_tables with ARP (CONFIG_NF_TABLES_ARP); without it a machine can crowd the neighbour table",
		})
	}
	if n.fw != nil && n.fw.flowsErr != nil {
		ps = append(ps, Problem{
			Found:  fmt.Sprintf("no limit on machines' open flows: %v", n.fw.flowsErr),
			Remedy: "load the kernel module nft_connlimit; without it a machine can fill the table of flows",
		})
	}
	return ps, err
}

// Problems is the method of that name without a Net. The config may lack the node, before it has an ID.
func Problems(ctx context.Context, cfg Config) ([]Problem, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	named := cfg
	if named.Node == "" {
		named.Node = "00000000"
	}
	n, err := New(named) // for the defaults
	if err != nil {
		return nil, err
	}
	nl, nft, err := dial()
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	ps, err := forwardProblems(nft, cfg.Node)
	if err != nil {
		return nil, err
	}
	routes, err := serverRoutes(nl)
	if err != nil {
		return ps, err
	}
	ps = append(ps, poolProblems(n.cfg, routes)...)
	if len(n.cfg.DNS) == 0 {
		ps = append(ps, Problem{
			Found:  "no resolver that machines can reach: /etc/resolv.conf names none beyond this server",
			Remedy: "name resolvers for machines in the node's config",
		})
	}
	return ps, nil
}

// forwardProblems finds chains of others that drop what machines send: every chain of a hook must
// accept a packet, and ours cannot accept it for the others.
func forwardProblems(nft *nftables.Conn, node volant.NodeID) ([]Problem, error) {
	chains, err := nft.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list firewall chains: %w", err)
	}
	var ps []Problem
	for _, c := range chains {
		if c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
			continue
		}
		if strings.HasPrefix(c.Table.Name, tableName("")) || c.Table.Family == nftables.TableFamilyBridge {
			continue
		}
		open, err := opensTaps(nft, chains, c.Table, node)
		if err != nil {
			return nil, err
		}
		if !open {
			ps = append(ps, Problem{
				Serious: true, Remedy: openRemedy(chains, c, node),
				Found: fmt.Sprintf("firewall chain %s %s %s drops forwarded packets, so machines do not reach the outside", familyName(c.Table.Family), c.Table.Name, c.Name),
			})
		}
	}
	return ps, nil
}

// opensTaps says whether a rule of the table names this node's taps, or a wider set of them.
func opensTaps(nft *nftables.Conn, chains []*nftables.Chain, t *nftables.Table, node volant.NodeID) (bool, error) {
	if node == "" {
		return false, nil
	}
	for _, c := range chains {
		if c.Table.Name != t.Name || c.Table.Family != t.Family {
			continue
		}
		rules, err := nft.GetRules(t, c)
		if err != nil {
			return false, fmt.Errorf("list rules of %s: %w", t.Name, err)
		}
		for _, r := range rules {
			if namesTaps(r, node) {
				return true, nil
			}
		}
	}
	return false, nil
}

func namesTaps(r *nftables.Rule, node volant.NodeID) bool {
	for i, e := range r.Exprs {
		m, ok := e.(*expr.Meta)
		if !ok || m.Key != expr.MetaKeyIIFNAME || i+1 == len(r.Exprs) {
			continue
		}
		c, ok := r.Exprs[i+1].(*expr.Cmp)
		if ok && c.Op == expr.CmpOpEq && len(c.Data) > 0 && strings.HasPrefix(tapPrefix(node), string(c.Data)) {
			return true
		}
	}
	return false
}

func openRemedy(chains []*nftables.Chain, c *nftables.Chain, node volant.NodeID) string {
	if node == "" {
		return "start `volant server` once; then `volant doctor` shows the rules that let this node's machines through"
	}
	tap := tapPrefix(node)
	program := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "iptables", nftables.TableFamilyIPv6: "ip6tables"}[c.Table.Family]
	if program == "" || c.Table.Name != "filter" {
		rule := fmt.Sprintf("nft insert rule %s %s %s", familyName(c.Table.Family), c.Table.Name, c.Name)
		return fmt.Sprintf("let machines through: %s iifname '\"%s*\"' accept; %s oifname '\"%s*\"' accept", rule, tap, rule, tap)
	}
	into := c.Name
	for _, o := range chains {
		if o.Table.Name == c.Table.Name && o.Table.Family == c.Table.Family && o.Name == "DOCKER-USER" {
			into = o.Name // which Docker leaves to the operator
		}
	}
	return fmt.Sprintf("let machines through: %[1]s -I %[2]s -i %[3]s+ -j ACCEPT; %[1]s -I %[2]s -o %[3]s+ -j ACCEPT (what they may reach is decided by Volant's own rules)", program, into, tap)
}

// serverRoute is a kernel route that is not ours.
type serverRoute struct {
	prefix netip.Prefix
	dev    string
}

// serverRoutes lists the server's routes to networks, without default routes, loopback and ours.
func serverRoutes(nl *netlink.Handle) ([]serverRoute, error) {
	rs, err := netdump.Whole(func() ([]netlink.Route, error) { return nl.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []serverRoute
	for _, r := range rs {
		p, ok := prefixOf(r)
		if !ok || p.Bits() == 0 || r.Protocol == routeProtocol || r.Type != unix.RTN_UNICAST {
			continue
		}
		dev := "?"
		if l, err := net.InterfaceByIndex(r.LinkIndex); err == nil {
			dev = l.Name
		}
		out = append(out, serverRoute{p, dev})
	}
	return out, nil
}

// poolProblems finds pools that are somebody else's network. It is pure.
func poolProblems(cfg Config, routes []serverRoute) []Problem {
	var ps []Problem
	for _, r := range routes {
		if r.prefix.Overlaps(cfg.Pool4) {
			ps = append(ps, Problem{
				Found:  fmt.Sprintf("machines' pool %v overlaps the network %v on %s", cfg.Pool4, r.prefix, r.dev),
				Remedy: "give machines another pool in the node's config, else they and that network may not reach each other's addresses",
			})
		}
		for _, pool := range cfg.Apps {
			if r.prefix.Overlaps(pool) {
				ps = append(ps, Problem{
					Found:  fmt.Sprintf("apps' pool %v overlaps the network %v on %s", pool, r.prefix, r.dev),
					Remedy: "use a pool that belongs to Volant alone; addresses in it become this server's own",
				})
			}
		}
	}
	return ps
}
