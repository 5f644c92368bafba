package host

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/why"
)

const (
	fullShare     = 3 * time.Second // of the CPU, after the app started; then its own limits
	checkInterval = 15 * time.Second
	checkTimeout  = 2 * time.Second
	checkEager    = 250 * time.Millisecond // until the first pass
)

// watchers are the goroutines that live while a machine is awake.
type watchers struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// watch begins to watch an awake machine.
func (m *machine) watch(vm microvm.VM, sess Session) {
	m.unwatch()
	ctx, cancel := context.WithCancel(m.h.ctx)
	w := &watchers{cancel: cancel}
	m.watchers = w
	wish := m.wish()
	w.wg.Go(func() { m.watchVM(ctx, vm) })
	w.wg.Go(func() { m.watchGuest(ctx, vm, sess) })
	w.wg.Go(func() { m.govern(ctx, vm) })
	for _, a := range askedChecks(&wish.Config) {
		w.wg.Go(func() { m.runCheck(ctx, a) })
	}
	for i := range wish.Config.Services {
		if m.proves(listens(wish.Config.Services[i].InternalPort)) {
			w.wg.Go(func() { m.awaitListen(ctx, wish.Config.Services[i].InternalPort) })
		}
	}
}

// unwatch ends the watching and the session.
func (m *machine) unwatch() {
	w := m.watchers
	if w == nil {
		return
	}
	m.watchers = nil
	w.cancel()
	w.wg.Wait()
	m.mu.Lock()
	sess := m.sess
	m.sess = nil
	m.mu.Unlock()
	m.close(sess)
}

func (m *machine) close(sess Session) {
	if sess == nil {
		return
	}
	if err := sess.Close(); err != nil {
		m.log.Debug("session closed with an error", "err", err)
	}
}

// watchVM notes the end of the VM.
func (m *machine) watchVM(ctx context.Context, vm microvm.VM) {
	select {
	case <-ctx.Done():
		return
	case <-vm.Done():
	}
	e := vm.Exit()
	m.exited(volant.Exit{Code: e.Code, Signal: e.Signal, At: time.Now()}, "the vm ended: "+vmExit(e), true)
}

// watchGuest follows the app's end and its log, over as many sessions as it takes.
func (m *machine) watchGuest(ctx context.Context, vm microvm.VM, sess Session) {
	for n := 0; ctx.Err() == nil; n++ {
		if sess == nil {
			if n > 0 {
				m.pause(ctx, max(100*time.Millisecond, backoff(min(n, 4))))
			}
			octx, cancel := context.WithTimeout(ctx, resumeTimeout)
			s, err := m.open(octx, vm)
			cancel()
			if err != nil {
				m.log.Debug("guest not reached", "err", err)
				continue
			}
			sess, n = s, 0
			m.mu.Lock()
			m.sess = sess
			m.mu.Unlock()
		}
		m.followGuest(ctx, sess)
		if ctx.Err() != nil {
			return // unwatch closes the session
		}
		m.mu.Lock()
		m.sess = nil
		m.mu.Unlock()
		m.close(sess)
		sess = nil
		select {
		case <-vm.Done():
			return
		default:
		}
	}
}

// followGuest returns when the session has ended.
func (m *machine) followGuest(ctx context.Context, sess Session) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	boot := sess.Hello().BootID
	wg.Go(func() {
		err := sess.Logs(ctx, m.logs.next(boot), func(l guest.LogLine) { m.logs.add(boot, l) })
		if err != nil && ctx.Err() == nil {
			m.log.Debug("log ended", "err", err)
		}
	})
	for ctx.Err() == nil {
		exit, err := sess.Wait(ctx)
		if err == nil {
			m.appExited(exit)
			select {
			case <-m.reran:
				continue
			case <-sess.Done():
			case <-ctx.Done():
			}
			return
		}
		select {
		case <-sess.Done():
			return
		case <-ctx.Done():
			return
		case <-time.After(checkEager):
		}
	}
}

func (m *machine) appExited(e guest.Exit) {
	exit := volant.Exit{Code: e.Code, Signal: e.Signal, OOM: e.OOM, At: time.Now()}
	text := "the app ended: " + exitText(&exit)
	if exit.Code != 0 || exit.Signal != 0 {
		if last := m.logs.lastWords(); last != "" { // its log may be gone with it when somebody asks
			text += fmt.Sprintf(", and the last it said was %q", last)
		}
	}
	m.exited(exit, text, false)
}

// exited notes the end of the app, or of the whole VM.
func (m *machine) exited(e volant.Exit, text string, vm bool) {
	m.mu.Lock()
	state := m.rec.State
	// An app that is ended to be run again ends because that was asked for.
	e.Requested = m.doing == DoRestart && m.appUp
	asked := state == volant.StateStopping || state == volant.StateDestroying
	if vm && e.Code == 0 && e.Signal == 0 && !asked {
		e.Code = 1 // a VM has no reason to end by itself; its app's exit was seen first if there was one
	}
	e.Requested = e.Requested || asked
	if m.exit != nil && vm {
		e = *m.exit
	}
	failed := !m.rec.Served && !m.deaf && (e.Code != 0 || e.Signal != 0 || e.OOM) && !e.Requested && m.exit == nil
	m.exit = &e
	m.mu.Unlock()
	if asked || state == volant.StateSuspending {
		m.setUpAfterExit(vm)
		m.nudge()
		return
	}
	m.note(pointExit, func(r *record) {
		r.Exit, r.Reason = &e, text
		if failed {
			r.Failures++
		}
		if vm {
			r.Life = 0
		}
		if r.State == volant.StateStarted {
			r.State, r.Made = volant.StateStopping, false
			if again, _ := afterExit(r.Machine.Config.Restart, e, r.Restarts); again == exitAgain && !r.Draining {
				r.State, r.Made = volant.StateStarting, !vm
				r.exited(e, volant.StateStarting, true)
			}
		} else if e.Requested {
			r.exited(e, volant.StateStarting, true) // by a restart
		}
	})
	m.setUpAfterExit(vm)
	m.log.Info("machine exited", "exit_code", e.Code, "signal", e.Signal, "oom", e.OOM, "vm", vm)
	m.because(why.Machine, "exit", text)
	m.publish()
	m.nudge()
}

func (m *machine) setUpAfterExit(vm bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.appUp {
		close(m.appDone)
	}
	m.appUp = false
	if vm {
		m.vmUp = false
	}
}

// newChecks are the checks of a machine that awakes. A service without one gets a hidden one where the
// machine is kept awake and unrouted, as by a deploy: elsewhere its first connection tells whether it
// listens, and a probe beside it would be one connection more than its limit.
func newChecks(w *volant.Machine) []check {
	var cs []check
	services := w.Config.Services
	for i := range services {
		if len(services[i].Checks) == 0 && w.Cordoned && w.Run == volant.RunOn {
			cs = append(cs, check{Check: volant.Check{Name: listens(services[i].InternalPort)}, hidden: true})
		}
	}
	for _, a := range askedChecks(&w.Config) {
		cs = append(cs, check{Check: volant.Check{
			Name: a.name, Status: volant.CheckWarning, Output: "not run yet", Updated: time.Now(), Informational: a.info,
		}})
	}
	return cs
}

func listens(port int) string { return "listens-" + strconv.Itoa(port) }

// proves says whether the machine has a hidden check of that name which has not passed.
func (m *machine) proves(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.checks {
		if c.hidden && c.Name == name && !c.passed {
			return true
		}
	}
	return false
}

// awaitListen probes a port until it accepts a connection once.
func (m *machine) awaitListen(ctx context.Context, port int) {
	for ctx.Err() == nil {
		if output, ok := m.probe(ctx, port, checkTimeout); ok {
			m.checked(listens(port), true, output)
			return
		}
		m.pause(ctx, checkEager)
	}
}

// checked notes the outcome of a check. Updated is when it last changed.
func (m *machine) checked(name string, ok bool, output string) {
	m.mu.Lock()
	changed, told, was := false, false, ""
	for k := range m.checks {
		c := &m.checks[k]
		if c.Name != name {
			continue
		}
		status := volant.CheckCritical
		if ok {
			status, c.passed = volant.CheckPassing, true
		}
		was = c.Status
		changed = c.Status != status
		if changed {
			c.Status, c.Updated = status, time.Now()
		}
		told = told || !ok && c.Output != output // what is wrong is something else now
		c.Output = output
	}
	news := ok && m.servedLocked()
	m.mu.Unlock()
	if changed || told || news {
		m.publish()
	}
	if changed && was == volant.CheckPassing {
		m.because(why.Machine, "check_failed", "check "+name+" fails: "+output)
	}
}
