package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
	"github.com/volant-edge/volant/store/storetest"
)

// external returns a store under its own prefix of the etcd on node 1.
func (p *planet) external(t *testing.T, floor store.Revision) *etcd.Remote {
	t.Helper()
	r := etcd.NewRemote(etcd.RemoteConfig{Endpoints: p.endpoints(1), External: true, Prefix: t.Name() + "/", Floor: floor})
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func TestRemoteConformance(t *testing.T) {
	storetest.Test(t, func(t *testing.T) store.Store {
		t.Parallel()
		p := newPlanet(t)
		p.start(1, nil)
		r := p.external(t, store.Revision{})
		if err := r.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return r
	})
}

// An external etcd that has lost the intent, or is of before a restore, is not used.
func TestRemoteFloor(t *testing.T) {
	t.Parallel()
	p := newPlanet(t)
	p.start(1, nil)
	r := p.external(t, store.Revision{Epoch: 1, Rev: 5})
	if err := r.Start(t.Context()); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("an empty etcd for a node that has seen more: %v", err)
	}
	if _, err := r.Get(t.Context(), "a"); !errors.Is(err, volant.ErrUnavailable) || !strings.Contains(err.Error(), "restore") {
		t.Errorf("get: %v", err)
	}
	r = p.external(t, store.Revision{})
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	rev, err := r.Commit(t.Context(), store.Op{Key: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.external(t, rev).Start(t.Context()); err != nil {
		t.Errorf("what it has seen: %v", err)
	}
	if err := p.external(t, store.Revision{Epoch: 2, Rev: 1}).Start(t.Context()); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("of an older epoch: %v", err)
	}
	if _, err := r.AddMember(t.Context(), "00000001", p.at(1)); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("members of an external etcd: %v", err)
	}
}

// A store that was restored under a newer epoch is followed, and nothing read before is written there.
func TestRemoteFollowsARestore(t *testing.T) {
	t.Parallel()
	p := newPlanet(t)
	p.start(1, nil)
	seeder, r := p.external(t, store.Revision{}), p.external(t, store.Revision{})
	for _, x := range []*etcd.Remote{seeder, r} {
		if err := x.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	look2(t, r)
	rev, err := r.Commit(t.Context(), store.Op{Key: "a", Value: []byte("1")})
	if err != nil {
		t.Fatal(err)
	}
	watched := make(chan error, 1)
	go func() { watched <- r.Watch(t.Context(), "", rev, func(store.Batch) error { return nil }) }()
	if _, err := r.Commit(t.Context(), store.Op{Verb: store.Erase, Key: "a", Expect: rev}); err != nil { // whoever restores empties it
		t.Fatal(err)
	}
	if _, err := seeder.Seed(t.Context(), 2, []store.Entry{{Key: "a", Value: []byte("1")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Commit(t.Context(), store.Op{Key: "b"}); !errors.Is(err, volant.ErrUnavailable) {
		t.Errorf("commit in the old epoch: %v", err)
	}
	if err := <-watched; !errors.Is(err, volant.ErrUnavailable) {
		t.Errorf("watch: %v", err)
	}
	var e store.Entry
	within(t, "followed", func() bool {
		e, err = r.Get(t.Context(), "a")
		return err == nil && e.Mod.Epoch == 2
	})
	if _, err := r.Commit(t.Context(), store.Op{Key: "a", Expect: rev}); !errors.Is(err, volant.ErrConflict) {
		t.Errorf("revision of the old epoch: %v", err)
	}
	if err := r.Watch(t.Context(), "", rev, func(store.Batch) error { return nil }); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("watch from the old epoch: %v", err)
	}
}

func look2(t *testing.T, r *etcd.Remote) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// With no member to be reached every call ends soon, and with one it goes on by itself.
func TestRemoteDown(t *testing.T) {
	t.Parallel()
	p := newPlanet(t)
	r := etcd.NewRemote(etcd.RemoteConfig{Dial: p.dialer(9)})
	defer r.Close() // the test is over
	look2(t, r)
	if _, err := r.Get(t.Context(), "a"); !errors.Is(err, volant.ErrUnavailable) {
		t.Errorf("without endpoints: %v", err)
	}
	r.SetEndpoints(p.endpoints(1, 2))
	if _, err := r.Get(t.Context(), "a"); !errors.Is(err, volant.ErrUnavailable) {
		t.Errorf("nobody listens: %v", err)
	}
	p.start(1, nil)
	within(t, "up", func() bool { return r.Down() == nil })
	if _, err := r.Commit(t.Context(), store.Op{Key: "a"}); err != nil {
		t.Error(err)
	}
	r.SetEndpoints(nil) // no news
	if _, err := r.Get(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if testing.Short() {
		return
	}
	p.stop(1, true)
	within(t, "down", func() bool { return r.Down() != nil })
	p.start(1, nil)
	within(t, "up again", func() bool { return r.Down() == nil })
}

// Members that hang or are cut off are left within seconds, by calls and by watches.
func TestRemoteLeavesBadMembers(t *testing.T) {
	if testing.Short() {
		t.Skip("members are added at most every 5 s")
	}
	t.Parallel()
	p := newPlanet(t)
	first := p.start(1, nil)
	p.join(first, 2)
	p.join(first, 3)
	r := p.remote(9, 1, 2, 3)
	rev := put2(t, r, "a")
	for _, bad := range []string{"cut from the others", "hangs"} {
		t.Logf("leader %d: %s", p.leader(r), bad)
		var mend func()
		n := p.leader(r)
		if bad == "hangs" {
			mend = p.hang(n)
		} else { // the Remote still reaches it
			p.setCut(true, []int{n}, []int{1, 2, 3})
			mend = func() { p.setCut(false, []int{n}, []int{1, 2, 3}) }
		}
		var slowest time.Duration
		for i := range 10 {
			began := time.Now()
			key := fmt.Sprintf("%s/%d", strings.ReplaceAll(bad, " ", "-"), i)
			for {
				_, err := r.Commit(t.Context(), store.Op{Key: key})
				if err == nil || errors.Is(err, volant.ErrExists) {
					break
				}
				if !errors.Is(err, volant.ErrUnavailable) {
					t.Fatal(err)
				}
			}
			slowest = max(slowest, time.Since(began))
		}
		began := time.Now()
		for ok := false; !ok; {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			err := r.Watch(ctx, "", rev, func(b store.Batch) error {
				if slices.ContainsFunc(b.Events, func(e store.Event) bool { return strings.HasSuffix(e.Key, "/9") && strings.HasPrefix(e.Key, bad[:3]) }) {
					return errors.New("seen")
				}
				return nil
			})
			cancel()
			ok = err != nil && err.Error() == "seen"
			if errors.Is(err, context.DeadlineExceeded) {
				t.Fatal("the watch told nothing and did not end")
			}
		}
		t.Logf("%s: slowest write %s, watch %s", bad, slowest, time.Since(began))
		if slowest > 20*time.Second {
			t.Errorf("%s: a write took %s", bad, slowest)
		}
		mend()
		within(t, "all are well", func() bool {
			ms, err := r.Members(t.Context())
			return err == nil && !slices.ContainsFunc(ms, func(m etcd.Member) bool { return !m.Healthy })
		})
	}
}

// Nothing is left running of stores that were closed.
func TestNothingLeaks(t *testing.T) {
	p := newPlanet(t)
	run := func(t *testing.T) {
		p.t = t
		p.start(1, nil)
		r := p.remote(9, 1)
		rev := put2(t, r, fmt.Sprint("k", time.Now().UnixNano()))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Watch(ctx, "", rev, func(store.Batch) error { return nil }) }()
		time.Sleep(50 * time.Millisecond)
		cancel()
		<-done
	}
	t.Run("warm", run) // what etcd and gRPC start once
	before := runtime.NumGoroutine()
	for range 3 {
		t.Run("again", run)
	}
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, before %d\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}
