package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/volant-edge/volant/microvm"
)

// Config of an Engine.
type Config struct {
	Dir    string // for VMs' directories and what Probe found; on disk
	ShmDir string // for guests' memory; on a tmpfs, of this engine alone
	Binary string // "" is qemu-system-x86_64 in PATH
	Accel  string // kvm, tcg; "" picks by probing

	// FirstUID is the first of 65,536 user and group IDs. By the VM's ID a process becomes one of
	// them, once it has opened its files and before a guest runs. 0 is 1,900,000,000, which nobody
	// gives out; negative keeps the server's own. Only root can change.
	FirstUID int

	// Kernel and Initrd are for the guest that Probe boots under KVM, whose KernelSum is as in a Spec.
	Kernel, Initrd, KernelSum string
	// CanaryTime is how long that guest may take; 0 means 5s.
	CanaryTime time.Duration

	Log *slog.Logger // nil discards
}

// Engine makes microVMs by QEMU.
type Engine struct {
	cfg   Config
	vms   string // directory of the VMs' directories
	host  string // the host's boot ID
	log   *slog.Logger
	found probe
	sums  sums

	mu  sync.Mutex
	own map[string]*vm // guarded by mu; the VMs this Engine holds, until removed or let go
}

// New returns an engine over its directories, which it makes. It starts nothing.
func New(cfg Config) (*Engine, error) {
	for _, d := range []*string{&cfg.Dir, &cfg.ShmDir} {
		if *d == "" {
			return nil, errors.New("qemu: Dir and ShmDir are needed")
		}
		abs, err := filepath.Abs(*d)
		if err != nil {
			return nil, fmt.Errorf("qemu: %w", err)
		}
		if err := os.MkdirAll(abs, 0o700); err != nil {
			return nil, fmt.Errorf("qemu: %w", err)
		}
		// A process' working directory is read back without symbolic links.
		if *d, err = filepath.EvalSymlinks(abs); err != nil {
			return nil, fmt.Errorf("qemu: %w", err)
		}
	}
	e := &Engine{cfg: cfg, vms: filepath.Join(cfg.Dir, "vms"), log: cfg.Log, own: map[string]*vm{}}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if e.cfg.Binary == "" {
		e.cfg.Binary = "qemu-system-x86_64"
	}
	if e.cfg.FirstUID == 0 {
		e.cfg.FirstUID = 1_900_000_000
	}
	if e.cfg.CanaryTime == 0 {
		e.cfg.CanaryTime = 5 * time.Second
	}
	if err := os.MkdirAll(e.vms, 0o700); err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	host, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("qemu: %w", err)
	}
	e.host = string(host[:max(0, len(host)-1)])
	e.sums.file = filepath.Join(cfg.Dir, "sums.json")
	return e, nil
}

// Name returns "qemu".
func (e *Engine) Name() string { return "qemu" }

// Close lets go of all VMs: their connections and watchers end, the processes go on. It is for a
// server's end; the next one adopts them.
func (e *Engine) Close() error {
	for _, v := range e.all() {
		v.letGo()
	}
	return nil
}

// Create makes a VM that will boot its kernel at the first Resume.
func (e *Engine) Create(ctx context.Context, spec microvm.Spec) (microvm.VM, error) {
	v, err := e.create(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("create vm %s: %w", spec.ID, err)
	}
	return v, nil
}

func (e *Engine) create(ctx context.Context, spec microvm.Spec) (*vm, error) {
	if err := spec.Check(); err != nil {
		return nil, err
	}
	host, err := e.probed(ctx)
	if err != nil {
		return nil, err
	}
	return e.createOn(ctx, host, spec)
}

// createOn makes a cold VM with the accelerator of host.
func (e *Engine) createOn(ctx context.Context, host found, spec microvm.Spec) (*vm, error) {
	sum, err := e.sums.of(spec)
	if err != nil {
		return nil, err
	}
	return e.make(ctx, host, spec, sum, func(v *vm) error {
		if err := v.memory.Truncate(int64(spec.MemoryMiB) << 20); err != nil {
			return err
		}
		if err := v.spawn(ctx, host, spec, nil); err != nil {
			return err
		}
		_, err := v.mon.do(ctx, nil, v.settings()...)
		return err
	})
}

// make makes a VM's files and lets start do the rest; on an error nothing is left.
func (e *Engine) make(ctx context.Context, host found, spec microvm.Spec, sum string, start func(*vm) error) (*vm, error) {
	v, err := e.newVM(host, spec, sum)
	if err != nil {
		return nil, err
	}
	if err = start(v); err == nil {
		err = ctx.Err()
	}
	if err == nil {
		e.hold(v)
		return v, nil
	}
	err = v.because(err)
	// The caller's context may be what ended; what was made goes all the same.
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return nil, errors.Join(err, v.discard(clean))
}

// newVM makes the directory, the sockets and the memory file of a VM.
func (e *Engine) newVM(host found, spec microvm.Spec, sum string) (*vm, error) {
	v := &vm{
		e: e, dir: filepath.Join(e.vms, spec.ID), mem: e.memory(spec.ID),
		build: host.Build, clock: host.TSCKHz, change: make(chan struct{}, 1), done: make(chan struct{}), opened: make(chan struct{}),
		handle: microvm.Handle{
			Engine: e.Name(), ID: spec.ID, VCPUs: spec.VCPUs, MemoryMiB: spec.MemoryMiB,
			Drives: len(spec.Drives), NICs: len(spec.NICs), KernelSum: sum,
		},
	}
	if err := os.Mkdir(v.dir, 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			err = fmt.Errorf("it exists: %w", microvm.ErrState)
		}
		return nil, err
	}
	var err error
	v.memory, err = os.OpenFile(v.mem, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(v.dir))
	}
	return v, nil
}

// uids is how many there are from FirstUID on.
const uids = 1 << 16

// user is whom a VM's process becomes, as QEMU's option has it, or "".
func (e *Engine) user(id string) string {
	if e.cfg.FirstUID < 0 || os.Geteuid() != 0 {
		return ""
	}
	uid := e.cfg.FirstUID + int(crc32.ChecksumIEEE([]byte(id))%uids)
	return fmt.Sprintf("%d:%d", uid, uid)
}

func (e *Engine) memory(id string) string { return memoryFile(e.cfg.ShmDir, id) }

// Adopt attaches to the process of a handle.
func (e *Engine) Adopt(ctx context.Context, h microvm.Handle) (microvm.VM, error) {
	v, err := e.adopt(ctx, h)
	if err != nil {
		return nil, fmt.Errorf("adopt vm %s: %w", h.ID, err)
	}
	return v, nil
}

func (e *Engine) adopt(ctx context.Context, h microvm.Handle) (*vm, error) {
	if h.Engine != e.Name() || microvm.CheckID(h.ID) != nil {
		return nil, fmt.Errorf("a handle of engine %q: %w", h.Engine, microvm.ErrGone)
	}
	host, err := e.probed(ctx)
	if err != nil {
		return nil, err
	}
	v := &vm{
		e: e, dir: filepath.Join(e.vms, h.ID), mem: e.memory(h.ID), handle: h,
		clock: host.TSCKHz, change: make(chan struct{}, 1), done: make(chan struct{}), opened: make(chan struct{}),
	}
	if v.proc, err = attach(h, e.cfg.ShmDir); err != nil {
		return nil, err
	}
	v.build = v.proc.build()
	if v.memory, err = os.OpenFile(v.mem, os.O_RDWR, 0); err != nil {
		v.letGo()
		return nil, err
	}
	if err := v.connect(ctx); err != nil {
		v.letGo()
		return nil, err
	}
	if _, err := v.mon.do(ctx, nil, v.settings()...); err != nil {
		v.letGo()
		return nil, v.because(err)
	}
	e.hold(v)
	go v.watch()
	return v, nil
}

func (e *Engine) hold(v *vm) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.own[v.handle.ID] = v
}

func (e *Engine) drop(v *vm) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.own[v.handle.ID] == v {
		delete(e.own, v.handle.ID)
	}
}

func (e *Engine) all() []*vm {
	e.mu.Lock()
	defer e.mu.Unlock()
	var vs []*vm
	for _, v := range e.own {
		vs = append(vs, v)
	}
	return vs
}

// listen makes a socket in dir that a child may be given. Unix names are short, so a long one goes by
// a descriptor of its directory.
func listen(dir, name string) (*os.File, error) {
	var file *os.File
	err := at(dir, name, func(path string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return err
		}
		defer l.Close() //nolint:errcheck // the copy in file is what counts
		l.SetUnlinkOnClose(false)
		file, err = l.File()
		return err
	})
	return file, err
}

// dial connects to a socket in dir.
func dial(ctx context.Context, dir, name string) (*net.UnixConn, error) {
	var conn *net.UnixConn
	err := at(dir, name, func(path string) error {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return err
		}
		conn = c.(*net.UnixConn) //nolint:forcetypeassert // what the network "unix" is
		return nil
	})
	return conn, err
}

// maxSun is the longest path a Unix socket's name can hold.
const maxSun = 107

func at(dir, name string, fn func(path string) error) error {
	path := filepath.Join(dir, name)
	if len(path) <= maxSun {
		return fn(path)
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // only a name
	return fn(fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
}

// decode reads a reply or an event's data; QEMU's are always what its schema says.
func decode[T any](raw json.RawMessage) (T, error) {
	var v T
	err := json.Unmarshal(raw, &v)
	return v, err
}
