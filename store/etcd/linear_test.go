package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
)

// call is one operation on a register: a read, or a change from one value to another. Every value is written
// at most once.
type call struct {
	key      string
	old, new string // a read has no new one
}

// outcome is what came of a call.
type outcome struct {
	value string // of a read
	done  bool   // of a change
	doubt bool   // nobody knows
}

func registers() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			byKey := map[string][]porcupine.Operation{}
			for _, op := range history {
				key := op.Input.(call).key
				byKey[key] = append(byKey[key], op)
			}
			var out [][]porcupine.Operation
			for _, ops := range byKey {
				out = append(out, ops)
			}
			return out
		},
		Init: func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			in, out, now := input.(call), output.(outcome), state.(string)
			switch {
			case in.new == "":
				return out.value == now, now
			case out.doubt && now == in.old: // it may come as late as after all else
				return true, in.new
			case out.doubt:
				return true, now
			case out.done:
				return now == in.old, in.new
			}
			return now != in.old, now
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v → %+v", input, output) },
	}
}

// recorder records the calls of all clients.
type recorder struct {
	began time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation
	doubt int
}

func (r *recorder) now() int64 { return time.Since(r.began).Nanoseconds() }

func (r *recorder) add(client int, from int64, in call, out outcome) {
	to := r.now()
	if out.doubt {
		to = math.MaxInt64
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if out.doubt {
		r.doubt++
	}
	r.ops = append(r.ops, porcupine.Operation{ClientId: client, Input: in, Call: from, Output: out, Return: to})
}

// play reads and changes registers by a store, until ctx ends.
func (r *recorder) play(ctx context.Context, t *testing.T, client int, at func() store.Store) {
	t.Helper()
	for i := 0; ctx.Err() == nil; i++ {
		s := at()
		if s == nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		key := fmt.Sprintf("r%d", rand.IntN(4))
		from := r.now()
		e, err := s.Get(ctx, key)
		switch {
		case err == nil, errors.Is(err, volant.ErrNotFound):
			r.add(client, from, call{key: key}, outcome{value: string(e.Value)})
		case errors.Is(err, volant.ErrUnavailable):
			time.Sleep(10 * time.Millisecond)
			continue
		default:
			if ctx.Err() == nil {
				t.Errorf("get: %v", err)
			}
			continue
		}
		in := call{key: key, old: string(e.Value), new: fmt.Sprintf("%d-%d", client, i)}
		from = r.now()
		_, err = s.Commit(context.WithoutCancel(ctx), store.Op{Key: key, Expect: e.Mod, Value: []byte(in.new)})
		switch {
		case err == nil:
			r.add(client, from, in, outcome{done: true})
		case errors.Is(err, volant.ErrConflict), errors.Is(err, volant.ErrExists):
			r.add(client, from, in, outcome{})
		case errors.Is(err, volant.ErrUnavailable):
			r.add(client, from, in, outcome{doubt: true})
		default:
			t.Errorf("commit: %v", err)
		}
		time.Sleep(time.Duration(rand.IntN(8)) * time.Millisecond)
	}
}

// While members die and wires are cut, every read and change of a register is as if they came one after the
// other, whoever was asked.
func TestLinearizable(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes some 30 s")
	}
	t.Parallel()
	p := newPlanet(t)
	first := p.start(1, nil)
	p.join(first, 2)
	p.join(first, 3)
	far := []store.Store{p.remote(8, 1, 2, 3), p.remote(9, 1, 2, 3)}

	rec := &recorder{began: time.Now()}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for n := 1; n <= 3; n++ {
		wg.Go(func() {
			rec.play(ctx, t, n, func() store.Store {
				p.mu.Lock()
				defer p.mu.Unlock()
				if nd := p.nodes[n]; nd != nil {
					return nd.store
				}
				return nil
			})
		})
	}
	for i, s := range far {
		wg.Go(func() { rec.play(ctx, t, 10+i, func() store.Store { return s }) })
	}
	all := []int{1, 2, 3, 8, 9}
	for round := range 6 {
		n := 1 + rand.IntN(3)
		time.Sleep(700 * time.Millisecond)
		if round%2 == 0 {
			p.stop(n, false)
			time.Sleep(time.Second)
			p.start(n, nil)
		} else {
			p.setCut(true, []int{n}, all)
			time.Sleep(1500 * time.Millisecond)
			p.setCut(false, []int{n}, all)
		}
	}
	within(t, "all are well", func() bool {
		ms, err := far[0].(etcd.Admin).Members(t.Context())
		well := 0
		for _, m := range ms {
			if m.Healthy {
				well++
			}
		}
		return err == nil && well == 3
	})
	time.Sleep(300 * time.Millisecond)
	cancel()
	wg.Wait()
	result, info := porcupine.CheckOperationsVerbose(registers(), rec.ops, 60*time.Second)
	t.Logf("%d operations, %d in doubt: %s", len(rec.ops), rec.doubt, result)
	if result == porcupine.Illegal {
		t.Errorf("not linearizable: %+v", info)
	}
	if len(rec.ops) < 500 {
		t.Errorf("only %d operations", len(rec.ops))
	}
}
