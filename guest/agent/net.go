package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant/guest"
)

const (
	loopback = 1 // lo's index, always
	linkName = "eth0"
)

// setUpLoopback brings lo up, and lets any user listen on any port as container engines do.
func setUpLoopback() error {
	sysctl("net/ipv4/ip_unprivileged_port_start", "0")
	sysctl("net/ipv4/ping_group_range", "0 2147483647")
	sysctl("net/ipv6/conf/default/accept_ra", "0")
	sysctl("net/ipv6/conf/default/accept_dad", "0")
	c, err := dialNetlink()
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.do(linkMessage(loopback, 0)); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	return nil
}

// setUpLink brings eth0 up and returns its index, 0 if there is none.
func setUpLink() (index int, err error) {
	b, err := os.ReadFile("/sys/class/net/" + linkName + "/ifindex")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscan(string(b), &index); err != nil {
		return 0, err
	}
	c, err := dialNetlink()
	if err != nil {
		return 0, err
	}
	defer c.close()
	if err := c.do(linkMessage(index, 0)); err != nil {
		return 0, fmt.Errorf("%s: %w", linkName, err)
	}
	return index, nil
}

// setUpNet gives the link its addresses and routes.
func setUpNet(n guest.Net, index int) error {
	if !n.Addr.IsValid() && !n.Addr6.IsValid() {
		return nil
	}
	if index == 0 {
		return errors.New("there is no network device")
	}
	c, err := dialNetlink()
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.do(linkMessage(index, n.MTU)); err != nil {
		return fmt.Errorf("%s: %w", linkName, err)
	}
	for _, a := range []struct {
		addr netip.Prefix
		via  netip.Addr
	}{{n.Addr, n.Gateway}, {n.Addr6, n.Gateway6}} {
		if !a.addr.IsValid() {
			continue
		}
		if err := c.do(addrMessage(index, a.addr)); err != nil {
			return fmt.Errorf("address %v: %w", a.addr, err)
		}
		if !a.via.IsValid() {
			continue
		}
		if err := c.do(routeMessage(index, a.via)); err != nil {
			return fmt.Errorf("route by %v: %w", a.via, err)
		}
	}
	return nil
}

// sysctl sets a kernel variable if the kernel has it.
func sysctl(name, value string) {
	_ = os.WriteFile("/proc/sys/"+name, []byte(value), 0) // a kernel without it has no need for it
}

// netlinkConn speaks to the kernel's routing: one request, one answer.
type netlinkConn struct {
	fd  int
	seq uint32
}

func dialNetlink() (*netlinkConn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(fmt.Errorf("netlink: %w", err), unix.Close(fd))
	}
	return &netlinkConn{fd: fd}, nil
}

func (c *netlinkConn) close() { _ = unix.Close(c.fd) } // nothing is buffered

// message is a request without its header.
type message struct {
	kind, flags uint16
	body        []byte
}

func (c *netlinkConn) do(m message) error {
	c.seq++
	e := binary.NativeEndian
	b := e.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(m.body)))
	b = e.AppendUint16(b, m.kind)
	b = e.AppendUint16(b, m.flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = e.AppendUint32(b, c.seq)
	b = e.AppendUint32(b, 0)
	b = append(b, m.body...)
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n < unix.NLMSG_HDRLEN+4 || e.Uint16(buf[4:]) != unix.NLMSG_ERROR || e.Uint32(buf[8:]) != c.seq {
			continue
		}
		if no := int32(e.Uint32(buf[unix.NLMSG_HDRLEN:])); no != 0 {
			return unix.Errno(-no)
		}
		return nil
	}
}

// linkMessage brings a link up, with an MTU if that is not 0.
func linkMessage(index, mtu int) message {
	b := []byte{unix.AF_UNSPEC, 0, 0, 0}
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, unix.IFF_UP)
	b = binary.NativeEndian.AppendUint32(b, unix.IFF_UP) // which flags to change
	if mtu > 0 {
		b = attr32(b, unix.IFLA_MTU, uint32(mtu))
	}
	return message{kind: unix.RTM_NEWLINK, body: b}
}

func addrMessage(index int, p netip.Prefix) message {
	a := p.Addr().Unmap()
	flags := byte(0)
	if a.Is6() {
		flags = unix.IFA_F_NODAD // the address is ours alone, and usable at once
	}
	b := []byte{family(a), byte(p.Bits()), flags, unix.RT_SCOPE_UNIVERSE}
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = attr(b, unix.IFA_LOCAL, a.AsSlice())
	b = attr(b, unix.IFA_ADDRESS, a.AsSlice())
	return message{kind: unix.RTM_NEWADDR, flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, body: b}
}

// routeMessage is the default route; the gateway may be outside the link's prefix.
func routeMessage(index int, via netip.Addr) message {
	via = via.Unmap()
	b := []byte{family(via), 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST}
	b = binary.NativeEndian.AppendUint32(b, unix.RTNH_F_ONLINK)
	b = attr(b, unix.RTA_GATEWAY, via.AsSlice())
	b = attr32(b, unix.RTA_OIF, uint32(index))
	return message{kind: unix.RTM_NEWROUTE, flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, body: b}
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func attr32(b []byte, kind uint16, v uint32) []byte {
	return attr(b, kind, binary.NativeEndian.AppendUint32(nil, v))
}

func attr(b []byte, kind uint16, v []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(v)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, v...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
