package hostnet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// space is a network namespace that one goroutine with a thread of its own lives in.
type space struct {
	t    *testing.T
	fd   int
	jobs chan func()
}

func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{t: t, jobs: make(chan func())}
	started := make(chan error)
	go s.live(started)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(s.jobs)
		unix.Close(s.fd)
	})
	s.do(func() error {
		// No addresses of the kernel's own, no detection of duplicates: nothing changes by itself.
		for name, value := range map[string]string{"addr_gen_mode": "1", "accept_dad": "0", "accept_ra": "0"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/"+name, []byte(value), 0); err != nil {
				return err
			}
		}
		return up("lo")
	})
	return s
}

// settle waits until the kernel, which does so later, has made its own route for an IPv6 address.
func settle(ctx context.Context, addr string) error {
	for ctx.Err() == nil {
		rs, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return err
		}
		for _, r := range rs {
			if r.Dst != nil && r.Dst.IP.String() == addr && r.Type == unix.RTN_LOCAL {
				return nil
			}
		}
		runtime.Gosched()
	}
	return ctx.Err()
}

func (s *space) live(started chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		started <- err
		return
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	s.fd = fd
	started <- err
	for job := range s.jobs {
		job()
	}
}

// do runs f inside and fails the test on an error.
func (s *space) do(f func() error) {
	s.t.Helper()
	if err := s.try(f); err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) try(f func() error) error {
	done := make(chan error)
	s.jobs <- func() { done <- f() }
	return <-done
}

// enter runs f inside on a thread of its own, for what blocks.
func (s *space) enter(f func()) {
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(s.fd, unix.CLONE_NEWNET); err != nil {
			panic(err)
		}
		f()
	}()
}

// echo serves every TCP connection and UDP packet to the port with the address of the sender.
func (s *space) echo(port int) {
	s.t.Helper()
	s.do(func() error {
		ln, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
		if err != nil {
			return err
		}
		s.t.Cleanup(func() { ln.Close() }) // the test is over
		go echoTCP(ln)
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for _, a := range addrs { // one socket each, so that an answer comes from the address asked
			ip := a.(*net.IPNet).IP
			if seen[ip.String()] || ip.IsLinkLocalUnicast() && ip.To4() == nil {
				continue
			}
			seen[ip.String()] = true
			pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: ip, Port: port})
			if err != nil {
				return err
			}
			s.t.Cleanup(func() { pc.Close() }) // the test is over
			go echoUDP(pc)
		}
		return nil
	})
}

func echoTCP(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		io.WriteString(c, host(c.RemoteAddr())+"\n") // the client sees it
		c.Close()                                    // as above
	}
}

func echoUDP(pc net.PacketConn) {
	b := make([]byte, 100)
	for {
		_, from, err := pc.ReadFrom(b)
		if err != nil {
			return
		}
		pc.WriteTo([]byte(host(from)+"\n"), from) //nolint:errcheck // the client sees it
	}
}

func host(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return err.Error()
	}
	return ap.Addr().Unmap().WithZone("").String()
}

// ask connects to an echo from inside and returns what it says.
func (s *space) ask(ctx context.Context, network, addr, source string) <-chan answer {
	out := make(chan answer, 1)
	s.enter(func() {
		says, err := ask(ctx, network, addr, source)
		out <- answer{says, err}
	})
	return out
}

type answer struct {
	says string
	err  error
}

func ask(ctx context.Context, network, addr, source string) (string, error) {
	d := net.Dialer{}
	if source != "" {
		ip := net.ParseIP(source)
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: ip}
		} else {
			d.LocalAddr = &net.TCPAddr{IP: ip}
		}
	}
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()                                                      // a test's client
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Now()) }) //nolint:errcheck // one that cannot is closed
	defer stop()
	if network == "udp" {
		go resend(ctx, c) // the first may be lost while a link comes up
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	return string(b[:max(0, n-1)]), err
}

func resend(ctx context.Context, c net.Conn) {
	for {
		if _, err := c.Write([]byte("?")); err != nil {
			return // refused, or the answer has come
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func addAddr(dev, prefix string) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(prefix)
	if err != nil {
		return err
	}
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	return netlink.AddrAdd(l, a)
}

func addRoute(dev, prefix, via string) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	_, dst, err := net.ParseCIDR(prefix)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst}
	if via != "" {
		r.Gw = net.ParseIP(via)
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	return netlink.RouteAdd(r)
}

// veth joins two namespaces by a cable.
func veth(a *space, aDev string, b *space, bDev string) {
	a.do(func() error {
		la := netlink.NewLinkAttrs()
		la.Name = aDev
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: bDev, PeerNamespace: netlink.NsFd(b.fd)})
	})
	a.do(func() error { return up(aDev) })
	b.do(func() error { return up(bDev) })
}

// openTap opens a tap of this namespace as a VMM does.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// guest makes a namespace that is a machine: a wire leads from its eth0 to the tap in the host, which
// this test reads and writes in the VMM's place.
func guest(t *testing.T, h *space, tap string, mac net.HardwareAddr) *space {
	t.Helper()
	g := newSpace(t)
	var inside, outside *os.File
	h.do(func() (err error) { outside, err = openTap(tap); return err })
	g.do(func() (err error) {
		if inside, err = openTap("eth0"); err != nil {
			return err
		}
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(l, mac); err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	})
	wire := func(to, from *os.File) {
		b := make([]byte, 1<<16)
		for {
			n, err := from.Read(b)
			if err != nil {
				return
			}
			to.Write(b[:n]) //nolint:errcheck // as a wire: lost is lost
		}
	}
	go wire(inside, outside)
	go wire(outside, inside)
	t.Cleanup(func() { inside.Close(); outside.Close() }) // the test is over
	return g
}

// inNewSpace moves the calling goroutine, which is locked to its thread, into a namespace of its own.
func inNewSpace(b *testing.B) {
	b.Helper()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Fatal(err)
	}
	if err := up("lo"); err != nil {
		b.Fatal(err)
	}
}

// guestLinkLocal is what the kernel makes of the guests' MAC.
const guestLinkLocal = "fe80::5054:ff:fe77:102"

func neighbours(dev string) ([]string, error) {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return nil, err
	}
	ns, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
	var out []string
	for _, n := range ns {
		if n.State&netlink.NUD_NOARP == 0 { // multicast
			out = append(out, n.IP.String())
		}
	}
	return out, err
}

func dropNeighbours(dev string) error {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return err
	}
	ns, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
	for _, n := range ns {
		err = errors.Join(err, netlink.NeighDel(&n))
	}
	return err
}

// makeTap makes a persistent tap as a server that died right after did.
func makeTap(name string) error {
	f, err := openTap(name)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1), f.Close())
}

func setDown(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetDown(l)
}

func removeLink(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkDel(l)
}
