package mesh

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/volant-edge/volant"
)

// kernel is the WireGuard of the kernel.
type kernel struct {
	link string
	wg   *wgctrl.Client

	mu      sync.Mutex
	pending pending
	stop    chan struct{} // ends the watch; nil: none runs
}

// pendEvery is how often the kernel is asked whether a next key has been used: what comes under that key before the
// address has moved is lost, and sent again by TCP.
const pendEvery = 10 * time.Millisecond

// KernelHas says whether the kernel has WireGuard, by making an interface of it for a moment.
func KernelHas(node volant.NodeID) error {
	name := "vl" + string(node) + "p"
	l := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := netlink.LinkAdd(l); err != nil {
		return fmt.Errorf("the kernel has no WireGuard: %w", err)
	}
	if err := netlink.LinkDel(l); err != nil {
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return nil
}

// openKernel makes the interface, or takes the one that is there.
func openKernel(name string) (engine, error) {
	l, err := netlink.LinkByName(name)
	if err == nil && l.Type() != "wireguard" {
		if err := netlink.LinkDel(l); err != nil { // of the engine that was used before
			return nil, fmt.Errorf("remove interface %s: %w", name, err)
		}
	}
	err = netlink.LinkAdd(&netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name}})
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, volant.Errorf(volant.ErrPrecondition, "make WireGuard interface %s: %v", name, err).
			WithRemedy("load the module (modprobe wireguard), or set mesh.engine to user")
	}
	wg, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("wireguard: %w", err)
	}
	return &kernel{link: name, wg: wg}, nil
}

func (k *kernel) name() string { return "kernel" }

func (k *kernel) identity(p Private, port uint16) (bool, error) {
	d, err := k.wg.Device(k.link)
	if err != nil {
		return false, fmt.Errorf("wireguard: %w", err)
	}
	var cfg wgtypes.Config
	changed := Private(d.PrivateKey) != p
	if changed {
		key := wgtypes.Key(p)
		cfg.PrivateKey = &key
	}
	if n := int(port); d.ListenPort != n {
		cfg.ListenPort = &n
	}
	if err := k.wg.ConfigureDevice(k.link, cfg); err != nil {
		return false, portTaken(port, err)
	}
	return changed, nil
}

func (k *kernel) sessions() ([]session, error) {
	d, err := k.wg.Device(k.link)
	if err != nil {
		return nil, fmt.Errorf("wireguard: %w", err)
	}
	out := make([]session, 0, len(d.Peers))
	for _, p := range d.Peers {
		s := session{key: Key(p.PublicKey), keepalive: p.PersistentKeepaliveInterval, handshake: p.LastHandshakeTime, rx: p.ReceiveBytes, tx: p.TransmitBytes}
		if p.Endpoint != nil {
			ep := p.Endpoint.AddrPort()
			s.endpoint = netip.AddrPortFrom(ep.Addr().Unmap(), ep.Port())
		}
		for _, a := range p.AllowedIPs {
			s.allowed, _ = netip.AddrFromSlice(a.IP)
		}
		out = append(out, s)
	}
	return out, nil
}

func (k *kernel) apply(cs []change) error {
	for _, c := range cs {
		for _, p := range peerConfigs(c) { // one by one: the kernel keeps to the order
			if err := k.wg.ConfigureDevice(k.link, wgtypes.Config{Peers: []wgtypes.PeerConfig{p}}); err != nil {
				return fmt.Errorf("wireguard peer %s: %w", c.key, err)
			}
		}
	}
	return nil
}

// peerConfigs is a change in the words of the kernel's interface.
func peerConfigs(c change) []wgtypes.PeerConfig {
	p := wgtypes.PeerConfig{PublicKey: wgtypes.Key(c.key), Remove: c.remove, ReplaceAllowedIPs: c.disallow || c.allow.IsValid()}
	if c.endpoint.IsValid() {
		p.Endpoint = net.UDPAddrFromAddrPort(c.endpoint)
	}
	if c.allow.IsValid() {
		bits := c.allow.BitLen()
		p.AllowedIPs = []net.IPNet{{IP: c.allow.AsSlice(), Mask: net.CIDRMask(bits, bits)}}
	}
	if c.keepalive == 0 {
		return []wgtypes.PeerConfig{p}
	}
	// Off and on again sends one at once, which starts a handshake where there is no session.
	off, on := time.Duration(0), c.keepalive
	p.PersistentKeepaliveInterval = &off
	return []wgtypes.PeerConfig{p, {PublicKey: wgtypes.Key(c.key), PersistentKeepaliveInterval: &on}}
}

// call is nothing that the kernel offers: it tries again after 5 s.
func (k *kernel) call(Key) {}

// pend watches for the first handshakes. The kernel tells nobody of them.
func (k *kernel) pend(keys []Key, used func(Key)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pending = pending{keys, used}
	if len(keys) == 0 && k.stop != nil {
		close(k.stop)
		k.stop = nil
	}
	if len(keys) > 0 && k.stop == nil {
		k.stop = make(chan struct{})
		go k.watch(k.stop)
	}
}

func (k *kernel) watch(stop <-chan struct{}) {
	tick := time.NewTicker(pendEvery)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		ss, err := k.sessions()
		if err != nil {
			continue // the device is gone, or comes back
		}
		k.mu.Lock()
		p := k.pending
		k.mu.Unlock()
		for _, s := range ss {
			if !s.handshake.IsZero() && slices.Contains(p.keys, s.key) {
				p.used(s.key)
			}
		}
	}
}

func (k *kernel) close() {
	k.pend(nil, nil)
	_ = k.wg.Close() // a netlink socket
}
