package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cgroup"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/why"
)

var errStarting = volant.Errorf(volant.ErrUnavailable, "the host is starting").WithRemedy("try again in a moment")

var errStopped = volant.Errorf(volant.ErrUnavailable, "the host is stopping").WithRemedy("try again in a moment")

// Host runs the machines of one server.
type Host struct {
	cfg       Config
	deps      Deps
	log       *slog.Logger
	journal   *journal
	ledger    *ledger
	templates *templates
	preparing chan struct{} // bounds the sleeping machines that are prepared at once
	stopped   chan struct{} // closed when Run ends
	ready     chan struct{} // closed when all machines on record were found again
	found     chan struct{} // closed when each of them was published once

	mu       sync.Mutex // guards the following
	machines map[volant.MachineID]*machine
	mins     map[volant.AppID]int
	running  bool
	toFind   int // machines on record that were not found again yet
	toTell   int // and those that were not published yet

	// Set by Run before any loop begins.
	ctx  context.Context //nolint:containedctx // of all loops; calls bring their own
	caps microvm.Capabilities

	reserving sync.Mutex // held while a reservation is judged and made

	ends  sync.Mutex // guards ended, and is held while one is added to wg
	ended bool
	wg    sync.WaitGroup
}

// New reads what is on record and starts nothing.
func New(cfg Config, d Deps) (*Host, error) {
	if cfg.Epoch == 0 || cfg.Dir == "" || cfg.MemoryMB <= 0 {
		return nil, volant.Invalidf("host: epoch, dir and memory_mb are required")
	}
	if d.Engine == nil || d.Images == nil || d.Net == nil || d.Cgroups == nil {
		return nil, volant.Invalidf("host: engine, images, net and cgroups are required")
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Open == nil {
		d.Open = openGuest
	}
	if d.Dial == nil {
		d.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.ScratchMB <= 0 {
		cfg.ScratchMB = 8192
	}
	if cfg.DiskUsed == nil {
		cfg.DiskUsed = diskUsed
	}
	if cfg.Preparing <= 0 {
		cfg.Preparing = 2
	}
	if cfg.HostBoot == "" {
		cfg.HostBoot = hostBoot()
	}
	h := &Host{
		cfg: cfg, deps: d, log: d.Log,
		ledger:    newLedger(cfg.MemoryMB, cfg.ReserveMB, cfg.Cores),
		preparing: make(chan struct{}, cfg.Preparing), stopped: make(chan struct{}), ready: make(chan struct{}), found: make(chan struct{}),
		machines: map[volant.MachineID]*machine{}, mins: map[volant.AppID]int{},
	}
	h.templates = &templates{h: h, known: map[string]*template{}}
	var err error
	if h.journal, err = openJournal(filepath.Join(cfg.Dir, "journal"), cfg.Crash); err != nil {
		return nil, err
	}
	recs, damaged, err := h.journal.load()
	if err != nil {
		return nil, err
	}
	for _, err := range damaged {
		h.log.Error("record damaged", "err", err)
	}
	for _, r := range recs {
		m := newMachine(h, r)
		m.untold = true
		h.machines[m.id] = m
	}
	if h.toTell = len(h.machines); h.toTell == 0 {
		close(h.found)
	}
	return h, nil
}

func openGuest(ctx context.Context, link io.ReadWriteCloser) (Session, error) {
	s, err := guest.Open(ctx, link)
	if err != nil {
		return nil, err // not a nil *guest.Session in an interface
	}
	return s, nil
}

func hostBoot() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Run adopts what runs, sweeps what is left over, and drives all machines until ctx ends. The machines
// run on then.
func (h *Host) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	caps, err := h.deps.Engine.Probe(ctx)
	if err != nil {
		return fmt.Errorf("host: engine %s: %w", h.deps.Engine.Name(), err)
	}
	h.caps, h.ctx = caps, ctx
	h.ledger.mu.Lock() // others ask for room already
	h.ledger.overhead = caps.OverheadMiB
	h.ledger.mu.Unlock()
	h.templates.restore()
	var found sync.WaitGroup
	for _, m := range h.all() {
		found.Go(func() { m.adopt(ctx) })
	}
	found.Wait()
	if err := h.sweep(ctx); err != nil {
		return fmt.Errorf("host: %w", err)
	}
	h.mu.Lock()
	h.running = true
	h.toFind = len(h.machines)
	for _, m := range h.machines {
		h.wg.Go(func() {
			m.recover(ctx)
			h.recovered()
			m.tell()
			m.run(ctx)
		})
	}
	if h.toFind == 0 {
		close(h.ready)
	}
	h.mu.Unlock()
	h.templates.get(h.cfg.Template.WithDefaults())
	h.wg.Go(func() { h.trimNowAndThen(ctx) })
	<-ctx.Done()
	close(h.stopped)
	h.ends.Lock()
	h.ended = true
	h.ends.Unlock()
	h.wg.Wait()
	return nil
}

// Ready is closed when all machines on record were found again or given up.
func (h *Host) Ready() <-chan struct{} { return h.ready }

// Found is closed when what each machine on record is was published once: nothing is known of the machines of
// this host before.
func (h *Host) Found() <-chan struct{} { return h.found }

func (h *Host) published() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.toTell--; h.toTell == 0 {
		close(h.found)
	}
}

func (h *Host) recovered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.toFind--; h.toFind == 0 {
		close(h.ready)
	}
}

// spawn runs fn until the host stops. One that has stopped runs nothing.
func (h *Host) spawn(fn func(ctx context.Context)) {
	h.ends.Lock()
	defer h.ends.Unlock()
	if !h.ended {
		h.wg.Go(func() { fn(h.ctx) })
	}
}

func (h *Host) stopping() bool { return h.ctx.Err() != nil }

// SetWishes takes all wishes for this host, tombstones included. A machine without one is an orphan: it
// serves on. An error says that some are not on record: they are to be told again.
func (h *Host) SetWishes(ms []volant.Machine) error {
	var errs []error
	seen := map[volant.MachineID]bool{}
	for _, w := range ms {
		id := volant.MachineID(w.ID)
		if w.Node != h.cfg.Node || !id.Valid() {
			continue
		}
		seen[id] = true
		m, made := h.findOrMake(id, w)
		if err := m.setWish(w); err != nil {
			errs = append(errs, fmt.Errorf("machine %s: %w", m.id, err))
		}
		if made {
			m.publish()
		}
	}
	for _, m := range h.all() {
		if seen[m.id] {
			continue
		}
		if m.state() == volant.StateDestroyed {
			h.mu.Lock()
			delete(h.machines, m.id)
			h.mu.Unlock()
			continue
		}
		m.mu.Lock()
		news := !m.orphan
		m.orphan = true
		m.mu.Unlock()
		if news {
			m.log.Warn("machine without a wish")
			m.publish()
		}
	}
	return errors.Join(errs...)
}

// findOrMake returns the machine of a wish, and whether it is new here.
func (h *Host) findOrMake(id volant.MachineID, w volant.Machine) (m *machine, made bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m := h.machines[id]; m != nil {
		return m, false
	}
	r := record{State: volant.StateCreated, Since: time.Now()}
	if w.Tombstone || w.Run == volant.RunDestroyed {
		r.State, r.Generation = volant.StateDestroyed, w.Generation
	}
	r.Machine.ID, r.Machine.App, r.Machine.Org = w.ID, w.App, w.Org
	if r.State == volant.StateDestroyed {
		r.Machine, r.Events = w, w.Last // there is nothing to put on record, and nothing to do
		r.Machine.Run = volant.RunDestroyed
	}
	m = newMachine(h, r)
	m.unwished = r.State != volant.StateDestroyed
	h.machines[id] = m
	if h.running && r.State != volant.StateDestroyed {
		h.spawn(m.run)
	}
	return m, true
}

func (h *Host) all() []*machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	ms := make([]*machine, 0, len(h.machines))
	for _, m := range h.machines {
		ms = append(ms, m)
	}
	slices.SortFunc(ms, func(a, b *machine) int { return strings.Compare(string(a.id), string(b.id)) })
	return ms
}

func (h *Host) find(id volant.MachineID) (*machine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.running {
		return nil, errStarting
	}
	m := h.machines[id]
	if m == nil {
		return nil, volant.Errorf(volant.ErrNotFound, "machine %s is not on this host", id)
	}
	return m, nil
}

// Haves returns what all machines are.
func (h *Host) Haves() []volant.Have {
	ms := h.all()
	vs := make([]volant.Have, len(ms))
	for i, m := range ms {
		vs[i] = *m.have.Load()
	}
	return vs
}

// SetSlots takes the number of slots the proxy holds for a machine now.
func (h *Host) SetSlots(id volant.MachineID, n int) {
	if m, err := h.find(id); err == nil {
		m.setSlots(n)
	}
}

// Served says that a machine has come to serve: its app accepted a connection.
func (h *Host) Served(id volant.MachineID) {
	if m, err := h.find(id); err == nil {
		m.hasServed()
	}
}

// Deaf says that a machine's app has accepted no connection in all the time it had for that.
func (h *Host) Deaf(id volant.MachineID) {
	if m, err := h.find(id); err == nil {
		m.isDeaf()
	}
}

// SetMin says how many machines of an app stay awake here when memory is short.
func (h *Host) SetMin(app volant.AppID, n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mins[app] = n
}

// ForgetApp drops what is kept of an app that is gone: its ID is never used again.
func (h *Host) ForgetApp(app volant.AppID) {
	h.mu.Lock()
	delete(h.mins, app)
	h.mu.Unlock()
	if err := h.journal.forgetTerm(app); err != nil {
		h.log.Warn("term not forgotten", "app", app, "err", err)
	}
}

// Room returns what the host has left.
func (h *Host) Room() Room {
	r := h.ledger.room()
	if !h.started() {
		return r
	}
	r.Isolates = h.caps.MultiTenant || h.cfg.AllowMixed
	if !r.Isolates {
		r.Orgs = h.orgs("")
	}
	return r
}

// Reservation keeps room for a machine that is about to be created.
type Reservation struct {
	ID    volant.MachineID
	App   volant.AppID
	Org   volant.OrgID
	Guest volant.Guest
	Term  uint64 // of the app's scaler; 0: not a scaler
}

// Reserve keeps memory and CPUs for 30 s, until the machine's wish arrives. Idempotent.
func (h *Host) Reserve(_ context.Context, r Reservation) error {
	if !r.ID.Valid() {
		return volant.Invalidf("machine id %q: use 14 hex digits", r.ID)
	}
	if !h.started() {
		return errStarting
	}
	h.reserving.Lock() // two organizations must not both find the host without the other
	defer h.reserving.Unlock()
	if err := h.journal.checkTerm(r.App, r.Term); err != nil {
		return err
	}
	if err := h.tenant(r.Org, r.ID); err != nil {
		return err
	}
	return h.ledger.reserve(r.ID, r.Org, r.Guest.WithDefaults())
}

func (h *Host) started() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.running
}

// tenant refuses to mix organizations where the engine does not isolate them.
func (h *Host) tenant(org volant.OrgID, but volant.MachineID) error {
	return checkTenant(h.deps.Engine.Name(), h.caps.MultiTenant, h.cfg.AllowMixed, org, h.orgs(but))
}

// orgs are the organizations that have machines or reservations here, each once, but for one machine.
func (h *Host) orgs(but volant.MachineID) []volant.OrgID {
	seen := map[volant.OrgID]bool{}
	for _, o := range h.ledger.orgs() {
		seen[o] = true
	}
	for _, m := range h.all() {
		m.mu.Lock()
		if m.id != but && m.rec.State != volant.StateDestroyed {
			seen[m.rec.Machine.Org] = true
		}
		m.mu.Unlock()
	}
	return slices.Sorted(maps.Keys(seen))
}

// Wake wants a machine awake and returns when it is on record that it starts. Idempotent.
func (h *Host) Wake(ctx context.Context, id volant.MachineID, reason string) error {
	return h.WakeFor(ctx, id, volant.SourceHost, reason)
}

// WakeFor is Wake for somebody: a user, who may wake a cordoned machine, or a connection.
func (h *Host) WakeFor(ctx context.Context, id volant.MachineID, source, reason string) error {
	m, err := h.find(id)
	if err != nil {
		return err
	}
	return m.wake(ctx, source, reason)
}

// Sleep is an order to put a machine to sleep.
type Sleep struct {
	How   string // suspend, stop
	Force bool   // even with open connections: the API asks
	Term  uint64 // of the app's scaler; 0: not a scaler
	By    string // who asks

	// Of a stop: a signal and a time to end in place of the config's; 0: the config's.
	Signal int
	Grace  time.Duration
}

// Sleep puts an awake machine to sleep and returns when that is on record. Without Force a machine with open
// connections is refused.
func (h *Host) Sleep(ctx context.Context, id volant.MachineID, s Sleep) error {
	m, err := h.find(id)
	if err != nil {
		return err
	}
	if s.How != AskSuspend && s.How != AskStop {
		return volant.Invalidf("sleep %q: use suspend or stop", s.How)
	}
	if err := h.journal.checkTerm(m.wish().App, s.Term); err != nil {
		return err
	}
	return m.order(ctx, &ask{what: s.How, seal: !s.Force, rule: "asked", by: s.By, sig: s.Signal, grace: s.Grace, user: s.Force})
}

// Drain sets or clears draining.
type Drain struct {
	On   bool
	Then string // suspend or stop, when the last connection has ended
	Term uint64 // of the app's scaler; 0: not a scaler
	By   string
}

// Drain takes an awake machine out of routing until it is empty and then puts it to sleep, or puts it back.
func (h *Host) Drain(_ context.Context, id volant.MachineID, d Drain) error {
	m, err := h.find(id)
	if err != nil {
		return err
	}
	if d.On && d.Then != AskSuspend && d.Then != AskStop {
		return volant.Invalidf("drain then %q: use suspend or stop", d.Then)
	}
	if err := h.journal.checkTerm(m.wish().App, d.Term); err != nil {
		return err
	}
	return m.drain(d)
}

// Restart is an order to run an app again.
type Restart struct {
	By string
	// A signal and a time to end in place of the config's; 0: the config's.
	Signal int
	Grace  time.Duration
}

// Restart runs the app of an awake machine again, in place.
func (h *Host) Restart(ctx context.Context, id volant.MachineID, r Restart) error {
	m, err := h.find(id)
	if err != nil {
		return err
	}
	return m.order(ctx, &ask{what: AskRestart, rule: "asked", by: r.By, sig: r.Signal, grace: r.Grace, user: true})
}

// Signal sends a signal to the app.
func (h *Host) Signal(ctx context.Context, id volant.MachineID, sig int) error {
	m, err := h.find(id)
	if err != nil {
		return err
	}
	sess, err := m.session()
	if err != nil {
		return err
	}
	return sess.Signal(ctx, sig)
}

// Exec runs a command beside the app.
func (h *Host) Exec(ctx context.Context, id volant.MachineID, e guest.Exec) (guest.Exit, error) {
	m, err := h.find(id)
	if err != nil {
		return guest.Exit{}, err
	}
	sess, err := m.session()
	if err != nil {
		return guest.Exit{}, err
	}
	m.busy(1)
	defer m.busy(-1)
	exit, err := sess.Exec(ctx, e)
	if errors.Is(err, guest.ErrClosed) {
		return exit, volant.Errorf(volant.ErrUnavailable, "machine %s fell asleep or ended while the command ran", id).
			WithRemedy("see `volant why %s`; a machine that is to stay awake needs a connection, or min in [scale]", id)
	}
	return exit, err
}

// busy counts commands: while one runs, scaling puts the machine not to sleep, as with a connection.
func (m *machine) busy(n int) {
	m.mu.Lock()
	m.execs += n
	if m.execs == 0 {
		m.empty = time.Now()
	}
	m.mu.Unlock()
	m.nudge()
}

// Stats asks an awake machine's guest what it uses.
func (h *Host) Stats(ctx context.Context, id volant.MachineID) (guest.Stats, error) {
	m, err := h.find(id)
	if err != nil {
		return guest.Stats{}, err
	}
	sess, err := m.session()
	if err != nil {
		return guest.Stats{}, err
	}
	return sess.Stats(ctx)
}

// Processes asks an awake machine's guest what runs in it.
func (h *Host) Processes(ctx context.Context, id volant.MachineID) ([]guest.Process, error) {
	m, err := h.find(id)
	if err != nil {
		return nil, err
	}
	sess, err := m.session()
	if err != nil {
		return nil, err
	}
	ps, err := sess.Processes(ctx)
	if errors.Is(err, volant.ErrInvalid) { // the guest does not know the question
		return nil, volant.Errorf(volant.ErrPrecondition, "the guest of machine %s was booted by an older Volant", id).
			WithRemedy("stop and start the machine")
	}
	return ps, err
}

// Usage is what the VMM of a machine has used; the zero Usage where that is not known.
func (h *Host) Usage(id volant.MachineID) cgroup.Usage {
	if mt, ok := h.deps.Cgroups.(meter); ok {
		if u, err := mt.Usage(id); err == nil {
			return u
		}
	}
	return cgroup.Usage{}
}

// Logs calls fn for the last tail lines of a machine's log, all that are kept if tail is negative, and with
// follow for each new one, until fn fails or ctx ends.
func (h *Host) Logs(ctx context.Context, id volant.MachineID, tail int, follow bool, fn func(LogLine) error) error {
	l, err := h.logbookOf(id)
	if err != nil {
		return err
	}
	return l.read(ctx, tail, follow, fn)
}

func (h *Host) reason(kind why.Kind, rule, text string) why.Record {
	return why.Record{Time: time.Now(), Kind: kind, Rule: rule, Text: text}
}

// app is what is told of an app.
func (h *Host) app(id volant.AppID) (a App, err error) {
	if h.deps.App != nil {
		a, err = h.deps.App(id)
	}
	if a.Name == "" {
		a.Name = string(id)
	}
	if a.PrimaryRegion == "" {
		a.PrimaryRegion = h.cfg.Region
	}
	return a, err
}

func (h *Host) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return h.deps.Dial(ctx, network, addr)
}
