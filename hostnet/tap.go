package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/netdump"
)

// errForeign means that an address out of our pool is somebody else's.
var errForeign = errors.New("the address is in use")

// tapPrefix starts the names of a node's taps and of nothing else.
func tapPrefix(node volant.NodeID) string { return "v" + string(node) }

func tapName(node volant.NodeID, idx uint16) string {
	return fmt.Sprintf("%s%04x", tapPrefix(node), idx)
}

// tapIndex is the inverse of tapName.
func tapIndex(node volant.NodeID, name string) (uint16, bool) {
	hex, ok := strings.CutPrefix(name, tapPrefix(node))
	if !ok || len(hex) != 4 {
		return 0, false
	}
	idx, err := strconv.ParseUint(hex, 16, 16)
	return uint16(idx), err == nil && tapName(node, uint16(idx)) == name
}

// plug makes tap, rules, addresses and routes of a link, or whatever of it is missing.
func (n *Net) plug(id volant.MachineID, l Link) error {
	dev, err := n.ensureTap(id, l)
	if err != nil {
		return err
	}
	if err := n.admitLocked(id, member{l.Tap, l.Addr, l.Addr6}); err != nil {
		return err
	}
	if err := n.nl.LinkSetUp(dev); err != nil {
		return fmt.Errorf("tap %s: set up: %w", l.Tap, err)
	}
	for _, a := range []netip.Addr{l.Addr, l.Addr6} {
		if err := n.routeTo(dev, a, l.Gateway); err != nil {
			return err
		}
	}
	n.plugged[id] = dev.Attrs().Index
	return nil
}

// pluggedLocked says whether this process has made the link whole and it is still there. A wake takes
// this way, so it costs one question to the kernel.
func (n *Net) pluggedLocked(id volant.MachineID, l Link) bool {
	index, ok := n.plugged[id]
	if !ok || n.members[id] != (member{l.Tap, l.Addr, l.Addr6}) {
		return false
	}
	dev, err := n.nl.LinkByName(l.Tap)
	return err == nil && dev.Attrs().Index == index && dev.Attrs().Flags&net.FlagUp != 0
}

func (n *Net) ensureTap(id volant.MachineID, l Link) (netlink.Link, error) {
	dev, err := n.nl.LinkByName(l.Tap)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		if err := makeTap(l.Tap); err != nil {
			return nil, err
		}
		dev, err = n.nl.LinkByName(l.Tap)
	}
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", l.Tap, err)
	}
	if err := tapSysctls(l.Tap); err != nil {
		return nil, err
	}
	if !bytes.Equal(dev.Attrs().HardwareAddr, gatewayMAC()) {
		if err := n.nl.LinkSetHardwareAddr(dev, gatewayMAC()); err != nil {
			return nil, fmt.Errorf("tap %s: set MAC: %w", l.Tap, err)
		}
	}
	if dev.Attrs().MTU != l.MTU {
		if err := n.nl.LinkSetMTU(dev, l.MTU); err != nil {
			return nil, fmt.Errorf("tap %s: set MTU: %w", l.Tap, err)
		}
	}
	gw := &netlink.Addr{IPNet: hostNet(l.Gateway)}
	if err := n.nl.AddrReplace(dev, gw); err != nil {
		return nil, fmt.Errorf("tap %s: add %v: %w", l.Tap, l.Gateway, err)
	}
	ll := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(l.Gateway6, 64)), Flags: unix.IFA_F_NODAD, Scope: int(netlink.SCOPE_LINK)}
	if err := n.nl.AddrReplace(dev, ll); err != nil && !noIPv6(err) {
		return nil, fmt.Errorf("tap %s: add %v: %w", l.Tap, l.Gateway6, err)
	}
	if dev.Attrs().Alias != tapAlias(id) {
		if err := n.nl.LinkSetAlias(dev, tapAlias(id)); err != nil {
			return nil, fmt.Errorf("tap %s: set alias: %w", l.Tap, err)
		}
	}
	return dev, nil
}

// tapAlias ties a tap to its machine where the file that says so was lost.
func tapAlias(id volant.MachineID) string { return "volant machine " + string(id) }

// routeTo leads an address to the tap and names the guest's MAC, so that no packet waits for ARP.
func (n *Net) routeTo(dev netlink.Link, a, src netip.Addr) error {
	r := &netlink.Route{LinkIndex: dev.Attrs().Index, Dst: hostNet(a), Scope: netlink.SCOPE_LINK, Protocol: routeProtocol}
	if a.Is4() {
		r.Src = src.AsSlice()
	}
	err := n.nl.RouteAdd(r)
	if errors.Is(err, unix.EEXIST) {
		if err = n.routeIsOurs(dev, a); err != nil {
			return err
		}
	}
	if a.Is6() && noIPv6(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("route %v to %s: %w", a, dev.Attrs().Name, err)
	}
	neigh := &netlink.Neigh{LinkIndex: dev.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: guestMAC()}
	if err := n.nl.NeighSet(neigh); err != nil {
		return fmt.Errorf("neighbour %v on %s: %w", a, dev.Attrs().Name, err)
	}
	return nil
}

// routeIsOurs is nil if packets to a go to dev.
func (n *Net) routeIsOurs(dev netlink.Link, a netip.Addr) error {
	rs, err := n.nl.RouteGet(a.AsSlice())
	if err != nil {
		return fmt.Errorf("look up route to %v: %w", a, err)
	}
	for _, r := range rs {
		if r.LinkIndex == dev.Attrs().Index {
			return nil
		}
	}
	return fmt.Errorf("route to %v: %w", a, errForeign)
}

// unplug removes rules and tap; routes and neighbours go with the tap.
func (n *Net) unplug(id volant.MachineID, tap string) error {
	err := n.expelLocked(id)
	return errors.Join(err, deleteLink(n.nl, tap))
}

func deleteLink(nl *netlink.Handle, name string) error {
	dev, err := nl.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = nl.LinkDel(dev)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove tap %s: %w", name, err)
	}
	return nil
}

// listTaps returns the links whose names are those of the node's taps.
func listTaps(nl *netlink.Handle, node volant.NodeID) ([]netlink.LinkAttrs, error) {
	links, err := netdump.Whole(nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var taps []netlink.LinkAttrs
	for _, l := range links {
		if _, ok := tapIndex(node, l.Attrs().Name); ok {
			taps = append(taps, *l.Attrs())
		}
	}
	return taps, nil
}

// adoptLocked learns the machines of the taps that exist.
func (n *Net) adoptLocked() error {
	taps, err := listTaps(n.nl, n.cfg.Node)
	if err != nil {
		return err
	}
	for _, t := range taps {
		idx, _ := tapIndex(n.cfg.Node, t.Name)
		id := volant.MachineID(strings.TrimPrefix(t.Alias, tapAlias("")))
		if !n.state.adopt(id, idx) {
			n.cfg.Log.Warn("tap belongs to no machine", "tap", t.Name, "alias", t.Alias)
			continue
		}
		n.members[id] = member{t.Name, at(n.cfg.Pool4, idx), n.addr6Of(t)}
	}
	return nil
}

// addr6Of reads a tap's 6PN address from its route, since nothing else names the organization. Where
// there is none, Attach gives the address anew.
func (n *Net) addr6Of(t netlink.LinkAttrs) netip.Addr {
	filter := &netlink.Route{LinkIndex: t.Index, Protocol: routeProtocol}
	rs, err := netdump.Whole(func() ([]netlink.Route, error) {
		return n.nl.RouteListFiltered(netlink.FAMILY_V6, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return netip.Addr{}
	}
	for _, r := range rs {
		if r.Dst == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			return a
		}
	}
	return netip.Addr{}
}

// makeTap makes a persistent tap that VMMs open by name.
func makeTap(name string) error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return volant.Errorf(volant.ErrPrecondition, "make tap %s: %v", name, err).
			WithRemedy("load the kernel module tun (modprobe tun) and run as root")
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, req)
	}
	if err == nil {
		err = unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("make tap %s: %w", name, err)
	}
	return nil
}

// noIPv6 says whether the kernel refused because IPv6 is off.
func noIPv6(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENODEV)
}

func hostNet(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
