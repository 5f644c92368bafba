package host

import (
	"fmt"
	"slices"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
)

// Room is what the host has left to give.
type Room struct {
	MemoryMB       int `json:"memory_mb"` // that machines may hold in all
	FreeMB         int `json:"free_mb"`
	Cores          int `json:"cores"`           // physical, in all
	DedicatedCores int `json:"dedicated_cores"` // given to performance machines
	FreeCores      int `json:"free_cores"`      // that a performance machine could get
	SharedVCPUs    int `json:"shared_vcpus"`    // of awake shared machines
	OverheadMB     int `json:"overhead_mb"`     // that a machine's VMM takes beside its guest
	SharedPerCore  int `json:"shared_per_core"` // the most shared vCPUs per shared logical CPU
	SharedFree     int `json:"shared_free"`     // shared vCPUs that may still be promised

	// Isolates says that machines of several organizations may run here; else Orgs are those that have any.
	Isolates bool           `json:"isolates"`
	Orgs     []volant.OrgID `json:"orgs,omitempty"`
}

const (
	// reserveFor is how long a reservation waits for its wish.
	reserveFor = 30 * time.Second
	// sharedPerCPU is the stated ratio of oversubscription: a shared vCPU has a baseline of 1/16 CPU.
	sharedPerCPU = 16
	minReserveMB = 512
)

// ledger counts who holds memory and cores. It is the only judge of what fits.
type ledger struct {
	totalMB  int     // that machines may hold
	cores    [][]int // logical CPUs of each physical core
	overhead int     // memory of a VMM beside its guest's

	mu       sync.Mutex // guards the following
	holds    map[volant.MachineID]hold
	reserved map[volant.MachineID]reservation
}

// hold is what an awake or booting machine takes.
type hold struct {
	memoryMB int
	shared   int   // vCPUs of a shared machine
	cores    []int // indexes of a performance machine's cores
}

type reservation struct {
	hold
	org   volant.OrgID
	until time.Time
}

func newLedger(memoryMB, reserveMB int, cores [][]int) *ledger {
	if reserveMB <= 0 {
		reserveMB = max(minReserveMB, memoryMB/8)
	}
	return &ledger{
		totalMB: max(0, memoryMB-reserveMB), cores: cores,
		holds: map[volant.MachineID]hold{}, reserved: map[volant.MachineID]reservation{},
	}
}

// take gives the machine what g needs, out of its reservation if it has one. Idempotent. Its error is
// ErrNoCapacity and says what is short.
func (l *ledger) take(id volant.MachineID, g volant.Guest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.holds[id]; ok {
		return nil
	}
	if r, ok := l.reserved[id]; ok {
		delete(l.reserved, id)
		if r.memoryMB >= g.MemoryMB+l.overhead && time.Now().Before(r.until) {
			l.holds[id] = r.hold
			return nil
		}
	}
	h, err := l.fitLocked(g)
	if err != nil {
		return err
	}
	l.holds[id] = h
	return nil
}

// adopt gives the machine what it already uses, whether it fits or not.
func (l *ledger) adopt(id volant.MachineID, g volant.Guest) hold {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h, ok := l.holds[id]; ok {
		return h
	}
	h, err := l.fitLocked(g)
	if err != nil {
		h = hold{memoryMB: g.MemoryMB + l.overhead, shared: g.CPUs}
	}
	l.holds[id] = h
	return h
}

// reserve keeps room for a machine whose wish is on its way.
func (l *ledger) reserve(id volant.MachineID, org volant.OrgID, g volant.Guest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.holds[id]; ok {
		return nil
	}
	delete(l.reserved, id)
	h, err := l.fitLocked(g)
	if err != nil {
		return err
	}
	l.reserved[id] = reservation{hold: h, org: org, until: time.Now().Add(reserveFor)}
	return nil
}

// release gives back all that the machine holds.
func (l *ledger) release(id volant.MachineID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.holds, id)
}

// orgs are the organizations of reservations.
func (l *ledger) orgs() []volant.OrgID {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expireLocked()
	var orgs []volant.OrgID
	for _, r := range l.reserved {
		orgs = append(orgs, r.org)
	}
	return orgs
}

func (l *ledger) heldMB(id volant.MachineID) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holds[id].memoryMB
}

// coresOf are the cores a performance machine has.
func (l *ledger) coresOf(id volant.MachineID) []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holds[id].cores
}

// sharedCPUs are the logical CPUs that no performance machine has.
func (l *ledger) sharedCPUs() []int {
	l.mu.Lock()
	defer l.mu.Unlock()
	taken := l.takenLocked()
	var cpus []int
	for i, c := range l.cores {
		if !taken[i] {
			cpus = append(cpus, c...)
		}
	}
	slices.Sort(cpus)
	return cpus
}

// cpusOf are the logical CPUs of the given cores, each core's siblings after all first threads.
func (l *ledger) cpusOf(cores []int) []int {
	var cpus []int
	for n := 0; ; n++ {
		before := len(cpus)
		for _, c := range cores {
			if n < len(l.cores[c]) {
				cpus = append(cpus, l.cores[c][n])
			}
		}
		if len(cpus) == before {
			return cpus
		}
	}
}

func (l *ledger) room() Room {
	l.mu.Lock()
	defer l.mu.Unlock()
	used, shared := l.usedLocked()
	taken := l.takenLocked()
	free := uncounted - shared
	if len(l.cores) > 0 {
		free = l.sharedLocked(taken)*sharedPerCPU - shared
	}
	return Room{
		MemoryMB: l.totalMB, FreeMB: max(0, l.totalMB-used),
		Cores: len(l.cores), DedicatedCores: len(taken), FreeCores: max(0, len(l.cores)-len(taken)-1),
		SharedVCPUs: shared, SharedPerCore: sharedPerCPU, SharedFree: max(0, free), OverheadMB: l.overhead,
	}
}

// uncounted is how many shared vCPUs a host has that does not count CPUs.
const uncounted = 1 << 20

// sharedLocked are the logical CPUs of cores that are not taken.
func (l *ledger) sharedLocked(taken map[int]bool) int {
	n := 0
	for i, c := range l.cores {
		if !taken[i] {
			n += len(c)
		}
	}
	return n
}

// fitLocked finds room for g.
func (l *ledger) fitLocked(g volant.Guest) (hold, error) {
	used, shared := l.usedLocked()
	h := hold{memoryMB: g.MemoryMB + l.overhead}
	if free := l.totalMB - used; h.memoryMB > free {
		return hold{}, volant.Errorf(volant.ErrNoCapacity, "the host has %d MB of memory free of %d MB and the machine needs %d MB",
			max(0, free), l.totalMB, h.memoryMB).WithRemedy("let machines sleep, lower the app's memory, or add a host")
	}
	taken := l.takenLocked()
	if g.CPUKind != volant.CPUPerformance {
		h.shared = g.CPUs
		cpus := l.sharedLocked(taken)
		if len(l.cores) > 0 && shared+g.CPUs > cpus*sharedPerCPU {
			return hold{}, volant.Errorf(volant.ErrNoCapacity, "%d shared vCPUs are awake on %d CPUs and %d per CPU are allowed", shared, cpus, sharedPerCPU).
				WithRemedy("let machines sleep or add a host")
		}
		return h, nil
	}
	for i := range slices.Backward(l.cores) {
		if len(h.cores) < g.CPUs && i > 0 && !taken[i] { // core 0 stays shared: host and shared machines need one
			h.cores = append(h.cores, i)
		}
	}
	if len(h.cores) < g.CPUs {
		return hold{}, volant.Errorf(volant.ErrNoCapacity, "the machine needs %d whole cores and %d of %d are free", g.CPUs, len(h.cores), len(l.cores)).
			WithRemedy("use shared CPUs, fewer of them, or a larger host")
	}
	slices.Sort(h.cores)
	return h, nil
}

func (l *ledger) expireLocked() {
	now := time.Now()
	for id, r := range l.reserved {
		if !now.Before(r.until) {
			delete(l.reserved, id)
		}
	}
}

func (l *ledger) usedLocked() (memoryMB, shared int) {
	l.expireLocked()
	for _, h := range l.holds {
		memoryMB += h.memoryMB
		shared += h.shared
	}
	for _, r := range l.reserved {
		memoryMB += r.memoryMB
		shared += r.shared
	}
	return memoryMB, shared
}

func (l *ledger) takenLocked() map[int]bool {
	taken := map[int]bool{}
	for _, h := range l.holds {
		for _, c := range h.cores {
			taken[c] = true
		}
	}
	for _, r := range l.reserved {
		for _, c := range r.cores {
			taken[c] = true
		}
	}
	return taken
}

// checkTenant refuses to mix organizations on an engine that does not isolate them well enough.
func checkTenant(engine string, multiTenant, allowMixed bool, mine volant.OrgID, others []volant.OrgID) error {
	if multiTenant || allowMixed {
		return nil
	}
	for _, o := range others {
		if o != mine {
			return volant.Errorf(volant.ErrNoCapacity, "this host runs machines of organization %s, and its engine %s does not isolate organizations", o, engine).
				WithRemedy("%s", fmt.Sprintf("place %s on a host of its own, use an engine with KVM, or set allow_mixed on this host", mine))
		}
	}
	return nil
}
