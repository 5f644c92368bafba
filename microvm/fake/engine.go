package fake

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/microvm"
)

// Config of an Engine. The zero value is an engine in a world of its own whose app waits for its end.
type Config struct {
	World *World // of the VMMs that exist already; nil is a new one
	// App is the program that Start starts in every guest; nil waits for its end.
	App App
	// Exec answers a command in a guest; nil knows true, false, echo, name, cat, count and sleep.
	Exec func(ctx context.Context, g *Guest, x guest.Exec) (guest.Exit, error)
	// Hook is asked before each operation for a fault; nil has none. FailNth makes one.
	Hook    func(Op) Fault
	Latency Latency
	Build   string       // Capabilities.Build; "" is "fake-1"
	Tenants bool         // Capabilities.MultiTenant
	Log     *slog.Logger // nil discards
}

// Latency is how long things take.
type Latency struct {
	Create, Restore, Snapshot time.Duration
	Boot                      time.Duration // from the first Resume to an agent that answers
}

// Op is an operation that is about to happen.
type Op struct {
	Name string // create, restore, resume, pause, snapshot, link, kill, remove, adopt
	VM   string
	N    int // the how manieth of this name in this engine, from 1
}

// Fault is what goes wrong with an operation. The zero value is nothing.
type Fault struct {
	Err      error         // the operation fails
	Delay    time.Duration // it takes so much longer
	DieAfter time.Duration // of a create, restore or resume: the VMM dies so long after it
	Truncate bool          // of a snapshot: its memory file is cut short
}

// FailNth is a hook by which the n-th operation of that name fails with err.
func FailNth(name string, n int, err error) func(Op) Fault {
	return func(op Op) Fault {
		if op.Name == name && op.N == n {
			return Fault{Err: err}
		}
		return Fault{}
	}
}

// Engine is a microvm.Engine of fake VMs.
type Engine struct {
	cfg   Config
	world *World
	ops   counter
}

// New returns an engine. In a bubble, its World must be made there too.
func New(cfg Config) *Engine {
	e := &Engine{cfg: cfg, world: cfg.World}
	if e.world == nil {
		e.world = NewWorld()
	}
	if e.cfg.Log == nil {
		e.cfg.Log = slog.New(slog.DiscardHandler)
	}
	if e.cfg.App == nil {
		e.cfg.App = func(ctx context.Context, _ *Guest) guest.Exit { <-ctx.Done(); return guest.Exit{} }
	}
	if e.cfg.Exec == nil {
		e.cfg.Exec = Exec
	}
	if e.cfg.Build == "" {
		e.cfg.Build = "fake-1"
	}
	return e
}

// World returns the engine's world.
func (e *Engine) World() *World { return e.world }

// Name returns "fake".
func (e *Engine) Name() string { return "fake" }

// Probe always succeeds.
func (e *Engine) Probe(ctx context.Context) (microvm.Capabilities, error) {
	return microvm.Capabilities{
		Accel: "none", Version: "1", Build: e.cfg.Build, MultiTenant: e.cfg.Tenants, Snapshots: true,
		Why: "a fake engine for tests; it runs no guest code",
	}, ctx.Err()
}

// Create makes a VM whose guest has not booted.
func (e *Engine) Create(ctx context.Context, spec microvm.Spec) (microvm.VM, error) {
	return e.start(ctx, "create", e.cfg.Latency.Create, spec, newGuest())
}

// Restore makes a paused VM that goes on where the snapshot was taken.
func (e *Engine) Restore(ctx context.Context, snap microvm.Snapshot, spec microvm.Spec) (microvm.VM, error) {
	if err := snap.Check(e.Name(), e.cfg.Build, kernelSum(spec), spec); err != nil {
		return nil, fmt.Errorf("restore vm %s: %w", spec.ID, err)
	}
	if err := snap.CheckFiles(); err != nil {
		return nil, fmt.Errorf("restore vm %s: %w", spec.ID, err)
	}
	g, err := readGuest(snap.Dir)
	if err != nil {
		return nil, fmt.Errorf("restore vm %s: %w", spec.ID, err)
	}
	return e.start(ctx, "restore", e.cfg.Latency.Restore, spec, g)
}

func (e *Engine) start(ctx context.Context, op string, took time.Duration, spec microvm.Spec, g *Guest) (microvm.VM, error) {
	fail := func(err error) (microvm.VM, error) { return nil, fmt.Errorf("%s vm %s: %w", op, spec.ID, err) }
	if err := spec.Check(); err != nil {
		return fail(err)
	}
	p, err := e.world.spawn(e.cfg, spec, g)
	if err != nil {
		return fail(err)
	}
	var f Fault
	if spec.Placed != nil {
		err = spec.Placed(p.handle.PID)
	}
	if err == nil {
		f, err = e.fault(ctx, op, spec.ID, took)
	}
	if err != nil {
		p.end(microvm.VMExit{Signal: 9, Killed: true})
		<-p.done
		e.world.remove(p)
		return fail(err)
	}
	p.dieAfter(f.DieAfter)
	e.cfg.Log.Debug("vm made", "machine", spec.ID, "op", op)
	return &vm{e: e, p: p}, nil
}

// Adopt returns the VM of a handle that another Engine of the same World gave.
func (e *Engine) Adopt(ctx context.Context, h microvm.Handle) (microvm.VM, error) {
	if _, err := e.fault(ctx, "adopt", h.ID, 0); err != nil {
		return nil, fmt.Errorf("adopt vm %s: %w", h.ID, err)
	}
	p := e.world.find(h.ID)
	if p == nil || p.handle != h || p.ended() {
		return nil, fmt.Errorf("adopt vm %s: %w", h.ID, microvm.ErrGone)
	}
	return &vm{e: e, p: p}, nil
}

// Sweep ends and removes the VMs that keep does not name.
func (e *Engine) Sweep(ctx context.Context, keep func(id string) bool) ([]string, error) {
	var removed []string
	var errs []error
	for _, p := range e.world.all() {
		if keep(p.handle.ID) {
			continue
		}
		p.end(microvm.VMExit{Signal: 9, Killed: true})
		if err := wait(ctx, p.done); err != nil {
			errs = append(errs, fmt.Errorf("sweep vm %s: %w", p.handle.ID, err))
			continue
		}
		e.world.remove(p)
		removed = append(removed, "vm "+p.handle.ID)
	}
	slices.Sort(removed)
	return removed, errors.Join(errs...)
}

// fault asks the hook, and waits as long as the operation takes.
func (e *Engine) fault(ctx context.Context, op, vm string, took time.Duration) (Fault, error) {
	var f Fault
	n := e.ops.next(op)
	if e.cfg.Hook != nil {
		f = e.cfg.Hook(Op{Name: op, VM: vm, N: n})
	}
	if err := sleep(ctx, took+f.Delay); err != nil {
		return f, err
	}
	return f, f.Err
}

func kernelSum(s microvm.Spec) string {
	if s.KernelSum != "" {
		return s.KernelSum
	}
	sum := sha256.Sum256([]byte(s.Kernel + "\n" + s.Initrd))
	return hex.EncodeToString(sum[:])
}
