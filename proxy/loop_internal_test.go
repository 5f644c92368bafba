package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/why"
)

// site is a running proxy on loopback with one app whose machine is a server of the test.
type site struct {
	t     *testing.T
	p     *Proxy
	front netip.AddrPort
	app   net.Listener
	table Table
}

func newSite(t *testing.T, soft, hard int, change ...func(*Proxy)) *site {
	t.Helper()
	p, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(p)
	}
	app, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hold, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, p: p, app: app, front: hold.Addr().(*net.TCPAddr).AddrPort()}
	hold.Close()
	at := app.Addr().(*net.TCPAddr).AddrPort()
	s.table = Table{Version: 1, Region: "ams", Apps: []App{{
		ID: "app_1", Name: "web", MaxQueue: 20000, MaxPerPeer: 20000,
		Services: []Service{{Listen: []netip.AddrPort{s.front}, InternalPort: at.Port(), Soft: soft, Hard: hard}},
		Machines: []Machine{{ID: "00000000000001", Seq: 1, Phase: PhaseServing, Addr: at.Addr()}},
	}}}
	if err := p.SetTable(t.Context(), s.table); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		app.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if n := p.open.Load(); n != 0 {
			t.Errorf("%d connections are open after the end", n)
		}
	})
	return s
}

func (s *site) dial() *net.TCPConn {
	s.t.Helper()
	for range 2000 {
		c, err := net.Dial("tcp", s.front.String())
		if err == nil {
			s.t.Cleanup(func() { c.Close() })
			s.must(c.SetDeadline(time.Now().Add(20 * time.Second)))
			return c.(*net.TCPConn)
		}
		time.Sleep(time.Millisecond)
	}
	s.t.Fatal("the proxy does not listen")
	return nil
}

// must fails the test at an error. It may be called in any goroutine.
func (s *site) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Error(err)
	}
}

// write writes all of b. It may be called in any goroutine.
func (s *site) write(c net.Conn, b []byte) {
	s.t.Helper()
	if _, err := c.Write(b); err != nil {
		s.t.Errorf("write: %v", err)
	}
}

// reset closes with RST.
func (s *site) reset(c *net.TCPConn) {
	s.t.Helper()
	s.must(c.SetLinger(0))
	s.must(c.Close())
}

func (s *site) accept() *net.TCPConn {
	s.t.Helper()
	c, err := s.app.Accept()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	s.must(c.SetDeadline(time.Now().Add(20 * time.Second)))
	return c.(*net.TCPConn)
}

// pair returns both ends of a connection through the proxy, which one byte has passed each way.
func (s *site) pair() (client, machine *net.TCPConn) {
	s.t.Helper()
	client, machine = s.dial(), s.accept()
	for _, c := range [][2]*net.TCPConn{{client, machine}, {machine, client}} {
		s.write(c[0], []byte("x"))
		if _, err := io.ReadFull(c[1], make([]byte, 1)); err != nil {
			s.t.Fatal(err)
		}
	}
	return client, machine
}

func (s *site) held() int {
	slots, _ := s.p.Slots(context.Background())
	return slots["00000000000001"]
}

func (s *site) eventually(what string, ok func() bool) {
	s.t.Helper()
	for range 4000 {
		if ok() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	s.t.Fatalf("never: %s", what)
}

// endsAs waits for the newest connection's record to say how it ended.
func (s *site) endsAs(how end) {
	s.t.Helper()
	s.eventually("it ended as: "+how.String(), func() bool {
		recs, err := s.p.Query(context.Background(), why.Query{Limit: 1})
		return err == nil && len(recs) == 1 && recs[0].Attrs["end"] == how.String()
	})
}

func TestLoopCarriesEveryByteBothWays(t *testing.T) {
	s := newSite(t, 20, 25)
	const total = 24 << 20
	send := func(c *net.TCPConn, seed uint64) []byte {
		r, sum := rand.New(rand.NewPCG(seed, 1)), sha256.New()
		buf := make([]byte, 256<<10)
		for left := total; left > 0; {
			n := min(left, 1+r.IntN(len(buf)))
			for i := 0; i < n; i += 97 {
				buf[i] = byte(r.Uint32())
			}
			sum.Write(buf[:n])
			if _, err := c.Write(buf[:n]); err != nil {
				t.Errorf("write: %v", err)
			}
			left -= n
		}
		s.must(c.CloseWrite())
		return sum.Sum(nil)
	}
	receive := func(c *net.TCPConn, slow bool) []byte {
		sum := sha256.New()
		buf := make([]byte, 100_003)
		for {
			n, err := c.Read(buf)
			sum.Write(buf[:n])
			if err != nil {
				if !errors.Is(err, io.EOF) {
					t.Errorf("read: %v", err)
				}
				return sum.Sum(nil)
			}
			if slow {
				runtime.Gosched()
			}
		}
	}
	client, machine := s.pair()
	var up, down, gotUp, gotDown []byte
	var wg sync.WaitGroup
	wg.Go(func() { up = send(client, 1) })
	wg.Go(func() { down = send(machine, 2) })
	wg.Go(func() { gotUp = receive(machine, false) })
	wg.Go(func() { gotDown = receive(client, true) })
	wg.Wait()
	if !bytes.Equal(up, gotUp) || !bytes.Equal(down, gotDown) {
		t.Error("bytes were lost or changed")
	}
	s.eventually("the slot is free", func() bool { return s.held() == 0 })
	s.endsAs(endBoth)
}

func TestLoopHalfCloseEitherWay(t *testing.T) {
	s := newSite(t, 20, 25)
	for _, first := range []string{"client", "machine"} {
		client, machine := s.pair()
		a, b := client, machine
		if first == "machine" {
			a, b = b, a
		}
		s.write(a, []byte("ask"))
		s.must(a.CloseWrite())
		if got, err := io.ReadAll(b); err != nil || string(got) != "ask" {
			t.Fatalf("%s first: read %q, %v", first, got, err)
		}
		if s.held() != 1 {
			t.Errorf("%s first: %d slots while one side is open, want 1", first, s.held())
		}
		s.write(b, []byte("answer"))
		b.Close()
		if got, err := io.ReadAll(a); err != nil || string(got) != "answer" {
			t.Fatalf("%s first: read %q, %v", first, got, err)
		}
		a.Close()
		s.eventually("the slot is free", func() bool { return s.held() == 0 })
	}
}

func TestLoopClientResetGivesTheMachineTimeThenResetsIt(t *testing.T) {
	s := newSite(t, 20, 25, func(p *Proxy) { p.times.linger = 100 * time.Millisecond })
	client, machine := s.pair()
	s.reset(client)
	if n, err := machine.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("machine read %d, %v; want the end", n, err)
	}
	if s.held() != 1 {
		t.Errorf("the slot was free before the machine's side closed")
	}
	s.eventually("the slot is free", func() bool { return s.held() == 0 })
	s.endsAs(endLinger)
	_, _ = machine.Write([]byte("x")) // it learns of the reset by this one or the next
	s.eventually("the machine is reset", func() bool {
		_, err := machine.Write([]byte("x"))
		return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
	})
}

func TestLoopClientResetWithAMachineThatCloses(t *testing.T) {
	s := newSite(t, 20, 25)
	client, machine := s.pair()
	s.reset(client)
	s.write(machine, make([]byte, 1<<20)) // to nobody
	_, err := io.Copy(io.Discard, machine)
	s.must(err)
	machine.Close()
	s.eventually("the slot is free", func() bool { return s.held() == 0 })
	s.endsAs(endClientReset)
}

func TestLoopClientResetAfterTheMachineClosedFreesTheSlotAtOnce(t *testing.T) {
	s := newSite(t, 20, 25, func(p *Proxy) { p.times.linger = time.Hour })
	client, machine := s.pair()
	machine.Close()
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("client read %v, want the end", err)
	}
	s.reset(client)
	s.eventually("the slot is free", func() bool { return s.held() == 0 && s.p.open.Load() == 0 })
}

func TestLoopMachineResetReachesTheClientAfterItsBytes(t *testing.T) {
	s := newSite(t, 20, 25)
	client, machine := s.pair()
	big := make([]byte, 3<<20)
	s.write(machine, big[:1000])
	go func() {
		s.write(machine, big[1000:])
		// Until the proxy has them, since a reset drops what is on the way to it.
		for {
			rc, err := machine.SyscallConn()
			s.must(err)
			unsent := 1
			s.must(rc.Control(func(fd uintptr) { unsent = sysUnsent(int32(fd)) }))
			if unsent == 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		s.reset(machine)
	}()
	n, err := io.Copy(io.Discard, client)
	if n != int64(len(big)) || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client read %d, %v; want %d and a reset", n, err, len(big))
	}
	s.eventually("the slot is free", func() bool { return s.held() == 0 })
	s.endsAs(endMachineReset)
}

func TestLoopHalfClosedAndSilentIsEnded(t *testing.T) {
	s := newSite(t, 20, 25, func(p *Proxy) { p.times.half, p.times.sweep = 200*time.Millisecond, 5*time.Millisecond })
	client, machine := s.pair()
	s.must(client.CloseWrite())
	for range 20 { // as long as something moves it goes on
		s.write(machine, []byte("x"))
		if _, err := client.Read(make([]byte, 1)); err != nil {
			t.Fatalf("read: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if n, err := client.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("client read %d, %v; want an end", n, err)
	}
	s.eventually("the slot is free", func() bool { return s.held() == 0 })
	s.endsAs(endHalfClosed)
}

func TestLoopSlotIsFreeThoughTheClientHasStillToRead(t *testing.T) {
	s := newSite(t, 20, 25)
	client, machine := s.pair()
	s.must(client.CloseWrite())
	_, err := io.Copy(io.Discard, machine)
	s.must(err)
	const total = 9 << 20
	var wrote atomic.Bool
	go func() {
		s.write(machine, make([]byte, total))
		machine.Close()
		wrote.Store(true)
	}()
	time.Sleep(50 * time.Millisecond)
	if n, err := io.Copy(io.Discard, client); n != total || err != nil {
		t.Errorf("client read %d, %v; want all", n, err)
	}
	s.eventually("the slot is free", func() bool { return s.held() == 0 && wrote.Load() })
}

func TestLoopProbesBothSides(t *testing.T) {
	s := newSite(t, 20, 25, func(p *Proxy) { p.times.sweep = time.Millisecond })
	client, machine := s.pair()
	s.write(client, []byte("y"))
	_, err := io.ReadFull(machine, make([]byte, 1))
	s.must(err)
	check := func(fd int32) bool {
		get := func(level, opt int) int {
			n, err := unix.GetsockoptInt(int(fd), level, opt)
			if err != nil {
				t.Error(err)
			}
			return n
		}
		return get(unix.SOL_SOCKET, unix.SO_KEEPALIVE) == 1 && get(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE) == 60 &&
			get(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL) == 10 && get(unix.IPPROTO_TCP, unix.TCP_KEEPCNT) == 3 &&
			get(unix.IPPROTO_TCP, unix.TCP_NODELAY) == 1
	}
	s.eventually("keep-alive is set on both sides", func() bool {
		ok := false
		s.p.mu.Lock()
		loops := s.p.loops
		s.p.mu.Unlock()
		for _, l := range loops {
			done := make(chan bool)
			l.do(func(l *loop) {
				f := l.flows.first
				done <- f != nil && f.m != nil && check(f.c.fd) && check(f.m.fd)
			})
			ok = <-done || ok
		}
		return ok
	})
}

func TestLoopRefusesWithFIN(t *testing.T) {
	s := newSite(t, 1, 1, func(p *Proxy) { p.times.farewell = time.Second })
	s.table.Apps[0].MaxQueue, s.table.Version = 1, 2
	if err := s.p.SetTable(t.Context(), s.table); err != nil {
		t.Fatal(err)
	}
	s.dial()
	s.accept()
	s.dial() // waits
	s.eventually("one waits", func() bool {
		s.p.mu.Lock()
		defer s.p.mu.Unlock()
		a := s.p.apps[appKey{id: "app_1"}]
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.waiting == 1
	})
	third := s.dial()
	s.write(third, []byte("GET / HTTP/1.1\r\n\r\n"))
	if n, err := io.Copy(io.Discard, third); n != 0 || err != nil {
		t.Errorf("refused client read %d, %v; want the end without a reset", n, err)
	}
	recs, _ := s.p.Query(t.Context(), why.Query{Kinds: []why.Kind{why.Refusal}})
	if len(recs) != 1 || recs[0].Rule != "queue_full" {
		t.Errorf("records %v, want queue_full", recs)
	}
}

func TestLoopWaitingClientThatLeavesGivesItsPlaceUp(t *testing.T) {
	s := newSite(t, 1, 1)
	first := s.dial()
	busy := s.accept()
	second, third := s.dial(), s.dial()
	waiting := func(n int) func() bool {
		return func() bool {
			s.p.mu.Lock()
			defer s.p.mu.Unlock()
			a := s.p.apps[appKey{id: "app_1"}]
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.waiting == n
		}
	}
	s.eventually("two wait", waiting(2))
	second.Close()
	s.eventually("one waits", waiting(1))
	s.write(third, []byte("early"))
	s.must(third.CloseWrite()) // a request and FIN: it may still read the answer
	first.Close()
	busy.Close()
	machine := s.accept()
	if got, err := io.ReadAll(machine); string(got) != "early" || err != nil {
		t.Errorf("machine read %q, %v", got, err)
	}
	s.write(machine, []byte("answer"))
	machine.Close()
	if got, err := io.ReadAll(third); string(got) != "answer" || err != nil {
		t.Errorf("client read %q, %v", got, err)
	}
}

func TestLoopClientThatLeavesWhileItIsConnected(t *testing.T) {
	s := newSite(t, 20, 25)
	for range 200 {
		c := s.dial()
		s.reset(c)
	}
	go func() {
		for {
			c, err := s.app.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(io.Discard, c) // until it ends, however it does
				c.Close()
			}()
		}
	}()
	s.eventually("all slots are free", func() bool { return s.held() == 0 && s.p.open.Load() == 0 })
}

// oracle is an app that counts its own connections.
type oracle struct {
	open, most, total atomic.Int64
}

func (o *oracle) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		n := o.open.Add(1)
		o.total.Add(1)
		for {
			m := o.most.Load()
			if n <= m || o.most.CompareAndSwap(m, n) {
				break
			}
		}
		go func() {
			_, _ = io.Copy(c, c) // until it ends, however it does
			o.open.Add(-1)
			c.Close()
		}()
	}
}

func TestLoopNeverAboveHardByTheAppsOwnCount(t *testing.T) {
	const machines, hard, atOnce = 3, 25, 400
	attempts := 10000
	if testing.Short() {
		attempts = 2000
	}
	s := newSite(t, 20, hard)
	port := s.app.Addr().(*net.TCPAddr).Port
	oracles := make([]*oracle, machines)
	s.table.Apps[0].Machines = nil
	for i := range oracles {
		oracles[i] = &oracle{}
		l := s.app
		addr := netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)})
		if i > 0 {
			var err error
			if l, err = net.Listen("tcp4", netip.AddrPortFrom(addr, uint16(port)).String()); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}
		go oracles[i].serve(l)
		s.table.Apps[0].Machines = append(s.table.Apps[0].Machines, Machine{
			ID: volant.MachineID(rune('a' + i)), Seq: 1, Phase: PhaseServing, Addr: addr,
		})
	}
	s.table.Version = 2
	if err := s.p.SetTable(t.Context(), s.table); err != nil {
		t.Fatal(err)
	}
	s.dial().Close()
	var served, refused, reset atomic.Int64
	var wg sync.WaitGroup
	work := make(chan struct{}, attempts)
	for range attempts {
		work <- struct{}{}
	}
	close(work)
	for i := range atOnce {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			for range work {
				c, err := net.Dial("tcp", s.front.String())
				if err != nil {
					t.Errorf("dial: %v", err)
					return
				}
				s.must(c.SetDeadline(time.Now().Add(60 * time.Second)))
				_, _ = c.Write([]byte("x")) // the read tells how it went
				switch _, err := io.ReadFull(c, make([]byte, 1)); {
				case err == nil:
					served.Add(1)
				case errors.Is(err, io.EOF):
					refused.Add(1)
				default:
					reset.Add(1)
				}
				if r.IntN(4) == 0 {
					s.must(c.(*net.TCPConn).SetLinger(0))
				}
				c.Close()
			}
		})
	}
	wg.Wait()
	for i, o := range oracles {
		if o.most.Load() > hard {
			t.Errorf("machine %d had %d connections at once by its own count, hard limit %d", i, o.most.Load(), hard)
		}
	}
	if served.Load() != int64(attempts) || refused.Load()+reset.Load() != 0 {
		t.Errorf("%d served, %d refused, %d reset of %d", served.Load(), refused.Load(), reset.Load(), attempts)
	}
	s.eventually("all slots are free", func() bool {
		slots, _ := s.p.Slots(context.Background())
		return len(slots) == 0
	})
}

// A guest that is no more closes nothing itself: when the table tells of another life, what it has sent is handed
// on, its client is reset and the slot is free. Connections to a guest that is kept go on, asleep or awake.
func TestLoopEndsConnectionsOfAGuestThatIsGone(t *testing.T) {
	s := newSite(t, 20, 25)
	client, machine := s.pair()
	tell := func(life uint64, phase Phase) {
		t.Helper()
		s.table.Version++
		m := &s.table.Apps[0].Machines[0]
		m.Seq, m.Life, m.Phase = m.Seq+1, life, phase
		s.must(s.p.SetTable(t.Context(), s.table))
	}
	for _, phase := range []Phase{PhaseServing, PhaseGone, PhaseSuspended, PhaseBooting, PhaseServing} {
		tell(1, phase) // the first tells which life it is, no more
		s.write(machine, []byte("x"))
		if _, err := client.Read(make([]byte, 1)); err != nil {
			t.Fatalf("%s: %v", phase, err)
		}
	}
	s.write(machine, []byte("last words"))
	tell(0, PhaseStopped)
	b, err := io.ReadAll(client)
	if string(b) != "last words" || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client read %q, %v; want the last words and a reset", b, err)
	}
	s.eventually("the slot is free", func() bool { return s.held() == 0 })
	s.endsAs(endGuestGone)
	tell(2, PhaseServing)
	client, machine = s.pair()
	tell(2, PhaseServing)
	s.write(machine, []byte("x"))
	if _, err := client.Read(make([]byte, 1)); err != nil {
		t.Errorf("the next guest's connection: %v", err)
	}
}
