package proxy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/why"
)

// closedAfter reads until the connection ends and returns how long that took and how it ended.
func closedAfter(c net.Conn) (time.Duration, error) {
	begin := time.Now()
	_, err := io.Copy(io.Discard, c)
	return time.Since(begin), err
}

func TestWakeThatFailsIsFollowedByAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.set(machineIn(1, 1, proxy.PhaseStopped), machineIn(2, 1, proxy.PhaseStopped))
		c := w.dial()
		if got, want := w.takeWakes(), []volant.MachineID{machineID(1)}; !cmp.Equal(got, want) {
			t.Fatalf("wakes %v, want %v", got, want)
		}
		w.set(machineIn(1, 2, proxy.PhaseBooting), machineIn(2, 1, proxy.PhaseStopped))
		w.set(machineIn(1, 3, proxy.PhaseStopped), machineIn(2, 1, proxy.PhaseStopped))
		if got, want := w.takeWakes(), []volant.MachineID{machineID(2)}; !cmp.Equal(got, want) {
			t.Fatalf("after the first failed: wakes %v, want %v", got, want)
		}
		w.set(machineIn(1, 3, proxy.PhaseStopped), machineIn(2, 2, proxy.PhaseGone))
		w.set(machineIn(1, 3, proxy.PhaseStopped), machineIn(2, 3, proxy.PhaseStopped))
		if got := w.takeWakes(); len(got) != 0 {
			t.Fatalf("woke %v at once, want a back-off", got)
		}
		time.Sleep(250 * time.Millisecond)
		if got := w.takeWakes(); len(got) != 1 {
			t.Errorf("wakes %v after the back-off, want one", got)
		}
		c.Close()
	})
}

func TestWakeIsToldAgainToANewWatcherWhileSomebodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.set(machineIn(1, 1, proxy.PhaseStopped))
		c := w.dial()
		w.takeWakes()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.p.Watch(ctx, w.events()) //nolint:errcheck // ends with ctx
		if got := w.takeWakes(); len(got) != 1 {
			t.Errorf("wakes %v told to a new watcher, want one", got)
		}
		c.Close()
		synctest.Wait()
		go w.p.Watch(ctx, w.events()) //nolint:errcheck // ends with ctx
		if got := w.takeWakes(); len(got) != 0 {
			t.Errorf("wakes %v told though nobody waits", got)
		}
	})
}

func TestWithoutAScalerOneIsWokenPerSoftLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.app.CanGrow = false
		w.set(machineIn(1, 1, proxy.PhaseStopped), machineIn(2, 1, proxy.PhaseSuspended), machineIn(3, 1, proxy.PhaseStopped))
		for range 3 { // soft limit 2
			w.dial()
			synctest.Wait()
		}
		if got, want := w.takeWakes(), []volant.MachineID{machineID(2), machineID(1)}; !cmp.Equal(got, want) {
			t.Errorf("wakes %v, want %v", got, want)
		}
	})
}

func TestRefusalsAtOnce(t *testing.T) {
	for _, tc := range []struct {
		name     string
		change   func(*proxy.App)
		machines []proxy.Machine
		want     string
	}{
		{"auto_start is off and nothing is awake", func(a *proxy.App) { a.NoWake = true }, []proxy.Machine{machineIn(1, 1, proxy.PhaseStopped)}, "no_wake"},
		{"no machine, and none may be made", func(a *proxy.App) { a.CanGrow = false }, nil, "no_machine"},
		{"only cordoned machines", func(a *proxy.App) { a.CanGrow = false }, []proxy.Machine{{ID: machineID(1), Phase: proxy.PhaseStopped, Cordoned: true}}, "no_machine"},
		{"a handler which does not exist", func(a *proxy.App) {
			a.Services[0].Ports = []proxy.Port{{Listen: a.Services[0].Listen, Handlers: []string{"quic"}}}
			a.Services[0].Listen = nil
		}, []proxy.Machine{machineIn(1, 1, proxy.PhaseServing)}, "unknown_handler"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				tc.change(&w.app)
				w.set(tc.machines...)
				if took, err := closedAfter(w.dial()); took != 0 || err != nil {
					t.Errorf("closed after %v with %v, want at once with FIN", took, err)
				}
				time.Sleep(100 * time.Millisecond)
				if got, want := w.refusals(), []string{tc.want}; !cmp.Equal(got, want) {
					t.Errorf("refusals %v, want %v", got, want)
				}
			})
		})
	}
}

func TestQueueIsBoundedPerAppAndPerClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.app.MaxQueue, w.app.MaxPerPeer = 3, 2
		w.set(machineIn(1, 1, proxy.PhaseStopped))
		from := func(addr string) {
			c, err := w.net.DialFrom(context.Background(), netip.MustParseAddr(addr), front)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			synctest.Wait()
		}
		from("2001:db8::1")
		from("2001:db8:0:ff::2")
		from("2001:db8::3") // the same /56
		from("2001:db8:0:100::1")
		from("192.0.2.7")
		time.Sleep(100 * time.Millisecond)
		if got, want := w.refusals(), []string{"client_limit", "queue_full"}; !cmp.Equal(got, want) {
			t.Errorf("refusals %v, want %v", got, want)
		}
	})
}

func TestWakeOnData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.app.Services[0].WakeOn = "data"
		w.set(machineIn(1, 1, proxy.PhaseStopped))
		silent, c := w.dial(), w.dial()
		if got := w.takeWakes(); len(got) != 0 {
			t.Fatalf("woke %v for a silent client", got)
		}
		time.Sleep(time.Second)
		if l := w.lastLoad(); len(l.Waiting) != 0 {
			t.Errorf("load %+v, want no demand", l)
		}
		go func() {
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Errorf("write: %v", err)
			}
		}()
		if got := w.takeWakes(); len(got) != 1 {
			t.Fatalf("wakes %v at the first byte, want one", got)
		}
		w.boot(1)
		w.set(machineIn(1, 2, proxy.PhaseServing))
		got := make([]byte, 5)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
			t.Errorf("read %q, %v; want the first bytes back", got, err)
		}
		w.mustEcho(silent) // it got a slot as well
	})
}

func TestRefusedByOneMachineTheConnectionGoesToAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		g := w.boot(2) // the first does not listen
		w.set(machineIn(1, 1, proxy.PhaseServing), machineIn(2, 1, proxy.PhaseServing))
		begin := time.Now()
		for range 3 {
			w.mustEcho(w.dial())
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("served after %v, want at once", took)
		}
		if open, _, _ := g.counts(); open != 3 {
			t.Errorf("the listening machine has %d, want 3, over its soft limit", open)
		}
	})
}

func TestAppThatNeverListensIsLeftOutAndSaidWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.set(machineIn(1, 1, proxy.PhaseServing))
		took, err := closedAfter(w.dial())
		if err != nil || took < 30*time.Second || took > 31*time.Second {
			t.Errorf("closed after %v with %v, want FIN after 30s", took, err)
		}
		recs, _ := w.p.Query(context.Background(), why.Query{})
		rules := map[string]bool{}
		for _, r := range recs {
			rules[string(r.Kind)+" "+r.Rule] = true
		}
		if !rules["refusal connect_timeout"] || !rules["machine connect_timeout"] {
			t.Errorf("records %v, want the refusal and the machine's", rules)
		}
	})
}

func TestQueueTimeIsExtendedWhileAnAppStillStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.set(machineIn(1, 1, proxy.PhaseStopped))
		a, b := w.dial(), w.dial()
		time.Sleep(25 * time.Second)
		m := machineIn(1, 2, proxy.PhaseServing)
		m.Cold = true
		w.set(m)
		time.Sleep(40 * time.Second)
		w.boot(1)
		w.mustEcho(a)
		w.mustEcho(b)
	})
}

func TestTablesCloseNoConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.boot(1)
		w.set(machineIn(1, 1, proxy.PhaseServing))
		c := w.dial()
		w.mustEcho(c)
		for _, change := range []func(*proxy.Machine){
			func(m *proxy.Machine) { m.Draining = true }, func(m *proxy.Machine) { m.Cordoned = true },
			func(m *proxy.Machine) { m.Failing = []uint16{8080} }, func(m *proxy.Machine) { m.Phase = proxy.PhaseGone },
		} {
			m := machineIn(1, 2, proxy.PhaseServing)
			change(&m)
			w.set(m)
			w.mustEcho(c)
		}
		w.set()
		w.mustEcho(c)
		if err := w.p.SetTable(context.Background(), proxy.Table{Version: 99, Epoch: 1}); err != nil {
			t.Fatal(err)
		}
		w.mustEcho(c)
		if got := w.slots()[machineID(1)]; got != 1 {
			t.Errorf("%d slots of the machine that left the table, want 1", got)
		}
		if ok, _ := w.p.Seal(context.Background(), machineID(1), 9); ok {
			t.Error("sealed a machine which holds a slot, though it is in no table")
		}
		if _, err := w.net.Dial(context.Background(), front); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial after the app left: %v, want refused", err)
		}
		// It comes back, and its connection still counts.
		w.version = 100
		w.set(machineIn(1, 3, proxy.PhaseServing))
		b := w.dial()
		w.mustEcho(b)
		if got := w.slots()[machineID(1)]; got != 2 {
			t.Errorf("%d slots after the app came back, want 2", got)
		}
	})
}

func TestGenericHalfCloseAndSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		l, err := w.net.Listen(context.Background(), netip.AddrPortFrom(machineAddr(1), 8080))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		w.set(machineIn(1, 1, proxy.PhaseServing))
		c := w.dial()
		m, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("machine read %v, want the end", err)
		}
		time.Sleep(9 * time.Minute)
		if _, err := m.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		_, err = c.Read(make([]byte, 1))
		if took := time.Since(begin); took != 10*time.Minute {
			t.Errorf("ended after %v with %v, want after 10m of silence", took, err)
		}
		synctest.Wait()
		recs, _ := w.p.Query(context.Background(), why.Query{})
		if len(recs) != 1 || !strings.Contains(recs[0].Text, "half-closed and silent") {
			t.Errorf("records %v, want the reason", recs)
		}
	})
}

func TestGenericClientResetLeavesTheMachineTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		l, err := w.net.Listen(context.Background(), netip.AddrPortFrom(machineAddr(1), 8080))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		w.set(machineIn(1, 1, proxy.PhaseServing))
		c := w.dial()
		m, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.(interface{ SetLinger(int) error }).SetLinger(0); err != nil {
			t.Fatal(err)
		}
		c.Close()
		begin := time.Now()
		if _, err := m.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("machine read %v, want the end", err)
		}
		synctest.Wait()
		if got := w.slots()[machineID(1)]; got != 1 {
			t.Errorf("%d slots before the machine's side closed, want 1", got)
		}
		time.Sleep(9999 * time.Millisecond)
		if got := w.slots()[machineID(1)]; got != 1 {
			t.Errorf("%d slots after %v, want 1", got, time.Since(begin))
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if got := w.slots()[machineID(1)]; got != 0 {
			t.Errorf("%d slots after 10s, want none", got)
		}
		if _, err := m.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("machine wrote with %v, want a reset", err)
		}
	})
}

func TestLoadIsToldAtOnceThenCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.app.Services[0].Soft, w.app.Services[0].Hard = 20, 25
		w.boot(1)
		w.set(machineIn(1, 1, proxy.PhaseServing))
		time.Sleep(time.Second)
		count := func() int { w.mu.Lock(); defer w.mu.Unlock(); return len(w.loads) }
		before := count()
		w.mustEcho(w.dial())
		synctest.Wait()
		if got := count() - before; got != 1 {
			t.Errorf("%d loads at the first connection, want 1 at once", got)
		}
		for range 10 {
			w.mustEcho(w.dial())
		}
		synctest.Wait()
		if got := count() - before; got != 1 {
			t.Errorf("%d loads in the same moment, want 1", got)
		}
		time.Sleep(50 * time.Millisecond)
		synctest.Wait()
		if got, l := count()-before, w.lastLoad(); got != 2 || l.Slots[machineID(1)] != 11 || l.Peak != 11 {
			t.Errorf("%d loads, the last %+v; want 2, with 11 slots", got, l)
		}
	})
}

func TestListenThatFailsIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.boot(1)
		l, err := w.net.Listen(context.Background(), front)
		if err != nil {
			t.Fatal(err)
		}
		w.set(machineIn(1, 1, proxy.PhaseServing))
		time.Sleep(100 * time.Millisecond)
		if got, want := w.refusals(), []string{"listen"}; !cmp.Equal(got, want) {
			t.Errorf("records %v, want %v", got, want)
		}
		l.Close()
		time.Sleep(time.Second)
		w.mustEcho(w.dial())
	})
}

func TestShutdownWaitsForConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.boot(1)
		w.set(machineIn(1, 1, proxy.PhaseServing))
		c := w.dial()
		w.mustEcho(c)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		ended := make(chan error, 1)
		go func() { ended <- w.p.Shutdown(ctx) }()
		time.Sleep(30 * time.Second)
		w.mustEcho(c)
		if _, err := w.net.Dial(ctx, front); err == nil {
			t.Error("a stopping proxy accepts")
		}
		c.Close()
		if err := <-ended; err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
}
