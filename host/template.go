package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/atomicfile"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/why"
)

// maxSpoilt bounds how often a template is made anew before machines of its size boot cold until the
// next start.
const maxSpoilt = 3

// templates are snapshots of a booted kernel and our init, before any tenant's code ran: one per engine
// build, kernel, init, vCPUs and memory.
type templates struct {
	h *Host

	mu    sync.Mutex // guards the following
	known map[string]*template
}

type template struct {
	snap   microvm.Snapshot
	ok     bool
	making bool
	spoilt int
	used   time.Time
}

// key names a template, its directory, and the machine that it is made of: 14 hex digits.
func (t *templates) key(g volant.Guest) string {
	c := t.h.caps
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%d\x00%d",
		t.h.deps.Engine.Name(), c.Build, t.h.cfg.Kernel.Sum, g.CPUs, g.MemoryMB))
	return hex.EncodeToString(sum[:7])
}

func (t *templates) dir(key string) string { return filepath.Join(t.h.cfg.Dir, "templates", key) }

// get returns the template for g if it is there, and has it made if not.
func (t *templates) get(g volant.Guest) (microvm.Snapshot, bool) {
	if t.h.cfg.NoTemplates || !t.h.caps.Snapshots {
		return microvm.Snapshot{}, false
	}
	key := t.key(g)
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.known[key]
	if e == nil {
		e = &template{}
		t.known[key] = e
	}
	e.used = time.Now()
	if !e.ok && !e.making && e.spoilt <= maxSpoilt {
		e.making = true
		t.h.spawn(func(ctx context.Context) { t.build(ctx, key, g) })
	}
	return e.snap, e.ok
}

// spoilt drops a template that could not be used; the next get has it made anew.
func (t *templates) spoilt(g volant.Guest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.known[t.key(g)]; e != nil && e.ok {
		e.ok = false
		e.spoilt++
	}
}

// load finds the template's record on disk.
func (t *templates) load(key string) (microvm.Snapshot, bool) {
	var s microvm.Snapshot
	b, err := atomicfile.ReadChecked(t.dir(key)+".json", maxRecord)
	if err != nil || json.Unmarshal(b, &s) != nil {
		return s, false
	}
	return s, true
}

// keeps says whether a file among the templates belongs to one that is known.
func (t *templates) keeps(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known[strings.TrimSuffix(name, ".json")] != nil
}

// restore takes what an earlier process made.
func (t *templates) restore() {
	entries, err := os.ReadDir(filepath.Join(t.h.cfg.Dir, "templates"))
	if err != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if s, ok := t.load(e.Name()); ok && s.Build == t.h.caps.Build {
			t.known[e.Name()] = &template{snap: s, ok: true}
		}
	}
}

// build makes a template in the background. What fails is logged: machines boot cold meanwhile.
func (t *templates) build(ctx context.Context, key string, g volant.Guest) {
	t.h.calm(ctx)
	snap, err := t.make(ctx, key, g)
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.known[key]
	e.making = false
	if err != nil {
		if !errors.Is(err, volant.ErrNoCapacity) {
			e.spoilt++
		}
		if ctx.Err() == nil {
			t.h.log.Warn("template not made", "vcpus", g.CPUs, "memory_mb", g.MemoryMB, "err", err)
		}
		return
	}
	e.snap, e.ok = snap, true
	t.h.log.Info("template made", "vcpus", g.CPUs, "memory_mb", g.MemoryMB)
	if t.h.deps.Why != nil {
		t.h.deps.Why.Add(t.h.reason(why.Machine, "template", fmt.Sprintf("a template for %d vCPUs and %d MB was made", g.CPUs, g.MemoryMB)))
	}
}

func (t *templates) make(ctx context.Context, key string, g volant.Guest) (snap microvm.Snapshot, err error) {
	if full, err := t.h.diskFull(); full || err != nil {
		return snap, errors.Join(err, volant.Errorf(volant.ErrNoCapacity, "the disk is above %.0f %%", 100*trimAbove))
	}
	id := volant.MachineID(key)
	if err := t.h.ledger.take(id, volant.Guest{CPUs: g.CPUs, MemoryMB: g.MemoryMB}); err != nil {
		return snap, err
	}
	defer t.h.ledger.release(id)
	dir := t.dir(key)
	t.h.journal.crash(string(pointTemplateBegin), Before)
	if err := errors.Join(os.RemoveAll(dir+".json"), os.RemoveAll(dir), os.MkdirAll(filepath.Dir(dir), 0o700)); err != nil {
		return snap, err
	}
	t.h.journal.crash(string(pointTemplateBegin), After)
	snap, err = t.snapshot(ctx, id, dir, g)
	if err != nil {
		return snap, err
	}
	snap.Template = true
	b, err := json.Marshal(snap)
	if err != nil {
		return snap, err
	}
	t.h.journal.crash(string(pointTemplateDone), Before)
	if err := atomicfile.WriteChecked(dir+".json", b, 0o600); err != nil {
		return snap, err
	}
	t.h.journal.crash(string(pointTemplateDone), After)
	return snap, nil
}

// snapshot boots a guest with placeholders for disks, and takes its snapshot when the agent answers.
func (t *templates) snapshot(ctx context.Context, id volant.MachineID, dir string, g volant.Guest) (snap microvm.Snapshot, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*coldTimeout)
	defer cancel()
	link, err := t.h.deps.Net.Attach(ctx, id, volant.OrgPersonal)
	if err != nil {
		return snap, fmt.Errorf("network: %w", err)
	}
	var drives []microvm.Drive
	for i := range 2 {
		path := fmt.Sprintf("%s.disk%d", dir, i)
		if err := placeholder(path); err != nil {
			return snap, fmt.Errorf("disk: %w", err)
		}
		drives = append(drives, microvm.Drive{Path: path, ReadOnly: i == 0})
	}
	vm, err := t.h.deps.Engine.Create(ctx, microvm.Spec{
		ID: string(id), VCPUs: g.CPUs, MemoryMiB: g.MemoryMB,
		Kernel: t.h.cfg.Kernel.Vmlinux, Initrd: t.h.cfg.Kernel.Initrd, KernelSum: t.h.cfg.Kernel.Sum, Drives: drives,
		NICs:   []microvm.NIC{{Tap: link.Tap, MAC: link.MAC, MTU: link.Net.MTU}},
		Placed: func(pid int) error { return t.h.deps.Cgroups.Add(context.Background(), id, pid) },
	})
	if err == nil {
		snap, err = t.take(ctx, vm, dir)
		kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		err = errors.Join(err, vm.Kill(kctx), vm.Remove(kctx))
	}
	cctx, cancel2 := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel2()
	return snap, errors.Join(err, t.h.deps.Cgroups.Remove(cctx, id), t.h.deps.Net.Detach(cctx, id),
		os.Remove(drives[0].Path), os.Remove(drives[1].Path))
}

func (t *templates) take(ctx context.Context, vm microvm.VM, dir string) (snap microvm.Snapshot, err error) {
	if err := vm.Resume(ctx); err != nil {
		return snap, err
	}
	sess, err := openSession(ctx, vm, t.h.deps.Open)
	if err != nil {
		return snap, err
	}
	if err := sess.Close(); err != nil {
		t.h.log.Debug("session closed with an error", "err", err)
	}
	return vm.Snapshot(ctx, dir)
}

// placeholderSize is that of a template's disks: more than any disk that takes their place, since a guest
// never asks again. It takes no room.
const placeholderSize = 1 << 43

// placeholder makes an empty disk in place of a machine's.
func placeholder(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(placeholderSize), f.Close())
}
