package live_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
	"github.com/volant-edge/volant/volanttest/memnet"
)

const ms = time.Millisecond

func node(i int) volant.NodeID { return volant.NodeID(fmt.Sprintf("%08x", i+1)) }

func addr(i int) netip.AddrPort { return netip.AddrPortFrom(volant.MeshAddr(node(i)), volant.LivePort) }

// sea is a network with delay, loss, copies and cuts. Its zero value is calm.
type sea struct {
	net memnet.Network
	mu  sync.Mutex
	rnd *rand.Rand

	delay, jitter time.Duration // one way
	loss, twice   float64
	cut           map[[2]netip.AddrPort]bool
	bytes         map[netip.AddrPort]int
	sent          map[netip.AddrPort]int
}

func newSea(delay time.Duration) *sea {
	s := &sea{
		delay: delay, rnd: rand.New(rand.NewPCG(1, 2)), cut: map[[2]netip.AddrPort]bool{},
		bytes: map[netip.AddrPort]int{}, sent: map[netip.AddrPort]int{},
	}
	s.net.SetWeather(s.weather)
	return s
}

func (s *sea) weather(from, to netip.AddrPort, size int) []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes[from] += size
	s.sent[from]++
	if s.cut[[2]netip.AddrPort{from, to}] || s.rnd.Float64() < s.loss {
		return nil
	}
	one := func() time.Duration {
		if s.jitter == 0 {
			return s.delay
		}
		return s.delay + time.Duration(s.rnd.Int64N(int64(s.jitter)))
	}
	out := []time.Duration{one()}
	if s.rnd.Float64() < s.twice {
		out = append(out, one())
	}
	return out
}

// set changes the weather.
func (s *sea) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *sea) sever(a, b int, cut bool) {
	s.set(func() {
		s.cut[[2]netip.AddrPort{addr(a), addr(b)}] = cut
		s.cut[[2]netip.AddrPort{addr(b), addr(a)}] = cut
	})
}

// ship is a node under test: a Feed and what it told.
type ship struct {
	*live.Feed
	stop func()

	mu    sync.Mutex
	facts map[volant.NodeID]map[live.Key]live.Fact
	told  []live.Fact
	when  []time.Time
	peers []live.PeerState
}

func launch(t *testing.T, s *sea, i int, epoch uint64, peers ...live.Peer) *ship {
	t.Helper()
	sh := &ship{Feed: live.New(live.Config{Node: node(i), Epoch: epoch}), facts: map[volant.NodeID]map[live.Key]live.Fact{}}
	sh.SetPeers(peers)
	conn, err := s.net.ListenPacket(t.Context(), addr(i))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := sh.Run(ctx, conn, live.Events{Fact: sh.fact, Peer: sh.peer}); err != nil {
			t.Error(err)
		}
	}()
	sh.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		conn.Close()
	})
	t.Cleanup(sh.stop)
	return sh
}

func (sh *ship) fact(f live.Fact) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.told, sh.when = append(sh.told, f), append(sh.when, time.Now())
	of := sh.facts[f.Node]
	if of == nil {
		of = map[live.Key]live.Fact{}
		sh.facts[f.Node] = of
	}
	if f.Gone {
		delete(of, f.Key)
	} else {
		of[f.Key] = f
	}
}

func (sh *ship) peer(p live.PeerState) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.peers = append(sh.peers, p)
}

func (sh *ship) take() (told []live.Fact, when []time.Time) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	told, when = sh.told, sh.when
	sh.told, sh.when = nil, nil
	return told, when
}

func (sh *ship) takePeers() []live.PeerState {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	out := sh.peers
	sh.peers = nil
	return out
}

// bodies are the facts of a node as they were told, by ID.
func (sh *ship) bodies(of int) map[string]string {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	out := map[string]string{}
	for k, f := range sh.facts[node(of)] {
		out[k.ID] = string(f.Body)
	}
	return out
}

func peer(i int, want live.Kinds) live.Peer {
	return live.Peer{Node: node(i), Addr: addr(i), Want: want}
}

func route(id, body string) live.Fact {
	return live.Fact{Key: live.Key{Kind: live.Route, ID: id}, Body: []byte(body)}
}

func set(t *testing.T, f *ship, facts ...live.Fact) {
	t.Helper()
	if err := f.Set(facts...); err != nil {
		t.Fatal(err)
	}
}

var routes = live.KindsOf(live.Route)

// couple is a writer and a reader that know each other.
func couple(t *testing.T, s *sea) (writer, reader *ship) {
	t.Helper()
	writer = launch(t, s, 0, 1, peer(1, 0))
	reader = launch(t, s, 1, 1, peer(0, routes))
	time.Sleep(5 * time.Second)
	return writer, reader
}

func TestAChangeIsTheRestOfARoundTripAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, r := couple(t, newSea(20*ms))
		begun := time.Now()
		set(t, w, route("m1", "a"))
		time.Sleep(time.Second)
		told, when := r.take()
		if len(told) != 1 || told[0].Key.ID != "m1" || told[0].Node != node(0) || when[0].Sub(begun) != 20*ms {
			t.Errorf("told %v after %v, want m1 after 20ms", told, when[0].Sub(begun))
		}
	})
}

func TestFollowersWaitForCompany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSea(20 * ms)
		w, r := couple(t, s)
		begun := time.Now()
		set(t, w, route("m1", "a"))
		s.set(func() { clear(s.sent) })
		for i := range 30 {
			time.Sleep(ms)
			set(t, w, route("m1", fmt.Sprint(i)), route("m2", fmt.Sprint(i)))
		}
		time.Sleep(500 * ms)
		told, when := r.take()
		if len(told) != 3 || when[1].Sub(begun) != 70*ms || when[2].Sub(begun) != 70*ms || string(told[1].Body) != "29" {
			t.Errorf("told %v at %v, want the last of both after 70ms", told, when)
		}
		s.set(func() {
			if s.sent[addr(0)] > 3 { // with a heartbeat or a digest
				t.Errorf("%d datagrams for 30 changes", s.sent[addr(0)])
			}
		})
	})
}

func TestOnlyWantedKindsOfNamedPeersComeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSea(ms)
		w, r := couple(t, s)
		stranger := launch(t, s, 2, 9, peer(1, routes))
		set(t, stranger, route("m9", "x"))
		set(t, w, route("m1", "a"), live.Fact{Key: live.Key{Kind: live.Have, ID: "m1"}, Body: []byte("b")})
		time.Sleep(3 * time.Second)
		if got := r.Facts(); len(got) != 1 || got[0].Key != (live.Key{Kind: live.Route, ID: "m1"}) {
			t.Errorf("known: %v, want the one route", got)
		}
		if n := r.Numbers(); n.Refused == 0 {
			t.Error("nothing of the stranger was refused")
		}
		r.SetPeers([]live.Peer{peer(0, routes|live.KindsOf(live.Have))})
		time.Sleep(time.Second)
		if got := r.Facts(live.Have); len(got) != 1 {
			t.Errorf("known after the wish for more: %v", got)
		}
		r.take()
		r.SetPeers(nil)
		time.Sleep(time.Second)
		told, _ := r.take()
		if len(told) != 2 || !told[0].Gone || !told[1].Gone || len(r.Facts()) != 0 {
			t.Errorf("a peer that is no more: told %v", told)
		}
	})
}

func TestGoneFactsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, r := couple(t, newSea(ms))
		set(t, w, route("m1", "a"), route("m2", "b"))
		time.Sleep(time.Second)
		set(t, w, live.Fact{Key: live.Key{Kind: live.Route, ID: "m1"}, Gone: true})
		time.Sleep(time.Second)
		if diff := cmp.Diff(map[string]string{"m2": "b"}, r.bodies(0)); diff != "" {
			t.Error(diff)
		}
		for range 3 { // an index is used again
			set(t, w, route("m3", "c"))
			time.Sleep(2 * time.Second)
			set(t, w, live.Fact{Key: live.Key{Kind: live.Route, ID: "m3"}, Gone: true})
			time.Sleep(2 * time.Second)
		}
		if err := w.SetAll(routes, route("m4", "d")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if diff := cmp.Diff(map[string]string{"m4": "d"}, r.bodies(0)); diff != "" {
			t.Error(diff)
		}
		if n := r.Numbers(); n.Mismatch != 0 {
			t.Errorf("%d digests differed", n.Mismatch)
		}
	})
}

func TestOlderVersionsAreNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, r := couple(t, newSea(ms))
		at := func(epoch, seq uint64, body string) live.Fact {
			f := route("m1", body)
			f.Version = live.Version{Epoch: epoch, Seq: seq}
			return f
		}
		set(t, w, at(2, 5, "new"))
		set(t, w, at(2, 4, "old"))
		set(t, w, at(1, 9, "older"))
		set(t, w, at(2, 5, "same"))
		time.Sleep(time.Second)
		set(t, w, at(3, 1, "newest"))
		time.Sleep(time.Second)
		told, _ := r.take()
		if len(told) != 2 || string(told[0].Body) != "new" || string(told[1].Body) != "newest" {
			t.Errorf("told %v", told)
		}
	})
}

func TestFactsOutOfBoundsAreRefused(t *testing.T) {
	f := live.New(live.Config{Node: node(0), Epoch: 1})
	for name, fact := range map[string]live.Fact{
		"no kind":   {Key: live.Key{ID: "x"}},
		"no ID":     {Key: live.Key{Kind: live.Route}},
		"long ID":   {Key: live.Key{Kind: live.Route, ID: string(make([]byte, live.MaxID+1))}},
		"long body": {Key: live.Key{Kind: live.Route, ID: "x"}, Body: make([]byte, live.MaxBody+1)},
	} {
		if err := f.Set(fact); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := f.Set(live.Fact{Key: live.Key{Kind: live.Route, ID: string(make([]byte, live.MaxID))}, Body: make([]byte, live.MaxBody)}); err != nil {
		t.Errorf("the largest: %v", err)
	}
}

func TestManyLargeFactsComeOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSea(50 * ms)
		s.loss = 0.05
		w, r := couple(t, s)
		var facts []live.Fact
		for i := range 300 {
			facts = append(facts, route(fmt.Sprintf("%96d", i), string(make([]byte, live.MaxBody))))
		}
		set(t, w, facts...)
		time.Sleep(10 * time.Second)
		if n := len(r.Facts()); n != 300 {
			t.Errorf("%d of 300 are there", n)
		}
		if n := w.Numbers(); n.Behind != 0 {
			t.Errorf("%d are not acknowledged", n.Behind)
		}
	})
}

func TestSilenceIsToldAndTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSea(5 * ms)
		w, r := couple(t, s)
		set(t, w, route("m1", "a"))
		time.Sleep(3 * time.Second)
		r.takePeers()
		r.take()
		s.sever(0, 1, true)
		cut := time.Now()
		time.Sleep(4900 * ms) // the last was heard up to a second before
		if got := r.takePeers(); len(got) != 0 {
			t.Errorf("told %v within 5s of silence", got)
		}
		time.Sleep(1200 * ms)
		if got := r.takePeers(); len(got) != 1 || !got[0].Silent || got[0].Heard.After(cut.Add(5*ms)) {
			t.Errorf("told %v after 6s of silence", got)
		}
		set(t, w, route("m1", "b"), route("m2", "c"))
		time.Sleep(90 * time.Second)
		set(t, w, live.Fact{Key: live.Key{Kind: live.Route, ID: "m1"}, Gone: true})
		time.Sleep(90 * time.Second) // longer than an end is remembered
		if told, _ := r.take(); len(told) != 0 {
			t.Errorf("told %v in silence", told)
		}
		s.sever(0, 1, false)
		time.Sleep(3 * time.Second)
		if diff := cmp.Diff(map[string]string{"m2": "c"}, r.bodies(0)); diff != "" {
			t.Error(diff)
		}
		if got := r.takePeers(); len(got) == 0 || got[0].Silent {
			t.Errorf("told %v after the cut", got)
		}
	})
}

func TestAWriterThatRestartsIsBelievedWhenItHasSaidAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSea(5 * ms)
		w, r := couple(t, s)
		if err := w.SetAll(routes, route("m1", "a"), route("m2", "b"), route("m3", "c")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		r.takePeers()
		r.take()
		w.stop()
		w = launch(t, s, 0, 2, peer(1, 0))
		time.Sleep(10 * time.Second)
		set(t, w, route("m1", "a2"))
		time.Sleep(10 * time.Second)
		want := map[string]string{"m1": "a2", "m2": "b", "m3": "c"}
		if diff := cmp.Diff(want, r.bodies(0)); diff != "" {
			t.Errorf("before it has said all: %s", diff)
		}
		if got := r.takePeers(); len(got) == 0 || got[0].Epoch != 2 || got[0].Silent {
			t.Errorf("told of the epoch: %v", got)
		}
		if err := w.SetAll(routes, route("m1", "a2"), route("m2", "b2")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		delete(want, "m3")
		want["m2"] = "b2"
		if diff := cmp.Diff(want, r.bodies(0)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAReaderThatRestartsHearsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSea(5 * ms)
		w, r := couple(t, s)
		set(t, w, route("m1", "a"), route("m2", "b"))
		time.Sleep(time.Second)
		r.stop()
		time.Sleep(time.Second)
		r = launch(t, s, 1, 2, peer(0, routes))
		time.Sleep(1100 * ms)
		if diff := cmp.Diff(map[string]string{"m1": "a", "m2": "b"}, r.bodies(0)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestRoundTripsAreMeasured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSea(40 * ms)
		w, r := couple(t, s)
		for _, f := range []*ship{w, r} {
			if got := f.Peers()[0]; (got.RTT-80*ms).Abs() > ms || (got.MinRTT-80*ms).Abs() > ms {
				t.Errorf("round trip %v, least %v, want 80ms", got.RTT, got.MinRTT)
			}
		}
		r.takePeers()
		s.set(func() { s.delay = 10 * ms })
		time.Sleep(time.Minute)
		if got := r.Peers()[0]; (got.RTT - 20*ms).Abs() > ms {
			t.Errorf("round trip %v, want 20ms", got.RTT)
		}
		if got := r.takePeers(); len(got) == 0 || len(got) > 2 || (got[len(got)-1].Distance()-20*ms).Abs() > ms {
			t.Errorf("a shorter way was told as %v", got)
		}
		s.set(func() { s.delay = 15 * ms }) // it may be that they are busy, or that the way is longer
		time.Sleep(20 * time.Second)
		if got := r.takePeers(); len(got) != 0 {
			t.Errorf("a slow moment was told as %v", got)
		}
		time.Sleep(3 * time.Minute)
		if got := r.takePeers(); len(got) != 1 || (got[0].Distance()-30*ms).Abs() > ms {
			t.Errorf("a longer way was told as %v", got)
		}
		s.set(func() { s.delay = 100 * ms })
		time.Sleep(20 * time.Second)
		if got := r.takePeers(); len(got) == 0 || got[len(got)-1].Distance() < 150*ms {
			t.Errorf("a way that is much longer was told as %v", got)
		}
	})
}
