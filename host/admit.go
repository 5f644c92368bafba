package host

import (
	"context"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cgroup"
	"github.com/volant-edge/volant/microvm"
)

const (
	evictTimeout = 15 * time.Second // how long a wake waits for another machine to fall asleep
	spendEvery   = time.Second
	calmEvery    = 250 * time.Millisecond
	calmTries    = 240
	settleTime   = 30 * time.Second // a machine without services has come to serve when it ran so long
)

// admit finds room for a machine that is about to boot, putting empty machines to sleep if it must.
func (h *Host) admit(ctx context.Context, m *machine, w volant.Machine) error {
	if err := h.tenant(w.Org, m.id); err != nil {
		return err
	}
	g := w.Config.Guest.WithDefaults()
	err := h.ledger.take(m.id, g)
	for _, v := range h.victims(m) {
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if h.evict(ctx, v, m.id) {
			err = h.ledger.take(m.id, g)
		}
	}
	if err != nil {
		return err
	}
	if g.CPUKind == volant.CPUPerformance {
		h.reshare(ctx)
	}
	return nil
}

// evict puts an empty machine to sleep and reports whether it sleeps.
func (h *Host) evict(ctx context.Context, v *machine, by volant.MachineID) bool {
	ctx, cancel := context.WithTimeout(ctx, evictTimeout)
	defer cancel()
	if h.awakeBut(v) < h.minOf(v.wish().App) {
		return false
	}
	a := &ask{what: AskSuspend, seal: true, rule: "memory", by: "machine " + string(by) + ", which wakes"}
	if err := v.order(ctx, a); err != nil {
		return false
	}
	select {
	case <-a.done:
	case <-ctx.Done():
		return false
	}
	return v.state().Asleep()
}

// victims are empty machines that may fall asleep for another: draining ones first, then the longest empty.
func (h *Host) victims(but *machine) []*machine {
	type candidate struct {
		m        *machine
		draining bool
		empty    time.Time
	}
	var cs []candidate
	for _, m := range h.all() {
		if m == but {
			continue
		}
		m.mu.Lock()
		if m.rec.State == volant.StateStarted && m.appUp && m.slots <= 0 && m.execs == 0 && m.rec.Machine.Run == volant.RunAuto && !m.orphan {
			cs = append(cs, candidate{m, m.rec.Draining, m.empty})
		}
		m.mu.Unlock()
	}
	slices.SortStableFunc(cs, func(a, b candidate) int {
		if a.draining != b.draining {
			if a.draining {
				return -1
			}
			return 1
		}
		return a.empty.Compare(b.empty)
	})
	ms := make([]*machine, len(cs))
	for i, c := range cs {
		ms[i] = c.m
	}
	return ms
}

// calm returns when no machine boots: what is done in the background must not slow a boot down.
func (h *Host) calm(ctx context.Context) {
	for range calmTries {
		boots := slices.ContainsFunc(h.all(), func(m *machine) bool { return m.state() == volant.StateStarting })
		if !boots || ctx.Err() != nil {
			return
		}
		select {
		case <-time.After(calmEvery):
		case <-ctx.Done():
		}
	}
}

// awakeBut counts the awake machines of a machine's app beside it.
func (h *Host) awakeBut(v *machine) int {
	app, n := v.wish().App, 0
	for _, m := range h.all() {
		m.mu.Lock()
		if m != v && m.rec.Machine.App == app && m.rec.State == volant.StateStarted && !m.rec.Draining {
			n++
		}
		m.mu.Unlock()
	}
	return n
}

func (h *Host) minOf(app volant.AppID) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mins[app]
}

// bestMode is the fastest way to boot that there is.
func (h *Host) bestMode(w *volant.Machine, snap *manifest) mode {
	if snap != nil {
		return modeRestore
	}
	if _, ok := h.templates.get(w.Config.Guest.WithDefaults()); ok {
		return modeTemplate
	}
	return modeCold
}

// freed gives back what a machine held that has no process any more.
func (h *Host) freed(id volant.MachineID) {
	cores := len(h.ledger.coresOf(id))
	h.ledger.release(id)
	if cores > 0 {
		h.reshare(h.ctx)
	}
	for _, m := range h.all() {
		m.mu.Lock()
		waits := m.rec.Wanted && !m.vmUp && m.rec.Machine.Run == volant.RunOn
		if waits {
			m.retryAt = time.Time{}
		}
		m.mu.Unlock()
		if waits {
			m.nudge()
		}
	}
}

// reshare gives the shared machines the cores that no performance machine has.
func (h *Host) reshare(ctx context.Context) {
	for _, m := range h.all() {
		m.mu.Lock()
		shared := m.vmUp && m.rec.Machine.Config.Guest.WithDefaults().CPUKind == volant.CPUShared
		m.mu.Unlock()
		if shared {
			m.limit(ctx)
		}
	}
}

// govern gives an awake machine its own limits; until then it boots with a full share. A shared one spends
// its credit: when that is used up it is held to its baseline until it has saved some.
func (m *machine) govern(ctx context.Context, vm microvm.VM) {
	w := m.wish()
	g := w.Config.Guest.WithDefaults()
	fast := g.CPUKind == volant.CPUPerformance
	if fast {
		m.pin(ctx, vm)
	} else {
		m.pause(ctx, fullShare)
	}
	m.mu.Lock()
	fresh := cgroup.NewCredit(g.CPUs)
	fresh.Left = max(fresh.Left, m.credit.Left)
	m.credit, m.held = fresh, false
	m.mu.Unlock()
	if ctx.Err() != nil {
		return
	}
	m.limit(ctx)
	if len(w.Config.Services) == 0 {
		m.pause(ctx, settleTime)
		if ctx.Err() == nil {
			m.hasServed()
		}
	}
	if use, ok := m.h.deps.Cgroups.(meter); ok && !fast && !m.h.cfg.NoQuota {
		m.spend(ctx, use)
	}
}

// spend counts the machine's credit, and limits it anew when that ends or begins.
func (m *machine) spend(ctx context.Context, use meter) {
	last, err := use.Usage(m.id)
	then := time.Now()
	for err == nil && ctx.Err() == nil {
		m.pause(ctx, spendEvery)
		var u cgroup.Usage
		if u, err = use.Usage(m.id); err != nil {
			break
		}
		now := time.Now()
		m.mu.Lock()
		m.credit = m.credit.Spend(u.CPU-last.CPU, now.Sub(then))
		held := m.held
		// Enough for the time until the next look, else it would have its full share every other second.
		m.held = m.credit.Left <= 0 || held && m.credit.Left < spendEvery*time.Duration(m.credit.VCPU)
		news := held != m.held
		m.mu.Unlock()
		last, then = u, now
		if news && ctx.Err() == nil {
			m.limit(ctx)
		}
	}
	if err != nil && ctx.Err() == nil {
		m.log.Debug("cpu use not known", "err", err)
	}
}

// vmmPids are the threads that a VMM has beside its vCPUs': its own, and up to 64 for its disks.
const vmmPids = 128

// vmmMemory bounds a VMM with its guest. It is well above what they take: no guest comes near it, but a
// VMM that leaks, or that a guest has got hold of, does not take the memory of the others.
func vmmMemory(guest, overhead int) int { return guest + 2*overhead + 128 }

// limit applies the machine's limits.
func (m *machine) limit(ctx context.Context) {
	w := m.wish()
	g := w.Config.Guest.WithDefaults()
	m.mu.Lock()
	held := m.held
	m.mu.Unlock()
	l := cgroup.Full(g.CPUs)
	if held {
		l = cgroup.Shared(g.CPUs)
	}
	switch {
	case g.CPUKind == volant.CPUPerformance:
		l.CPUs = m.h.ledger.cpusOf(m.h.ledger.coresOf(m.id))
	case len(m.h.cfg.Cores) > 0:
		l.CPUs = m.h.ledger.sharedCPUs()
	}
	l.MemoryMB, l.Pids = vmmMemory(g.MemoryMB, m.h.ledger.overhead), vmmPids+g.CPUs
	if err := m.h.deps.Cgroups.Limit(ctx, m.id, l); err != nil && ctx.Err() == nil {
		m.log.Warn("limits not applied", "err", err)
	}
}

// pin binds each vCPU of a performance machine to a CPU of its own.
func (m *machine) pin(ctx context.Context, vm microvm.VM) {
	cpus := m.h.ledger.cpusOf(m.h.ledger.coresOf(m.id))
	tids, err := vm.VCPUThreads(ctx)
	if err != nil {
		m.log.Warn("vcpu threads not found", "err", err)
		return
	}
	for i, tid := range tids {
		if i >= len(cpus) {
			return
		}
		if err := m.h.deps.Cgroups.Pin(tid, cpus[i]); err != nil {
			m.log.Warn("vcpu not pinned", "err", err)
		}
	}
}
