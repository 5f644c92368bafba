package proxy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/volant-edge/volant"
)

// model plays clients of one app and checks, after each step, what must always hold.
type model struct {
	t     *testing.T
	r     *rand.Rand
	p     *Proxy
	a     *app
	cfg   App
	seq   uint64
	seats []seat
	queue []*waiter // in order of arrival, per service
	out   map[*waiter]bool
}

func newModel(t *testing.T, seed uint64) *model {
	p, err := New(Config{Recent: 1})
	if err != nil {
		t.Fatal(err)
	}
	m := &model{t: t, r: rand.New(rand.NewPCG(seed, 3)), p: p, out: map[*waiter]bool{}}
	m.cfg = App{ID: "a", MaxQueue: 12, MaxPerPeer: 5, CanGrow: seed%2 == 0}
	for i := range 2 {
		m.cfg.Services = append(m.cfg.Services, Service{
			Listen: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(1+i))}, InternalPort: uint16(80 + i),
		})
	}
	m.change()
	m.a = p.apps[appKey{id: "a"}]
	return m
}

// change gives the proxy another table of the app.
func (m *model) change() {
	m.seq++
	for i := range m.cfg.Services {
		hard := 1 + m.r.IntN(3)
		m.cfg.Services[i].Soft, m.cfg.Services[i].Hard = m.r.IntN(hard+1), hard
	}
	m.cfg.Machines = nil
	phases := []Phase{PhaseServing, PhaseServing, PhaseServing, PhaseBooting, PhaseSuspended, PhaseStopped, PhaseGone}
	for i := range 4 {
		if m.r.IntN(5) == 0 {
			continue
		}
		mc := Machine{
			ID: volant.MachineID(fmt.Sprint(i)), Seq: m.seq, Phase: phases[m.r.IntN(len(phases))], Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}),
			Cordoned: m.r.IntN(8) == 0, Draining: m.r.IntN(8) == 0,
		}
		if m.r.IntN(6) == 0 {
			mc.Failing = []uint16{80}
		}
		m.cfg.Machines = append(m.cfg.Machines, mc)
	}
	table := Table{Version: m.seq, Apps: []App{m.cfg}}
	if err := m.p.SetTable(m.t.Context(), table); err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) enter() {
	routes := *m.p.routes.Load()
	w := &waiter{svc: routes[m.cfg.Services[m.r.IntN(2)].Listen[0]].svc, quiet: m.r.IntN(5) == 0, peer: netip.AddrFrom4([4]byte{1, 1, 1, byte(m.r.IntN(4))})}
	w.deliver = func(v verdict) { m.delivered(w, v) }
	switch v := m.a.enter(w); {
	case v.waits():
		m.queue = append(m.queue, w)
	case v.seat.place != nil:
		m.seats = append(m.seats, v.seat)
	}
}

func (m *model) delivered(w *waiter, v verdict) {
	for i, q := range m.queue {
		if q == w {
			m.queue = append(m.queue[:i], m.queue[i+1:]...)
			break
		}
		if q.svc == w.svc && v.seat.place != nil {
			m.t.Fatalf("a waiter was served before one that came first")
		}
	}
	if v.seat.place != nil {
		m.seats = append(m.seats, v.seat)
	}
}

func (m *model) takeSeat() (seat, bool) {
	if len(m.seats) == 0 {
		return seat{}, false
	}
	i := m.r.IntN(len(m.seats))
	st := m.seats[i]
	m.seats = append(m.seats[:i], m.seats[i+1:]...)
	return st, true
}

func (m *model) step() {
	switch m.r.IntN(12) {
	case 0:
		m.change()
	case 1:
		id := volant.MachineID(fmt.Sprint(m.r.IntN(4)))
		ok, _ := m.p.Seal(m.t.Context(), id, m.seq)
		for _, st := range m.seats {
			if ok && st.place.m.id == id {
				m.t.Fatalf("machine %s was sealed though it holds a slot", id)
			}
		}
	case 2, 3, 4, 5:
		m.enter()
	case 6, 7, 8:
		if st, ok := m.takeSeat(); ok {
			m.a.release(st)
		}
	case 9:
		if st, ok := m.takeSeat(); ok {
			m.a.opened(&st)
			m.seats = append(m.seats, st)
		}
	case 10:
		if st, ok := m.takeSeat(); ok {
			m.refusedBy(st)
		}
	case 11:
		if len(m.queue) > 0 {
			i := m.r.IntN(len(m.queue))
			w := m.queue[i]
			m.queue = append(m.queue[:i], m.queue[i+1:]...)
			if !m.a.quit(w, true) {
				m.t.Fatal("a waiter was not in the queue")
			}
		}
	}
	m.check()
}

func (m *model) refusedBy(st seat) {
	w := &waiter{svc: st.place.svc, peer: netip.AddrFrom4([4]byte{1, 1, 1, 9})}
	w.deliver = func(v verdict) { m.delivered(w, v) }
	v := m.a.failed(st, w, fmt.Errorf("refused"), false)
	switch {
	case v.waits():
		// It had its turn before all who came through enter: it has arrival 0.
		i := 0
		for i < len(m.queue) && m.queue[i].arrival == 0 {
			i++
		}
		m.queue = slices.Insert(m.queue, i, w)
	case v.seat.place != nil:
		m.seats = append(m.seats, v.seat)
	}
}

func (m *model) check() {
	a, t := m.a, m.t
	a.mu.Lock()
	defer a.mu.Unlock()
	used, byMachine := map[*place]int32{}, map[*machine]int{}
	for _, st := range m.seats {
		used[st.place]++
		byMachine[st.place.m]++
	}
	if a.held != len(m.seats) || a.waiting != len(m.queue) {
		t.Fatalf("%d slots and %d waiting, want %d and %d", a.held, a.waiting, len(m.seats), len(m.queue))
	}
	loud := 0
	for _, w := range m.queue {
		if !w.quiet {
			loud++
		}
	}
	if a.loud != loud {
		t.Fatalf("%d are demand, want %d", a.loud, loud)
	}
	for _, s := range a.services {
		if s.queue.first != nil && len(s.ranks) > 0 && pick(s.ranks, s.policy.near, 0).index >= 0 {
			t.Fatal("somebody waits while a slot is free")
		}
		for i, pl := range s.places {
			if pl.index != i || s.cands[i].used != pl.used || s.ranks[i] != s.cands[i].rank(pl.soft, pl.hard, s.policy) {
				t.Fatalf("place %d is out of step: %+v, %+v", i, pl, s.cands[i])
			}
		}
		for _, pl := range s.byID {
			if pl.used != used[pl] {
				t.Fatalf("%d slots at a place, want %d", pl.used, used[pl])
			}
		}
	}
	for _, mc := range a.machines {
		if mc.slots != byMachine[mc] {
			t.Fatalf("machine %s has %d slots, want %d", mc.id, mc.slots, byMachine[mc])
		}
	}
}

func TestSlotTableUnderRandomSteps(t *testing.T) {
	for seed := range uint64(60) {
		m := newModel(t, seed)
		for range 400 {
			m.step()
		}
		for len(m.seats) > 0 {
			st, _ := m.takeSeat()
			m.a.release(st)
			m.check()
		}
		m.a.leave()
	}
}

// TestSlotsAreExactUnderRaces lets many goroutines take and free slots while tables change, and counts at
// each machine independently.
func TestSlotsAreExactUnderRaces(t *testing.T) {
	const hard, workers, turns = 3, 40, 300
	p, err := New(Config{Recent: 1})
	if err != nil {
		t.Fatal(err)
	}
	listen := netip.MustParseAddrPort("127.0.0.1:1")
	table := Table{Apps: []App{{
		ID: "a", MaxQueue: 1000, MaxPerPeer: 1000, CanGrow: true,
		Services: []Service{{Listen: []netip.AddrPort{listen}, InternalPort: 80, Soft: 2, Hard: hard}},
		Machines: []Machine{{ID: "1", Phase: PhaseServing, Addr: listen.Addr()}, {ID: "2", Phase: PhaseServing, Addr: listen.Addr()}},
	}}}
	if err := p.SetTable(t.Context(), table); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	open := map[volant.MachineID]int{}
	count := func(id volant.MachineID, n int) {
		mu.Lock()
		defer mu.Unlock()
		open[id] += n
		if open[id] > hard {
			t.Errorf("machine %s has %d, hard limit %d", id, open[id], hard)
		}
	}
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		for i := uint64(1); ; i++ {
			select {
			case <-done:
				return
			default:
			}
			tb := table
			tb.Version = i
			tb.Apps = []App{tb.Apps[0]}
			tb.Apps[0].Machines = []Machine{table.Apps[0].Machines[0], table.Apps[0].Machines[1]}
			tb.Apps[0].Machines[i%2].Draining = true
			if err := p.SetTable(t.Context(), tb); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Millisecond)
		}
	})
	var workersDone sync.WaitGroup
	for i := range workers {
		workersDone.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 5))
			a := (*p.routes.Load())[listen].app
			for range turns {
				verdicts := make(chan verdict, 1)
				w := &waiter{svc: (*p.routes.Load())[listen].svc, deliver: func(v verdict) { verdicts <- v }}
				v := a.enter(w)
				if v.waits() {
					if r.IntN(4) == 0 && a.quit(w, true) {
						continue
					}
					v = <-verdicts
				}
				if v.seat.place == nil {
					t.Errorf("refused: %v", v.refusal)
					return
				}
				id := v.seat.place.m.id
				count(id, 1)
				if v.seat.probing {
					a.opened(&v.seat)
				}
				count(id, -1)
				a.release(v.seat)
			}
		})
	}
	workersDone.Wait()
	close(done)
	wg.Wait()
	if slots, _ := p.Slots(t.Context()); len(slots) != 0 {
		t.Errorf("slots %v are held after the end", slots)
	}
}
