package proxy

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
)

// appKey names one group of an app.
type appKey struct {
	id    volant.AppID
	group string
}

// app is the live side of one group of an app: its slots and its queue. One mutex guards all of it, so that a
// count and the decision taken on it are one step.
type app struct {
	id    volant.AppID
	group string
	p     *Proxy

	mu       sync.Mutex
	cfg      App
	epoch    uint64 // of the table cfg is from
	present  bool   // in the newest table
	machines map[volant.MachineID]*machine
	services map[uint16]*service // by internal port
	wakes    map[volant.MachineID]*wakeTry
	alarm    *time.Timer // next look at wakes; nil if none is due

	waiting  int // in all queues, quiet ones as well
	perPeer  map[netip.Addr]int
	arrivals uint64
	regions  []regionCount
	held     int                               // slots
	loud     int                               // waiters that are demand
	foreign  struct{ waiting, held, loud int } // of those, the ones that came by another node, which reports them
	peak     int                               // most held + loud since the last Load
	buried   bool                              // a life is over that has not been acted on
	refused  uint64

	counts counts // not guarded by mu
	report report // what the reporter keeps here
	fed    fed    // what the feed does
}

type regionCount struct {
	region                 volant.Region
	held, waiting, spilled int
}

// machine is one machine of an app, kept while it is in the table or holds slots.
type machine struct {
	id      volant.MachineID
	node    *node // its host; nil for this node
	cfg     Machine
	present bool
	sealed  bool
	since   time.Time     // when it began to serve
	accepts bool          // it has accepted a connection since
	deaf    bool          // it has not in all the time it had
	slots   int           // over all services
	life    *life         // of its guest
	leave   chan struct{} // closed when its clients are asked to leave
	// moved says that other nodes are to hear of its slots, and hasty that they are at once.
	moved, hasty bool
}

// service is one internal port of an app.
type service struct {
	app     *app
	port    uint16
	soft    int32
	cands   []candidate
	ranks   []uint32 // of cands
	policy  policy
	places  []*place // of cands, by the same index
	here    int      // how many of them, the first, are on this node
	byID    map[volant.MachineID]*place
	queue   queue
	loud    int  // of its queue, who are demand
	foreign int  // of those, who came by another node
	shy     bool // some place may be shut
	retired bool // not in the newest table
}

// place is one machine's port: where a slot is held.
type place struct {
	svc   *service
	m     *machine
	index int // in svc.cands; -1 when the table no longer has it
	used  int32
	seq   uint64 // orders the counts of used that others are told
	// usedTold is the used that other nodes were told last.
	usedTold int32
	// Of a machine on another node used is what this one holds, granted of that what its host has granted, and others
	// what is held besides, by the newest word of the host.
	granted, others int32
	told            live.Version
	// soft and hard are the machine's own limits, the service's where it names none.
	soft, hard int32
	mood       flags // unproven, shut, dead, trying; busy, of a machine on another node
	// failed is when connecting began to fail; zero while it does not. opened: it has accepted since it serves.
	failed  time.Time
	opened  bool
	shutAt  time.Time     // when it was shut last
	backoff time.Duration // how long it stays shut, or dead
	again   *time.Timer   // ends shut or dead
}

func newApp(p *Proxy, k appKey) *app {
	return &app{
		id: k.id, group: k.group, p: p, machines: map[volant.MachineID]*machine{}, services: map[uint16]*service{},
		wakes: map[volant.MachineID]*wakeTry{}, perPeer: map[netip.Addr]int{},
	}
}

// seat is a slot that is held: a place, where it leads and whose it is.
type seat struct {
	place  *place
	addr   netip.AddrPort
	region volant.Region
	rule   rule
	far    bool // the machine is farther away than is near for its app
	// probing says that this is the one that tries a place which is not known to accept connections.
	probing bool
	node    *node           // host of the machine; nil for this node
	granted bool            // by the host
	foreign bool            // taken for a connection that came by another node
	life    *life           // of the machine's guest, or of its host's proxy
	leave   <-chan struct{} // closed when its client is to be asked to leave
}

// life is one guest of a machine, from its boot to its end. Connections do not outlive it: the next guest knows
// nothing of them.
type life struct {
	number uint64        // guarded by the app's mu; 0 while it is not known, or no guest is there
	over   chan struct{} // closed at its end
}

func newLife(number uint64) *life { return &life{number, make(chan struct{})} }

func (l *life) isOver() bool {
	select {
	case <-l.over:
		return true
	default:
		return false
	}
}

// reborn gives a seat the life that has just accepted its connection: the one it was taken for is over.
func (a *app) reborn(st *seat) {
	a.mu.Lock()
	defer a.mu.Unlock()
	st.life = st.place.m.life
}

// enter gives w a slot at once, or refuses it, or puts it in the queue: then the verdict comes later.
func (a *app) enter(w *waiter) verdict {
	a.mu.Lock()
	defer a.mu.Unlock()
	if v, ok := a.take(w); ok {
		return v
	}
	if r := a.mayWait(w); r != ruleNone {
		if w.from == nil {
			a.refused++
			a.touch(false)
		}
		return verdict{refusal: r}
	}
	if w.now {
		return verdict{refusal: ruleBusy}
	}
	a.arrivals++
	w.arrival = a.arrivals
	a.enqueue(w)
	return verdict{}
}

// take gives w a slot if one is free and nobody waits before it; a.mu is held.
func (a *app) take(w *waiter) (verdict, bool) {
	s := w.svc
	if !a.present || s.queue.plain > 0 {
		return verdict{}, false
	}
	if s.shy {
		s.reopen(time.Now())
	}
	c := s.choose(w)
	if c.demand {
		a.touch(true)
	}
	if c.index < 0 {
		return verdict{}, false
	}
	return verdict{seat: a.seat(c, s.places[c.index], w)}, true
}

// seat takes a slot at pl; a.mu is held and pick has allowed it.
func (a *app) seat(c choice, pl *place, w *waiter) seat {
	pl.add(1)
	probing := pl.mood&(unproven|shut) != 0
	if probing {
		pl.setMood(pl.mood | trying)
	}
	st := seat{
		place: pl, addr: netip.AddrPortFrom(pl.m.cfg.Addr, pl.svc.port), region: w.region, rule: c.rule, far: c.far,
		probing: probing, node: pl.m.node, foreign: w.from != nil, life: pl.m.lifeNow(), leave: pl.m.leave,
	}
	a.hold(&st, 1)
	a.peaked()
	a.touch(pl.used == pl.soft || pl.used == pl.hard)
	return st
}

// hold counts a seat in or out; a.mu is held.
func (a *app) hold(st *seat, n int) {
	st.place.m.slots += n
	a.held += n
	if st.foreign {
		a.foreign.held += n
		return
	}
	at := a.region(st.region)
	at.held += n
	if st.far {
		at.spilled += n
	}
}

// peaked notes how many there are at once.
func (a *app) peaked() {
	n := a.own()
	a.peak, a.fed.peak = max(a.peak, n), max(a.fed.peak, n)
}

// own is how many connections hold a slot or wait for one that entered here.
func (a *app) own() int { return a.held + a.loud - a.foreign.held - a.foreign.loud }

// add changes the count of slots; app.mu is held.
func (pl *place) add(n int32) {
	pl.used += n
	p := pl.svc.app.p
	pl.seq = p.slotSeq.Add(1)
	p.feed.slotsMoved(pl)
	pl.rerank()
}

// rerank ranks the place after a count changed; app.mu is held.
func (pl *place) rerank() {
	if pl.index >= 0 {
		s, c := pl.svc, &pl.svc.cands[pl.index]
		c.used = pl.used + pl.others
		s.ranks[pl.index] = c.rank(pl.soft, pl.hard, s.policy)
	}
}

// rank ranks all candidates, after something else than a count changed.
func (s *service) rank() {
	s.policy = policy{
		near: nearBand(s.app.cfg.SpillRTT.D()), late: s.app.cfg.Spill == volant.SpillHard, disabled: suspect(s.cands),
	}
	for i, c := range s.cands {
		s.ranks[i] = c.rank(s.places[i].soft, s.places[i].hard, s.policy)
	}
}

// setMood changes what is known of the port; app.mu is held.
func (pl *place) setMood(mood flags) {
	pl.mood = mood
	if pl.index >= 0 {
		c := &pl.svc.cands[pl.index]
		c.flags = c.flags&^(unproven|shut|dead|trying|busy) | mood
		pl.svc.rank()
	}
}

// release gives a slot back, and to the first who waits.
func (a *app) release(st seat) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.free(st)
	a.grant(st.place.svc)
}

// free gives a slot back; a.mu is held.
func (a *app) free(st seat) {
	pl := st.place
	if pl.used == 0 {
		panic("proxy: a slot was given back twice")
	}
	if st.granted {
		pl.granted--
	}
	pl.add(-1)
	if st.probing {
		pl.setMood(pl.mood &^ trying)
	}
	a.hold(&st, -1)
	a.touch(pl.used == pl.soft-1 || pl.used == pl.hard-1 || pl.m.slots == 0)
	if pl.index < 0 && pl.used == 0 {
		a.forget(pl)
	}
}

// forget drops a place which the table no longer has, and its machine with the last of them.
func (a *app) forget(pl *place) {
	delete(pl.svc.byID, pl.m.id)
	if !pl.m.present && pl.m.slots == 0 {
		delete(a.machines, pl.m.id)
	}
}

// grant gives free slots to those who wait, in order of arrival; a.mu is held. Who wants none of those that are
// free lets others pass.
func (a *app) grant(s *service) {
	none := false // is free here
	for w := s.queue.first; w != nil; {
		next := w.next
		if none && w.from != nil {
			w = next
			continue
		}
		switch c := s.choose(w); {
		case c.index >= 0:
			a.dequeue(w)
			w.deliver(verdict{seat: a.seat(c, s.places[c.index], w)})
		case !w.picky():
			return // there is none
		case w.wish == nil:
			none = true
		}
		w = next
	}
}

// region finds the counters of a region; there are few.
func (a *app) region(r volant.Region) *regionCount {
	for i := range a.regions {
		if a.regions[i].region == r {
			return &a.regions[i]
		}
	}
	a.regions = append(a.regions, regionCount{region: r})
	return &a.regions[len(a.regions)-1]
}

// seal promises that a machine gets no connection, unless it has one.
func (a *app) seal(id volant.MachineID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := a.machines[id]
	if m == nil {
		return true
	}
	if m.slots > 0 {
		return false
	}
	m.sealed = true
	for _, s := range a.services {
		if pl := s.byID[id]; pl != nil && pl.index >= 0 {
			s.cands[pl.index].flags |= sealed
			s.rank()
		}
	}
	a.rewake()
	return true
}

// apply makes the table's word of this app the newest. sealedNow says which machines stay sealed.
func (a *app) apply(cfg App, epoch uint64, sealedNow func(Machine) bool, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cfg, a.epoch, a.present = cfg, epoch, true
	for _, m := range a.machines {
		m.present = false
	}
	order := make([]*machine, 0, len(cfg.Machines))
	for _, c := range cfg.Machines {
		order = append(order, a.applyMachine(c, sealedNow(c), now))
	}
	slices.SortStableFunc(order, func(x, y *machine) int { return cmp.Compare(x.away(), y.away()) })
	ports := map[uint16]bool{}
	for i := range cfg.Services {
		c := &cfg.Services[i]
		if !ports[c.InternalPort] {
			ports[c.InternalPort] = true
			a.applyService(c, order)
		}
	}
	for port, s := range a.services {
		if !ports[port] {
			a.retire(s)
		}
	}
	a.dropAbsent()
	a.settleWakes(now)
	for _, s := range a.services {
		a.grant(s)
	}
	a.recheckWaiters()
	a.rewake()
	a.touch(false)
}

func (a *app) applyMachine(c Machine, isSealed bool, now time.Time) *machine {
	m := a.machines[c.ID]
	if m == nil {
		m = &machine{id: c.ID, life: newLife(c.Life), leave: make(chan struct{})}
		a.machines[c.ID] = m
	}
	if m.node = nil; c.Node != "" {
		m.node = a.p.nodeLocked(c.Node)
	}
	switch {
	case m.life.number == 0:
		m.life.number = c.Life
	case m.life.number != c.Life:
		close(m.life.over)
		m.life = newLife(c.Life)
		a.buried = true
	}
	fresh := c.Phase == PhaseServing && (m.cfg.Phase != PhaseServing || m.cfg.Addr != c.Addr)
	switch asked := m.cfg.AskLeave; {
	case c.AskLeave && !asked:
		close(m.leave)
	case asked && !c.AskLeave:
		m.leave = make(chan struct{})
	}
	m.cfg, m.present, m.sealed = c, true, isSealed
	if fresh {
		m.since, m.accepts, m.deaf = now, false, false
		for _, s := range a.services {
			if pl := s.byID[c.ID]; pl != nil && m.node == nil {
				pl.renew()
			}
		}
	}
	return m
}

// renew forgets what was known of the port, since its machine began to serve anew.
func (pl *place) renew() {
	pl.failed, pl.opened, pl.backoff = time.Time{}, false, 0
	if pl.again != nil {
		pl.again.Stop()
	}
	pl.setMood(pl.mood&trying | unproven)
}

func (a *app) applyService(c *Service, order []*machine) {
	s := a.services[c.InternalPort]
	if s == nil {
		s = &service{app: a, port: c.InternalPort, byID: map[volant.MachineID]*place{}}
		a.services[c.InternalPort] = s
	}
	s.retired, s.here = false, 0
	s.soft, _ = limits(c.Soft, c.Hard)
	for _, pl := range s.byID {
		pl.index = -1
	}
	s.cands, s.ranks, s.places = make([]candidate, len(order)), make([]uint32, len(order)), make([]*place, len(order))
	for i, m := range order {
		pl := s.place(m)
		pl.index = i
		pl.soft, pl.hard = m.limits(c)
		s.places[i] = pl
		s.cands[i] = candidate{used: pl.used + pl.others, flags: m.flags(c.InternalPort) | pl.mood, band: m.band()}
		if m.node == nil {
			s.here = i + 1
		}
	}
	s.rank()
}

// place is the machine's place in the service; a.mu is held.
func (s *service) place(m *machine) *place {
	pl := s.byID[m.id]
	if pl == nil {
		pl = &place{svc: s, m: m, index: -1}
		if m.node == nil {
			pl.mood = unproven // of others the host knows
		}
		s.byID[m.id] = pl
	}
	return pl
}

// limits bounds what a table says of soft and hard.
func limits(soft, hard int) (int32, int32) {
	const most = 1 << 20
	hard = min(max(hard, 0), most)
	return int32(min(max(soft, 0), hard)), int32(hard)
}

// limits are the machine's own for the service, or the service's.
func (m *machine) limits(c *Service) (soft, hard int32) {
	for _, l := range m.cfg.Limits {
		if l.Port == c.InternalPort {
			return limits(l.Soft, l.Hard)
		}
	}
	return limits(c.Soft, c.Hard)
}

// flags says what of the machine matters for pick.
func (m *machine) flags(port uint16) flags {
	var f flags
	if m.cfg.Phase == PhaseServing && (m.cfg.Addr.IsValid() || m.node != nil) && !slices.Contains(m.cfg.Absent, port) {
		f |= serving
	}
	if m.node != nil && m.node.away.Load() {
		f |= away
	}
	if m.node != nil && m.node.silent.Load() {
		f |= unheard
	}
	if m.cfg.Cordoned {
		f |= cordoned
	}
	if m.cfg.Draining {
		f |= draining
	}
	if m.sealed {
		f |= sealed
	}
	if slices.Contains(m.cfg.Failing, port) {
		f |= failing
	}
	return f
}

// retire takes a service out of use; its slots live on until their connections end.
func (a *app) retire(s *service) {
	s.retired = true
	for s.queue.first != nil {
		a.deny(s.queue.first, ruleAppGone)
	}
	s.cands, s.ranks, s.places, s.here = nil, nil, nil, 0
	for _, pl := range s.byID {
		pl.index = -1
	}
}

// dropAbsent forgets what the table no longer has and holds no slot.
func (a *app) dropAbsent() {
	for port, s := range a.services {
		for _, pl := range s.byID {
			if pl.index < 0 && pl.used == 0 {
				delete(s.byID, pl.m.id)
			}
		}
		if s.cands == nil && len(s.byID) == 0 {
			delete(a.services, port)
		}
	}
	for id, m := range a.machines {
		if !m.present && m.slots == 0 {
			delete(a.machines, id)
		}
	}
}

// leave takes the app out of the table: who waits is refused, who is connected stays.
func (a *app) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.present = false
	for _, m := range a.machines {
		m.present = false
	}
	for _, s := range a.services {
		a.retire(s)
	}
	a.dropAbsent()
	clear(a.wakes)
	if a.alarm != nil {
		a.alarm.Stop()
	}
	a.touch(false)
}

// idle says whether nothing is left of an app that left the table.
func (a *app) idle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.present && a.held == 0 && a.waiting == 0
}

// slotsByMachine adds the app's slots to out.
func (a *app) slotsByMachine(out map[volant.MachineID]int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, m := range a.machines {
		if m.slots > 0 && m.node == nil {
			out[id] += m.slots
		}
	}
}
