package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/internal/atomicfile"
	"github.com/volant-edge/volant/internal/netdump"
)

// Local is a Device in this process.
type Local struct {
	open func(name string, mtu int) (engine, error)
	path string // of the last Config
	log  *slog.Logger
	wake chan struct{} // paths are to be looked at

	mu    sync.Mutex
	cfg   Config
	eng   engine // nil: not configured yet
	link  *link
	mtu   int                      // of the interface
	known map[Key]netip.AddrPort   // endpoints as configured
	used  map[Key]bool             // next keys that have been used
	paths map[netip.Addr]pathState // what was found of the way to a peer
	calls map[Key]call             // who was called and has not answered since
}

// NewKernel is the Device of the kernel's WireGuard.
func NewKernel(d *datadir.Dir, log *slog.Logger) (*Local, error) {
	return newLocal(d, log, func(name string, _ int) (engine, error) { return openKernel(name) })
}

// NewUser is the Device of wireguard-go in this process.
func NewUser(d *datadir.Dir, log *slog.Logger) (*Local, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return newLocal(d, log, func(name string, mtu int) (engine, error) { return openUser(name, mtu, log) })
}

func newLocal(d *datadir.Dir, log *slog.Logger, open func(string, int) (engine, error)) (*Local, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	path, err := configPath(d)
	if err != nil {
		return nil, err
	}
	return &Local{
		open: open, path: path, log: log, wake: make(chan struct{}, 1),
		known: map[Key]netip.AddrPort{}, used: map[Key]bool{}, paths: map[netip.Addr]pathState{}, calls: map[Key]call{},
	}, nil
}

// Configure is Device's.
func (l *Local) Configure(_ context.Context, cfg Config) error {
	if err := cfg.check(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.eng != nil && cfg.Name != l.cfg.Name {
		return volant.Errorf(volant.ErrPrecondition, "the mesh interface is %s and cannot become %s", l.cfg.Name, cfg.Name)
	}
	if err := l.openLocked(cfg); err != nil {
		return err
	}
	if err := l.applyLocked(cfg); err != nil {
		return err
	}
	if err := save(l.path, cfg); err != nil {
		return err
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

// openLocked makes the interface.
func (l *Local) openLocked(cfg Config) (err error) {
	if l.eng != nil {
		return nil
	}
	if l.link == nil {
		if l.link, err = openLink(cfg.Name); err != nil {
			return err
		}
		tune(l.log)
	}
	if err := guard(); err != nil { // before anybody can have the address
		return err
	}
	l.mtu = l.wantMTU(cfg)
	if l.eng, err = l.open(cfg.Name, l.mtu); err != nil {
		l.eng = nil
	}
	return err
}

func (l *Local) wantMTU(cfg Config) int {
	if cfg.MTU != 0 {
		return cfg.MTU
	}
	var to []netip.AddrPort
	for _, p := range cfg.Peers {
		if p.Endpoint.IsValid() {
			to = append(to, p.Endpoint)
		}
	}
	return linkMTU(l.link.uplinks(to))
}

// applyLocked changes what differs. Peers that are gone go first of all.
func (l *Local) applyLocked(cfg Config) error {
	changed, err := l.eng.identity(cfg.Private, cfg.Port)
	if err != nil {
		return err
	}
	have, err := l.eng.sessions()
	if err != nil {
		return err
	}
	for _, h := range have {
		l.used[h.key] = l.used[h.key] || !h.handshake.IsZero()
	}
	want := cfg.sessions(func(k Key) bool { return l.used[k] })
	changes, now := plan(have, want, l.known), time.Now()
	if err := l.eng.apply(changes); err != nil {
		return err
	}
	if changed {
		changes = append(changes, callAll(want)...)
	}
	for _, c := range changes {
		if c.keepalive > 0 {
			l.calls[c.key] = call{now, callFirst, now.Add(callFirst)}
		}
	}
	l.cfg = cfg
	l.known = map[Key]netip.AddrPort{}
	used := map[Key]bool{}
	for _, p := range cfg.Peers {
		l.known[p.Key], l.known[p.Next] = p.Endpoint, p.Endpoint
		if !p.Next.IsZero() {
			used[p.Next] = l.used[p.Next]
		}
	}
	l.used = used
	l.pendLocked()
	if changed {
		if err := l.eng.apply(callAll(want)); err != nil {
			return err
		}
	}
	l.mtu = l.wantMTU(cfg)
	if err := l.link.up(cfg.Addr, l.mtu); err != nil {
		return err
	}
	return l.routesLocked()
}

// pendLocked tells the engine which next keys nobody has used yet.
func (l *Local) pendLocked() {
	var waiting []Key
	for k, used := range l.used {
		if !used {
			waiting = append(waiting, k)
		}
	}
	l.eng.pend(waiting, l.firstUse)
}

// callAll starts a handshake with everybody, so that a new key is known before it is needed.
func callAll(ss []session) []change {
	var out []change
	for _, s := range ss {
		if s.keepalive > 0 {
			out = append(out, change{key: s.key, keepalive: s.keepalive})
		}
	}
	return out
}

func (l *Local) routesLocked() error {
	mtus := map[netip.Addr]int{}
	for _, p := range l.cfg.Peers {
		mtus[p.Addr] = l.paths[p.Addr].route(l.mtu)
	}
	return l.link.routes(l.cfg.Addr, mtus)
}

// firstUse moves a peer's address to its next key. The engine calls it when that key is first used; it is called
// again and again until the engine is told that nothing pends.
func (l *Local) firstUse(k Key) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.cfg.Peers {
		if p.Next != k || l.used[k] || l.eng == nil {
			continue
		}
		if err := l.eng.apply([]change{{key: k, allow: p.Addr, keepalive: keepalive}}); err != nil {
			l.log.Error("mesh address did not move to the next key", "node", p.Node, "err", err)
			return
		}
		l.used[k] = true
		l.pendLocked()
		l.log.Info("mesh peer uses its next key", "node", p.Node, "key", k.String())
	}
}

// Status is Device's.
func (l *Local) Status(context.Context) (Status, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := Status{PID: os.Getpid(), MTU: l.mtu}
	if l.eng == nil {
		return st, nil
	}
	st.Engine = l.eng.name()
	ss, err := l.eng.sessions()
	if err != nil {
		return st, err
	}
	of := map[Key]Peer{}
	for _, p := range l.cfg.Peers {
		of[p.Key] = p
		if !p.Next.IsZero() {
			of[p.Next] = p
		}
	}
	for _, s := range ss {
		p := of[s.key]
		st.Peers = append(st.Peers, PeerStatus{
			Node: p.Node, Key: s.key, Endpoint: s.endpoint, Handshake: s.handshake, RX: s.rx, TX: s.tx,
			MTU: l.paths[p.Addr].route(l.mtu), Active: s.allowed.IsValid(),
		})
	}
	return st, nil
}

// Remove is Device's.
func (l *Local) Remove(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closeLocked()
	if l.link == nil {
		return nil
	}
	_, err := takeDown(l.link)
	l.link.close()
	l.link, l.cfg = nil, Config{}
	if rerr := os.Remove(l.path); !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// Close leaves the interface without an engine: wireguard-go's stays for the next process, the kernel's works on.
func (l *Local) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closeLocked()
}

func (l *Local) closeLocked() {
	if l.eng != nil {
		l.eng.close()
		l.eng = nil
	}
}

// takeDown removes what a node made in the kernel.
func takeDown(k *link) (removed []string, err error) {
	removed, err = k.remove()
	others, oerr := k.others()
	if oerr != nil || others {
		return removed, errors.Join(err, oerr)
	}
	more, gerr := unguard()
	return append(removed, more...), errors.Join(err, gerr)
}

// Look says what a node's mesh is, from outside of the process that has it; false: it is not up.
func Look(ctx context.Context, d *datadir.Dir) (Status, bool) {
	r, err := attach(d)
	if err != nil {
		return Status{}, false
	}
	defer r.http.CloseIdleConnections()
	if st, err := r.Status(ctx); err == nil {
		return st, st.MTU > 0
	}
	name := Interface(d.Node())
	dev, err := netlink.LinkByName(name)
	if err != nil || dev.Type() != "wireguard" {
		return Status{}, false
	}
	eng, err := openKernel(name)
	if err != nil {
		return Status{}, false
	}
	defer eng.close()
	cfg, _, err := Last(d)
	if err != nil {
		return Status{}, false
	}
	l := &Local{eng: eng, cfg: cfg, mtu: dev.Attrs().MTU}
	st, err := l.Status(ctx)
	st.PID = 0
	return st, err == nil
}

// Cleanup removes what a node's mesh made in this network namespace, and says what that was. Its process must have
// ended.
func Cleanup(_ context.Context, node volant.NodeID) ([]string, error) {
	k, err := openLink(Interface(node))
	if err != nil {
		return nil, err
	}
	defer k.close()
	return takeDown(k)
}

// Nodes lists the nodes whose mesh is in this network namespace.
func Nodes(context.Context) (out []volant.NodeID, err error) {
	ls, err := netdump.Whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range ls {
		if id, ok := nodeOf(l.Attrs().Name); ok {
			out = append(out, id)
		}
	}
	return out, nil
}

// configMost bounds the file: some thousand peers.
const configMost = 4 << 20

func configPath(d *datadir.Dir) (string, error) {
	dir, err := d.Sub("mesh")
	return dir + "/config", err
}

func save(path string, cfg Config) error {
	b, err := json.Marshal(cfg)
	if err == nil {
		err = atomicfile.WriteChecked(path, b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("mesh configuration: %w", err)
	}
	return nil
}

// Last is the Config that a node's mesh last had, and whether there is one. A damaged one is none.
func Last(d *datadir.Dir) (cfg Config, ok bool, err error) {
	path, err := configPath(d)
	if err != nil {
		return cfg, false, err
	}
	b, err := atomicfile.ReadChecked(path, configMost)
	if errors.Is(err, os.ErrNotExist) {
		return cfg, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &cfg)
	}
	if err == nil {
		err = cfg.check()
	}
	if err != nil {
		return Config{}, false, fmt.Errorf("%s: %w", path, err)
	}
	return cfg, true, nil
}
