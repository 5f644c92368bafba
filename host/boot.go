package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/why"
)

// mode is how a VM is made.
type mode string

const (
	modeRestore  mode = "restore"  // from the machine's own snapshot: its app runs on
	modeTemplate mode = "template" // from a snapshot of a booted kernel and our init
	modeCold     mode = "cold"
)

// errUnprepared is an error of image, disk, network, secrets or files: another way to boot would not help.
var errUnprepared = errors.New("prepare")

const (
	sealTimeout   = 2 * time.Second
	killTimeout   = 10 * time.Second
	coldTimeout   = 60 * time.Second // from the VM's first instruction to the agent's answer
	resumeTimeout = 10 * time.Second // the same after a restore
	maxFailures   = 3                // boots in a row before a machine is failed
)

// prepareIdle prepares a sleeping machine when few others are prepared. Whatever happens to it goes first.
func (m *machine) prepareIdle(ctx context.Context) error {
	select {
	case m.h.preparing <- struct{}{}:
	case <-m.poke:
		return nil
	case <-ctx.Done():
		return nil
	}
	defer func() { <-m.h.preparing }()
	return m.prepare(ctx, m.state() != volant.StateSuspended)
}

// prepare makes image, disk and network. Fresh says that the disk must be an empty one.
func (m *machine) prepare(ctx context.Context, fresh bool) error {
	w := m.wish()
	m.mu.Lock()
	ready := m.prepared && (m.fresh || !fresh)
	m.mu.Unlock()
	if ready {
		return nil
	}
	var (
		wg                     sync.WaitGroup
		rootfs                 Rootfs
		link                   Link
		rootErr, diskErr, lErr error
	)
	wg.Go(func() { rootfs, rootErr = m.h.deps.Images.Rootfs(ctx, w.Image) })
	wg.Go(func() { link, lErr = m.h.deps.Net.Attach(ctx, m.id, w.Org) })
	if fresh {
		wg.Go(func() { diskErr = m.h.deps.Images.Scratch(ctx, m.h.scratchFile(m.id), m.h.cfg.ScratchMB) })
	}
	wg.Wait()
	if err := errors.Join(wrap("image", rootErr), wrap("disk", diskErr), wrap("network", lErr)); err != nil {
		return fmt.Errorf("%w: %w", errUnprepared, err)
	}
	m.rootfs = rootfs
	m.mu.Lock()
	m.prepared, m.fresh, m.link = true, m.fresh || fresh, link
	m.mu.Unlock()
	return nil
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// boot brings the machine to run its app, by the fastest way that works.
func (m *machine) boot(ctx context.Context, step Step) error {
	begun := time.Now()
	m.laps = laps{last: begun}
	w := m.wish()
	if err := m.h.admit(ctx, m, w); err != nil {
		m.refused(err)
		return nil
	}
	m.laps.lap("admit")
	r := m.record()
	snap := r.Snapshot
	md := m.h.bestMode(&w, snap)
	source := m.takeSource()
	err := m.write(pointBootBegin, func(r *record) {
		r.begin(md, &w, step.Rule)
		r.happened(r.woken(step.Rule), volant.StateStarting, source)
	})
	if err != nil {
		m.h.ledger.release(m.id)
		return err
	}
	m.mu.Lock()
	m.exit, m.deaf = nil, false
	m.checks = newChecks(&w)
	m.mu.Unlock()
	m.publish()
	m.resolve(nil)
	m.laps.lap("record")
	if err := m.clear(ctx); err != nil {
		return m.bootFailed(ctx, err)
	}
	for {
		err = m.try(ctx, md, &w, snap)
		if err == nil || ctx.Err() != nil || md == modeCold || errors.Is(err, errUnprepared) {
			break
		}
		m.fellBack(md, err)
		next := modeCold
		if md == modeRestore {
			next = m.h.bestMode(&w, nil)
		}
		md = next
		if err := m.write(pointBootBegin, func(r *record) { r.begin(md, &w, "") }); err != nil {
			return m.bootFailed(ctx, err)
		}
	}
	if snap != nil && !m.h.stopping() {
		// Beside the boot: a disk may take half a second to give up a memory file.
		defer m.h.spawn(func(context.Context) { m.h.removeTree(snap.Dir) })
	}
	if err != nil {
		return m.bootFailed(ctx, err)
	}
	m.awake(md, step, time.Since(begun))
	return nil
}

// takeSource is who wanted the machine awake.
func (m *machine) takeSource() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	source := m.wokenFor
	m.wokenFor = ""
	if source == "" {
		return volant.SourceHost
	}
	return source
}

// clear removes what is left of a VM that died.
func (m *machine) clear(ctx context.Context) error {
	m.unwatch()
	if m.vm == nil {
		return nil
	}
	vm := m.vm
	m.vm = nil
	m.setUp(false, false)
	return wrap("end the old vm", m.end(ctx, vm))
}

// begin notes that a VM is about to be made. The snapshot is void from here on, since its guest may run.
func (r *record) begin(md mode, w *volant.Machine, rule string) {
	r.State, r.Mode, r.Made, r.Handle, r.Snapshot = volant.StateStarting, md, false, nil, nil
	r.Version, r.Wanted, r.Served, r.Draining, r.Then = w.Version, true, false, false, ""
	r.Tries++
	r.ExitTold = false
	if md != modeRestore {
		r.Life = r.Tries
	}
	r.Reason = "starting: " + string(md)
	if rule == "restart_policy" {
		r.Restarts = append(within(r.Restarts, time.Now()), time.Now())
	}
}

// refused is called when there is no room. A connection's wake fails; what must be on is tried again.
func (m *machine) refused(err error) {
	w := m.wish()
	m.because(why.Wake, "no_capacity", fmt.Sprintf("not woken: %v", err))
	m.mu.Lock()
	if w.Run == volant.RunAuto && m.exit == nil {
		m.rec.Wanted = false
	}
	m.retryAt = time.Now().Add(5 * time.Second)
	m.rec.Reason = err.Error()
	m.mu.Unlock()
	m.publish()
	m.resolve(err)
}

// fellBack notes why a boot is done in a slower way.
func (m *machine) fellBack(md mode, err error) {
	what := "the snapshot could not be used"
	if md == modeTemplate {
		what = "the template could not be used"
		w := m.wish()
		m.h.templates.spoilt(w.Config.Guest.WithDefaults())
	}
	m.log.Warn("boot fell back", "mode", string(md), "err", err)
	m.because(why.Wake, "cold_boot", fmt.Sprintf("%s, so it boots cold: %v", what, err))
}

// try makes one VM and brings it to run the app. On error nothing of the VM is left.
func (m *machine) try(ctx context.Context, md mode, w *volant.Machine, snap *manifest) error {
	if err := m.prepare(ctx, md != modeRestore); err != nil {
		return err
	}
	m.mu.Lock()
	m.fresh = false
	m.mu.Unlock()
	m.laps.lap("prepare")
	vm, err := m.makeVM(ctx, md, w, snap)
	if err != nil {
		return err
	}
	sess, err := m.bringUp(ctx, vm, md, w)
	if err == nil {
		m.mu.Lock()
		m.sess = sess
		m.mu.Unlock()
		return nil
	}
	if m.h.stopping() {
		return err // the VM stays for the next start of the host
	}
	m.vm = nil
	m.setUp(false, false)
	return errors.Join(err, m.end(ctx, vm))
}

// makeVM makes a VM, paused, and puts it on record.
func (m *machine) makeVM(ctx context.Context, md mode, w *volant.Machine, snap *manifest) (microvm.VM, error) {
	spec := m.spec(w)
	var (
		vm  microvm.VM
		err error
	)
	switch md {
	case modeCold:
		vm, err = m.h.deps.Engine.Create(ctx, spec)
	case modeTemplate:
		t, ok := m.h.templates.get(w.Config.Guest.WithDefaults())
		if !ok {
			return nil, errors.New("it is gone")
		}
		vm, err = m.h.deps.Engine.Restore(ctx, t, spec)
	case modeRestore:
		if err = snap.check(m.h, w, m.linkNow(), m.h.scratchFile(m.id)); err == nil {
			vm, err = m.h.deps.Engine.Restore(ctx, snap.Snapshot, spec)
		}
	}
	if err != nil {
		err = fmt.Errorf("make the vm: %w", err)
		return nil, errors.Join(err, m.h.deps.Cgroups.Remove(context.WithoutCancel(ctx), m.id))
	}
	m.laps.lap("vm")
	h := vm.Handle()
	err = m.write(pointBootMade, func(r *record) {
		r.Handle, r.Made, r.HostBoot = &h, true, m.h.cfg.HostBoot
	})
	if err != nil {
		return nil, errors.Join(err, m.end(ctx, vm))
	}
	m.vm = vm
	m.setUp(true, false)
	m.laps.lap("record")
	return vm, nil
}

func (m *machine) linkNow() Link {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.link
}

func (m *machine) spec(w *volant.Machine) microvm.Spec {
	g := w.Config.Guest.WithDefaults()
	link := m.linkNow()
	return microvm.Spec{
		ID: string(m.id), VCPUs: g.CPUs, MemoryMiB: g.MemoryMB,
		Kernel: m.h.cfg.Kernel.Vmlinux, Initrd: m.h.cfg.Kernel.Initrd, KernelSum: m.h.cfg.Kernel.Sum,
		Drives: []microvm.Drive{{Path: m.rootfs.Path, ReadOnly: true}, {Path: m.h.scratchFile(m.id)}},
		NICs:   []microvm.NIC{{Tap: link.Tap, MAC: link.MAC, MTU: link.Net.MTU}},
		Placed: func(pid int) error { return m.h.deps.Cgroups.Add(context.Background(), m.id, pid) },
	}
}

// bringUp runs the guest until its app runs.
func (m *machine) bringUp(ctx context.Context, vm microvm.VM, md mode, w *volant.Machine) (Session, error) {
	limit := coldTimeout
	if md != modeCold {
		limit = resumeTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := vm.Resume(ctx); err != nil {
		return nil, fmt.Errorf("resume: %w", err)
	}
	m.laps.lap("resume")
	sess, err := m.open(ctx, vm)
	if err != nil {
		return nil, err
	}
	m.laps.lap("agent")
	if md == modeRestore {
		err = wrap("thaw", sess.Thaw(ctx, guest.Thaw{Now: time.Now(), Entropy: entropy()}))
	}
	m.laps.lap("thaw")
	if err == nil {
		err = m.startApp(ctx, sess, w)
	}
	m.laps.lap("app")
	if err != nil {
		return nil, errors.Join(err, sess.Close())
	}
	return sess, nil
}

// startApp configures a guest that was not, and starts the app if it was never started. An app that has
// ended already is left to the restart policy.
func (m *machine) startApp(ctx context.Context, sess Session, w *volant.Machine) error {
	hello := sess.Hello()
	if hello.Running || hello.Exit != nil {
		return nil
	}
	app, err := m.h.app(w.App)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnprepared, err)
	}
	files, err := guestFiles(w, app)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnprepared, err)
	}
	if !hello.Configured {
		if err := sess.Configure(ctx, guestConfig(w, m.rootfs, m.linkNow(), app)); err != nil {
			return fmt.Errorf("configure the guest: %w", err)
		}
	}
	for _, f := range files {
		if err := sess.Put(ctx, f); err != nil {
			return fmt.Errorf("%w: write %s into the guest: %w", errUnprepared, f.Path, err)
		}
	}
	return wrap("start the app", sess.Start(ctx))
}

// open opens a session with the VM's agent.
func (m *machine) open(ctx context.Context, vm microvm.VM) (Session, error) {
	return openSession(ctx, vm, m.h.deps.Open)
}

// openSession opens a session with a VM's agent. It gives up early if the VM ends.
func openSession(ctx context.Context, vm microvm.VM, open func(context.Context, io.ReadWriteCloser) (Session, error)) (Session, error) {
	octx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-vm.Done():
			cancel()
		case <-octx.Done():
		}
	}()
	link, err := vm.OpenLink(octx)
	if err == nil {
		var sess Session
		if sess, err = open(octx, link); err == nil {
			return sess, nil
		}
	}
	select {
	case <-vm.Done():
		return nil, fmt.Errorf("the vm ended: %s", vmExit(vm.Exit()))
	default:
		return nil, fmt.Errorf("reach the guest: %w", err)
	}
}

// awake notes that the app runs.
func (m *machine) awake(md mode, step Step, took time.Duration) {
	m.mu.Lock()
	by := m.wokenBy
	m.wokenBy = ""
	sess := m.sess
	m.mu.Unlock()
	m.note(pointBootServed, func(r *record) {
		r.State, r.Made = volant.StateStarted, false
		r.Boots++
		r.BootID = sess.Hello().BootID
		r.happened(r.woken(step.Rule), volant.StateStarted, volant.SourceHost)
		r.Reason = "runs: " + string(md)
	})
	m.laps.lap("record")
	m.setUp(true, true)
	m.watch(m.vm, sess)
	m.publish()
	m.laps.lap("publish")
	if by == "" {
		by = step.Rule
	}
	m.log.Info("machine started", "mode", string(md), "took", took, "reason", by, "parts", m.laps.String())
	m.because(why.Wake, string(md), fmt.Sprintf("awake after %d ms (%s), asked by: %s", took.Milliseconds(), md, by))
}

// bootFailed notes a boot that did not come to serve: it is tried again a few times.
func (m *machine) bootFailed(ctx context.Context, err error) error {
	if m.h.stopping() {
		return nil
	}
	m.h.ledger.release(m.id)
	cancelled := ctx.Err() != nil
	m.note(pointBootFailed, func(r *record) {
		r.Handle, r.Made, r.Version, r.Life = nil, false, "", 0
		r.Reason = "boot: " + err.Error()
		if cancelled {
			r.State, r.Reason = volant.StateStopped, "its boot was called off"
			r.happened(volant.EventStop, volant.StateStopped, volant.SourceHost)
			return
		}
		if r.Failures++; r.Failures >= maxFailures || hopeless(err) {
			r.State, r.Wanted = volant.StateFailed, false
			r.happened(volant.EventStart, volant.StateFailed, volant.SourceHost)
		}
	})
	r := m.record()
	m.mu.Lock()
	m.retryAt = time.Now().Add(backoff(r.Failures))
	m.mu.Unlock()
	m.publish()
	if cancelled {
		return nil
	}
	m.log.Warn("boot failed", "failures", r.Failures, "err", err)
	m.because(why.Machine, "boot_failed", fmt.Sprintf("boot %d in a row failed: %v", r.Failures, err))
	return nil
}

// hopeless says that another boot would end as this one did: the guest has no such program, or cannot run it.
func hopeless(err error) bool {
	var of *guest.Error
	return errors.As(err, &of) && (of.Kind == guest.KindNotFound || of.Kind == guest.KindInvalid)
}

func (m *machine) setUp(vm, app bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if app && !m.appUp {
		m.appDone = make(chan struct{})
	}
	if !app && m.appUp {
		close(m.appDone)
	}
	m.vmUp, m.appUp = vm, app
	if !vm {
		m.sess = nil
	}
}

func vmExit(e microvm.VMExit) string {
	s := fmt.Sprintf("code %d", e.Code)
	if e.Signal != 0 {
		s = fmt.Sprintf("signal %d", e.Signal)
	}
	if e.Log != "" {
		s += ": " + e.Log
	}
	return s
}
