package host

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/why"
)

const (
	freezeTimeout   = 5 * time.Second
	snapshotTimeout = 2 * time.Minute
	shutdownTimeout = 3 * time.Second
	signalTimeout   = 3 * time.Second
	sealRetry       = time.Second
)

// manifest is a snapshot with what it belongs to.
type manifest struct {
	microvm.Snapshot
	Machine volant.MachineID `json:"machine"`
	Version string           `json:"version"` // of the config
	Scratch string           `json:"scratch"` // stamp of the writable disk
	Addr    netip.Addr       `json:"addr"`    // that the guest has; the zero Addr of older ones is not looked at
	Addr6   netip.Addr       `json:"addr6"`
}

// check says why the snapshot must not be used, or nil.
func (f *manifest) check(h *Host, w *volant.Machine, link Link, scratch string) error {
	stamp, err := diskStamp(scratch)
	switch {
	case f.Machine != volant.MachineID(w.ID):
		return fmt.Errorf("%w: it is of machine %s", microvm.ErrIncompatible, f.Machine)
	case f.Version != w.Version:
		return fmt.Errorf("%w: it is of version %s of the machine, now %s", microvm.ErrIncompatible, f.Version, w.Version)
	case f.Engine != h.deps.Engine.Name() || f.Build != h.caps.Build:
		return fmt.Errorf("%w: the engine was changed", microvm.ErrIncompatible)
	case f.Addr.IsValid() && (f.Addr != link.IP() || f.Addr6 != link.Net.Addr6.Addr()):
		return fmt.Errorf("%w: its guest has the address %s, now %s", microvm.ErrIncompatible, f.Addr, link.IP())
	case err != nil:
		return fmt.Errorf("%w: its disk: %w", microvm.ErrIncompatible, err)
	case stamp != f.Scratch:
		return fmt.Errorf("%w: its disk was changed", microvm.ErrIncompatible)
	}
	return nil
}

// sleep suspends the machine, or stops it. Sealed first if the step says so: then only when no slot is held.
func (m *machine) sleep(ctx context.Context, step Step) error {
	if step.Seal && !m.sealFor(ctx, step) {
		return nil
	}
	if step.How != AskSuspend || !m.h.caps.Snapshots {
		return m.stop(ctx, step)
	}
	a := m.takeAsk()
	err := m.suspend(ctx, step, a)
	a.finish(err)
	return err
}

// sealFor reports whether the proxy has sealed the machine for this step.
func (m *machine) sealFor(ctx context.Context, step Step) bool {
	ok, err := m.seal(ctx)
	m.mu.Lock()
	still := m.rec.Draining || m.ask != nil
	if !ok || err != nil {
		m.sealAt = time.Now().Add(sealRetry)
	}
	m.mu.Unlock()
	if ok && err == nil && still {
		return true
	}
	m.unseal()
	switch {
	case step.Rule == "drained" && err != nil:
		m.log.Warn("seal failed", "err", err)
	case step.Rule != "drained" && err != nil:
		m.answer(volant.Errorf(volant.ErrUnavailable, "machine %s: the proxy does not answer: %v", m.id, err))
	case step.Rule != "drained":
		m.answer(volant.Errorf(volant.ErrPrecondition, "machine %s has open connections", m.id).
			WithRemedy("drain it, or force it"))
	}
	return false
}

func (m *machine) suspend(ctx context.Context, step Step, a *ask) error {
	begun := time.Now()
	err := m.write(pointSuspendBegin, func(r *record) {
		r.State, r.Wanted, r.Reason = volant.StateSuspending, false, "falls asleep: "+step.Rule
		r.happened(volant.EventSuspend, volant.StateSuspending, a.source())
		r.Tries++
	})
	if err != nil {
		m.unseal()
		return err
	}
	m.publish()
	a.start()
	snap, err := m.snapshot(ctx)
	if err != nil {
		if m.h.stopping() {
			return nil
		}
		m.log.Warn("snapshot failed", "err", err)
		m.because(why.Sleep, "snapshot_failed", fmt.Sprintf("it is stopped, since it could not be suspended: %v", err))
		return m.stop(ctx, Step{Do: DoStop, Rule: step.Rule})
	}
	if err := m.write(pointSuspendTaken, func(r *record) { r.Snapshot = snap }); err != nil {
		return err
	}
	m.mu.Lock()
	wanted := m.rec.Wanted
	m.mu.Unlock()
	if wanted {
		return m.runOn(ctx)
	}
	return m.asleep(ctx, step, a, begun)
}

// snapshot takes the machine's snapshot; the VM is paused then and the session closed.
func (m *machine) snapshot(ctx context.Context) (*manifest, error) {
	r := m.record()
	if sess, err := m.session(); err == nil {
		fctx, cancel := context.WithTimeout(ctx, freezeTimeout)
		if err := sess.Freeze(fctx); err != nil {
			m.log.Warn("freeze failed", "err", err)
		}
		cancel()
	}
	m.unwatch()
	dir := m.h.snapshotDir(m.id, r.Tries)
	sctx, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	s, err := m.vm.Snapshot(sctx, dir)
	if err != nil {
		return nil, err
	}
	stamp, err := diskStamp(m.h.scratchFile(m.id))
	if err != nil {
		m.h.removeTree(dir)
		return nil, err
	}
	link := m.linkNow()
	return &manifest{
		Snapshot: s, Machine: m.id, Version: r.Version, Scratch: stamp,
		Addr: link.IP(), Addr6: link.Net.Addr6.Addr(),
	}, nil
}

// runOn goes on with a VM whose snapshot is not needed any more, since a connection came meanwhile.
func (m *machine) runOn(ctx context.Context) error {
	r, source := m.record(), m.takeSource()
	err := m.write(pointSuspendUndone, func(r *record) {
		r.State, r.Mode, r.Made, r.Snapshot = volant.StateStarting, modeRestore, true, nil
		r.Draining, r.Then, r.Reason = false, "", "woken while it fell asleep"
		r.happened(volant.EventResume, volant.StateStarting, source)
	})
	if err != nil {
		return err
	}
	m.publish()
	m.resolve(nil)
	if r.Snapshot != nil {
		m.h.removeTree(r.Snapshot.Dir)
	}
	w := m.wish()
	return m.finishStart(ctx, modeRestore, &w)
}

// finishStart brings a VM that is on record to run its app; if that fails it is booted anew.
func (m *machine) finishStart(ctx context.Context, md mode, w *volant.Machine) error {
	begun := time.Now()
	sess, err := m.bringUp(ctx, m.vm, md, w)
	if err == nil {
		m.mu.Lock()
		m.sess = sess
		m.mu.Unlock()
		m.awake(md, Step{Rule: "resumed_in_place"}, time.Since(begun))
		return nil
	}
	if m.h.stopping() {
		return nil
	}
	vm := m.vm
	m.vm = nil
	m.setUp(false, false)
	return m.bootFailed(ctx, errors.Join(err, m.end(ctx, vm)))
}

// asleep ends the VM after its snapshot.
func (m *machine) asleep(ctx context.Context, step Step, a *ask, begun time.Time) error {
	vm := m.vm
	if err := m.end(ctx, vm); err != nil {
		return fmt.Errorf("end the vm: %w", err)
	}
	m.vm = nil
	m.setUp(false, false)
	m.note(pointSuspendDone, func(r *record) {
		r.State, r.Handle, r.Draining, r.Then = volant.StateSuspended, nil, false, ""
		r.Reason = "sleeps: " + a.reason(step.Rule)
		r.happened(volant.EventSuspend, volant.StateSuspended, volant.SourceHost)
	})
	m.h.freed(m.id)
	m.publish()
	m.log.Info("machine suspended", "rule", step.Rule, "took", time.Since(begun))
	m.because(why.Sleep, step.Rule, fmt.Sprintf("suspended in %d ms: %s", time.Since(begun).Milliseconds(), a.reason(step.Rule)))
	return nil
}

// diskStamp identifies a disk and its last change.
func diskStamp(path string) (string, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s:%d:%d", filepath.Base(path), fi.Size(), fi.ModTime().UnixNano()), nil
}
