package hostnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/addrpool"
	"github.com/volant-edge/volant/sixpn"
)

// Config says where a node's machines get their addresses and what they may reach.
type Config struct {
	Node  volant.NodeID
	File  string         // where the machines' addresses are kept; "" keeps them in memory only
	Pool4 netip.Prefix   // private addresses of machines, /16 or smaller; 172.27.0.0/16
	Apps  []netip.Prefix // pools of apps' addresses: each becomes local as a whole when used
	// Deny are ranges that guests cannot reach, beside the host, other guests, link-local and
	// multicast, which are never reached. nil means the private ranges (DenyPrivate).
	Deny  []netip.Prefix
	Allow []netip.Prefix // exceptions from Deny
	DNS   []netip.Addr   // resolvers of guests, reachable also inside Deny; nil means the host's
	MTU   int            // of the taps; 1500
	// MaxFlows bounds the connections one machine may have open to the outside; 8192.
	MaxFlows int
	Log      *slog.Logger // nil discards
}

// Link is a machine's connection to its server.
type Link struct {
	Tap      string
	MAC      net.HardwareAddr // of the guest
	Addr     netip.Addr       // the guest's, a /32
	Gateway  netip.Addr       // outside the /32; the same for all
	Addr6    netip.Addr       // in the organization's private network, a /128
	Gateway6 netip.Addr       // link-local
	MTU      int
	DNS      []netip.Addr
}

// Net is a node's machine network. Its methods may be called from several goroutines.
type Net struct {
	cfg Config

	mu      sync.Mutex // guards all below
	ready   bool
	nl      *netlink.Handle
	nft     *nftables.Conn
	state   *state
	fw      *firewall
	members map[volant.MachineID]member // machines whose tap exists
	plugged map[volant.MachineID]int    // index of each tap which this process has seen whole
}

// member is a machine as the firewall knows it.
type member struct {
	tap   string
	addr  netip.Addr
	addr6 netip.Addr // may be invalid
}

// guestMAC and gatewayMAC are the same on every tap of every node: each tap is a segment of its own,
// and a guest restored elsewhere still knows its gateway.
func guestMAC() net.HardwareAddr   { return net.HardwareAddr{0x52, 0x54, 0x00, 0x77, 0x01, 0x02} }
func gatewayMAC() net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0x00, 0x77, 0x01, 0x01} }

// gateway6 is the gateway's link-local address, guestLinkLocal what the guest makes of its MAC.
func gateway6() netip.Addr       { return netip.MustParseAddr("fe80::1") }
func guestLinkLocal() netip.Addr { return netip.MustParseAddr("fe80::5054:ff:fe77:102") }

var nodeID = regexp.MustCompile(`^[0-9a-f]{8}$`)

// DenyPrivate are the ranges of Config.Deny's default: private networks, where operators have their
// own machines, and the cluster's private IPv6 networks.
func DenyPrivate() []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7"} {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

// New checks the config and changes nothing. The first call that needs the kernel sets it up.
func New(cfg Config) (*Net, error) {
	if !nodeID.MatchString(string(cfg.Node)) {
		return nil, volant.Invalidf("node ID %q: it has 8 hex digits", string(cfg.Node))
	}
	if !cfg.Pool4.IsValid() {
		cfg.Pool4 = netip.MustParsePrefix("172.27.0.0/16")
	}
	cfg.Pool4 = cfg.Pool4.Masked()
	if !cfg.Pool4.Addr().Is4() || cfg.Pool4.Bits() < 16 || cfg.Pool4.Bits() > 29 {
		return nil, volant.Invalidf("pool of machine addresses %v: use an IPv4 prefix of /16 to /29", cfg.Pool4)
	}
	if p, ok := addrpool.Overlap(cfg.Pool4, cfg.Apps); ok {
		return nil, volant.Invalidf("pool of machine addresses %v overlaps the pool of apps' addresses %v", cfg.Pool4, p).
			WithRemedy("choose another prefix for one of them")
	}
	if cfg.Deny == nil {
		cfg.Deny = DenyPrivate()
	}
	if cfg.DNS == nil {
		cfg.DNS = hostResolvers()
	}
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	if cfg.MTU < 1280 || cfg.MTU > 65535 {
		return nil, volant.Invalidf("MTU %d of taps: use 1280 to 65535", cfg.MTU)
	}
	if cfg.MaxFlows == 0 {
		cfg.MaxFlows = 8192
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Net{cfg: cfg, members: map[volant.MachineID]member{}, plugged: map[volant.MachineID]int{}}, nil
}

// Setup prepares the kernel: forwarding, the reuse of ports, and the rules for the taps that exist. It repairs what others
// removed, and every other method calls it when needed.
func (n *Net) Setup(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.setupLocked(ctx)
}

func (n *Net) setupLocked(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.ready {
		return nil
	}
	var err error
	if n.state == nil {
		if n.state, err = loadState(n.cfg.File, size(n.cfg.Pool4)); err != nil {
			return fmt.Errorf("machine network: %w", err)
		}
	}
	if n.nl == nil {
		if n.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("machine network: netlink: %w", err)
		}
	}
	if n.nft == nil {
		if n.nft, err = nftables.New(nftables.AsLasting()); err != nil {
			return fmt.Errorf("machine network: nftables: %w", err)
		}
	}
	if err := enableForwarding(); err != nil {
		return err
	}
	if err := reusePorts(); err != nil {
		n.cfg.Log.Warn("ports are not used again: a machine gets fewer new connections a second", "err", err)
	}
	if err := n.adoptLocked(); err != nil {
		return err
	}
	if err := n.installLocked(); err != nil {
		return err
	}
	n.ready = true
	return nil
}

// Close releases the sockets to the kernel. Nothing that machines use is changed.
func (n *Net) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ready = false
	if n.nl != nil {
		n.nl.Close()
		n.nl = nil
	}
	if n.nft == nil {
		return nil
	}
	err := n.nft.CloseLasting()
	n.nft = nil
	return err
}

// repairEvery is how often Run looks whether somebody removed our rules, as a reload of the system's
// own rules does.
const repairEvery = 5 * time.Second

// Run keeps the rules in place until ctx ends.
func (n *Net) Run(ctx context.Context) error {
	tick := time.NewTicker(repairEvery)
	defer tick.Stop()
	for {
		if err := n.Repair(ctx); err != nil && ctx.Err() == nil {
			n.cfg.Log.Warn("firewall could not be repaired", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Repair puts the rules back if somebody removed some.
func (n *Net) Repair(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.setupLocked(ctx); err != nil {
		return err
	}
	whole, err := n.wholeLocked()
	if err != nil || whole {
		return err
	}
	n.cfg.Log.Warn("firewall rules had been removed by others", "node", n.cfg.Node)
	return n.installLocked()
}

// Attach makes the machine's tap, or finds it, and lets its traffic through. A machine gets the same
// addresses each time.
func (n *Net) Attach(ctx context.Context, id volant.MachineID, org volant.OrgID) (Link, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	link, err := n.attachLocked(ctx, id, org)
	if err != nil {
		return Link{}, fmt.Errorf("attach machine %s: %w", id, err)
	}
	return link, nil
}

func (n *Net) attachLocked(ctx context.Context, id volant.MachineID, org volant.OrgID) (Link, error) {
	if !id.Valid() {
		return Link{}, volant.Invalidf("machine ID %q: it has 14 hex digits", string(id))
	}
	if err := n.setupLocked(ctx); err != nil {
		return Link{}, err
	}
	for {
		idx, err := n.state.take(id)
		if err != nil {
			return Link{}, err
		}
		link, err := n.linkFor(idx, org)
		if err != nil {
			return Link{}, err
		}
		if n.pluggedLocked(id, link) {
			return link, nil
		}
		_, existed := n.members[id]
		err = n.plug(id, link)
		if err == nil {
			return link, nil
		}
		foreign := errors.Is(err, errForeign)
		if !foreign && existed {
			return Link{}, err // a running machine may hold the tap
		}
		if uerr := n.unplug(id, link.Tap); uerr != nil || !foreign {
			return Link{}, errors.Join(err, uerr)
		}
		// Another node on this server, or a network of somebody else, has the address.
		n.state.avoid(id)
	}
}

// linkFor is pure: all of a link follows from index and organization.
func (n *Net) linkFor(idx uint16, org volant.OrgID) (Link, error) {
	a6, err := sixpn.Addr(org, n.cfg.Node, uint32(idx))
	if err != nil {
		return Link{}, err
	}
	return Link{
		Tap: tapName(n.cfg.Node, idx), MAC: guestMAC(), MTU: n.cfg.MTU, DNS: n.cfg.DNS,
		Addr: at(n.cfg.Pool4, idx), Gateway: at(n.cfg.Pool4, gatewayIndex), Addr6: a6, Gateway6: gateway6(),
	}, nil
}

// Detach removes the machine's tap and gives its address back. Idempotent.
func (n *Net) Detach(ctx context.Context, id volant.MachineID) error {
	nl, tap, err := n.expel(ctx, id)
	if err == nil && tap != "" {
		// Not under the lock: the kernel takes some 20 ms to let go of a link. The address is given
		// back after it.
		err = errors.Join(deleteLink(nl, tap), n.release(id))
	}
	if err != nil {
		return fmt.Errorf("detach machine %s: %w", id, err)
	}
	return nil
}

// expel takes the machine out of the rules and returns what is left to remove; "" if it has nothing.
func (n *Net) expel(ctx context.Context, id volant.MachineID) (*netlink.Handle, string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.setupLocked(ctx); err != nil {
		return nil, "", err
	}
	idx, ok := n.state.index(id)
	if !ok {
		return nil, "", nil
	}
	return n.nl, tapName(n.cfg.Node, idx), n.expelLocked(id)
}

func (n *Net) release(id volant.MachineID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state.release(id)
}

// Sweep detaches every machine that keep does not name, and removes taps of this node that belong to
// none. It returns what it removed.
func (n *Net) Sweep(ctx context.Context, keep func(volant.MachineID) bool) (removed []string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.setupLocked(ctx); err != nil {
		return nil, err
	}
	var errs []error
	used := map[string]bool{}
	for id, idx := range n.state.all() {
		tap := tapName(n.cfg.Node, idx)
		if keep(id) {
			used[tap] = true
			continue
		}
		if _, ok := n.members[id]; ok {
			removed = append(removed, tap)
		}
		errs = append(errs, n.unplug(id, tap), n.state.release(id))
	}
	taps, err := listTaps(n.nl, n.cfg.Node)
	if err != nil {
		return removed, errors.Join(append(errs, err)...)
	}
	for _, t := range taps {
		if used[t.Name] {
			continue
		}
		if err := deleteLink(n.nl, t.Name); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, t.Name)
	}
	return removed, errors.Join(errs...)
}
