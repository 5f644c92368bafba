package host

import (
	"context"
	"errors"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/microvm"
)

// A VM that cannot be adopted in so many tries of so long is ended.
const (
	adoptTries   = 3
	adoptTimeout = 10 * time.Second
)

// Remedy is what a host that starts does about a machine it finds on record.
type Remedy string

// The remedies.
const (
	RemedyNone   Remedy = "none"   // it is asleep, or gone
	RemedyServe  Remedy = "serve"  // its VM runs: go on
	RemedyFinish Remedy = "finish" // its VM was made: bring it to run the app
	RemedyUndo   Remedy = "undo"   // it was falling asleep without a whole snapshot: run on
	RemedySleep  Remedy = "sleep"  // its snapshot is whole: end the VM
	RemedyStop   Remedy = "stop"   // end the VM, if there is one: stopped
	RemedyBoot   Remedy = "boot"   // nothing of its boot is left: begin anew
	RemedyDied   Remedy = "died"   // its VM ended while nobody looked: by the restart policy
)

// Recover says what to do about a machine found in the given state. VM: its VM runs. Snapshot: a whole one is
// on record. SameBoot: the server was not booted since. It is pure.
func Recover(s volant.State, vm, snapshot, sameBoot bool) Remedy {
	switch s {
	case volant.StateStarted:
		switch {
		case vm:
			return RemedyServe
		case sameBoot:
			return RemedyDied
		}
		return RemedyStop
	case volant.StateStarting:
		switch {
		case vm:
			return RemedyFinish
		case sameBoot:
			return RemedyBoot
		}
		return RemedyStop
	case volant.StateSuspending:
		switch {
		case snapshot:
			return RemedySleep
		case vm:
			return RemedyUndo
		}
		return RemedyStop
	case volant.StateStopping:
		return RemedyStop
	case volant.StateCreated, volant.StateSuspended, volant.StateStopped, volant.StateFailed,
		volant.StateDestroying, volant.StateDestroyed, volant.StateUpdating: // the last is on no record
	}
	return RemedyNone
}

// recover finishes or undoes what an earlier process left half done, and adopts its VM.
func (m *machine) recover(ctx context.Context) {
	r := m.record()
	sameBoot := r.HostBoot == "" || r.HostBoot == m.h.cfg.HostBoot
	remedy := Recover(r.State, m.vm != nil, r.Snapshot != nil, sameBoot)
	if remedy != RemedyNone {
		m.log.Info("machine found", "state", string(r.State), "remedy", string(remedy))
	}
	if err := m.remedy(ctx, remedy, &r, sameBoot); err != nil && ctx.Err() == nil {
		m.log.Error("machine not recovered", "remedy", string(remedy), "err", err)
	}
}

// adopt finds the VM on record, and the network that it uses. What is left of one that is gone is swept then.
func (m *machine) adopt(ctx context.Context) {
	r := m.record()
	if r.Handle == nil {
		return
	}
	vm, err := m.adoptVM(ctx, *r.Handle)
	if err != nil {
		if !errors.Is(err, microvm.ErrGone) {
			m.log.Error("vm not adopted", "err", err)
		}
		return
	}
	m.vm = vm
	m.h.ledger.adopt(m.id, r.Machine.Config.Guest.WithDefaults())
	link, err := m.h.deps.Net.Attach(ctx, m.id, r.Machine.Org)
	if err != nil {
		m.log.Error("network not found again", "err", err)
		return
	}
	m.mu.Lock()
	m.link = link
	m.mu.Unlock()
}

// adoptVM tries more than once: a VM that does not answer on a busy server may serve all the same.
func (m *machine) adoptVM(ctx context.Context, handle microvm.Handle) (vm microvm.VM, err error) {
	for range adoptTries {
		actx, cancel := context.WithTimeout(ctx, adoptTimeout)
		vm, err = m.h.deps.Engine.Adopt(actx, handle)
		cancel()
		if err == nil || errors.Is(err, microvm.ErrGone) || ctx.Err() != nil {
			break
		}
	}
	return vm, err
}

func (m *machine) remedy(ctx context.Context, remedy Remedy, r *record, sameBoot bool) error {
	begun := time.Now()
	switch remedy {
	case RemedyServe:
		return m.serveOn(ctx, r)
	case RemedyFinish, RemedyUndo:
		m.publish() // it takes a while
		m.setUp(true, false)
		md := r.Mode
		if remedy == RemedyUndo {
			md = modeRestore // its guest ran: it needs the time, and nothing else
			m.h.removeTree(m.h.snapshotDir(m.id, r.Tries))
		}
		m.findRootfs(ctx, &r.Machine)
		m.mu.Lock()
		m.checks = newChecks(&r.Machine)
		m.mu.Unlock()
		return m.finishStart(ctx, md, &r.Machine)
	case RemedySleep:
		m.setUp(m.vm != nil, false)
		if m.vm == nil {
			m.note(pointSuspendDone, func(r *record) {
				r.State, r.Handle, r.Draining, r.Then, r.Reason = volant.StateSuspended, nil, false, "", "sleeps"
				r.happened(volant.EventSuspend, volant.StateSuspended, volant.SourceHost)
			})
			m.publish()
			return nil
		}
		m.publish()
		return m.asleep(ctx, Step{Rule: "found_half_done"}, nil, begun)
	case RemedyStop:
		return m.foundStopped(ctx, sameBoot)
	case RemedyBoot:
		m.note(pointBootFailed, func(r *record) {
			r.Handle, r.Made, r.Version, r.Life, r.Wanted = nil, false, "", 0, true
		})
		m.publish()
	case RemedyDied:
		m.exited(volant.Exit{Code: 1, At: time.Now()}, "the vm ended while the server was away", true)
	case RemedyNone:
		m.publish()
	}
	return nil
}

// serveOn goes on with a machine that serves. It is published before its guest is reached, since its
// connections go on too.
func (m *machine) serveOn(ctx context.Context, r *record) error {
	m.setUp(true, true)
	m.mu.Lock()
	m.checks = newChecks(&r.Machine)
	for i := range m.checks {
		m.checks[i].passed = r.Served // else they prove it again
	}
	m.mu.Unlock()
	m.publish()
	m.findRootfs(ctx, &r.Machine)
	if err := m.vm.Resume(ctx); err != nil {
		m.log.Warn("vm not resumed", "err", err)
	}
	m.watch(m.vm, nil)
	return nil
}

// findRootfs looks up what the image says, for the stop signal and a start of the app.
func (m *machine) findRootfs(ctx context.Context, w *volant.Machine) {
	root, err := m.h.deps.Images.Rootfs(ctx, w.Image)
	if err != nil {
		m.log.Warn("image not found again", "err", err)
		return
	}
	m.rootfs = root
}

// foundStopped ends what is left of a machine that was stopping, or that the server's boot ended.
func (m *machine) foundStopped(ctx context.Context, sameBoot bool) error {
	if m.vm != nil {
		if err := m.end(ctx, m.vm); err != nil {
			return err
		}
		m.vm = nil
	}
	rule := "found_half_done"
	if !sameBoot {
		rule = "server_booted"
		m.mu.Lock()
		m.rec.Wanted = m.rec.Machine.Run == volant.RunOn
		m.mu.Unlock()
	}
	m.stopped(Step{Do: DoStop, Rule: rule}, nil, nil, true)
	return nil
}
