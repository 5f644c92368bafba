package proxy

import (
	"math/rand/v2"
	"testing"
	"time"
)

// testNear is the last band that is near in these tests.
const testNear = 5

func ranksOf(cs []candidate, soft, hard int32, late bool) []uint32 {
	ranks := make([]uint32, len(cs))
	for i, c := range cs {
		ranks[i] = c.rank(soft, hard, policy{near: testNear, late: late, disabled: suspect(cs)})
	}
	return ranks
}

func pickOf(cs []candidate, soft, hard int32, chance uint64) choice {
	return pick(ranksOf(cs, soft, hard, false), testNear, chance)
}

func TestPick(t *testing.T) {
	const soft, hard = 2, 4
	up := serving
	for _, tc := range []struct {
		name   string
		cs     []candidate
		want   []int // any of these; none is -1
		rule   rule
		demand bool
	}{
		{"nothing there: wait", nil, nil, ruleFull, true},
		{"a machine that does not serve is left out", []candidate{{}, {flags: up}}, []int{1}, ruleSoft, false},
		{"a cordoned machine is left out", []candidate{{flags: up | cordoned}, {used: 1, flags: up}}, []int{1}, ruleSoft, false},
		{"a draining machine is left out, even where it would be the only one", []candidate{{flags: up | draining}}, nil, ruleFull, true},
		{"a sealed machine is left out", []candidate{{flags: up | sealed}}, nil, ruleFull, true},
		{"a dead machine is left out", []candidate{{flags: up | dead}}, nil, ruleFull, true},
		{"a failing machine is left out", []candidate{{flags: up | failing}, {used: 1, flags: up}}, []int{1}, ruleSoft, false},
		{"half of them failing is believed", []candidate{{flags: up | failing}, {used: 3, flags: up}}, []int{1}, ruleSpill, true},
		{"more than half failing: the checker is suspected", []candidate{{flags: up | failing}, {flags: up | failing}, {used: 1, flags: up}}, []int{0, 1}, ruleSoft, false},
		{"a failing machine alone is used", []candidate{{flags: up | failing}}, []int{0}, ruleSoft, false},
		{"under soft: the least loaded", []candidate{{used: 1, flags: up}, {flags: up}}, []int{1}, ruleSoft, false},
		{"the nearest band before the least loaded", []candidate{{used: 1, flags: up}, {band: 1, flags: up}}, []int{0}, ruleSoft, false},
		{"a farther one under soft before a near one over it", []candidate{{used: 2, flags: up}, {used: 1, band: 3, flags: up}}, []int{1}, ruleSoft, false},
		{"one far away before a near one over its soft limit, and demand", []candidate{{used: 2, flags: up}, {used: 1, band: 7, flags: up}}, []int{1}, ruleFar, true},
		{"far away: the nearest, loaded as it is", []candidate{{used: 1, band: 7, flags: up}, {band: 8, flags: up}}, []int{0}, ruleFar, true},
		{"all over their soft limits: the nearest", []candidate{{used: 3, band: 6, flags: up}, {used: 2, band: 8, flags: up}}, []int{0}, ruleFar, true},
		{"a host that is not heard comes after all that are known", []candidate{{flags: up | unheard}, {used: 3, band: 9, flags: up}}, []int{1}, ruleFar, true},
		{"a host that is not heard is tried where no other has a slot", []candidate{{flags: up | unheard}, {used: 4, flags: up}}, []int{0}, ruleUnknown, true},
		{"none under soft: the least loaded under hard, and demand", []candidate{{used: 3, flags: up}, {used: 2, flags: up}}, []int{1}, ruleSpill, true},
		{"at the hard limit never", []candidate{{used: 4, flags: up}, {used: 5, flags: up}}, nil, ruleFull, true},
		{"equals: chance", []candidate{{used: 1, flags: up}, {used: 1, flags: up}, {used: 1, flags: up}}, []int{0, 1, 2}, ruleSoft, false},
		{"an unproven machine is tried by one", []candidate{{used: 1, flags: up | unproven | trying}, {used: 2, flags: up}}, []int{1}, ruleSpill, true},
		{"an unproven machine with connections of before is tried by one more", []candidate{{used: 1, flags: up | unproven}, {used: 2, flags: up}}, []int{0}, ruleSoft, false},
		{"an unproven machine nobody tries comes like any other", []candidate{{flags: up | unproven}, {used: 1, flags: up}}, []int{0}, ruleSoft, false},
		{"one that refused comes last", []candidate{{flags: up | shut}, {used: 3, flags: up}}, []int{1}, ruleSpill, true},
		{"one that refused is tried where no other can", []candidate{{flags: up | shut}, {used: 4, flags: up}}, []int{0}, ruleProbe, true},
		{"one that refused is tried by one only", []candidate{{used: 1, flags: up | shut | trying}}, nil, ruleFull, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			seen := map[int]bool{}
			for chance := range uint64(60) {
				c := pickOf(tc.cs, soft, hard, chance)
				seen[c.index] = true
				if c.rule != tc.rule || c.demand != tc.demand {
					t.Fatalf("rule %v, demand %v; want %v, %v", c.rule, c.demand, tc.rule, tc.demand)
				}
			}
			want := map[int]bool{}
			for _, i := range tc.want {
				want[i] = true
			}
			if len(want) == 0 {
				want[-1] = true
			}
			if len(seen) != len(want) {
				t.Fatalf("chose %v, want all of %v", seen, want)
			}
			for i := range want {
				if !seen[i] {
					t.Fatalf("chose %v, want all of %v", seen, want)
				}
			}
		})
	}
}

// TestPickLate is of apps whose connections stay near until all there is at its hard limit.
func TestPickLate(t *testing.T) {
	const soft, hard = 2, 4
	for _, tc := range []struct {
		name string
		cs   []candidate
		want int
		rule rule
	}{
		{"under soft: the nearest", []candidate{{band: 2, flags: serving}, {used: 1, flags: serving}}, 1, ruleSoft},
		{"near under hard before far under soft", []candidate{{band: 7, flags: serving}, {used: 3, flags: serving}}, 1, ruleSpill},
		{"near at hard: far", []candidate{{band: 7, flags: serving}, {used: 4, flags: serving}}, 0, ruleFar},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if c := pick(ranksOf(tc.cs, soft, hard, true), testNear, 0); c.index != tc.want || c.rule != tc.rule {
				t.Errorf("chose %d by %s, want %d by %s", c.index, c.rule, tc.want, tc.rule)
			}
		})
	}
}

func TestBands(t *testing.T) {
	for _, tc := range []struct {
		rtt   time.Duration
		spill time.Duration
		near  bool
	}{
		{0, time.Millisecond, true},
		{49 * time.Millisecond, 50 * time.Millisecond, true},
		{50 * time.Millisecond, 50 * time.Millisecond, false},
		{time.Second, 200 * time.Millisecond, false},
	} {
		if near := bandOf(tc.rtt) <= nearBand(tc.spill); near != tc.near {
			t.Errorf("%s is near by %s: %v, want %v", tc.rtt, tc.spill, near, tc.near)
		}
	}
}

// TestPickNeverOverHard draws candidates at random and checks what holds for every choice.
func TestPickNeverOverHard(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		hard := 1 + r.Int32N(5)
		soft := r.Int32N(hard + 1)
		cs := make([]candidate, r.IntN(6))
		for i := range cs {
			cs[i] = candidate{used: r.Int32N(hard + 2), band: uint8(r.IntN(2)), flags: flags(r.IntN(1 << 9))}
		}
		c := pickOf(cs, soft, hard, r.Uint64())
		if c.index >= 0 {
			got := cs[c.index]
			if got.used >= hard || got.flags&(serving|cordoned|draining|sealed|dead) != serving {
				t.Fatalf("chose %+v with hard limit %d", got, hard)
			}
			continue
		}
		for _, o := range cs {
			if o.flags == serving && o.used < hard {
				t.Fatalf("chose none of %+v though one is free; hard limit %d", cs, hard)
			}
		}
	}
}

func TestPlanWakes(t *testing.T) {
	for _, tc := range []struct {
		name string
		view wakeView
		want int
	}{
		{"nobody waits: none", wakeView{soft: 20}, 0},
		{"nothing serves or boots: one", wakeView{queued: 1, soft: 20, canGrow: true}, 1},
		{"one only, however many wait, where a scaler holds the app", wakeView{queued: 90, soft: 20, canGrow: true}, 1},
		{"a booting machine counts", wakeView{queued: 90, soft: 20, coming: 1, canGrow: true}, 0},
		{"full machines: the scaler's business", wakeView{queued: 5, soft: 20, serving: 1, canGrow: true}, 0},
		{"no scaler: one per ceil(queued / soft)", wakeView{queued: 41, soft: 20}, 3},
		{"no scaler: less those that are coming", wakeView{queued: 41, soft: 20, coming: 1}, 2},
		{"no scaler and full machines: more are woken", wakeView{queued: 1, soft: 20, serving: 3}, 1},
		{"auto_start off: none", wakeView{queued: 41, soft: 20, noWake: true}, 0},
		{"a soft limit of zero is taken for one", wakeView{queued: 2}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := planWakes(tc.view); got != tc.want {
				t.Errorf("wakes %d, want %d", got, tc.want)
			}
		})
	}
}

func BenchmarkPick1000(b *testing.B) {
	cs := make([]candidate, 1000)
	r := rand.New(rand.NewPCG(1, 2))
	for _, load := range []struct {
		name string
		used func() int32
	}{
		{"equal", func() int32 { return 3 }},
		{"random", func() int32 { return r.Int32N(26) }},
		{"full", func() int32 { return 25 }},
	} {
		b.Run(load.name, func(b *testing.B) {
			for i := range cs {
				cs[i] = candidate{used: load.used(), band: uint8(i % 30 % (len(bandEnds) + 1)), flags: serving}
			}
			ranks := ranksOf(cs, 20, 25, false)
			b.ReportAllocs()
			chance := uint64(1)
			for b.Loop() {
				chance = chance*6364136223846793005 + 1
				pick(ranks, testNear, chance>>16)
			}
		})
	}
}
