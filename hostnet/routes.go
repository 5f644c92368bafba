package hostnet

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/netdump"
	"github.com/volant-edge/volant/sixpn"
)

// routeProtocol marks kernel routes of Volant ('V'); it is none that iproute2 knows by a name.
const routeProtocol = 86

// loopback4 is local without any route.
func loopback4() netip.Prefix { return netip.MustParsePrefix("127.0.0.0/8") }

func networks6() []netip.Prefix { return []netip.Prefix{sixpn.Prefix()} }

// nodeMetric is the metric of a node's local routes: its ID as a number. It never prefers one route
// to another, since two of the same prefix lead to the same place.
func nodeMetric(node volant.NodeID) int {
	b, err := hex.DecodeString(string(node))
	if err != nil || len(b) != 4 {
		return 0 // New has checked it
	}
	return int(b[0])<<24 | int(b[1])<<16 | int(b[2])<<8 | int(b[3])
}

// localPrefixes says which prefixes must be local so that all addrs are: a pool as a whole, an address
// outside of the pools alone, and nothing for 127.0.0.0/8.
func localPrefixes(addrs []netip.Addr, pools []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, a := range addrs {
		a = a.Unmap()
		if !a.IsValid() || loopback4().Contains(a) {
			continue
		}
		p := netip.PrefixFrom(a, a.BitLen())
		for _, pool := range pools {
			if pool.Contains(a) {
				p = pool.Masked()
			}
		}
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return out
}

// SetAddresses makes exactly these addresses of apps local to this server, and takes away what an
// earlier call made local and nobody asks for any more.
func (n *Net) SetAddresses(ctx context.Context, addrs []netip.Addr) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.setupLocked(ctx); err != nil {
		return err
	}
	want := localPrefixes(addrs, n.cfg.Apps)
	have, err := localRoutes(n.nl, n.cfg.Node)
	if err != nil {
		return err
	}
	gateways, err := gatewaysOf(n.nl)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range want {
		if i := slices.IndexFunc(gateways, p.Contains); i >= 0 && !p.IsSingleIP() {
			errs = append(errs, volant.Errorf(volant.ErrInvalid, "pool %v holds this server's gateway %v and would cut it off", p, gateways[i]).
				WithRemedy("use a pool that belongs to Volant alone"))
			continue
		}
		if !slices.Contains(have, p) {
			errs = append(errs, addLocal(n.nl, n.cfg.Node, p))
		}
	}
	for _, p := range have {
		if !slices.Contains(want, p) {
			errs = append(errs, removeLocal(n.nl, n.cfg.Node, p))
		}
	}
	return errors.Join(errs...)
}

// localRoute is one line: `ip route add local PREFIX dev lo proto 86 metric NODE`.
func localRoute(node volant.NodeID, p netip.Prefix) *netlink.Route {
	return &netlink.Route{
		LinkIndex: loopbackIndex, Dst: ipNet(p), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL,
		Scope: netlink.SCOPE_HOST, Protocol: routeProtocol, Priority: nodeMetric(node),
	}
}

// loopbackIndex is lo's in every network namespace.
const loopbackIndex = 1

func addLocal(nl *netlink.Handle, node volant.NodeID, p netip.Prefix) error {
	err := nl.RouteAdd(localRoute(node, p))
	if err == nil || errors.Is(err, unix.EEXIST) {
		return nil
	}
	if p.Addr().Is6() && noIPv6(err) {
		return volant.Errorf(volant.ErrPrecondition, "make %v local: %v", p, err).
			WithRemedy("switch IPv6 on (sysctl -w net.ipv6.conf.all.disable_ipv6=0) or configure no IPv6 pool")
	}
	return fmt.Errorf("make %v local: %w", p, err)
}

func removeLocal(nl *netlink.Handle, node volant.NodeID, p netip.Prefix) error {
	if err := nl.RouteDel(localRoute(node, p)); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("make %v local no more: %w", p, err)
	}
	return nil
}

// localRoutes lists what a node made local.
func localRoutes(nl *netlink.Handle, node volant.NodeID) ([]netip.Prefix, error) {
	var out []netip.Prefix
	err := eachLocalRoute(nl, func(metric int, p netip.Prefix) {
		if metric == nodeMetric(node) {
			out = append(out, p)
		}
	})
	return out, err
}

func eachLocalRoute(nl *netlink.Handle, f func(metric int, p netip.Prefix)) error {
	filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Protocol: routeProtocol}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rs, err := netdump.Whole(func() ([]netlink.Route, error) {
			return nl.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			if family == netlink.FAMILY_V6 && noIPv6(err) {
				continue
			}
			return fmt.Errorf("list local routes: %w", err)
		}
		for _, r := range rs {
			if p, ok := prefixOf(r); ok {
				f(r.Priority, p)
			}
		}
	}
	return nil
}

func prefixOf(r netlink.Route) (netip.Prefix, bool) {
	if r.Dst == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(r.Dst.IP)
	ones, _ := r.Dst.Mask.Size()
	return netip.PrefixFrom(a, ones), ok
}

// gatewaysOf lists the next hops of the server's routes.
func gatewaysOf(nl *netlink.Handle) ([]netip.Addr, error) {
	rs, err := netdump.Whole(func() ([]netlink.Route, error) { return nl.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []netip.Addr
	for _, r := range rs {
		if a, ok := netip.AddrFromSlice(r.Gw); ok {
			out = append(out, a.Unmap())
		}
	}
	return out, nil
}
