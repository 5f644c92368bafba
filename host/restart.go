package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/why"
)

// restart runs the app again in the same VM, with the same disk.
func (m *machine) restart(ctx context.Context, step Step) error {
	a := m.takeAsk()
	m.mu.Lock()
	exit, up, ended := m.exit, m.appUp, m.appDone
	m.mu.Unlock()
	err := m.write(pointRestart, func(r *record) {
		r.State, r.Reason, r.Made = volant.StateStarting, "starts again: "+step.Rule, true
		if step.Rule == "restart_policy" {
			r.Restarts = append(within(r.Restarts, time.Now()), time.Now())
		}
		r.happened(volant.EventRestart, volant.StateStarting, a.source())
		if exit != nil {
			r.Exit = exit
		}
	})
	if err != nil {
		a.finish(err)
		return err
	}
	m.publish()
	a.start()
	err = m.runAgain(ctx, a, up, ended)
	a.finish(err)
	if err != nil && !m.h.stopping() {
		m.log.Warn("restart in place failed", "err", err)
		return m.reboot(ctx, err)
	}
	return nil
}

// runAgain ends the app if it runs and starts it.
func (m *machine) runAgain(ctx context.Context, a *ask, up bool, ended chan struct{}) error {
	sess, err := m.session()
	if err != nil {
		return err
	}
	if up {
		sig, wait := m.ending(a)
		sctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		if err := signalApp(ctx, sess, sig); err != nil {
			return err
		}
		select {
		case <-ended:
		case <-sctx.Done():
			if err := sess.Signal(ctx, 9); err != nil {
				return err
			}
			select {
			case <-ended:
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(killTimeout):
				return errors.New("the app does not end")
			}
		}
	}
	sctx, cancel := context.WithTimeout(ctx, resumeTimeout)
	defer cancel()
	if err := sess.Start(sctx); err != nil {
		return err
	}
	m.mu.Lock()
	m.exit, m.deaf = nil, false
	m.mu.Unlock()
	m.setUp(true, true)
	m.note(pointBootServed, func(r *record) {
		r.State, r.Made, r.Reason = volant.StateStarted, false, "runs again"
		r.ExitTold = false
		r.happened(volant.EventRestart, volant.StateStarted, volant.SourceHost)
	})
	select {
	case m.reran <- struct{}{}:
	default:
	}
	m.publish()
	m.because(why.Machine, "restarted", "its app was started again in place")
	return nil
}

// reboot ends a VM whose app cannot be started again, and wants it booted anew.
func (m *machine) reboot(ctx context.Context, cause error) error {
	m.unwatch()
	vm := m.vm
	if vm != nil {
		if err := m.end(ctx, vm); err != nil {
			return fmt.Errorf("end the vm: %w", err)
		}
	}
	m.vm = nil
	m.setUp(false, false)
	m.mu.Lock()
	m.exit = nil
	m.mu.Unlock()
	return m.bootFailed(ctx, cause)
}
