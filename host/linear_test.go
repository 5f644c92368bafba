package host_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/host"
)

// placed is the model of a host's room: machines with a reservation, the organizations they are of, the newest term
// of each app.
type placed struct{ machines, terms map[string]string }

func (p placed) String() string { return fmt.Sprint(p.machines, p.terms) }

// reservations is what calls of several schedulers may be answered by a host that has room for some machines, of one
// organization alone.
func reservations(room int) porcupine.Model {
	return porcupine.Model{
		Init:  func() any { return placed{map[string]string{}, map[string]string{}} },
		Equal: func(a, b any) bool { return a.(placed).String() == b.(placed).String() },
		Step: func(state, input, output any) (bool, any) {
			p, in, got := state.(placed), input.(host.Reservation), output.(string)
			term := fmt.Sprintf("%04d", in.Term)
			stale := term < p.terms[string(in.App)]
			if got == "stale" {
				return stale, p
			}
			if !stale {
				p.terms = maps.Clone(p.terms)
				p.terms[string(in.App)] = term
			}
			_, again := p.machines[string(in.ID)]
			mixed := false
			for id, org := range p.machines {
				mixed = mixed || id != string(in.ID) && org != string(in.Org)
			}
			fits := again || len(p.machines) < room
			if got == "full" {
				return !fits || mixed, p
			}
			if stale || mixed || !fits {
				return false, p
			}
			p.machines = maps.Clone(p.machines)
			p.machines[string(in.ID)] = string(in.Org)
			return true, p
		},
		DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v → %v", in, out) },
	}
}

// Several schedulers ask a host for room at the same moment, by old and new terms, for two organizations that it must
// not mix; some ask again, since an answer was lost. What they are told fits one order, and no place is given twice.
func TestReservationsHaveOneOrder(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble(t, func(t *testing.T, r *rig) { reserveAtOnce(t, r, seed) })
		})
	}
}

func reserveAtOnce(t *testing.T, r *rig, seed uint64) {
	t.Helper()
	const room, schedulers = 3, 6
	r.cfg.MemoryMB, r.cfg.NoTemplates = 512+room*512, true
	r.fakes.Tenants, r.cfg.AllowMixed = false, false
	r.start()
	var mu sync.Mutex
	var ops []porcupine.Operation
	clock := int64(0)
	tick := func() int64 {
		mu.Lock()
		defer mu.Unlock()
		clock++
		return clock
	}
	org := fmt.Sprintf("org%d", seed%2)
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for s := range schedulers {
		rnd := rand.New(rand.NewPCG(seed, uint64(s)))
		wg.Go(func() {
			<-begin
			for i := range 3 {
				in := host.Reservation{
					ID: idOf(machine(1 + rnd.IntN(5))), App: volant.AppID(fmt.Sprintf("app_%d", rnd.IntN(2))), Org: volant.OrgID(org), Term: uint64(1 + rnd.IntN(3)),
				}
				if s%3 == 2 {
					in.Org, in.App, in.ID = "other", "app_o", idOf(machine(10+rnd.IntN(3)))
				}
				for range 1 + rnd.IntN(2) {
					op := porcupine.Operation{ClientId: s, Input: in, Call: tick()}
					err := r.Reserve(t.Context(), in)
					op.Return = tick()
					switch {
					case err == nil:
						op.Output = "ok"
					case errors.Is(err, volant.ErrStaleTerm):
						op.Output = "stale"
					case errors.Is(err, volant.ErrNoCapacity):
						op.Output = "full"
					default:
						t.Errorf("reserve: %v", err)
						return
					}
					mu.Lock()
					ops = append(ops, op)
					mu.Unlock()
				}
				if i == 1 {
					time.Sleep(time.Duration(rnd.IntN(3)) * time.Millisecond)
				}
			}
		})
	}
	close(begin)
	wg.Wait()
	if !porcupine.CheckOperations(reservations(room), ops) {
		var all []string
		slices.SortFunc(ops, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
		for _, op := range ops {
			all = append(all, fmt.Sprintf("%d-%d %v: %v", op.Call, op.Return, op.Input, op.Output))
		}
		t.Errorf("no order explains what was told:\n%s", strings.Join(all, "\n"))
	}
	if orgs := r.Room().Orgs; len(orgs) > 1 {
		t.Errorf("organizations %v are mixed", orgs)
	}
	if free := r.Room().FreeMB; free < 0 {
		t.Errorf("%d MB are free", free)
	}
}
