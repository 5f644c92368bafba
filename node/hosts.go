package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/addrpool"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/hostnet"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/kernel"
	"github.com/volant-edge/volant/microvm/qemu"
	"github.com/volant-edge/volant/secret"
)

// parts opens what a real node is made of. The returned func closes it.
func (s *server) parts(ctx context.Context) (Parts, func() error, error) {
	var closers []func() error
	closeAll := func() error {
		var errs []error
		for _, end := range slices.Backward(closers) {
			errs = append(errs, end())
		}
		return errors.Join(errs...)
	}
	p := Parts{
		Node: s.dir.Node(), Region: s.cfg.Region, Name: s.name(), Version: s.cfg.Version, Epoch: s.epoch,
		Store: s.intent.store, Copy: s.intent.copy, Down: s.intent.down, Known: s.intent.copy.Revision(),
		Net: taps{s}, Local: s.localAddrs, Addresses: addresses{s.cfg.Edge}, Reasons: s.why, Log: s.cfg.Log,
	}
	var err error
	if p.Roles, err = s.roles(ctx); err != nil {
		return p, closeAll, err
	}
	s.mesh.join(ctx, &p)
	p.Joined, p.Pools = s.member != nil, s.cfg.Edge
	p.Stores, p.StorePrefix = s.cfg.Store.Endpoints, s.cfg.Store.Prefix
	if m := s.member; m != nil && m.External && len(p.Stores) == 0 {
		p.Stores, p.StorePrefix = m.Stores, m.StorePrefix
	}
	p.StoreDown = s.intent.seat.Down
	if len(p.Stores) == 0 {
		p.Members = s.intent.seat.Members
	}
	if err := s.joinParts(ctx, &p); err != nil {
		return p, closeAll, err
	}
	if p.Token, err = s.rootToken(); err != nil {
		return p, closeAll, err
	}
	p.Domain = s.cfg.Domain
	if p.CA, err = s.openCA(); err != nil {
		return p, closeAll, err
	}
	if p.Secrets, err = secret.Open(s.dir.Root()); err != nil {
		return p, closeAll, err
	}
	if p.Answers, err = s.dir.Sub("answers"); err != nil {
		return p, closeAll, err
	}
	imageDir, err := s.dir.Sub("images")
	if err != nil {
		return p, closeAll, err
	}
	im := newImages(nil, s.cfg.Image, s.dir.Root())
	p.Others = NewOthers()
	s.images, err = image.Open(imageDir, image.Config{
		MaxBytes: int64(s.cfg.Image.MaxSizeMB) << 20, Log: s.cfg.Log, Peers: p.Others, Origin: im.origin,
	})
	if err != nil {
		return p, closeAll, err
	}
	p.Stored, im.Store, im.others = s.images, s.images, p.Others
	im.listen, im.keep, im.sources = s.cfg.API.Listen, s.imageInUse, s.imageSources
	im.tag = func(org volant.OrgID, repository, tag string) (*volant.Image, bool) {
		return s.platform.cat.Snapshot().Image(org, repository, tag)
	}
	p.Images, p.Uploads, p.Blobs = hostImages{s.images}, im, im
	if err := s.openNet(ctx); err != nil {
		return p, closeAll, err
	}
	closers = append(closers, s.net.Close)
	if !runsMachines(p.Roles) {
		p.Net = noTaps{}
	} else if s.cfg.Host.Engine == "fake" {
		if p.Net, err = newFakeNet(s.cfg.Host.FakeBackend); err != nil {
			return p, closeAll, err
		}
	}
	k, err := s.openEngine(ctx, p.Roles)
	if err != nil {
		return p, closeAll, err
	}
	p.Engine = s.engine
	if c, ok := s.engine.(io.Closer); ok {
		closers = append(closers, c.Close)
	}
	hostDir, err := s.dir.Sub("host")
	if err != nil {
		return p, closeAll, err
	}
	memory, err := memoryMB()
	if err != nil {
		return p, closeAll, err
	}
	groups, err := openCgroups(s.dir.Node(), s.cfg.Log)
	if err != nil {
		return p, closeAll, err
	}
	p.Cgroups, p.Proxy = groups, s.reachProxy(groups)
	if s.cfg.Host.Engine == "fake" {
		p.Cgroups = fakeCgroups{}
	}
	p.Host = host.Config{
		Dir: hostDir, Kernel: k, MemoryMB: memory, ReserveMB: s.cfg.Host.MemoryReserve, Cores: groups.cores(),
		AllowMixed: s.cfg.Host.AllowMixed, ScratchMB: s.cfg.Host.ScratchMB, NoTemplates: s.cfg.Host.NoTemplates, Crash: s.cfg.Crash,
	}
	if !runsMachines(p.Roles) {
		p.Host.ReserveMB = memory // none is for machines
	}
	return p, closeAll, nil
}

func (s *server) localAddrs(ctx context.Context, addrs []netip.Addr) error {
	// The kernel's own loopback address is local already, and must not go with the app that has it.
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return a == loopback })
	return s.net.SetAddresses(ctx, addrs)
}

func openSession(ctx context.Context, link io.ReadWriteCloser) (host.Session, error) {
	return guest.Open(ctx, link)
}

func (s *server) openNet(ctx context.Context) (err error) {
	s.net, err = hostnet.New(hostnet.Config{
		Node: s.dir.Node(), File: s.dir.Path("net.json"), Pool4: s.cfg.Host.Private4,
		Apps: []netip.Prefix{s.cfg.Edge.Pool4, s.cfg.Edge.Pool6}, Log: s.cfg.Log,
	})
	if err != nil {
		return err
	}
	return s.net.Setup(ctx)
}

// openEngine picks the engine by what is configured and found, and loads the kernel its machines boot.
func (s *server) openEngine(ctx context.Context, roles []string) (host.Kernel, error) {
	if !runsMachines(roles) {
		s.engine = noEngine{}
		return host.Kernel{Sum: "none"}, nil
	}
	if s.cfg.Host.Engine == "fake" {
		s.engine = newFakeEngine()
		return host.Kernel{Sum: "fake"}, nil
	}
	k, err := kernel.Load(s.cfg.Host.KernelDir)
	if err != nil {
		return host.Kernel{}, err
	}
	vmDir, err := s.dir.Sub("vm")
	if err != nil {
		return host.Kernel{}, err
	}
	shm := shmDir(s.cfg.Host.ShmDir, s.dir.Node())
	if err := os.MkdirAll(shm, 0o700); err != nil {
		return host.Kernel{}, fmt.Errorf("directory of machines' memory: %w", err)
	}
	if err := keepShm(s.dir, s.cfg.Host.ShmDir); err != nil {
		return host.Kernel{}, err
	}
	e, err := qemu.New(qemu.Config{Dir: vmDir, ShmDir: shm, Kernel: k.Vmlinux, Initrd: k.Initrd, KernelSum: k.Sum, Log: s.cfg.Log})
	if err != nil {
		return host.Kernel{}, err
	}
	s.engine = e
	caps, err := e.Probe(ctx)
	if err != nil {
		return host.Kernel{}, volant.Errorf(volant.ErrPrecondition, "no engine can run microVMs here: %v", err).WithRemedy("see `volant doctor`")
	}
	s.cfg.Log.Info("engine picked", "engine", e.Name(), "accel", caps.Accel, "why", caps.Why)
	return host.Kernel{Vmlinux: k.Vmlinux, Initrd: k.Initrd, Sum: k.Sum}, nil
}

// taps is the machine network as the host asks for it.
type taps struct{ s *server }

func (t taps) Attach(ctx context.Context, id volant.MachineID, org volant.OrgID) (host.Link, error) {
	l, err := t.s.net.Attach(ctx, id, org)
	if err != nil {
		return host.Link{}, err
	}
	n := guest.Net{Addr: netip.PrefixFrom(l.Addr, 32), Gateway: l.Gateway, Gateway6: l.Gateway6, MTU: l.MTU, DNS: l.DNS}
	if l.Addr6.IsValid() {
		n.Addr6 = netip.PrefixFrom(l.Addr6, 128)
	}
	return host.Link{Tap: l.Tap, MAC: l.MAC, Net: n}, nil
}

func (t taps) Detach(ctx context.Context, id volant.MachineID) error { return t.s.net.Detach(ctx, id) }

func (t taps) Sweep(ctx context.Context, keep func(volant.MachineID) bool) ([]string, error) {
	return t.s.net.Sweep(ctx, keep)
}

// addresses gives out addresses of the edge's pools.
type addresses struct{ cfg EdgeConfig }

func (a addresses) Next(kind string, used []string) (string, error) {
	if kind == volant.AddressSharedV4 && a.cfg.Shared4.IsValid() {
		return a.cfg.Shared4.String(), nil
	}
	pool := a.cfg.Pool4
	if kind == "v6" {
		pool = a.cfg.Pool6
	}
	taken := map[string]bool{}
	for _, u := range used {
		taken[u] = true
	}
	ip, err := addrpool.Next(pool, func(ip netip.Addr) bool { return taken[ip.String()] })
	return ip.String(), err
}

// memoryMB is the server's memory.
func memoryMB() (int, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	var kb int
	if _, err := fmt.Sscanf(string(b), "MemTotal: %d kB", &kb); err != nil {
		return 0, fmt.Errorf("/proc/meminfo: %w", err)
	}
	return kb / 1024, nil
}

// CrashPoints names the write-ahead points that Config.Crash is called at.
func CrashPoints() []string { return host.Points() }
