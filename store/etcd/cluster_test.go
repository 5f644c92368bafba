package etcd_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
)

// A store that stood alone without listeners takes others in, with what it has.
func TestAloneBecomesTheFirst(t *testing.T) {
	t.Parallel()
	p := newPlanet(t)
	s, err := etcd.Open(t.Context(), etcd.Config{Dir: p.config(1).Dir})
	if err != nil {
		t.Fatal(err)
	}
	rev := put(t, s, "a", "1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = p.start(1, func(c *etcd.Config) { c.Floor = rev })
	if m, ok := p.member(s, 1); !ok || !m.Leader || !m.Healthy || m.Peer != p.at(1).Peer || m.Client != p.at(1).Client {
		t.Errorf("member: %+v", m)
	}
	second := p.join(s, 2)
	for _, r := range []store.Reader{s, second, p.remote(9, 1, 2)} {
		if e, err := r.Get(t.Context(), "a"); err != nil || string(e.Value) != "1" || e.Mod != rev {
			t.Errorf("%T: %+v, %v", r, e, err)
		}
	}
	put(t, second, "b", "1")
	// Without its listeners it cannot be one of two.
	p.stop(1, true)
	if _, err := etcd.Open(t.Context(), etcd.Config{Dir: p.config(1).Dir}); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("one of two members without the mesh: %v", err)
	}
	s = p.start(1, nil)
	within(t, "both are back", func() bool { return s.Down() == nil })
	put(t, s, "c", "1")
}

// A node that crashes while it joins, at any point, joins all the same.
func TestJoinBrokenOff(t *testing.T) {
	t.Parallel()
	p := newPlanet(t)
	first := p.start(1, nil)
	in, err := first.AddMember(t.Context(), p.name(2), p.at(2))
	if err != nil {
		t.Fatal(err)
	}
	again, err := first.AddMember(t.Context(), p.name(2), p.at(2)) // its answer was lost
	if err != nil || again.Member != in.Member || len(again.Peers) != 2 {
		t.Fatalf("asked again: %+v, %v; before %+v", again, err, in)
	}
	put(t, first, "a", "1") // a learner does not hinder
	second := p.start(2, func(c *etcd.Config) { c.Join = &in })
	within(t, "joined", func() bool { return second.Down() == nil })
	p.stop(2, false)
	second = p.start(2, func(c *etcd.Config) { c.Join = &in }) // it still has the answer
	p.votes(first, 2)
	p.stop(2, false)
	second = p.start(2, nil)
	p.votes(first, 2)
	if _, err := second.AddMember(t.Context(), p.name(2), p.at(2)); !errors.Is(err, volant.ErrExists) {
		t.Errorf("added twice: %v", err)
	}
	// Its directory lost, it must not come back empty: others count on what it had.
	p.stop(2, false)
	if _, err := etcd.SetAside(p.config(2).Dir); err != nil {
		t.Fatal(err)
	}
	cfg := p.config(2)
	cfg.Join = &in
	if _, err := etcd.Open(t.Context(), cfg); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("joined again with an empty directory: %v", err)
	}
}

func TestRemovedMember(t *testing.T) {
	if testing.Short() {
		t.Skip("members come and go at most every 5 s")
	}
	t.Parallel()
	p := newPlanet(t)
	first := p.start(1, nil)
	if err := first.RemoveMember(t.Context(), p.name(1)); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("the only member removed: %v", err)
	}
	if err := first.RemoveMember(t.Context(), p.name(2)); !errors.Is(err, volant.ErrNotFound) {
		t.Errorf("no member removed: %v", err)
	}
	second := p.join(first, 2)
	if err := first.RemoveMember(t.Context(), p.name(2)); err != nil {
		t.Fatal(err)
	}
	within(t, "it says so", func() bool {
		_, err := second.Get(t.Context(), "a")
		var e *volant.Error
		return errors.As(err, &e) && errors.Is(e.Kind, volant.ErrUnavailable) && e.Remedy != "" && errors.Is(second.Down(), volant.ErrUnavailable)
	})
	put(t, first, "a", "1")
	p.stop(2, true)
	if _, err := etcd.Open(t.Context(), p.config(2)); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("opened after it was removed: %v", err)
	}
	// Its directory set aside, it joins as a new one.
	if aside, err := etcd.SetAside(p.config(2).Dir); err != nil || aside == "" {
		t.Fatal(aside, err)
	}
	second = p.join(first, 2)
	if e, err := second.Get(t.Context(), "a"); err != nil || string(e.Value) != "1" {
		t.Errorf("joined anew: %+v, %v", e, err)
	}
}

// From one member to three and five under a writer; then members die, are replaced, and are taken away.
func TestGrowAndShrink(t *testing.T) {
	if testing.Short() {
		t.Skip("members are added at most every 5 s")
	}
	t.Parallel()
	p := newPlanet(t)
	first := p.start(1, nil)
	r := p.remote(9, 1)
	local, far := write1(t, first, "local"), write1(t, r, "far")
	for n := 2; n <= 5; n++ {
		p.join(r, n)
	}
	r.SetEndpoints(p.endpoints(1, 2, 3, 4, 5))
	for _, n := range []int{4, 5} { // two of five may die
		p.stop(n, false)
	}
	time.Sleep(time.Second)
	put(t, first, "two-are-dead", "1")
	// One is replaced: its disk is lost.
	if _, err := etcd.SetAside(p.config(5).Dir); err != nil {
		t.Fatal(err)
	}
	in, err := r.ReplaceMember(t.Context(), p.name(5), p.at(5))
	if err != nil {
		t.Fatal(err)
	}
	p.start(5, func(c *etcd.Config) { c.Join = &in })
	p.votes(r, 5)
	p.start(4, nil) // the other comes back
	within(t, "all are well", func() bool {
		ms, err := r.Members(t.Context())
		well := 0
		for _, m := range ms {
			if m.Healthy && !m.Learner {
				well++
			}
		}
		return err == nil && well == 5
	})
	for _, n := range []int{5, 4, 3, 2} {
		if err := r.RemoveMember(t.Context(), p.name(n)); err != nil {
			t.Fatal(fmt.Sprint("remove ", n), err)
		}
		p.stop(n, true)
	}
	put(t, first, "alone-again", "1")
	local.check(t, first)
	far.check(t, first)
	t.Logf("local: %d written, longest gap %s; far: %d written, longest gap %s, %d in doubt", len(local.acked), local.gap, len(far.acked), far.gap, far.maybe)
}

// firstWrite tries to write every 50 ms, and returns when the first was acknowledged.
func firstWrite(t *testing.T, s store.Store, round int) time.Duration {
	t.Helper()
	began := time.Now()
	done := make(chan time.Duration, 1)
	for i := range 400 {
		go func() {
			if _, err := s.Commit(t.Context(), store.Op{Key: fmt.Sprintf("probe/%d/%d", round, i)}); err == nil {
				select {
				case done <- time.Since(began):
				default:
				}
			}
		}()
		select {
		case took := <-done:
			return took
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Error("nothing was written for 20 s")
	return time.Since(began)
}

// The time from the death of the leader, with the elections that members have by default, until a node without a
// member has a write acknowledged again; and of a leader that stops politely.
func TestFailover(t *testing.T) {
	if testing.Short() {
		t.Skip("members are added at most every 5 s")
	}
	t.Parallel()
	p := newPlanet(t)
	usual := func(c *etcd.Config) { c.Election = 0 }
	first := p.start(1, usual)
	for n := 2; n <= 3; n++ {
		in, err := first.AddMember(t.Context(), p.name(n), p.at(n))
		if err != nil {
			t.Fatal(err)
		}
		p.start(n, func(c *etcd.Config) { usual(c); c.Join = &in })
		p.votes(first, n)
	}
	r := p.remote(9, 1, 2, 3)
	for round := range 6 {
		politely := round%2 == 1
		n := p.leader(r)
		w := write1(t, r, fmt.Sprint("round", round))
		time.Sleep(200 * time.Millisecond)
		p.stop(n, politely)
		first := firstWrite(t, r, round)
		time.Sleep(4 * time.Second)
		p.start(n, usual)
		p.votes(r, n)
		w.check(t, r)
		t.Logf("leader %d, then %d; politely %v: first write %s, longest wait of one %s, %d written, %d in doubt",
			n, p.leader(r), politely, first.Round(time.Millisecond), w.gap.Round(time.Millisecond), len(w.acked), w.maybe)
		if w.gap > 10*time.Second {
			t.Errorf("nothing was written for %s", w.gap)
		}
	}
}
