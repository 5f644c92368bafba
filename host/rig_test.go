package host_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cgroup"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/microvm/fake"
	"github.com/volant-edge/volant/why"
)

const node volant.NodeID = "0a0b0c0d"

// rig is a server: what stays when the host's process dies, and the host.
type rig struct {
	t      *testing.T
	dir    string
	world  *fake.World
	fakes  fake.Config
	cfg    host.Config
	disks  *disks
	links  *links
	groups *groups
	proxy  *proxy
	app    func(volant.AppID) (host.App, error)

	*host.Host
	epoch  uint64
	cancel context.CancelFunc
	done   chan error

	mu    sync.Mutex
	haves []volant.Have
	whys  []why.Record
}

func newRig(t *testing.T) *rig {
	r := &rig{
		t: t, dir: memoryDir(t), world: fake.NewWorld(),
		disks: &disks{}, links: &links{m: map[volant.MachineID]int{}}, groups: &groups{m: map[volant.MachineID]host.Limits{}},
		proxy: &proxy{},
	}
	r.fakes = fake.Config{World: r.world, Latency: fake.Latency{
		Create: 50 * time.Millisecond, Boot: time.Second, Restore: 20 * time.Millisecond, Snapshot: 10 * time.Millisecond,
	}}
	r.cfg = host.Config{
		Node: node, Dir: r.dir, MemoryMB: 4096, HostBoot: "boot-1",
		DiskUsed: func(string) (float64, error) { return 0.5, nil },
		Kernel:   host.Kernel{Vmlinux: "vmlinux", Initrd: "initrd", Sum: "k1"},
	}
	return r
}

// memoryDir is a directory that fsync costs nothing in, where there is one.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "volant-host-test-") //nolint:usetesting // memory lies in RAM
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// bubble runs a test with a rig in a synctest bubble.
func bubble(t *testing.T, fn func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer r.world.Close()
		defer func() {
			if r.cancel != nil { // the test gave up
				r.cancel()
			}
		}()
		fn(t, r)
		r.stop()
	})
}

// start builds a host on what the server has, and runs it.
func (r *rig) start() {
	r.t.Helper()
	r.epoch++
	cfg := r.cfg
	cfg.Epoch = r.epoch
	h, err := host.New(cfg, r.deps())
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.Host, r.cancel, r.done = h, cancel, make(chan error, 1)
	go func() { r.done <- h.Run(ctx) }()
	synctest.Wait()
}

func (r *rig) deps() host.Deps {
	return host.Deps{
		Engine: fake.New(r.fakes), Images: r.disks, Net: r.links, Cgroups: r.groups, Seal: r.proxy,
		Publish: r.publish, Why: r,
		Dial: r.disks.dial, App: r.app,
	}
}

func (r *rig) stop() {
	r.t.Helper()
	if r.cancel == nil {
		return
	}
	r.cancel()
	if err := <-r.done; err != nil {
		r.t.Errorf("run: %v", err)
	}
	r.disks.mu.Lock()
	defer r.disks.mu.Unlock()
	if n := r.disks.nameless; n > 0 {
		r.t.Errorf("%d machines were prepared before their wish was there", n)
	}
	r.cancel = nil
}

// SetWishes is the host's; one that it cannot take on record fails the test.
func (r *rig) SetWishes(ms []volant.Machine) {
	r.t.Helper()
	if err := r.Host.SetWishes(ms); err != nil {
		r.t.Error(err)
	}
}

func (r *rig) publish(v volant.Have) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.haves = append(r.haves, v)
	r.proxy.see(v)
}

// Add is why.Log.
func (r *rig) Add(w why.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.whys = append(r.whys, w)
}

func (r *rig) rules(kind why.Kind) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var rules []string
	for _, w := range r.whys {
		if w.Kind == kind && w.Machine != "" {
			rules = append(rules, w.Rule)
		}
	}
	return rules
}

// have is what the host says of a machine now.
func (r *rig) have(id volant.MachineID) volant.Have {
	for _, v := range r.Haves() {
		if v.Machine == id {
			return v
		}
	}
	return volant.Have{}
}

// await waits until the machine is in the state.
func (r *rig) await(id volant.MachineID, s volant.State) volant.Have {
	r.t.Helper()
	for range 2000 {
		synctest.Wait()
		if v := r.have(id); v.State == s {
			return v
		}
		time.Sleep(5 * time.Millisecond)
	}
	v := r.have(id)
	r.t.Fatalf("machine %s is %s (%s), want %s", id, v.State, v.Reason, s)
	return v
}

func (r *rig) wake(id volant.MachineID) {
	r.t.Helper()
	if err := r.Wake(r.t.Context(), id, "a connection"); err != nil {
		r.t.Fatalf("wake: %v", err)
	}
}

// settle lets background work, such as a template, end.
func (r *rig) settle() {
	time.Sleep(5 * time.Second)
	synctest.Wait()
}

func machine(n int, edit ...func(*volant.Machine)) volant.Machine {
	m := volant.Machine{
		Meta: volant.Meta{
			Kind: volant.KindMachine, ID: fmt.Sprintf("%014x", n), App: "app_1", Org: volant.OrgPersonal, Generation: 1,
		},
		Node: node, Region: "ams", Run: volant.RunAuto, Version: "v1",
		Image:  volant.Digest("sha256:" + fmt.Sprintf("%064x", 1)),
		Config: volant.MachineConfig{Services: []volant.Service{{Protocol: "tcp", InternalPort: 80}}},
	}
	for _, e := range edit {
		e(&m)
	}
	return m
}

func idOf(m volant.Machine) volant.MachineID { return volant.MachineID(m.ID) }

// changed is the next generation of a wish.
func changed(m volant.Machine, edit func(*volant.Machine)) volant.Machine {
	m.Generation++
	edit(&m)
	return m
}

// disks are root disks and scratch disks as small files, and whether apps listen.
type disks struct {
	mu   sync.Mutex
	err  error
	deaf bool
	made map[string]int
	// nameless counts root disks asked for without a digest: of a machine that acts before it has its wish.
	nameless int
	web      func(net.Conn) // speaks for the machine's ports; nil: they accept and say nothing
}

func (d *disks) Rootfs(_ context.Context, id volant.Digest) (host.Rootfs, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if id == "" {
		d.nameless++
	}
	return host.Rootfs{Path: "/images/1", Type: "erofs", Entrypoint: []string{"/app"}, Env: []string{"A=image", "B=image"}}, d.err
}

func (d *disks) Scratch(_ context.Context, path string, _ int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.made == nil {
		d.made = map[string]int{}
	}
	d.made[filepath.Base(path)]++
	return os.WriteFile(path, []byte("empty"), 0o600)
}

func (d *disks) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

func (d *disks) listen(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deaf = !on
}

func (d *disks) dial(context.Context, string, string) (net.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.deaf {
		return nil, errors.New("connection refused")
	}
	a, b := net.Pipe()
	if d.web != nil {
		go d.web(b)
		return a, nil
	}
	return a, b.Close()
}

// links counts the links that exist.
type links struct {
	mu sync.Mutex
	m  map[volant.MachineID]int
	n  int
}

func (l *links) Attach(_ context.Context, id volant.MachineID, _ volant.OrgID) (host.Link, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m[id] == 0 {
		l.n++
		l.m[id] = l.n
	}
	ip := netip.AddrFrom4([4]byte{172, 27, 0, byte(l.m[id])})
	return host.Link{
		Tap: "tap" + string(id), MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1},
		Net: guest.Net{Addr: netip.PrefixFrom(ip, 32), Gateway: netip.MustParseAddr("172.27.0.0")},
	}, nil
}

func (l *links) Detach(_ context.Context, id volant.MachineID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.m, id)
	return nil
}

func (l *links) Sweep(_ context.Context, keep func(volant.MachineID) bool) (removed []string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.m {
		if !keep(id) {
			delete(l.m, id)
			removed = append(removed, "tap "+string(id))
		}
	}
	return removed, nil
}

func (l *links) all() []volant.MachineID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.m))
}

// groups are the cgroups that exist, with their limits.
type groups struct {
	mu   sync.Mutex
	m    map[volant.MachineID]host.Limits
	pins []int
	busy float64 // CPUs in use
	used time.Duration
	seen time.Time
}

// Usage tells what was used since it was asked first.
func (g *groups) Usage(volant.MachineID) (cgroup.Usage, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.seen.IsZero() {
		g.used += time.Duration(g.busy * float64(time.Since(g.seen)))
	}
	g.seen = time.Now()
	return cgroup.Usage{CPU: g.used}, nil
}

func (g *groups) Add(_ context.Context, id volant.MachineID, _ int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.m[id] = host.Limits{}
	return nil
}

func (g *groups) Limit(_ context.Context, id volant.MachineID, l host.Limits) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.m[id]; !ok {
		return errors.New("no such cgroup")
	}
	g.m[id] = l
	return nil
}

func (g *groups) Pin(_, cpu int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pins = append(g.pins, cpu)
	return nil
}

func (g *groups) Remove(_ context.Context, id volant.MachineID) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.m, id)
	return nil
}

func (g *groups) Sweep(_ context.Context, keep func(volant.MachineID) bool) (removed []string, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for id := range g.m {
		if !keep(id) {
			delete(g.m, id)
			removed = append(removed, "cgroup "+string(id))
		}
	}
	return removed, nil
}

func (g *groups) of(id volant.MachineID) (host.Limits, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l, ok := g.m[id]
	return l, ok
}

// proxy is the judge of slots: it refuses to seal a machine of which it holds one, and grants none on a
// sealed one until it sees a newer Have that serves.
type proxy struct {
	mu     sync.Mutex
	slots  map[volant.MachineID]int
	sealed map[volant.MachineID]uint64
	seen   map[volant.MachineID]volant.Have
	err    error
	asked  int
	broken []string
	onSeal func()
}

func (p *proxy) Seal(_ context.Context, id volant.MachineID, seq uint64) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if p.onSeal != nil {
		p.onSeal()
	}
	if p.err != nil || p.slots[id] > 0 {
		return false, p.err
	}
	if p.sealed == nil {
		p.sealed = map[volant.MachineID]uint64{}
	}
	p.sealed[id] = seq
	return true, nil
}

func (p *proxy) fail(err error) (asked int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
	return p.asked
}

// hold takes slots as connections do: only of a machine that serves and is not sealed.
func (p *proxy) hold(id volant.MachineID, n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.seen[id]
	if n > 0 && (v.State != volant.StateStarted || v.Draining) {
		return false
	}
	if seq, ok := p.sealed[id]; ok && v.Seq <= seq {
		return false
	}
	if p.slots == nil {
		p.slots = map[volant.MachineID]int{}
	}
	p.slots[id] = n
	return true
}

func (p *proxy) see(v volant.Have) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen == nil {
		p.seen = map[volant.MachineID]volant.Have{}
	}
	if v.Seq <= p.seen[v.Machine].Seq {
		p.broken = append(p.broken, fmt.Sprintf("seq %d after %d", v.Seq, p.seen[v.Machine].Seq))
	}
	if p.slots[v.Machine] > 0 && v.State == volant.StateSuspending {
		p.broken = append(p.broken, fmt.Sprintf("machine %s suspends with %d slots", v.Machine, p.slots[v.Machine]))
	}
	p.seen[v.Machine] = v
}

var _ microvm.Engine = (*fake.Engine)(nil)
