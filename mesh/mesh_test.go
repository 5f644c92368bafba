package mesh_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/mesh"
	"github.com/volant-edge/volant/volanttest/need"
)

// pair is two nodes on one cable that know each other.
func pair(t testing.TB) (a, b *node) {
	t.Helper()
	need.Root(t)
	sa, sb := newSpace(t), newSpace(t)
	wire(sa, "e0", "192.0.2.1/24", 1500, sb, "e0", "192.0.2.2/24", 1500)
	a, b = newNode(t, sa, "192.0.2.1:4281"), newNode(t, sb, "192.0.2.2:4281")
	a.knows(b.peer())
	b.knows(a.peer())
	a.echo()
	b.echo()
	a.reach(b)
	return a, b
}

// pings sends a UDP packet each 10 ms from a to b until stop is called, which returns how many came back of how many.
func pings(a, b *node) (stop func() (back, sent int)) {
	a.t.Helper()
	c := a.dial("udp", b)
	ctx, cancel := context.WithCancel(a.t.Context())
	var got atomic.Int64
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 8)
		for {
			if _, err := c.Read(buf); errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
				return
			} else if err == nil {
				got.Add(1)
			}
		}
	}()
	done := make(chan int)
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		n := 0
		for {
			select {
			case <-ctx.Done():
				done <- n
				return
			case <-tick.C:
			}
			n++
			_, _ = c.Write(binary.BigEndian.AppendUint64(nil, uint64(n))) // lost like any packet
		}
	}()
	return func() (int, int) {
		cancel()
		sent := <-done
		_ = c.SetReadDeadline(time.Now().Add(time.Second)) // for the last to come back
		<-read
		return int(got.Load()), sent
	}
}

// wait is until something holds.
func wait(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for range 600 {
		if holds() {
			return
		}
		time.Sleep(20 * time.Millisecond) // real processes
	}
	t.Fatal("never: " + what)
}

func TestTwoNodes(t *testing.T) {
	a, b := pair(t)
	c := a.dial("tcp", b)
	if err := round(c, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if from, want := c.LocalAddr().(*net.TCPAddr).AddrPort().Addr(), a.addr(); from != want {
		t.Errorf("comes from %v, want %v", from, want)
	}
	st := a.status()
	if st.MTU != 1420 || st.Engine != "user" || len(st.Peers) != 1 {
		t.Fatalf("status: %+v", st)
	}
	if p := st.Peers[0]; p.Node != b.id || p.Endpoint != b.endpoint || p.Handshake.IsZero() || p.RX == 0 || p.TX == 0 || !p.Active {
		t.Errorf("status of the peer: %+v", p)
	}
	a.do(func() error {
		rs, err := netlink.RouteGet(b.addr().AsSlice())
		if err != nil {
			return err
		}
		if r := rs[0]; r.RtoMin != 20 || !r.RtoMinLock || r.FastOpenNoCookie != 1 || r.MTU != 1420 {
			t.Errorf("route: rto_min %d, no cookie %d, mtu %d", r.RtoMin, r.FastOpenNoCookie, r.MTU)
		}
		if _, err := netlink.RouteGet(volant.MeshAddr("ffffffff").AsSlice()); err == nil {
			t.Error("a mesh address of nobody has a route")
		}
		b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_fastopen")
		if err == nil && string(bytes.TrimSpace(b)) != "3" {
			t.Errorf("tcp_fastopen is %s", b)
		}
		return err
	})
}

func TestConfigureAgainChangesNothing(t *testing.T) {
	a, b := pair(t)
	stop := pings(a, b)
	for range 20 {
		a.knows(b.peer())
		b.knows(a.peer())
	}
	// A third that is added and removed, which nobody answers for.
	other := mesh.Peer{Node: "00000007", Key: mesh.Key{7}, Addr: volant.MeshAddr("00000007"), Endpoint: netip.MustParseAddrPort("192.0.2.9:1")}
	a.knows(other, b.peer())
	a.knows(b.peer())
	if back, sent := stop(); back != sent || sent == 0 {
		t.Errorf("%d of %d pings came back", back, sent)
	}
	if n := len(a.status().Peers); n != 1 {
		t.Errorf("%d peers", n)
	}
}

func TestRemovedPeerIsRefused(t *testing.T) {
	a, b := pair(t)
	c := b.dial("udp", a)
	if err := round(c, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	a.knows()
	for range 5 {
		if round(c, 100*time.Millisecond) == nil {
			t.Fatal("a removed node is still answered")
		}
	}
	if n := len(a.status().Peers); n != 0 {
		t.Errorf("%d peers", n)
	}
	a.do(func() error {
		if _, err := netlink.RouteGet(b.addr().AsSlice()); err == nil {
			t.Error("a removed node has a route")
		}
		return nil
	})
}

// The owner's key is replaced under traffic both ways: no ping is lost, and an open connection goes on.
func TestKeyRotation(t *testing.T) {
	a, b := pair(t)
	c := b.dial("tcp", a)
	there, back := pings(a, b), pings(b, a)
	if err := a.keys.Renew(); err != nil {
		t.Fatal(err)
	}
	b.knows(a.peer()) // the next key is published
	if err := a.keys.Switch(); err != nil {
		t.Fatal(err)
	}
	a.knows(b.peer()) // the owner switches
	wait(t, "the peer sees the next key used", func() bool {
		ps := b.status().Peers
		return slices.ContainsFunc(ps, func(p mesh.PeerStatus) bool { return p.Key == a.keys.Use.Public() && p.Active })
	})
	if err := round(c, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // some pings between the two, as while the record travels
	b.knows(a.peer())                  // the record has the new key alone
	time.Sleep(300 * time.Millisecond)
	if err := round(c, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	for name, stop := range map[string]func() (int, int){"there": there, "back": back} {
		if back, sent := stop(); back != sent || sent < 50 {
			t.Errorf("%s: %d of %d pings came back", name, back, sent)
		}
	}
	if ps := b.status().Peers; len(ps) != 1 || ps[0].Key != a.keys.Use.Public() || ps[0].Endpoint != a.endpoint {
		t.Errorf("peers after the rotation: %+v", ps)
	}
}

// The first packets under the new key are lost: the peer is called again before the 5 s that WireGuard waits are over.
func TestLostHandshake(t *testing.T) {
	a, b := pair(t)
	if err := a.keys.Renew(); err != nil {
		t.Fatal(err)
	}
	b.knows(a.peer())
	a.cut(true)
	if err := a.keys.Switch(); err != nil {
		t.Fatal(err)
	}
	a.knows(b.peer())
	switched, before := time.Now(), a.status().Peers[0].Handshake
	time.Sleep(200 * time.Millisecond) // the first one is lost
	a.cut(false)
	wait(t, "a handshake", func() bool { return a.status().Peers[0].Handshake.After(before) })
	if took := a.status().Peers[0].Handshake.Sub(switched); took > 4*time.Second {
		t.Errorf("the handshake came after %v", took)
	}
}

// Both replace their keys at once.
func TestBothRotate(t *testing.T) {
	a, b := pair(t)
	c := b.dial("tcp", a)
	for _, n := range []*node{a, b} {
		if err := n.keys.Renew(); err != nil {
			t.Fatal(err)
		}
	}
	pa, pb := a.peer(), b.peer()
	a.knows(pb)
	b.knows(pa)
	for _, n := range []*node{a, b} {
		if err := n.keys.Switch(); err != nil {
			t.Fatal(err)
		}
	}
	a.knows(pb) // both switch and see each other's old and next key
	b.knows(pa)
	if err := round(c, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	a.knows(b.peer())
	b.knows(a.peer())
	if err := round(c, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	a.reach(b)
}

// The process is killed, and its successor starts from what is on disk, with no server: an open connection goes on.
func TestProcessIsKilled(t *testing.T) {
	a, b := pair(t)
	c := b.dial("tcp", a)
	if err := round(c, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	pid := a.status().PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait(t, "the process is gone", func() bool {
		_, err := a.dev.Status(t.Context())
		return err != nil
	})
	a.do(func() error { // the address stays meanwhile
		_, err := netlink.LinkByName(mesh.Interface(a.id))
		return err
	})
	a.start()
	if st := a.status(); st.PID == pid || len(st.Peers) != 1 {
		t.Fatalf("status of the successor: %+v", st)
	}
	if err := round(c, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	b.reach(a)
}

// Who runs the device starts its process again when that has died.
func TestRunStartsTheProcessAgain(t *testing.T) {
	a, b := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error)
	a.enter(func() { ran <- a.dev.Run(ctx) })
	pid := a.status().PID
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait(t, "another process", func() bool {
		st, err := a.dev.Status(t.Context())
		return err == nil && st.PID != pid && len(st.Peers) == 1
	})
	b.reach(a)
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

// A link that silently drops what is larger than 1400 bytes is found out, and TCP goes through it.
//
//	a ── 1500 ── router ── 1500 | 1396 ── b
func TestBlackHole(t *testing.T) {
	need.Root(t)
	sa, sr, sb := newSpace(t), newSpace(t), newSpace(t)
	wire(sa, "e0", "192.0.2.1/24", 1500, sr, "ra", "192.0.2.254/24", 1500)
	wire(sr, "rb", "198.51.100.254/24", 1500, sb, "e0", "198.51.100.1/24", 1396) // which takes 4 bytes more, for a VLAN tag
	sa.defaultRoute("192.0.2.254")
	sb.defaultRoute("198.51.100.254")
	a, b := newNode(t, sa, "192.0.2.1:4281"), newNode(t, sb, "198.51.100.1:4281")
	a.knows(b.peer())
	b.knows(a.peer())
	if got := b.status().MTU; got != 1316 {
		t.Errorf("MTU behind a link of 1396: %d", got)
	}
	b.echo()
	a.reach(b)
	wait(t, "the path is measured", func() bool { return a.status().Peers[0].MTU < 1420 })
	if got, want := a.status().Peers[0].MTU, 1328; got != want { // over IPv4, WireGuard adds 60
		t.Errorf("MTU of the route: got %d, want %d", got, want)
	}
	a.bulk(b)
}

// A router that says what it cannot carry is believed.
func TestSmallPath(t *testing.T) {
	need.Root(t)
	sa, sr, sb := newSpace(t), newSpace(t), newSpace(t)
	wire(sa, "e0", "192.0.2.1/24", 1500, sr, "ra", "192.0.2.254/24", 1500)
	wire(sr, "rb", "198.51.100.254/24", 1400, sb, "e0", "198.51.100.1/24", 1400)
	sa.defaultRoute("192.0.2.254")
	sb.defaultRoute("198.51.100.254")
	a, b := newNode(t, sa, "192.0.2.1:4281"), newNode(t, sb, "198.51.100.1:4281")
	a.knows(b.peer())
	b.knows(a.peer())
	b.echo()
	a.reach(b)
	wait(t, "the path is measured", func() bool { return a.status().Peers[0].MTU < 1420 })
	if got, want := a.status().Peers[0].MTU, 1312; got != want {
		t.Errorf("MTU of the route: got %d, want %d", got, want)
	}
	a.bulk(b)
}

// bulk sends some megabytes and reads them again.
func (n *node) bulk(to *node) {
	n.t.Helper()
	const size = 4 << 20
	c := n.dial("tcp", to)
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		n.t.Fatal(err)
	}
	sent := bytes.Repeat([]byte("volant"), size/6)
	go func() { _, _ = c.Write(sent) }() // what is missing is seen below
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil {
		n.t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		n.t.Error("other bytes came back")
	}
}

// What one connection carries, with both ends and both tunnels on this machine.
func BenchmarkBulk(b *testing.B) {
	x, y := pair(b)
	y.sink()
	var c net.Conn
	x.do(func() (err error) {
		c, err = net.Dial("tcp", netip.AddrPortFrom(y.addr(), 19).String())
		return err
	})
	defer c.Close()
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	for _, n := range []*node{x, y} {
		b.ReportMetric(float64(resident(b, n.status().PID))/(1<<20), "MB-of-"+map[*node]string{x: "sender", y: "receiver"}[n])
	}
}

// resident is how much memory a process has.
func resident(b *testing.B, pid int) int {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	var size, pages int
	if err == nil {
		_, err = fmt.Sscan(string(text), &size, &pages)
	}
	if err != nil {
		b.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// sink takes connections and reads what comes.
func (n *node) sink() {
	n.t.Helper()
	n.do(func() error {
		ln, err := net.Listen("tcp", netip.AddrPortFrom(n.addr(), 19).String())
		if err != nil {
			return err
		}
		n.t.Cleanup(func() { _ = ln.Close() }) // the test is over
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 1<<20))
				}() // until it ends
			}
		}()
		return nil
	})
}

// A packet with a mesh address that comes over the cable is dropped.
func TestForgedSource(t *testing.T) {
	a, b := pair(t)
	pc := listen(t, a)
	send := func(from netip.Addr, dev string) {
		b.do(func() error { return raw(from, a.addr(), dev) })
	}
	// Through the mesh it arrives.
	send(b.addr(), mesh.Interface(b.id))
	if !arrives(pc) {
		t.Fatal("a packet through the mesh does not arrive")
	}
	b.do(func() error { // b's kernel would send it over the cable
		l, err := netlink.LinkByName("e0")
		if err != nil {
			return err
		}
		ad, err := netlink.ParseAddr("fd00::2/64")
		if err != nil {
			return err
		}
		return netlink.AddrReplace(l, ad)
	})
	a.do(func() error {
		l, err := netlink.LinkByName("e0")
		if err != nil {
			return err
		}
		ad, err := netlink.ParseAddr("fd00::1/64")
		if err != nil {
			return err
		}
		return netlink.AddrReplace(l, ad)
	})
	b.do(func() error {
		l, err := netlink.LinkByName("e0")
		if err != nil {
			return err
		}
		return netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: a.addr().AsSlice(), Mask: net.CIDRMask(128, 128)}, Gw: net.ParseIP("fd00::1"), Priority: 1})
	})
	send(b.addr(), "")
	if arrives(pc) {
		t.Error("a packet with a forged mesh address arrives over the cable")
	}
	send(netip.MustParseAddr("fd00::2"), "")
	if arrives(pc) {
		t.Error("a packet to the mesh address arrives over the cable")
	}
	a.do(func() error { // nothing else held them back
		nft, err := nftables.New()
		if err != nil {
			return err
		}
		nft.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv6, Name: "volant-mesh"})
		return nft.Flush()
	})
	send(b.addr(), "")
	if !arrives(pc) {
		t.Error("without the guard nothing arrives either: this tests nothing")
	}
}

// listen is a UDP socket at the node's mesh address.
func listen(t testing.TB, n *node) net.PacketConn {
	t.Helper()
	var pc net.PacketConn
	n.do(func() (err error) {
		pc, err = net.ListenPacket("udp", netip.AddrPortFrom(n.addr(), 9).String())
		return err
	})
	t.Cleanup(func() { _ = pc.Close() }) // the test is over
	return pc
}

func arrives(pc net.PacketConn) bool {
	_ = pc.SetReadDeadline(time.Now().Add(500 * time.Millisecond)) // an open socket
	_, _, err := pc.ReadFrom(make([]byte, 10))
	return err == nil
}

// raw sends a UDP packet from an address, by a device or as the routes say.
func raw(from, to netip.Addr, dev string) error {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if dev != "" {
		if err := unix.BindToDevice(fd, dev); err != nil {
			return err
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrInet6{Addr: from.As16()}); err != nil {
		return err
	}
	return unix.Sendto(fd, []byte{1}, 0, &unix.SockaddrInet6{Addr: to.As16(), Port: 9})
}

func TestCleanupLeavesNothing(t *testing.T) {
	a, b := pair(t)
	before := a.links()
	pid, err := mesh.End(t.Context(), a.dir)
	if err != nil || pid == 0 {
		t.Fatal(pid, err)
	}
	if left := a.links(); len(left) != len(before)-1 {
		t.Errorf("interfaces: before %v, after %v", before, left)
	}
	a.do(func() error {
		rs, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: 86}, netlink.RT_FILTER_PROTOCOL)
		if len(rs) > 0 {
			t.Errorf("routes are left: %v", rs)
		}
		return err
	})
	// Of one that was killed, what is left is removed without it.
	if err := syscall.Kill(b.status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait(t, "the process is gone", func() bool {
		_, err := b.dev.Status(t.Context())
		return err != nil
	})
	b.do(func() error {
		removed, err := mesh.Cleanup(t.Context(), b.id)
		want := []string{"mesh interface " + mesh.Interface(b.id), "route of fd76:6f6c:616e::/48", "firewall table ip6 volant-mesh"}
		if !slices.Equal(removed, want) {
			t.Errorf("removed %q, want %q", removed, want)
		}
		return err
	})
	b.do(func() error {
		removed, err := mesh.Cleanup(t.Context(), b.id)
		if len(removed) > 0 {
			t.Errorf("removed again: %q", removed)
		}
		return err
	})
}

func (s *space) links() (names []string) {
	s.t.Helper()
	s.do(func() error {
		ls, err := netlink.LinkList()
		for _, l := range ls {
			names = append(names, l.Attrs().Name)
		}
		return err
	})
	return names
}

// enter runs f inside on a thread of its own, for what blocks.
func (s *space) enter(f func()) {
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(s.fd, unix.CLONE_NEWNET); err != nil {
			panic(err)
		}
		f()
	}()
}
