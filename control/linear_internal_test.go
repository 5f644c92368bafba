package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/storetest"
)

// shaky is a store as a node reaches it over a bad network: calls take their time, get lost or come late, and
// answers get lost. While it is cut off nothing comes through.
type shaky struct {
	store.Store
	mu   sync.Mutex
	rnd  *rand.Rand
	cut  bool
	late *sync.WaitGroup // commits that are still on their way
}

var errLost = volant.Errorf(volant.ErrUnavailable, "nobody answers")

func (s *shaky) roll() (wait time.Duration, luck int, cut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Duration(s.rnd.IntN(20)) * time.Millisecond, s.rnd.IntN(20), s.cut
}

func (s *shaky) List(ctx context.Context, prefix string) ([]store.Entry, store.Revision, error) {
	wait, luck, cut := s.roll()
	time.Sleep(wait)
	if cut || luck == 0 {
		return nil, store.Revision{}, errLost
	}
	out, rev, err := s.Store.List(ctx, prefix)
	time.Sleep(wait)
	return out, rev, err
}

func (s *shaky) Get(ctx context.Context, key string) (store.Entry, error) {
	wait, luck, cut := s.roll()
	time.Sleep(wait)
	if cut || luck == 0 {
		return store.Entry{}, errLost
	}
	e, err := s.Store.Get(ctx, key)
	time.Sleep(wait)
	return e, err
}

func (s *shaky) Commit(ctx context.Context, ops ...store.Op) (store.Revision, error) {
	wait, luck, cut := s.roll()
	time.Sleep(wait)
	switch {
	case cut || luck == 0: // the call is lost
		return store.Revision{}, errLost
	case luck == 1: // the answer is
		_, _ = s.Store.Commit(ctx, ops...)
		return store.Revision{}, errLost
	case luck == 2: // the call comes when nobody waits for its answer
		s.late.Go(func() {
			time.Sleep(20 * wait)
			_, _ = s.Store.Commit(context.WithoutCancel(ctx), ops...)
		})
		return store.Revision{}, errLost
	}
	rev, err := s.Store.Commit(ctx, ops...)
	time.Sleep(wait)
	return rev, err
}

// allocation is a call: app takes some address, or gives one back.
type allocation struct {
	app  volant.AppID
	free string // the address that is given back; empty: one is taken
}

// poolModel is the model: who has which address.
func poolModel(size int) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return "" }, // "ip=app " for each that is taken, sorted
		Step: func(state, input, output any) (bool, any) {
			in, got, now := input.(allocation), output.(string), state.(string)
			taken := strings.Fields(now)
			if in.free != "" {
				rest := slices.DeleteFunc(slices.Clone(taken), func(x string) bool { return x == in.free+"="+string(in.app) })
				return len(rest) == len(taken)-1, strings.Join(rest, " ")
			}
			if got == "" {
				return len(taken) == size, now
			}
			if slices.ContainsFunc(taken, func(x string) bool { return strings.HasPrefix(x, got+"=") }) {
				return false, now
			}
			taken = append(taken, got+"="+string(in.app))
			slices.Sort(taken)
			return true, strings.Join(taken, " ")
		},
		DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v → %v", in, out) },
	}
}

// Nodes that reach the store badly give out the addresses of a small pool and take them back, by what they know: no
// address has two owners, and what each of them is told fits one order of events.
func TestAddressesAreGivenOutInOneOrder(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { synctest.Test(t, func(t *testing.T) { allocateBadly(t, seed) }) })
	}
}

// history is what all clients did, ordered by a clock of its own: in the bubble much happens at one moment.
type history struct {
	mu    sync.Mutex
	clock int64
	ops   []porcupine.Operation
	doubt []porcupine.Operation
}

func (h *history) tick() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	return h.clock
}

func (h *history) add(op porcupine.Operation, doubtful bool) {
	op.Return = h.tick()
	h.mu.Lock()
	defer h.mu.Unlock()
	if doubtful {
		op.Return = math.MaxInt64
		h.doubt = append(h.doubt, op)
		return
	}
	h.ops = append(h.ops, op)
}

func allocateBadly(t *testing.T, seed uint64) {
	const size, nodes, rounds = 4, 4, 12
	mem, h := storetest.New(), &history{}
	var late, wg sync.WaitGroup
	next := func(_ string, used []string) (string, error) {
		for i := range size {
			if ip := fmt.Sprintf("192.0.2.%d", i+1); !slices.Contains(used, ip) {
				return ip, nil
			}
		}
		return "", volant.Errorf(volant.ErrNoCapacity, "none is free")
	}
	for n := range nodes {
		s := &shaky{Store: mem, rnd: rand.New(rand.NewPCG(seed, uint64(n))), late: &late}
		rnd := rand.New(rand.NewPCG(seed, uint64(100+n)))
		wg.Go(func() {
			for i := range rounds {
				app := &volant.App{Meta: volant.Meta{App: volant.AppID(fmt.Sprintf("app_%d_%d", n, i)), Org: "o"}}
				s.mu.Lock()
				s.cut = rnd.IntN(8) == 0
				s.mu.Unlock()
				if ip := h.take(t, n, s, app, next); ip != "" {
					time.Sleep(time.Duration(rnd.IntN(100)) * time.Millisecond)
					h.giveBack(t, n, s, app, ip)
					if rnd.IntN(2) == 0 { // a node that does not know of it yet asks once more
						_, _ = store.Apply(t.Context(), s, "test", releasing(app.App, volant.RecordKey(volant.KindAddress, "", ip)))
					}
				}
			}
		})
	}
	wg.Wait()
	late.Wait()
	h.settle(t, mem)
	if got := porcupine.CheckOperations(poolModel(size), h.ops); !got {
		t.Errorf("no order of events explains what %d calls were told", len(h.ops))
	}
}

// take takes an address for an app, and returns it if it is known that it did.
func (h *history) take(t *testing.T, client int, s store.Store, app *volant.App, next nextAddress) string {
	ad := &volant.Address{Owner: app.App, Type: "v4"}
	op := porcupine.Operation{ClientId: client, Input: allocation{app: app.App}, Call: h.tick()}
	_, err := assignAddress(t.Context(), s, "test", app, ad, next)
	switch {
	case err == nil:
		op.Output = ad.IP
		h.add(op, false)
		return ad.IP
	case errors.Is(err, volant.ErrNoCapacity):
		op.Output = ""
		h.add(op, false)
	case errors.Is(err, volant.ErrUnavailable):
		h.add(op, true)
	case !errors.Is(err, volant.ErrConflict): // crowded out
		t.Errorf("assign: %v", err)
	}
	return ""
}

func (h *history) giveBack(t *testing.T, client int, s store.Store, app *volant.App, ip string) {
	op := porcupine.Operation{ClientId: client, Input: allocation{app: app.App, free: ip}, Call: h.tick(), Output: ""}
	_, err := store.Apply(t.Context(), s, "test", releasing(app.App, volant.RecordKey(volant.KindAddress, "", ip)))
	switch {
	case err == nil:
		h.add(op, false)
	case errors.Is(err, volant.ErrUnavailable):
		h.add(op, true)
	default:
		t.Errorf("release: %v", err)
	}
}

// settle finds out what came of the calls that nobody heard of again: an app has at most one address, once, and who
// took part in doubt never gave it back.
func (h *history) settle(t *testing.T, mem *storetest.Memory) {
	t.Helper()
	has := map[volant.AppID]string{}
	all, _, err := store.All[volant.Address](t.Context(), mem, keyPrefix(volant.KindAddress, ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, ad := range all {
		if !ad.Tombstone {
			has[ad.Owner] = ad.IP
		}
	}
	if len(slices.Compact(slices.Sorted(maps.Values(has)))) != len(has) {
		t.Errorf("addresses have several owners: %v", has)
	}
	for _, op := range h.doubt {
		in := op.Input.(allocation)
		switch ip, ok := has[in.app]; {
		case in.free == "" && ok:
			op.Output = ip
		case in.free != "" && !ok:
		default:
			continue // it never happened
		}
		h.ops = append(h.ops, op)
	}
}
