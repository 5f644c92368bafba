package etcd_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
	"github.com/volant-edge/volant/store/local"
)

// seats are nodes whose place in the store follows who is to have a member.
type seats struct {
	*planet
	control map[int]bool
	gone    map[int]bool
	nodes   map[int]*seated
}

type seated struct {
	*etcd.Seat
	copy *local.Copy
	stop func()
}

func newSeats(t *testing.T) *seats {
	t.Helper()
	return &seats{planet: newPlanet(t), control: map[int]bool{1: true}, gone: map[int]bool{}, nodes: map[int]*seated{}}
}

func (p *seats) wish(n int) (w etcd.Wish) {
	w.Member = p.control[n]
	for m := range p.control {
		if m != n && p.control[m] {
			w.Endpoints = append(w.Endpoints, p.endpoints(m)...)
		}
	}
	for m := range p.gone {
		w.Gone = append(w.Gone, p.name(m))
	}
	return w
}

// role gives a node the control role, or takes it.
func (p *seats) role(n int, control bool) {
	p.control[n], p.gone[n] = control, !control
	if control {
		delete(p.gone, n)
	}
	for m, s := range p.nodes {
		s.SetWish(p.wish(m))
	}
}

// up starts a node with its copy of the intent, as a server does.
func (p *seats) up(n int) *seated {
	p.t.Helper()
	copied, err := local.Open(local.Config{Path: filepath.Join(p.dir, "copy-"+string(p.name(n)))})
	if err != nil {
		p.t.Fatal(err)
	}
	member := p.config(n)
	s := etcd.NewSeat(etcd.SeatConfig{
		Member: member, Remote: etcd.RemoteConfig{Dial: p.dialer(n)}, Joined: n != 1, Floor: copied.Revision,
		Log: slog.New(slog.NewTextHandler(testWriter{p.t}, &slog.HandlerOptions{Level: slog.LevelInfo})),
	})
	s.SetWish(p.wish(n))
	opening, cancelOpening := context.WithTimeout(p.t.Context(), 5*time.Second)
	defer cancelOpening()
	if err := s.Start(opening); err != nil && !errors.Is(err, volant.ErrUnavailable) {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })         //nolint:errcheck // it returns nil
	wg.Go(func() { copied.Run(ctx, s) }) //nolint:errcheck // it returns nil
	nd := &seated{Seat: s, copy: copied, stop: sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := errors.Join(s.Close(), copied.Close()); err != nil {
			p.t.Error(err)
		}
	})}
	p.t.Cleanup(nd.stop)
	p.nodes[n] = nd
	return nd
}

func (p *seats) down(n int) {
	p.nodes[n].stop()
	delete(p.nodes, n)
}

// seatsOn waits until just these nodes have members, all with a vote.
func (p *seats) seatsOn(ask int, want ...int) {
	p.t.Helper()
	within(p.t, "members", func() bool {
		ms, err := p.nodes[ask].Members(p.t.Context())
		if err != nil || len(ms) != len(want) {
			return false
		}
		for i, m := range ms {
			if m.Node != p.name(want[i]) || m.Learner || !m.Healthy {
				return false
			}
		}
		for _, n := range want {
			if !p.nodes[n].Own() {
				return false
			}
		}
		return true
	})
}

// Who has a member follows the roles, on running nodes; the copies of all follow the store, whoever has it.
func TestSeatsFollowRoles(t *testing.T) {
	t.Parallel()
	p := newSeats(t)
	one, two := p.up(1), p.up(2)
	terms := store.NewTerms(two, store.TermConfig{Owner: "two"})
	if _, err := terms.Try(t.Context(), "app/a"); err != nil { // a term holds from any node
		t.Fatal(err)
	}
	other := store.NewTerms(one, store.TermConfig{Owner: "one"})
	if _, err := other.Try(t.Context(), "app/a"); !errors.Is(err, volant.ErrLeased) {
		t.Errorf("a term that another node holds: %v", err)
	}
	w := write1(t, two, "two")
	if two.Own() {
		t.Error("a node without the role has a member")
	}
	p.role(2, true)
	p.seatsOn(2, 1, 2)
	if testing.Short() { // members are removed at most every 5 s
		w.check(t, one)
		return
	}
	p.role(1, false) // of the first, which leads
	p.seatsOn(2, 2)
	within(t, "the first is served by the other", func() bool { return !one.Own() && one.Down() == nil })
	if one.Own() {
		t.Error("a node that lost the role still has a member")
	}
	rev := put2(t, one, "last")
	for _, n := range []int{1, 2} {
		within(t, "the copy follows", func() bool { return !p.nodes[n].copy.Revision().Before(rev) })
	}
	w.check(t, one)
	t.Logf("%d written, longest gap %s, %d in doubt", len(w.acked), w.gap, w.maybe)
}

func put2(t *testing.T, s store.Store, key string) (rev store.Revision) {
	t.Helper()
	within(t, "written", func() bool {
		var err error
		rev, err = s.Commit(t.Context(), store.Op{Key: key})
		return err == nil
	})
	return rev
}

// A node whose member's directory is lost gets another one, and one that was stopped while the store was restored
// elsewhere follows that one.
func TestLostAndRestoredSeats(t *testing.T) {
	if testing.Short() {
		t.Skip("members come and go at most every 5 s")
	}
	t.Parallel()
	p := newSeats(t)
	p.up(1)
	p.up(2)
	p.role(2, true)
	p.seatsOn(1, 1, 2)
	rev := put2(t, p.nodes[2], "a")
	within(t, "copied", func() bool { return !p.nodes[1].copy.Revision().Before(rev) && !p.nodes[2].copy.Revision().Before(rev) })
	// The second is lost for good, and with it the majority. The first is restored from its copy.
	p.down(2)
	p.down(1)
	p.restore(1)
	p.up(1)
	p.seatsOn(1, 1)
	// The second comes back after all, with its member of the old store.
	p.up(2)
	p.seatsOn(1, 1, 2)
	if e, err := p.nodes[2].Get(t.Context(), "a"); err != nil || e.Mod.Epoch != 2 {
		t.Errorf("a: %+v, %v", e, err)
	}
	// With a third, the directory of one that runs is lost: it is served by the others, and gets another member.
	p.up(3)
	p.role(3, true)
	p.seatsOn(1, 1, 2, 3)
	if err := os.Rename(p.config(2).Dir, p.config(2).Dir+".away"); err != nil {
		t.Fatal(err)
	}
	within(t, "it is down", func() bool { _, err := p.nodes[2].Commit(t.Context(), store.Op{Key: "b"}); return err != nil })
	within(t, "others serve it", func() bool { return !p.nodes[2].Own() && p.nodes[2].Down() == nil })
	p.down(2)
	p.up(2)
	p.seatsOn(1, 1, 2, 3)
	if e, err := p.nodes[2].Get(t.Context(), "a"); err != nil || e.Mod.Epoch != 2 {
		t.Errorf("a: %+v, %v", e, err)
	}
}

// A member whose node runs on while the store is restored elsewhere is given up for that one.
func TestRestoredWhileRunning(t *testing.T) {
	if testing.Short() {
		t.Skip("members come and go at most every 5 s")
	}
	t.Parallel()
	p := newSeats(t)
	p.up(1)
	p.up(2)
	p.role(2, true)
	p.seatsOn(1, 1, 2)
	rev := put2(t, p.nodes[2], "a")
	within(t, "copied", func() bool { return !p.nodes[1].copy.Revision().Before(rev) })
	p.down(1)
	p.restore(1)
	p.up(1)
	p.seatsOn(1, 1, 2)
	if e, err := p.nodes[2].Get(t.Context(), "a"); err != nil || e.Mod.Epoch != 2 {
		t.Errorf("a: %+v, %v", e, err)
	}
	within(t, "the copy follows", func() bool { return p.nodes[2].copy.Revision().Epoch == 2 })
}

// restore does what volant control restore does on a node that is down.
func (p *seats) restore(n int) {
	p.t.Helper()
	if _, err := etcd.SetAside(p.config(n).Dir); err != nil {
		p.t.Fatal(err)
	}
	fresh, err := etcd.Open(p.t.Context(), etcd.Config{Dir: p.config(n).Dir})
	if err != nil {
		p.t.Fatal(err)
	}
	done, err := local.Restore(p.t.Context(), filepath.Join(p.dir, "copy-"+string(p.name(n))), fresh, false)
	if err != nil || done.To.Epoch != done.From.Epoch+1 {
		p.t.Fatalf("%+v, %v", done, err)
	}
	if err := fresh.Close(); err != nil {
		p.t.Fatal(err)
	}
}
