package host

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cgroup"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/why"
)

// machine is one machine and its loop.
type machine struct {
	h    *Host
	id   volant.MachineID
	log  *slog.Logger
	poke chan struct{} // something happened: the loop looks again
	rest rest

	pub    sync.Mutex // held while a Have is made and published, so that they go out in order
	untold bool       // none was published since the host found it on record; pub guards it
	have   atomic.Pointer[volant.Have]

	mu       sync.Mutex // guards the following
	rec      record
	orphan   bool // its wish is missing
	seq      uint64
	sealed   bool // between a seal and what follows: no Have may go out that says it serves
	ask      *ask
	waiters  []chan error // of wakes
	wokenBy  string
	wokenFor string // the source of that, for its history
	deaf     bool   // this run was counted among those that did not come to serve
	slots    int
	execs    int       // commands that run beside the app
	empty    time.Time // since when slots is 0
	exit     *volant.Exit
	vmUp     bool
	appUp    bool
	appDone  chan struct{} // closed when the app or the VM ends
	prepared bool
	fresh    bool // the scratch disk was made and not used
	link     Link
	sess     Session
	checks   []check
	retryAt  time.Time
	sealAt   time.Time
	credit   cgroup.Credit
	unwished bool // its first wish is not on record yet: there is nothing to act on
	held     bool // to its baseline, since its credit is used up
	doing    Action
	cancel   context.CancelFunc // of the step that is done

	// events are those of the record, for readers who must not wait while it is written.
	events atomic.Pointer[[]volant.Event]

	// The loop's alone.
	vm       microvm.VM
	watchers *watchers
	rootfs   Rootfs
	reran    chan struct{} // the app was started again in the same VM
	errs     int           // steps in a row that ended in an error
	logs     *logbook
	laps     laps // of the last boot
}

// rest says whether the loop has ended until something happens: a machine that sleeps has no goroutine.
type rest struct {
	mu    sync.Mutex  // guards the following
	on    bool        // there is no loop
	alarm *time.Timer // begins it again; nil if nothing is due
}

// ask is what a call asks of the loop.
type ask struct {
	what  string
	seal  bool
	rule  string        // why, in a word
	by    string        // who asks
	sig   int           // of a stop or restart: in place of the config's; 0: the config's
	grace time.Duration // and how long the app has to end; 0: the config's
	user  bool          // the API asks
	begun chan error    // gets nil when it is on record, or why not
	done  chan struct{} // closed when it is done
}

func newMachine(h *Host, rec record) *machine {
	id := volant.MachineID(rec.Machine.ID)
	m := &machine{
		h: h, id: id, rec: rec, seq: h.cfg.Epoch << 32, slots: -1, empty: time.Now(),
		log:  h.log.With("machine", id, "app", rec.Machine.App),
		poke: make(chan struct{}, 1), reran: make(chan struct{}, 1),
		logs: newLogbook(h.logDir(id), h.cfg.LogBytes),
	}
	v := m.haveLocked()
	m.have.Store(&v)
	m.tellEventsLocked()
	return m
}

// run drives the machine until ctx ends, it is destroyed, or nothing is to be done while it sleeps: then the next
// nudge runs it again.
func (m *machine) run(ctx context.Context) {
	for ctx.Err() == nil {
		if m.awaitsWish() {
			if m.lieDown(time.Time{}) {
				return
			}
			continue
		}
		step := Plan(m.facts())
		if step.Do == DoWait || step.Do == DoPrepare {
			m.settled()
		}
		if step.Do == DoWait {
			if m.state() == volant.StateDestroyed {
				return
			}
			if m.vm != nil || m.watchers != nil {
				m.wait(ctx, step.At)
			} else if m.lieDown(step.At) {
				return
			}
			continue
		}
		m.apply(ctx, step)
	}
	m.unwatch()
}

func (m *machine) awaitsWish() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unwished
}

func (m *machine) facts() Facts {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := &m.rec
	f := Facts{
		Now: time.Now(), Run: r.Machine.Run, WishVersion: r.Machine.Version, Policy: r.Machine.Config.Restart,
		State: r.State, Version: r.Version, VM: m.vmUp, App: m.appUp, Wanted: r.Wanted,
		Prepared: m.prepared && (m.fresh || r.State == volant.StateSuspended),
		Draining: r.Draining, Then: r.Then, Slots: max(m.slots, m.execs), Exit: m.exit, Restarts: r.Restarts,
		RetryAt: m.retryAt, SealAt: m.sealAt, CoolAt: r.Since.Add(coolOff),
	}
	if m.ask != nil {
		f.Ask, f.AskSeal, f.AskRule = m.ask.what, m.ask.seal, m.ask.rule
	}
	return f
}

func (m *machine) apply(ctx context.Context, step Step) {
	sctx, cancel := context.WithCancel(ctx)
	m.mu.Lock()
	m.doing, m.cancel = step.Do, cancel
	m.mu.Unlock()
	err := m.do(sctx, step)
	m.mu.Lock()
	m.doing, m.cancel = "", nil
	m.mu.Unlock()
	cancel()
	if err == nil || ctx.Err() != nil {
		m.errs = 0
		return
	}
	m.errs++
	m.log.Warn("step failed", "step", string(step.Do), "err", err)
	m.mu.Lock()
	m.retryAt = time.Now().Add(max(firstBackoff, backoff(m.errs)))
	m.rec.Reason = err.Error()
	m.mu.Unlock()
	m.publish()
	if step.Do != DoBoot && step.Do != DoPrepare {
		m.pause(ctx, min(5*time.Second, max(firstBackoff, backoff(m.errs))))
	}
}

func (m *machine) do(ctx context.Context, step Step) error {
	switch step.Do {
	case DoPrepare:
		return m.prepareIdle(ctx)
	case DoBoot:
		return m.boot(ctx, step)
	case DoRestart:
		return m.restart(ctx, step)
	case DoSleep:
		return m.sleep(ctx, step)
	case DoStop, DoFail:
		return m.stop(ctx, step)
	case DoDiscard:
		return m.discard(step)
	case DoCool:
		return m.cool()
	case DoDestroy:
		return m.destroy(ctx)
	case DoForget:
		m.answer(volant.Errorf(volant.ErrPrecondition, "machine %s is %s", m.id, m.state()))
		return nil
	default:
		panic("host: no such action: " + string(step.Do))
	}
}

// wait returns when something happened, or at the given time if there is one.
func (m *machine) wait(ctx context.Context, at time.Time) {
	var due <-chan time.Time
	if !at.IsZero() {
		t := time.NewTimer(time.Until(at))
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
	case <-m.poke:
	case <-due:
	}
}

func (m *machine) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// nudge has the loop look again.
func (m *machine) nudge() {
	m.rest.mu.Lock()
	defer m.rest.mu.Unlock()
	if !m.rest.on {
		select {
		case m.poke <- struct{}{}:
		default:
		}
		return
	}
	m.rest.on = false
	if m.rest.alarm != nil {
		m.rest.alarm.Stop()
		m.rest.alarm = nil
	}
	m.h.spawn(m.run)
}

// lieDown ends the loop until a nudge, which comes at the given time if there is one. It returns false if one has come
// already.
func (m *machine) lieDown(at time.Time) bool {
	m.rest.mu.Lock()
	defer m.rest.mu.Unlock()
	select {
	case <-m.poke:
		return false
	default:
	}
	m.rest.on = true
	if !at.IsZero() {
		m.rest.alarm = time.AfterFunc(time.Until(at), m.nudge)
	}
	return true
}

// settled notes that nothing is left to do for the wish as it is.
func (m *machine) settled() {
	m.mu.Lock()
	acted := m.rec.Generation == m.rec.Machine.Generation
	m.rec.Generation = m.rec.Machine.Generation
	state, wanted, waiters := m.rec.State, m.rec.Wanted, m.waiters
	if state == volant.StateStarted || !wanted {
		m.waiters = nil // under the same lock that they come in by
	} else {
		waiters = nil
	}
	m.mu.Unlock()
	for _, w := range waiters {
		if state == volant.StateStarted {
			w <- nil
		} else {
			w <- volant.Errorf(volant.ErrPrecondition, "machine %s is %s", m.id, state)
		}
	}
	if !acted {
		m.publish()
	}
}

// write changes the record on disk and in memory, or neither.
func (m *machine) write(p point, change func(r *record)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writeLocked(p, change)
}

func (m *machine) writeLocked(p point, change func(r *record)) error {
	next := m.changedLocked(change)
	if err := m.h.journal.save(p, &next); err != nil {
		return err
	}
	m.recordLocked(next)
	return nil
}

// recordLocked makes r the machine's record.
func (m *machine) recordLocked(r record) {
	m.rec = r
	m.tellEventsLocked()
}

func (m *machine) tellEventsLocked() {
	events := m.rec.Events
	m.events.Store(&events)
}

// note is write for what is so already: it changes memory even if the disk fails.
func (m *machine) note(p point, change func(r *record)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.changedLocked(change)
	if err := m.h.journal.save(p, &next); err != nil {
		m.log.Error("record not written", "point", string(p), "err", err)
	}
	m.recordLocked(next)
}

func (m *machine) changedLocked(change func(r *record)) record {
	next := m.rec.clone()
	change(&next)
	if next.State != m.rec.State {
		next.Since = time.Now()
	}
	return next
}

// publish gives out the machine's Have under a new Seq.
func (m *machine) publish() {
	m.pub.Lock()
	defer m.pub.Unlock()
	m.mu.Lock()
	if m.sealed && m.rec.State == volant.StateStarted {
		m.mu.Unlock()
		return
	}
	m.sealed = false
	m.seq++
	v := m.haveLocked()
	m.mu.Unlock()
	m.have.Store(&v)
	if m.h.deps.Publish != nil {
		m.h.deps.Publish(v)
	}
	m.toldLocked()
}

// tell makes sure that the host does not wait for this machine.
func (m *machine) tell() {
	m.pub.Lock()
	defer m.pub.Unlock()
	m.toldLocked()
}

// toldLocked counts the first Have of a machine on record; m.pub is held.
func (m *machine) toldLocked() {
	if m.untold {
		m.untold = false
		m.h.published()
	}
}

func (m *machine) haveLocked() volant.Have {
	r := &m.rec
	v := volant.Have{
		Machine: m.id, App: r.Machine.App, Node: m.h.cfg.Node, Epoch: m.h.cfg.Epoch, Seq: m.seq,
		State: r.State, Generation: r.Generation, Version: r.Version, Since: r.Since, Draining: r.Draining,
		Memory: m.h.ledger.heldMB(m.id), Boots: r.Boots, Exit: r.Exit, Reason: r.Reason,
		Failures: r.Failures, Restarts: len(within(r.Restarts, time.Now())), Orphan: m.orphan, Cold: r.Mode != modeRestore, Life: r.Life,
		IP: m.link.IP(), PrivateIP: m.link.Net.Addr6.Addr(),
	}
	if v.Version == "" {
		v.Version = r.Machine.Version
	}
	if r.Draining {
		v.Drained = r.Drained
	}
	if r.State == volant.StateStarted {
		v.Ready = true
		for _, c := range m.checks {
			if !c.hidden {
				v.Checks = append(v.Checks, c.Check)
			}
			v.Ready = v.Ready && c.passed
		}
	}
	return v
}

// seal asks the proxy whether the machine is empty and keeps it so. No Have that says it serves goes out
// after that until publish is called with another state, or unseal.
func (m *machine) seal(ctx context.Context) (bool, error) {
	m.pub.Lock()
	m.mu.Lock()
	busy := m.execs > 0
	m.sealed = m.sealed || !busy
	seq := m.seq
	m.mu.Unlock()
	m.pub.Unlock()
	if busy {
		return false, nil
	}
	if m.h.deps.Seal == nil {
		return true, nil
	}
	sctx, cancel := context.WithTimeout(ctx, sealTimeout)
	defer cancel()
	return m.h.deps.Seal.Seal(sctx, m.id, seq)
}

// unseal lets the machine serve again.
func (m *machine) unseal() {
	m.mu.Lock()
	m.sealed = false
	m.mu.Unlock()
	m.publish()
}

func (m *machine) state() volant.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rec.State
}

func (m *machine) wish() volant.Machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rec.Machine
}

func (m *machine) record() record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rec.clone()
}

func (m *machine) session() (Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sess == nil {
		return nil, volant.Errorf(volant.ErrPrecondition, "machine %s is %s: its guest cannot be reached", m.id, m.rec.State).
			WithRemedy("wake it first, or try again in a moment")
	}
	return m.sess, nil
}

// because adds a why record.
func (m *machine) because(kind why.Kind, rule, text string) {
	if m.h.deps.Why == nil {
		return
	}
	w := m.wish()
	m.h.deps.Why.Add(why.Record{
		Time: time.Now(), Kind: kind, Org: w.Org, App: w.App, Machine: m.id, Rule: rule, Text: text,
	})
}

// resolve answers the wakes that wait.
func (m *machine) resolve(err error) {
	m.mu.Lock()
	waiters := m.waiters
	m.waiters = nil
	m.mu.Unlock()
	for _, w := range waiters {
		w <- err
	}
}

// takeAsk takes the call's order that this step acts on, and tells the caller that it has begun.
func (m *machine) takeAsk() *ask {
	m.mu.Lock()
	a := m.ask
	m.ask = nil
	m.mu.Unlock()
	return a
}

// answer drops the order with an error for its caller.
func (m *machine) answer(err error) {
	if a := m.takeAsk(); a != nil {
		a.begun <- err
		close(a.done)
	}
}

// reason says for people why a step is done.
func (a *ask) reason(rule string) string {
	if a == nil || a.by == "" {
		return rule
	}
	return rule + " by " + a.by
}

func (a *ask) start() {
	if a != nil {
		a.begun <- nil
	}
}

func (a *ask) finish(err error) {
	if a == nil {
		return
	}
	if err != nil {
		select {
		case a.begun <- err:
		default:
		}
	}
	close(a.done)
}

// end kills a VM and removes what its engine made.
func (m *machine) end(ctx context.Context, vm microvm.VM) error {
	kctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if err := vm.Kill(kctx); err != nil {
		return err
	}
	return errors.Join(vm.Remove(kctx), m.h.deps.Cgroups.Remove(kctx, m.id))
}
