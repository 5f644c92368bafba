package live_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant/live"
)

// TestAllAgreeAfterTheStorm changes facts in bad weather, cuts and restarts, and looks whether all agree when it is over.
func TestAllAgreeAfterTheStorm(t *testing.T) {
	for seed := range uint64(12) {
		synctest.Test(t, func(t *testing.T) { storm(t, seed) })
	}
}

func storm(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	s := newSea(time.Duration(1+rnd.IntN(100)) * ms)
	s.rnd, s.loss, s.twice, s.jitter = rand.New(rand.NewPCG(seed, 8)), 0.05+0.3*float64(seed%2), 0.1, 2*s.delay
	const n = 4
	kinds := live.KindsOf(live.Route, live.Have)
	var all [n][]live.Peer
	for i := range n {
		for j := range n {
			if i != j {
				all[i] = append(all[i], peer(j, kinds))
			}
		}
	}
	var ships [n]*ship
	var epochs [n]uint64
	var truth [n]map[live.Key]live.Fact
	for i := range n {
		truth[i], epochs[i] = map[live.Key]live.Fact{}, 1
		ships[i] = launch(t, s, i, 1, all[i]...)
		if err := ships[i].SetAll(kinds); err != nil {
			t.Fatal(err)
		}
	}
	for range 400 {
		i := rnd.IntN(n)
		switch x := rnd.IntN(100); {
		case x < 3: // a restart; it says all there is
			ships[i].stop()
			epochs[i]++
			ships[i] = launch(t, s, i, epochs[i], all[i]...)
			for k, f := range truth[i] {
				if rnd.IntN(4) == 0 {
					delete(truth[i], k)
					continue
				}
				f.Version = live.Version{}
				truth[i][k] = f
			}
			if err := ships[i].SetAll(kinds, slices.Collect(maps.Values(truth[i]))...); err != nil {
				t.Fatal(err)
			}
		case x < 8:
			s.sever(i, (i+1)%n, true)
		case x < 18:
			s.sever(rnd.IntN(n), rnd.IntN(n), false)
		default:
			f := live.Fact{Key: live.Key{Kind: live.Route, ID: fmt.Sprint(rnd.IntN(20))}, Body: fmt.Append(nil, rnd.Int())}
			if rnd.IntN(2) == 0 {
				f.Key.Kind = live.Have
			}
			if rnd.IntN(4) == 0 {
				f.Gone, f.Body = true, nil
				delete(truth[i], f.Key)
			} else {
				truth[i][f.Key] = f
			}
			set(t, ships[i], f)
		}
		time.Sleep(time.Duration(rnd.IntN(1500)) * ms)
	}
	s.set(func() { clear(s.cut); s.loss = 0.05 })
	time.Sleep(20 * time.Second)
	for i, sh := range ships {
		for j := range n {
			if i == j {
				continue
			}
			want, got := map[live.Key]string{}, map[live.Key]string{}
			for k, f := range truth[j] {
				want[k] = string(f.Body)
			}
			for _, f := range sh.Facts() {
				if f.Node == node(j) {
					got[f.Key] = string(f.Body)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("seed %d: %d of %d (-want +got):\n%s", seed, i, j, diff)
			}
			told := map[live.Key]string{}
			sh.mu.Lock()
			for k, f := range sh.facts[node(j)] {
				told[k] = string(f.Body)
			}
			sh.mu.Unlock()
			if epochs[i] == 1 && !maps.Equal(told, want) {
				t.Errorf("seed %d: %d of %d was told (-want +got):\n%s", seed, i, j, cmp.Diff(want, told))
			}
		}
		if n := sh.Numbers(); n.Mismatch > 20 {
			t.Errorf("seed %d: %d digests differed at %d", seed, n.Mismatch, i)
		}
	}
}
