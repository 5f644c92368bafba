package mesh

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/volant-edge/volant"
)

// engine is WireGuard itself.
type engine interface {
	name() string
	// identity gives the device its own key and port, and says whether the key is another one than before.
	identity(p Private, port uint16) (changed bool, err error)
	sessions() ([]session, error)
	apply([]change) error
	// pend says which next keys to watch for their first handshake, and what to do then.
	pend(keys []Key, used func(Key))
	// call starts a handshake with a peer that did not answer the last one, sooner than WireGuard would.
	call(Key)
	// close gives the device back. The interface may stay: the link's end removes it.
	close()
}

// user is wireguard-go in this process.
type user struct {
	dev     *device.Device
	log     *slog.Logger
	own     Private
	port    uint16
	pending atomic.Pointer[pending]
}

type pending struct {
	keys []Key
	used func(Key)
}

// openUser makes the interface, or takes it over from a process that is gone: it stays when its process ends, and with
// it the address, the routes and what is connected over them.
func openUser(name string, mtu int, log *slog.Logger) (engine, error) {
	if l, err := netlink.LinkByName(name); err == nil && l.Type() == "wireguard" { // of the engine that was used before
		if err := netlink.LinkDel(l); err != nil {
			return nil, fmt.Errorf("remove interface %s: %w", name, err)
		}
	}
	t, err := tun.CreateTUN(name, mtu)
	if err != nil {
		if errors.Is(err, unix.EBUSY) {
			return nil, volant.Errorf(volant.ErrPrecondition, "interface %s is in use by another process", name).
				WithRemedy("end the other `volant mesh` process, or the WireGuard that has it")
		}
		return nil, volant.Errorf(volant.ErrPrecondition, "make interface %s: %v", name, err).
			WithRemedy("run as root with /dev/net/tun (modprobe tun)")
	}
	raw, err := t.File().SyscallConn()
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	var perr error
	if err := raw.Control(func(fd uintptr) { perr = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1) }); err != nil || perr != nil {
		return nil, errors.Join(fmt.Errorf("keep interface %s: %w", name, errors.Join(err, perr)), t.Close())
	}
	u := &user{log: log}
	u.pending.Store(&pending{})
	u.dev = device.NewDevice(t, conn.NewDefaultBind(), &device.Logger{Verbosef: u.event, Errorf: u.fault})
	return u, nil
}

func (u *user) name() string { return "user" }

// event hears wireguard-go say what it does. It is called before a handshake is answered and after its own was: the
// moment at which the address must move, so that nothing that comes under the next key is refused.
func (u *user) event(format string, args ...any) {
	if format != "%v - Sending handshake response" && format != "%v - Received handshake response" {
		return
	}
	p := u.pending.Load()
	if len(p.keys) == 0 || len(args) == 0 {
		return
	}
	for _, k := range p.keys {
		if peer := u.dev.LookupPeer(device.NoisePublicKey(k)); peer != nil && args[0] == any(peer) {
			p.used(k)
		}
	}
}

// fault is wireguard-go's word of what failed. Sending to a peer that cannot be reached fails all the time.
func (u *user) fault(format string, args ...any) {
	u.log.Debug("wireguard", "text", fmt.Sprintf(format, args...))
}

func (u *user) pend(keys []Key, used func(Key)) { u.pending.Store(&pending{keys, used}) }

// call makes wireguard-go forget the handshake that it began, since it waits for 5 s before it begins another one.
func (u *user) call(k Key) {
	if peer := u.dev.LookupPeer(device.NoisePublicKey(k)); peer != nil {
		peer.ExpireCurrentKeypairs()
		peer.SendKeepalive()
	}
}

func (u *user) identity(p Private, port uint16) (bool, error) {
	var b strings.Builder
	changed := p != u.own
	if changed {
		fmt.Fprintf(&b, "private_key=%s\n", p.hex())
	}
	if port != u.port {
		fmt.Fprintf(&b, "listen_port=%d\n", port)
	}
	if b.Len() > 0 {
		if err := u.dev.IpcSet(b.String()); err != nil {
			return false, portTaken(port, err)
		}
	}
	if err := u.dev.Up(); err != nil {
		return false, portTaken(port, err)
	}
	u.own, u.port = p, port
	return changed, nil
}

func portTaken(port uint16, err error) error {
	return volant.Errorf(volant.ErrUnavailable, "WireGuard cannot have UDP port %d: %v", port, err).
		WithRemedy("free the port, or set mesh.listen to another one")
}

func (u *user) apply(cs []change) error {
	if len(cs) == 0 {
		return nil
	}
	var b strings.Builder
	for _, c := range cs {
		writeChange(&b, c)
	}
	return u.dev.IpcSet(b.String())
}

// writeChange is a change in the words of WireGuard's cross-platform configuration protocol.
func writeChange(b *strings.Builder, c change) {
	fmt.Fprintf(b, "public_key=%s\n", c.key.hex())
	if c.remove {
		b.WriteString("remove=true\n")
		return
	}
	if c.endpoint.IsValid() {
		fmt.Fprintf(b, "endpoint=%s\n", c.endpoint)
	}
	if c.disallow {
		b.WriteString("replace_allowed_ips=true\n")
	}
	if c.allow.IsValid() {
		fmt.Fprintf(b, "replace_allowed_ips=true\nallowed_ip=%s\n", netip.PrefixFrom(c.allow, c.allow.BitLen()))
	}
	if c.keepalive > 0 {
		// Off and on again sends one at once, which starts a handshake where there is no session.
		fmt.Fprintf(b, "persistent_keepalive_interval=0\npublic_key=%s\npersistent_keepalive_interval=%d\n", c.key.hex(), int(c.keepalive.Seconds()))
	}
}

func (u *user) sessions() ([]session, error) {
	text, err := u.dev.IpcGet()
	if err != nil {
		return nil, err
	}
	return parseSessions(text)
}

// parseSessions reads the configuration protocol's answer.
func parseSessions(text string) (out []session, err error) {
	var s *session
	var sec, nsec int64
	for sc := bufio.NewScanner(strings.NewReader(text)); sc.Scan(); {
		name, value, _ := strings.Cut(sc.Text(), "=")
		if name == "public_key" {
			out = append(out, session{})
			s, sec, nsec = &out[len(out)-1], 0, 0
			b, err := hex.DecodeString(value)
			if err != nil || len(b) != len(s.key) {
				return nil, fmt.Errorf("wireguard: public key %q", value)
			}
			copy(s.key[:], b)
		}
		if s == nil {
			continue // of the device
		}
		switch name {
		case "endpoint":
			s.endpoint, err = netip.ParseAddrPort(value)
		case "allowed_ip":
			var p netip.Prefix
			p, err = netip.ParsePrefix(value)
			s.allowed = p.Addr()
		case "persistent_keepalive_interval":
			var n int64
			n, err = strconv.ParseInt(value, 10, 32)
			s.keepalive = time.Duration(n) * time.Second
		case "last_handshake_time_sec":
			sec, err = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			nsec, err = strconv.ParseInt(value, 10, 64)
		case "rx_bytes":
			s.rx, err = strconv.ParseInt(value, 10, 64)
		case "tx_bytes":
			s.tx, err = strconv.ParseInt(value, 10, 64)
		}
		if err != nil {
			return nil, fmt.Errorf("wireguard: %s: %w", name, err)
		}
		if sec != 0 || nsec != 0 {
			s.handshake = time.Unix(sec, nsec)
		}
	}
	return out, nil
}

func (u *user) close() { u.dev.Close() }
