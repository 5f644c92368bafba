package mesh

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/netdump"
)

const (
	// routeProtocol marks kernel routes of Volant ('V'), as in package hostnet.
	routeProtocol = 86
	// rtoMin is in milliseconds: what is lost between two nodes is sent again after that and the path's own time, not
	// after the 200 ms that TCP waits elsewhere.
	rtoMin = 20
	// farMetric is the metric of the route that refuses what is no peer.
	farMetric = 1 << 30
)

// link is the network interface and what goes with it.
type link struct {
	name string
	nl   *netlink.Handle
}

func openLink(name string) (*link, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &link{name, nl}, nil
}

// up gives the interface its address and MTU.
func (l *link) up(addr netip.Addr, mtu int) error {
	dev, err := l.nl.LinkByName(l.name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", l.name, err)
	}
	if dev.Attrs().MTU != mtu {
		if err := l.nl.LinkSetMTU(dev, mtu); err != nil {
			return fmt.Errorf("interface %s: MTU %d: %w", l.name, mtu, err)
		}
	}
	if err := quietLink(l.name); err != nil {
		return err
	}
	have, err := netdump.Whole(func() ([]netlink.Addr, error) { return l.nl.AddrList(dev, netlink.FAMILY_V6) })
	if err != nil {
		return fmt.Errorf("interface %s: %w", l.name, err)
	}
	own := false
	for _, a := range have {
		ip, _ := netip.AddrFromSlice(a.IP)
		switch {
		case ip == addr:
			own = true
		case volant.MeshPrefix.Contains(ip):
			if err := l.nl.AddrDel(dev, &a); err != nil {
				return fmt.Errorf("interface %s: old address %v: %w", l.name, ip, err)
			}
		}
	}
	if !own {
		a := &netlink.Addr{IPNet: ipNet(addr), Flags: unix.IFA_F_NODAD}
		if err := l.nl.AddrReplace(dev, a); err != nil {
			return volant.Errorf(volant.ErrPrecondition, "interface %s: address %v: %v", l.name, addr, err).
				WithRemedy("switch IPv6 on: sysctl -w net.ipv6.conf.all.disable_ipv6=0; the mesh needs no IPv6 outside")
		}
	}
	if err := l.nl.LinkSetUp(dev); err != nil {
		return fmt.Errorf("interface %s: set up: %w", l.name, err)
	}
	return nil
}

// quietLink keeps the kernel from giving the interface addresses, and routers from telling it any.
func quietLink(name string) error {
	for _, s := range []struct{ name, value string }{{"accept_ra", "0"}, {"autoconf", "0"}, {"addr_gen_mode", "1"}, {"accept_redirects", "0"}} {
		if err := setSysctl("ipv6/conf/"+name+"/"+s.name, s.value); err != nil {
			return err
		}
	}
	return nil
}

// routes leads exactly to these addresses, each with its MTU. What else has a mesh address is unreachable: it must not
// leave by the default route.
func (l *link) routes(own netip.Addr, mtus map[netip.Addr]int) error {
	dev, err := l.nl.LinkByName(l.name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", l.name, err)
	}
	if err := l.nl.RouteReplace(l.nowhere()); err != nil {
		return fmt.Errorf("route of %v: %w", volant.MeshPrefix, err)
	}
	have, err := netdump.Whole(func() ([]netlink.Route, error) { return l.nl.RouteList(dev, netlink.FAMILY_V6) })
	if err != nil {
		return fmt.Errorf("interface %s: %w", l.name, err)
	}
	old := map[netip.Addr]netlink.Route{}
	for _, r := range have {
		if r.Dst == nil || int(r.Protocol) != routeProtocol {
			continue
		}
		ip, _ := netip.AddrFromSlice(r.Dst.IP)
		old[ip] = r
		if _, wanted := mtus[ip]; !wanted {
			if err := l.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("route to %v: %w", ip, err)
			}
		}
	}
	for ip, mtu := range mtus {
		if r, ok := old[ip]; ok && r.MTU == mtu && r.RtoMin == rtoMin && r.RtoMinLock {
			continue
		}
		r := netlink.Route{
			LinkIndex: dev.Attrs().Index, Dst: ipNet(ip), Src: own.AsSlice(), Protocol: routeProtocol, Scope: netlink.SCOPE_UNIVERSE,
			MTU: mtu, RtoMin: rtoMin, RtoMinLock: true, // without the lock the kernel ignores it
			// Who has a mesh address is known, so that data in a SYN needs no cookie first.
			FastOpenNoCookie: 1,
		}
		if err := l.nl.RouteReplace(&r); err != nil {
			return fmt.Errorf("route to %v: %w", ip, err)
		}
	}
	return nil
}

func (l *link) nowhere() *netlink.Route {
	return &netlink.Route{
		Dst:  &net.IPNet{IP: volant.MeshPrefix.Addr().AsSlice(), Mask: net.CIDRMask(volant.MeshPrefix.Bits(), 128)},
		Type: unix.RTN_UNREACHABLE, Protocol: routeProtocol, Priority: farMetric,
	}
}

// uplinks are the MTUs of the links, or of the paths as far as the kernel knows them, that lead to the endpoints.
func (l *link) uplinks(to []netip.AddrPort) []int {
	var out []int
	for _, ep := range to {
		rs, err := l.nl.RouteGet(ep.Addr().Unmap().WithZone("").AsSlice())
		if err != nil || len(rs) == 0 {
			continue // no way there now
		}
		dev, err := l.nl.LinkByIndex(rs[0].LinkIndex)
		if err != nil {
			continue
		}
		if dev.Type() != "loopback" && dev.Attrs().Flags&net.FlagLoopback == 0 {
			out = append(out, dev.Attrs().MTU)
		}
	}
	return out
}

// pathMTU is what the kernel has learned of the path to an endpoint; 0: nothing.
func (l *link) pathMTU(to netip.AddrPort) int {
	rs, err := l.nl.RouteGet(to.Addr().Unmap().WithZone("").AsSlice())
	if err != nil || len(rs) == 0 {
		return 0
	}
	return rs[0].MTU
}

// remove takes the interface away, and with it its addresses and routes.
func (l *link) remove() (removed []string, err error) {
	dev, err := l.nl.LinkByName(l.name)
	if err == nil {
		if err := l.nl.LinkDel(dev); err != nil {
			return nil, fmt.Errorf("remove interface %s: %w", l.name, err)
		}
		removed = append(removed, "mesh interface "+l.name)
	} else if _, gone := errors.AsType[netlink.LinkNotFoundError](err); !gone {
		return nil, fmt.Errorf("interface %s: %w", l.name, err)
	}
	if others, err := l.others(); err != nil || others {
		return removed, err
	}
	err = l.nl.RouteDel(l.nowhere())
	if err == nil {
		removed = append(removed, "route of "+volant.MeshPrefix.String())
	} else if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return removed, err
}

// others says whether another node has its mesh in this network namespace too.
func (l *link) others() (bool, error) {
	all, err := netdump.Whole(l.nl.LinkList)
	if err != nil {
		return false, fmt.Errorf("list interfaces: %w", err)
	}
	for _, d := range all {
		if _, ok := nodeOf(d.Attrs().Name); ok && d.Attrs().Name != l.name {
			return true, nil
		}
	}
	return false, nil
}

func (l *link) close() { l.nl.Close() }

func ipNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

const sysctlDir = "/proc/sys/net/"

// setSysctl writes a value that is not there yet. A kernel without the feature has no such file.
func setSysctl(name, value string) error {
	b, err := os.ReadFile(sysctlDir + name)
	if errors.Is(err, os.ErrNotExist) || err == nil && trim(b) == value {
		return nil
	}
	if err := os.WriteFile(sysctlDir+name, []byte(value), 0); err != nil { // exists, so the mode is not used
		return volant.Errorf(volant.ErrPrecondition, "set sysctl net/%s to %s: %v", name, value, err).
			WithRemedy("run as root on a writable /proc/sys")
	}
	return nil
}
