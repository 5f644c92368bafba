package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/why"
)

// stop asks the app to end, then ends the VM. DoFail leaves the machine failed.
func (m *machine) stop(ctx context.Context, step Step) error {
	a := m.takeAsk()
	m.mu.Lock()
	exit, up := m.exit, m.appUp
	m.mu.Unlock()
	err := m.write(pointStopBegin, func(r *record) {
		r.State, r.Reason = volant.StateStopping, "stops: "+step.Rule
		if step.Rule != "updated" {
			r.Wanted = false
		}
		if exit != nil {
			r.Exit = exit
		} else {
			r.happened(volant.EventStop, volant.StateStopping, stopSource(step, a, &r.Machine))
		}
	})
	if err != nil {
		m.unseal()
		a.finish(err)
		return err
	}
	m.publish()
	a.start()
	if up && exit == nil {
		m.askToEnd(ctx, a)
	}
	m.unwatch()
	if vm := m.vm; vm != nil {
		if err := m.end(ctx, vm); err != nil {
			a.finish(err)
			return fmt.Errorf("end the vm: %w", err)
		}
		m.vm = nil
	}
	m.stopped(step, a, exit, up)
	a.finish(nil)
	return nil
}

// stopped notes that no process is left. Ran says that the app ran until then.
func (m *machine) stopped(step Step, a *ask, exit *volant.Exit, ran bool) {
	m.setUp(false, false)
	m.mu.Lock()
	last := m.exit
	m.exit = nil
	m.mu.Unlock()
	if exit == nil {
		exit = &volant.Exit{Requested: true, At: time.Now()}
		switch {
		case last != nil:
			exit.Code, exit.Signal, exit.OOM, exit.At = last.Code, last.Signal, last.OOM, last.At
		case ran: // it did not end in its time
			exit.Code, exit.Signal = 137, 9
		}
	}
	r := m.record()
	spent := r.Snapshot
	m.note(pointStopDone, func(r *record) {
		r.State, r.Handle, r.Made, r.Snapshot, r.Version, r.Life = volant.StateStopped, nil, false, nil, "", 0
		r.Draining, r.Then, r.Exit = false, "", exit
		r.Reason = "stopped: " + a.reason(step.Rule)
		if step.Do == DoFail {
			r.State, r.Reason = volant.StateFailed, "exited too often: the last time "+exitText(exit)
		}
		r.exited(*exit, r.State, false)
	})
	if spent != nil {
		m.h.removeTree(spent.Dir)
	}
	m.h.freed(m.id)
	if step.Rule != "updated" || !m.record().Wanted { // else it boots at once, and is not at rest
		m.publish()
	}
	m.log.Info("machine stopped", "rule", step.Rule, "exit_code", exit.Code)
	m.because(why.Sleep, step.Rule, fmt.Sprintf("stopped (%s): %s", a.reason(step.Rule), exitText(exit)))
}

// stopSource is who is behind a stop: who asked for it, or who wrote the wish it follows.
func stopSource(step Step, a *ask, w *volant.Machine) string {
	switch step.Rule {
	case "off", "updated", "destroyed":
		return wishSource(w)
	}
	return a.source()
}

// ending is how an app is asked to end: as the order says, else its config, else its image.
func (m *machine) ending(a *ask) (sig int, wait time.Duration) {
	w := m.wish()
	sig = stopSignal(w.Config.StopConfig.Signal, m.rootfs.StopSignal)
	if wait = w.Config.StopConfig.Timeout.D(); wait <= 0 {
		wait = defaultStopTimeout
	}
	if a != nil && a.sig > 0 {
		sig = a.sig
	}
	if a != nil && a.grace > 0 {
		wait = a.grace
	}
	return sig, wait
}

// askToEnd sends the stop signal and waits for the app to end, no longer than the order or its config says.
func (m *machine) askToEnd(ctx context.Context, a *ask) {
	sess, err := m.session()
	if err != nil {
		return
	}
	sig, wait := m.ending(a)
	m.mu.Lock()
	ended := m.appDone
	m.mu.Unlock()
	if err := signalApp(ctx, sess, sig); err != nil {
		m.log.Warn("stop signal failed", "err", err)
	} else {
		sctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		select {
		case <-ended:
		case <-sctx.Done():
		}
	}
	dctx, cancel := context.WithTimeout(ctx, shutdownTimeout)
	defer cancel()
	if err := sess.Shutdown(dctx); err != nil {
		m.log.Debug("shutdown failed", "err", err)
	}
}

// signalApp sends a signal, as far as the guest takes it in a reasonable time.
func signalApp(ctx context.Context, sess Session, sig int) error {
	ctx, cancel := context.WithTimeout(ctx, signalTimeout)
	defer cancel()
	return sess.Signal(ctx, sig)
}

// discard throws the snapshot away.
func (m *machine) discard(step Step) error {
	a := m.takeAsk()
	r := m.record()
	err := m.write(pointDiscard, func(r *record) {
		r.State, r.Snapshot, r.Version, r.Life, r.Reason = volant.StateStopped, nil, "", 0, "its snapshot was thrown away: "+step.Rule
		r.happened(volant.EventStop, volant.StateStopped, stopSource(step, a, &r.Machine))
	})
	if err != nil {
		a.finish(err)
		return err
	}
	if r.Snapshot != nil {
		m.h.removeTree(r.Snapshot.Dir)
	}
	m.mu.Lock()
	m.prepared = false
	m.mu.Unlock()
	m.publish()
	m.because(why.Sleep, "snapshot_discarded", "its snapshot was thrown away ("+a.reason(step.Rule)+"): the next wake boots")
	a.start()
	a.finish(nil)
	return nil
}

// cool lets a failed machine be woken again.
func (m *machine) cool() error {
	err := m.write(pointStopDone, func(r *record) { r.State = volant.StateStopped })
	m.publish()
	return err
}

// destroy removes everything of the machine.
func (m *machine) destroy(ctx context.Context) error {
	err := m.write(pointDestroyBegin, func(r *record) {
		if r.State != volant.StateDestroying { // else it is tried again
			r.happened(volant.EventDestroy, volant.StateDestroying, wishSource(&r.Machine))
		}
		r.State, r.Reason, r.Wanted, r.Life = volant.StateDestroying, "is removed", false, 0
	})
	if err != nil {
		return err
	}
	m.publish()
	m.logs.close()
	err = errors.Join(
		m.h.deps.Net.Detach(ctx, m.id),
		m.h.deps.Cgroups.Remove(ctx, m.id),
		m.h.keepLog(m.wish().App, m.id),
		m.h.removeFiles(m.id),
	)
	if err != nil {
		return fmt.Errorf("destroy: %w", err)
	}
	if err := m.h.journal.remove(pointDestroyDone, m.id); err != nil {
		return err
	}
	m.mu.Lock()
	m.rec.State, m.rec.Since, m.rec.Reason = volant.StateDestroyed, time.Now(), "removed"
	m.rec.happened(volant.EventDestroy, volant.StateDestroyed, volant.SourceHost)
	m.tellEventsLocked()
	m.rec.Snapshot, m.rec.Generation, m.link = nil, m.rec.Machine.Generation, Link{}
	m.mu.Unlock()
	m.publish()
	m.answer(volant.Errorf(volant.ErrPrecondition, "machine %s is destroyed", m.id))
	m.resolve(volant.Errorf(volant.ErrPrecondition, "machine %s is destroyed", m.id))
	m.log.Info("machine destroyed")
	return nil
}
