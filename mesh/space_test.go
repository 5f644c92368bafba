package mesh_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/mesh"
)

// TestMain lets the test binary be a mesh process: "mesh-process DIR".
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "mesh-process" {
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		if err := mesh.Main(context.Background(), mesh.Process{Data: os.Args[2], Log: log}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// space is a network namespace that one goroutine with a thread of its own lives in.
type space struct {
	t    testing.TB
	fd   int
	jobs chan func()
}

func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{t: t, jobs: make(chan func())}
	started := make(chan error)
	go s.live(started)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		close(s.jobs)
		if err := unix.Close(s.fd); err != nil {
			t.Error(err)
		}
	})
	s.do(func() error {
		for name, value := range map[string]string{"ipv6/conf/default/accept_dad": "0", "ipv4/conf/all/rp_filter": "0", "ipv4/ip_forward": "1"} {
			if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
				return err
			}
		}
		return up("lo")
	})
	return s
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
	done := make(chan error)
	s.jobs <- func() { done <- f() }
	if err := <-done; err != nil {
		s.t.Fatal(err)
	}
}

func up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// wire joins two namespaces by a cable with an address at each end.
func wire(a *space, nameA, addrA string, mtuA int, b *space, nameB, addrB string, mtuB int) {
	a.t.Helper()
	a.do(func() error {
		v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: nameA}, PeerName: nameB, PeerNamespace: netlink.NsFd(b.fd)}
		return netlink.LinkAdd(v)
	})
	for _, end := range []struct {
		s          *space
		name, addr string
		mtu        int
	}{{a, nameA, addrA, mtuA}, {b, nameB, addrB, mtuB}} {
		end.s.do(func() error {
			l, err := netlink.LinkByName(end.name)
			if err != nil {
				return err
			}
			ad, err := netlink.ParseAddr(end.addr)
			if err != nil {
				return err
			}
			if err := netlink.AddrReplace(l, ad); err != nil {
				return err
			}
			if err := netlink.LinkSetMTU(l, end.mtu); err != nil {
				return err
			}
			return netlink.LinkSetUp(l)
		})
	}
}

func (s *space) defaultRoute(via string) {
	s.t.Helper()
	s.do(func() error { return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(via)}) })
}

// node is a node's mesh: its process in a namespace.
type node struct {
	*space
	dir      *datadir.Dir
	id       volant.NodeID
	keys     *mesh.Keys
	endpoint netip.AddrPort
	dev      *mesh.Remote
	mtu      int
}

func newNode(t testing.TB, s *space, endpoint string) *node {
	t.Helper()
	d := openDir(t)
	n := &node{space: s, dir: d, id: d.Node(), keys: openKeys(t, d), endpoint: netip.MustParseAddrPort(endpoint)}
	n.start()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if _, err := mesh.End(ctx, d); err != nil {
			t.Error(err)
		}
		b, err := os.ReadFile(d.Path("mesh", "log"))
		if err != nil || bytes.Contains(b, []byte("DATA RACE")) {
			t.Error("a data race in the process, or no log of it", err)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", n.id, b)
		}
	})
	return n
}

func (n *node) start() {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	n.do(func() (err error) {
		n.dev, err = mesh.Ensure(n.t.Context(), mesh.Start{Data: n.dir, Args: []string{self, "mesh-process", n.dir.Root()}})
		return err
	})
}

func (n *node) addr() netip.Addr { return volant.MeshAddr(n.id) }

func (n *node) peer() mesh.Peer {
	p := mesh.Peer{Node: n.id, Key: n.keys.Use.Public(), Endpoint: n.endpoint, Addr: n.addr()}
	if !n.keys.Next.IsZero() {
		p.Next = n.keys.Next.Public()
	}
	return p
}

// knows configures the node with these peers.
func (n *node) knows(peers ...mesh.Peer) {
	n.t.Helper()
	cfg := mesh.Config{Name: mesh.Interface(n.id), Private: n.keys.Use, Port: n.endpoint.Port(), Addr: n.addr(), MTU: n.mtu, Peers: peers}
	if err := n.dev.Configure(n.t.Context(), cfg); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) status() mesh.Status {
	n.t.Helper()
	st, err := n.dev.Status(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	return st
}

// cut drops all UDP that the node sends outside, or no longer.
func (n *node) cut(on bool) {
	n.t.Helper()
	n.do(func() error {
		nft, err := nftables.New()
		if err != nil {
			return err
		}
		table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "cut"}
		if !on {
			nft.DelTable(table)
			return nft.Flush()
		}
		c := nft.AddChain(&nftables.Chain{Name: "out", Table: nft.AddTable(table), Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter, Type: nftables.ChainTypeFilter})
		nft.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}})
		return nft.Flush()
	})
}

// echo answers UDP packets and TCP connections at the node's mesh address with what came.
func (n *node) echo() {
	n.t.Helper()
	n.do(func() error {
		ln, err := net.Listen("tcp", netip.AddrPortFrom(n.addr(), 7).String())
		if err != nil {
			return err
		}
		pc, err := net.ListenPacket("udp", netip.AddrPortFrom(n.addr(), 7).String())
		if err != nil {
			return err
		}
		n.t.Cleanup(func() { _, _ = ln.Close(), pc.Close() }) // the test is over
		go echoTCP(ln)
		go echoUDP(pc)
		return nil
	})
}

func echoTCP(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			buf := make([]byte, 64<<10)
			for {
				n, err := c.Read(buf)
				if _, werr := c.Write(buf[:n]); err != nil || werr != nil {
					_ = c.Close() // the test looks at its own end
					return
				}
			}
		}()
	}
}

func echoUDP(pc net.PacketConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = pc.WriteTo(buf[:n], from) // lost like any packet
	}
}

// dial opens a connection from the node to another's echo.
func (n *node) dial(network string, to *node) net.Conn {
	n.t.Helper()
	var c net.Conn
	n.do(func() (err error) {
		d := net.Dialer{Timeout: 10 * time.Second}
		c, err = d.DialContext(n.t.Context(), network, netip.AddrPortFrom(to.addr(), 7).String())
		return err
	})
	n.t.Cleanup(func() { _ = c.Close() }) // the test is over
	return c
}

// round sends a byte and waits for it.
func round(c net.Conn, within time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 1))
	return err
}

// reach waits until UDP goes through.
func (n *node) reach(to *node) {
	n.t.Helper()
	c := n.dial("udp", to)
	for range 200 {
		if round(c, 100*time.Millisecond) == nil {
			return
		}
	}
	n.t.Fatalf("%s does not reach %s: %+v", n.id, to.id, n.status())
}
