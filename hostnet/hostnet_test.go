package hostnet_test

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/hostnet"
	"github.com/volant-edge/volant/volanttest/need"
)

var update = flag.Bool("update", false, "rewrite golden files")

const (
	node = volant.NodeID("0badcafe")
	m1   = volant.MachineID("11111111111111")
	m2   = volant.MachineID("22222222222222")
)

func config() hostnet.Config {
	return hostnet.Config{
		Node: node, DNS: []netip.Addr{netip.MustParseAddr("10.9.9.53")},
		Allow: []netip.Prefix{netip.MustParsePrefix("10.9.8.0/24")},
		Apps:  []netip.Prefix{netip.MustParsePrefix("127.77.0.0/16"), netip.MustParsePrefix("fd77::/64")},
	}
}

// lab is the host's namespace with a Net, and the outside behind a cable:
//
//	guest 1 ═ tap ┐
//	              host h0 198.51.100.1 ── 198.51.100.2 o0 outside: 10.9.9.9, 10.9.9.53, 10.9.8.8, 169.254.169.254
//	guest 2 ═ tap ┘      2001:db8::1   ── 2001:db8::2
type lab struct {
	*testing.T
	host, outside *space
	net           *hostnet.Net
}

func newLab(t *testing.T, cfg hostnet.Config) *lab {
	t.Helper()
	need.Lab(t)
	l := &lab{T: t, host: newSpace(t), outside: newSpace(t)}
	veth(l.host, "h0", l.outside, "o0")
	l.host.do(func() error {
		for _, err := range []error{
			addAddr("h0", "198.51.100.1/24"), addAddr("h0", "2001:db8::1/64"),
			addRoute("h0", "10.9.0.0/16", "198.51.100.2"), addRoute("h0", volant.MeshPrefix.String(), "2001:db8::2"),
			addRoute("h0", "169.254.0.0/16", "198.51.100.2"),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0), settle(t.Context(), "2001:db8::1"),
		} {
			if err != nil {
				return err
			}
		}
		return nil
	})
	l.outside.do(func() error {
		for _, a := range []string{"198.51.100.2/24", "2001:db8::2/64", "10.9.9.9/32", "10.9.9.53/32", "10.9.8.8/32", "169.254.169.254/32"} {
			if err := addAddr("o0", a); err != nil {
				return err
			}
		}
		if err := settle(t.Context(), "2001:db8::2"); err != nil {
			return err
		}
		return addRoute("o0", "172.27.0.0/16", "198.51.100.1")
	})
	l.net = l.open(cfg)
	return l
}

func (l *lab) open(cfg hostnet.Config) *hostnet.Net {
	l.Helper()
	n, err := hostnet.New(cfg)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() {
		if err := n.Close(); err != nil {
			l.Error(err)
		}
	})
	return n
}

func (l *lab) attach(id volant.MachineID) hostnet.Link {
	l.Helper()
	var link hostnet.Link
	l.host.do(func() (err error) {
		link, err = l.net.Attach(l.Context(), id, volant.OrgPersonal)
		return err
	})
	return link
}

// boot attaches a machine and gives it a guest, configured as the agent in a machine does.
func (l *lab) boot(id volant.MachineID) (*space, hostnet.Link) {
	l.Helper()
	link := l.attach(id)
	g := guest(l.T, l.host, link.Tap, link.MAC)
	g.do(func() error {
		for _, err := range []error{
			addAddr("eth0", link.Addr.String()+"/32"), addAddr("eth0", link.Addr6.String()+"/128"),
			addRoute("eth0", link.Gateway.String()+"/32", ""), addRoute("eth0", "0.0.0.0/0", link.Gateway.String()),
			addRoute("eth0", "::/0", link.Gateway6.String()),
		} {
			if err != nil {
				return err
			}
		}
		return nil
	})
	return g, link
}

// drops returns how many packets the rules with that comment have dropped.
func (l *lab) drops(comment string) (n uint64) {
	l.Helper()
	l.host.do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		chains, err := c.ListChains()
		if err != nil {
			return err
		}
		for _, ch := range chains {
			if ch.Table.Name != "volant_"+string(node) {
				continue
			}
			rules, err := c.GetRules(ch.Table, ch)
			if err != nil {
				return err
			}
			for _, r := range rules {
				if s, _ := userdata.GetString(r.UserData, userdata.TypeComment); s != comment {
					continue
				}
				for _, e := range r.Exprs {
					if c, ok := e.(*expr.Counter); ok {
						n += c.Packets
					}
				}
			}
		}
		return nil
	})
	return n
}

// reaches checks that a connection is made, and who the other side thinks it is from.
func (l *lab) reaches(from *space, network, addr, seenAs string) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), 10*time.Second)
	defer cancel()
	if got := <-from.ask(ctx, network, addr, ""); got.err != nil || got.says != seenAs {
		l.Errorf("%s to %s: got %q, %v; want to be seen as %s", network, addr, got.says, got.err, seenAs)
	}
}

// stopped checks that the rule with that comment drops the packets of a connection.
func (l *lab) stopped(from *space, network, addr, source, comment string) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), 10*time.Second)
	defer cancel()
	before := l.drops(comment)
	answers := from.ask(ctx, network, addr, source)
	for l.drops(comment) == before {
		select {
		case got := <-answers:
			l.Errorf("%s to %s: got %q, %v; want it dropped as %q", network, addr, got.says, got.err, comment)
			return
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if got := <-answers; got.err == nil {
		l.Errorf("%s to %s: got %q, though %q dropped it", network, addr, got.says, comment)
	}
}

func TestMachinesReachWhatTheyMayAndNothingElse(t *testing.T) {
	l := newLab(t, config())
	g1, link1 := l.boot(m1)
	g2, link2 := l.boot(m2)
	l.outside.echo(7)
	l.outside.echo(53)
	l.host.echo(7)
	g1.echo(80)
	g2.echo(80)
	port := func(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }
	gw := link1.Gateway.String()

	l.Log("the host reaches its machines")
	l.reaches(l.host, "tcp", port(link1.Addr, 80), gw)
	l.reaches(l.host, "udp", port(link2.Addr, 80), gw)
	l.reaches(l.host, "tcp", port(link1.Addr6, 80), "2001:db8::1")

	l.Log("a machine reaches the outside, under the host's address")
	for _, network := range []string{"tcp", "udp"} {
		l.reaches(g1, network, "198.51.100.2:7", "198.51.100.1")
		l.reaches(g1, network, "[2001:db8::2]:7", "2001:db8::1")
		l.reaches(g1, network, "10.9.9.53:53", "198.51.100.1") // a resolver in a denied range
		l.reaches(g1, network, "10.9.8.8:7", "198.51.100.1")   // an exception
	}

	for _, network := range []string{"tcp", "udp"} {
		l.stopped(g1, network, port(link1.Gateway, 7), "", "services of the host")
		l.stopped(g1, network, "198.51.100.1:7", "", "services of the host")
		l.stopped(g1, network, "[2001:db8::1]:7", "", "services of the host")
		l.stopped(g1, network, "[fe80::1%eth0]:7", link1.Addr6.String(), "services of the host")
		l.stopped(g1, network, port(link2.Addr, 80), "", "other machines")
		l.stopped(g1, network, port(link2.Addr6, 80), "", "other machines")
		l.stopped(g1, network, "169.254.169.254:7", "", "never reached")
		l.stopped(g1, network, port(volant.MeshAddr("0a0b0c0d"), volant.PeerPort), "", "never reached")
		l.stopped(g1, network, "10.9.9.9:7", "", "denied ranges")
		l.stopped(g1, network, "10.9.9.53:7", "", "denied ranges")
		l.stopped(l.outside, network, port(link1.Addr, 80), "", "past the proxy")
	}

	l.Log("a machine sends under its own address only")
	g1.do(func() error { return addAddr("eth0", "203.0.113.7/32") })
	g1.do(func() error { return addAddr("eth0", "2001:db8:5::7/128") })
	l.stopped(g1, "tcp", "198.51.100.2:7", "203.0.113.7", "any other source")
	l.stopped(g1, "udp", "198.51.100.2:7", "203.0.113.7", "any other source")
	l.stopped(g1, "tcp", "[2001:db8::2]:7", "2001:db8:5::7", "any other source")
	g1.do(func() error { return addAddr("eth0", link2.Addr.String()+"/32") })
	l.stopped(g1, "tcp", "198.51.100.2:7", link2.Addr.String(), "any other source")
}

func TestPortsThatTheHostPublishesAreNotReached(t *testing.T) {
	need.Tool(t, "lab", "nft")
	l := newLab(t, config())
	g1, _ := l.boot(m1)
	l.outside.echo(7)
	l.reaches(g1, "tcp", "198.51.100.2:7", "198.51.100.1")
	// As a container engine does it: the host's own port leads to an address behind the host.
	l.nft("add table ip engine")
	l.nft("add chain ip engine pre { type nat hook prerouting priority dstnat; }")
	l.nft("add rule ip engine pre tcp dport 8080 dnat to 198.51.100.2:7")
	l.stopped(g1, "tcp", "198.51.100.1:8080", "", "services that the host publishes")
}

func TestOneMachineCannotFillTheHostsFlowTable(t *testing.T) {
	cfg := config()
	cfg.MaxFlows = 5
	l := newLab(t, cfg)
	g1, _ := l.boot(m1)
	g2, _ := l.boot(m2)
	l.outside.echo(7)
	for range 5 {
		l.reaches(g1, "udp", "198.51.100.2:7", "198.51.100.1")
	}
	l.stopped(g1, "udp", "198.51.100.2:7", "", "too many flows")
	l.reaches(g2, "udp", "198.51.100.2:7", "198.51.100.1")
}

func TestMachineCannotFillTheHostsNeighbourTable(t *testing.T) {
	l := newLab(t, config())
	g1, link := l.boot(m1)
	g1.echo(80)
	l.reaches(l.host, "tcp", netip.AddrPortFrom(link.Addr, 80).String(), link.Gateway.String())
	for _, a := range []string{"203.0.113.7/32", "2001:db8:5::7/128"} {
		g1.do(func() error { return addAddr("eth0", a) })
	}
	l.outside.echo(7)
	before := l.drops("anything else")
	g1.do(func() error { return dropNeighbours("eth0") })
	// Asks for the gateway under a foreign address, by ARP and by neighbour discovery.
	ctx, cancel := context.WithCancel(t.Context())
	answers := g1.ask(ctx, "udp", "198.51.100.2:7", "203.0.113.7")
	for l.drops("anything else") == before {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-answers
	l.stopped(g1, "udp", "[2001:db8::2]:7", "2001:db8:5::7", "any other source")
	var got []string
	l.host.do(func() (err error) { got, err = neighbours(link.Tap); return err })
	want := []string{link.Addr.String(), guestLinkLocal, link.Addr6.String()}
	got = slices.DeleteFunc(got, func(a string) bool { return slices.Contains(want, a) })
	if len(got) > 0 {
		t.Errorf("the host's neighbour table holds %v", got)
	}
}

func TestAttachFindsWhatItMadeAndDetachTakesItAway(t *testing.T) {
	l := newLab(t, config())
	first := l.attach(m1)
	l.attach(m2)
	if got := l.attach(m1); !cmp.Equal(got, first, cmp.Comparer(sameAddr)) {
		t.Errorf("second attach gives %+v, want %+v", got, first)
	}
	for range 2 {
		l.host.do(func() error { return l.net.Detach(t.Context(), m1) })
	}
	if got, want := l.taps(), []string{"v" + string(node) + "0003"}; !slices.Equal(got, want) {
		t.Errorf("taps are %v, want %v", got, want)
	}
	if got := l.attach("33333333333333"); got.Addr == first.Addr {
		t.Errorf("address %v was given again at once", got.Addr)
	}
}

func TestAttachMakesAHalfMadeTapWhole(t *testing.T) {
	l := newLab(t, config())
	tap := "v" + string(node) + "0002"
	for name, damage := range map[string]func() error{
		"a tap and nothing else":  func() error { return makeTap(tap) },
		"a tap that was set down": func() error { return setDown(tap) },
		"a tap without its routes": func() error { // as after a crash of the server before
			if err := setDown(tap); err != nil {
				return err
			}
			return up(tap)
		},
		"no tap any more": func() error { return removeLink(tap) },
	} {
		t.Run(name, func(t *testing.T) {
			l.host.try(func() error { return removeLink(tap) }) //nolint:errcheck // it may not be there
			if name != "a tap and nothing else" {
				l.net = l.open(config())
				l.attach(m1)
			}
			l.host.do(damage)
			l.net = l.open(config()) // a new process knows nothing
			g, link := l.boot(m1)
			if link.Tap != tap {
				t.Fatalf("tap is %s, want %s", link.Tap, tap)
			}
			g.echo(80)
			l.reaches(l.host, "tcp", netip.AddrPortFrom(link.Addr, 80).String(), link.Gateway.String())
			l.reaches(l.host, "tcp", netip.AddrPortFrom(link.Addr6, 80).String(), "2001:db8::1")
		})
	}
}

func TestAttachSeesThatItsTapWasRemoved(t *testing.T) {
	l := newLab(t, config())
	link := l.attach(m1)
	l.host.do(func() error { return removeLink(link.Tap) })
	g, link := l.boot(m1)
	g.echo(80)
	l.reaches(l.host, "tcp", netip.AddrPortFrom(link.Addr, 80).String(), link.Gateway.String())
}

func sameAddr(a, b netip.Addr) bool { return a == b }

func (l *lab) taps() []string {
	l.Helper()
	var taps []string
	l.host.do(func() error {
		links, err := net.Interfaces()
		for _, i := range links {
			if strings.HasPrefix(i.Name, "v") {
				taps = append(taps, i.Name)
			}
		}
		return err
	})
	return taps
}

func TestRestartKeepsAddressesAndTraffic(t *testing.T) {
	for _, lost := range []bool{false, true} {
		t.Run(fmt.Sprintf("file lost %v", lost), func(t *testing.T) {
			cfg := config()
			cfg.File = filepath.Join(t.TempDir(), "net", "addresses")
			l := newLab(t, cfg)
			g1, link := l.boot(m1)
			l.attach(m2)
			g1.echo(80)
			if lost {
				if err := os.Remove(cfg.File); err != nil {
					t.Fatal(err)
				}
			}
			l.net = l.open(cfg)
			l.host.do(func() error { return l.net.Setup(t.Context()) })
			l.reaches(l.host, "tcp", netip.AddrPortFrom(link.Addr, 80).String(), link.Gateway.String())
			l.reaches(l.host, "tcp", netip.AddrPortFrom(link.Addr6, 80).String(), "2001:db8::1")
			if got := l.attach(m1); got.Addr != link.Addr || got.Tap != link.Tap {
				t.Errorf("after a restart the machine has %v on %s, want %v on %s", got.Addr, got.Tap, link.Addr, link.Tap)
			}
			var removed []string
			l.host.do(func() (err error) {
				removed, err = l.net.Sweep(t.Context(), func(id volant.MachineID) bool { return id == m1 })
				return err
			})
			if want := []string{"v" + string(node) + "0003"}; !slices.Equal(removed, want) {
				t.Errorf("sweep removed %v, want %v", removed, want)
			}
			l.reaches(l.host, "tcp", netip.AddrPortFrom(link.Addr, 80).String(), link.Gateway.String())
		})
	}
}

func TestTwoNodesOnOneServerDoNotShareAddresses(t *testing.T) {
	l := newLab(t, config())
	a := l.attach(m1)
	other := config()
	other.Node = "00000bad"
	n2 := l.open(other)
	var b hostnet.Link
	l.host.do(func() (err error) { b, err = n2.Attach(t.Context(), m2, volant.OrgPersonal); return err })
	if a.Addr == b.Addr || a.Tap == b.Tap {
		t.Errorf("both have %v on %s", b.Addr, b.Tap)
	}
	var nodes []volant.NodeID
	l.host.do(func() (err error) { nodes, err = hostnet.Nodes(t.Context()); return err })
	if want := []volant.NodeID{other.Node, node}; !slices.Equal(nodes, want) {
		t.Errorf("nodes found are %v, want %v", nodes, want)
	}
	l.host.do(func() error { _, err := hostnet.Cleanup(t.Context(), other.Node); return err })
	if got, want := l.taps(), []string{a.Tap}; !slices.Equal(got, want) {
		t.Errorf("taps after the other node's cleanup are %v, want %v", got, want)
	}
}

func TestRulesComeBackWhenOthersFlushThem(t *testing.T) {
	need.Tool(t, "lab", "nft")
	for _, how := range []string{"flush ruleset", "flush chain inet volant_0badcafe from_machine", "flush set inet volant_0badcafe own4"} {
		l := newLab(t, config())
		l.attach(m1)
		want := l.rules(node)
		l.nft(how)
		if got := l.rules(node); got == want {
			t.Fatalf("%s changed nothing", how)
		}
		l.host.do(func() error { return l.net.Repair(t.Context()) })
		if got := l.rules(node); got != want {
			t.Errorf("after %s and a repair:\n%s", how, cmp.Diff(want, got))
		}
		l.nft("flush ruleset")
		l.attach(m2)
		l.host.do(func() error { return l.net.Detach(t.Context(), m2) })
		if got := l.rules(node); got != want {
			t.Errorf("after a flush, an attach and a detach:\n%s", cmp.Diff(want, got))
		}
	}
}

// nft runs the program inside the host's namespace.
func (l *lab) nft(args string) string {
	l.Helper()
	var out []byte
	l.host.do(func() (err error) {
		out, err = exec.CommandContext(l.Context(), "nft", strings.Fields(args)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("nft %s: %w: %s", args, err, out)
		}
		return nil
	})
	return string(out)
}

var counters = regexp.MustCompile(`packets \d+ bytes \d+`)

// rules lists the node's tables as nft writes them.
func (l *lab) rules(node volant.NodeID) string {
	l.Helper()
	var out strings.Builder
	all := l.nft("list ruleset")
	for table := range strings.SplitSeq(all, "\ntable ") {
		if strings.Contains(table[:strings.Index(table+"\n", "\n")], string(node)) {
			fmt.Fprintf(&out, "table %s\n", strings.TrimPrefix(strings.TrimSpace(table), "table "))
		}
	}
	return counters.ReplaceAllString(out.String(), "packets 0 bytes 0")
}

func TestRulesAsNftWritesThem(t *testing.T) {
	need.Tool(t, "lab", "nft")
	l := newLab(t, config())
	l.attach(m1)
	l.attach(m2)
	got := l.rules(node)
	golden := filepath.Join("testdata", "rules.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("rules differ (-update rewrites the file):\n%s", diff)
	}
}

func TestCleanupRemovesExactlyOurThings(t *testing.T) {
	need.Tool(t, "lab", "nft")
	l := newLab(t, config())
	l.nft("add table inet somebody")
	l.nft("add chain inet somebody c")
	l.nft("add rule inet somebody c counter accept")
	before := l.snapshot()
	l.attach(m1)
	l.host.do(func() error {
		return l.net.SetAddresses(t.Context(), []netip.Addr{netip.MustParseAddr("fd77::1"), netip.MustParseAddr("203.0.113.80")})
	})
	if l.snapshot() == before {
		t.Fatal("nothing was made")
	}
	var removed []string
	l.host.do(func() (err error) { removed, err = hostnet.Cleanup(t.Context(), node); return err })
	want := []string{"tap v0badcafe0002", "local route 203.0.113.80/32", "local route fd77::/64", "firewall table inet volant_0badcafe", "firewall table arp volant_0badcafe"}
	slices.Sort(want)
	slices.Sort(removed)
	if diff := cmp.Diff(want, removed); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, l.snapshot()); diff != "" {
		t.Errorf("left behind or taken away:\n%s", diff)
	}
}

// snapshot is what the host's kernel holds of links, routes and rules.
func (l *lab) snapshot() string {
	l.Helper()
	var out strings.Builder
	l.host.do(func() error {
		for _, args := range []string{"-br addr", "route show table all", "-6 route show table all"} {
			b, err := exec.CommandContext(l.Context(), "ip", strings.Fields(args)...).Output()
			if err != nil {
				return err
			}
			out.Write(b)
		}
		return nil
	})
	return out.String() + l.nft("list ruleset")
}

func TestSetAddressesMakesThemLocal(t *testing.T) {
	l := newLab(t, config())
	l.host.echo(7)
	set := func(addrs ...string) error {
		var as []netip.Addr
		for _, a := range addrs {
			as = append(as, netip.MustParseAddr(a))
		}
		return l.host.try(func() error { return l.net.SetAddresses(t.Context(), as) })
	}
	local := func() []string {
		var out []string
		l.host.do(func() error {
			for _, f := range []string{"-4", "-6"} {
				b, err := exec.CommandContext(t.Context(), "ip", f, "route", "show", "table", "local", "proto", "86").Output()
				if err != nil {
					return err
				}
				for line := range strings.Lines(string(b)) {
					out = append(out, strings.Fields(line)[1])
				}
			}
			return nil
		})
		return out
	}
	for range 2 {
		if err := set("127.77.0.1", "fd77::1", "fd77::2", "203.0.113.80"); err != nil {
			t.Fatal(err)
		}
		if got, want := local(), []string{"203.0.113.80", "fd77::/64"}; !slices.Equal(got, want) {
			t.Errorf("local are %v, want %v", got, want)
		}
	}
	l.reaches(l.host, "tcp", "127.77.0.1:7", "127.0.0.1")
	l.reaches(l.host, "tcp", "203.0.113.80:7", "203.0.113.80")
	l.reaches(l.host, "tcp", "[fd77::2]:7", "2001:db8::1")
	if err := set("127.77.0.1"); err != nil {
		t.Fatal(err)
	}
	if got := local(); len(got) > 0 {
		t.Errorf("local are still %v", got)
	}
}

func TestPoolWithTheServersGatewayIsRefused(t *testing.T) {
	cfg := config()
	cfg.Apps = append(cfg.Apps, netip.MustParsePrefix("198.51.100.0/24"))
	l := newLab(t, cfg)
	err := l.host.try(func() error {
		return l.net.SetAddresses(t.Context(), []netip.Addr{netip.MustParseAddr("198.51.100.80")})
	})
	if err == nil || !strings.Contains(err.Error(), "198.51.100.2") {
		t.Errorf("error is %v, want a refusal that names the gateway", err)
	}
}

func BenchmarkAttach(b *testing.B) {
	need.Lab(b)
	cfg := config()
	cfg.File = filepath.Join(b.TempDir(), "addresses")
	n, err := hostnet.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	runtime.LockOSThread()
	inNewSpace(b)
	defer n.Close() // a benchmark
	took := make([]time.Duration, 0, 1000)
	for i := 0; b.Loop(); i++ {
		id := volant.MachineID(fmt.Sprintf("%014x", i%1000))
		start := time.Now()
		if _, err := n.Attach(b.Context(), id, volant.OrgPersonal); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
		if err := n.Detach(b.Context(), id); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs/attach-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs/attach-p99")
}

func BenchmarkAttachAgain(b *testing.B) {
	need.Lab(b)
	n, err := hostnet.New(config())
	if err != nil {
		b.Fatal(err)
	}
	runtime.LockOSThread()
	inNewSpace(b)
	defer n.Close() // a benchmark
	for i := range 100 {
		if _, err := n.Attach(b.Context(), volant.MachineID(fmt.Sprintf("%014x", i)), volant.OrgPersonal); err != nil {
			b.Fatal(err)
		}
	}
	for i := 0; b.Loop(); i++ {
		if _, err := n.Attach(b.Context(), volant.MachineID(fmt.Sprintf("%014x", i%100)), volant.OrgPersonal); err != nil {
			b.Fatal(err)
		}
	}
}

func TestProblemsAreFoundWithTheirCure(t *testing.T) {
	need.Tool(t, "lab", "nft")
	cfg := config()
	cfg.Pool4 = netip.MustParsePrefix("10.9.128.0/17")
	l := newLab(t, cfg)
	l.nft("add table ip filter")
	l.nft("add chain ip filter FORWARD { type filter hook forward priority filter; policy drop; }")
	l.nft("add chain ip filter DOCKER-USER")
	l.nft("add table inet strict")
	l.nft("add chain inet strict forwarding { type filter hook forward priority filter; policy drop; }")
	find := func() (got []string) {
		l.host.do(func() error {
			ps, err := l.net.Problems(t.Context())
			for _, p := range ps {
				got = append(got, p.Found+" → "+p.Remedy)
			}
			return err
		})
		return got
	}
	want := []string{
		`firewall chain ip filter FORWARD drops forwarded packets, so machines do not reach the outside → let machines through: iptables -I DOCKER-USER -i v0badcafe+ -j ACCEPT; iptables -I DOCKER-USER -o v0badcafe+ -j ACCEPT (what they may reach is decided by Volant's own rules)`,
		`firewall chain inet strict forwarding drops forwarded packets, so machines do not reach the outside → let machines through: nft insert rule inet strict forwarding iifname '"v0badcafe*"' accept; nft insert rule inet strict forwarding oifname '"v0badcafe*"' accept`,
		`machines' pool 10.9.128.0/17 overlaps the network 10.9.0.0/16 on h0 → give machines another pool in the node's config, else they and that network may not reach each other's addresses`,
	}
	if diff := cmp.Diff(want, find()); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	for _, family := range []string{"ip filter DOCKER-USER", "inet strict forwarding"} {
		l.nft("insert rule " + family + ` iifname "v0badcafe*" accept`)
		l.nft("insert rule " + family + ` oifname "v0badcafe*" accept`)
	}
	l.nft("insert rule ip filter FORWARD jump DOCKER-USER")
	if diff := cmp.Diff(want[2:], find()); diff != "" {
		t.Errorf("problems after the cure (-want +got):\n%s", diff)
	}
	g1, _ := l.boot(m1)
	l.outside.echo(7)
	l.outside.do(func() error { return addRoute("o0", "10.9.128.0/17", "198.51.100.1") })
	l.reaches(g1, "tcp", "198.51.100.2:7", "198.51.100.1")
}
