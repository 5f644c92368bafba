package proxy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/why"
)

func TestConnectionIsServedAndItsSlotGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		g := w.boot(1)
		w.set(machineIn(1, 1, proxy.PhaseServing))
		c := w.dial()
		w.mustEcho(c)
		if got, want := w.slots(), map[volant.MachineID]int{machineID(1): 1}; !cmp.Equal(got, want) {
			t.Errorf("slots %v, want %v", got, want)
		}
		c.Close()
		synctest.Wait()
		if got := w.slots(); len(got) != 0 {
			t.Errorf("slots %v after the end, want none", got)
		}
		if open, _, total := g.counts(); open != 0 || total != 1 {
			t.Errorf("guest has %d open of %d, want 0 of 1", open, total)
		}
	})
}

func TestHardLimitHoldsAndTheQueueIsServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		g := w.boot(1)
		w.set(machineIn(1, 1, proxy.PhaseServing))
		type client struct {
			conn interface {
				io.ReadWriteCloser
				CloseWrite() error
			}
			served bool
		}
		var cs []*client
		for range 6 {
			conn := w.dial()
			c := &client{conn: conn.(interface {
				io.ReadWriteCloser
				CloseWrite() error
			})}
			cs = append(cs, c)
			go func() { c.served = echoes(conn) == nil }()
			synctest.Wait()
		}
		served := func() (out []bool) {
			for _, c := range cs {
				out = append(out, c.served)
			}
			return out
		}
		if got, want := served(), []bool{true, true, true, false, false, false}; !cmp.Equal(got, want) {
			t.Fatalf("served %v, want %v", got, want)
		}
		if l := w.lastLoad(); l.Waiting["ams"] != 1 {
			t.Errorf("load %+v, want the first that waits at once", l)
		}
		time.Sleep(50 * time.Millisecond)
		if l := w.lastLoad(); l.Waiting["ams"] != 3 || l.Entering["ams"] != 3 || l.Peak != 6 {
			t.Errorf("load %+v, want 3 waiting, 3 entering, peak 6", l)
		}
		cs[1].conn.Close()
		synctest.Wait()
		if got, want := served(), []bool{true, true, true, true, false, false}; !cmp.Equal(got, want) {
			t.Errorf("served %v, want %v", got, want)
		}
		cs[4].conn.Close() // gives up its place
		synctest.Wait()
		cs[0].conn.Close()
		synctest.Wait()
		if !cs[5].served {
			t.Errorf("the last was not served though the one before it left")
		}
		if _, most, _ := g.counts(); most != 3 {
			t.Errorf("guest saw %d at once, want 3", most)
		}
	})
}

func TestQueueTimeEndsWithFINAndAReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.set(machineIn(1, 1, proxy.PhaseStopped))
		begin := time.Now()
		c := w.dial()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("read: %v, want EOF", err)
		}
		if took := time.Since(begin); took != 30*time.Second {
			t.Errorf("closed after %v, want 30s", took)
		}
		if got, want := w.refusals(), []string{"queue_timeout"}; !cmp.Equal(got, want) {
			t.Errorf("refusals %v, want %v", got, want)
		}
		recs, err := w.p.Query(context.Background(), why.Query{Kinds: []why.Kind{why.Refusal}})
		if err != nil || len(recs) != 1 || recs[0].App != "app_1" {
			t.Errorf("query: %v, %v; want the refusal", recs, err)
		}
	})
}

func TestFirstConnectionWakesOneSuspendedBeforeStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.set(machineIn(1, 1, proxy.PhaseStopped), machineIn(2, 1, proxy.PhaseSuspended), machineIn(3, 1, proxy.PhaseSuspended))
		a, b := w.dial(), w.dial()
		if got, want := w.takeWakes(), []volant.MachineID{machineID(2)}; !cmp.Equal(got, want) {
			t.Fatalf("wakes %v, want %v", got, want)
		}
		w.set(machineIn(1, 1, proxy.PhaseStopped), machineIn(2, 2, proxy.PhaseBooting), machineIn(3, 1, proxy.PhaseSuspended))
		w.boot(2)
		w.set(machineIn(1, 1, proxy.PhaseStopped), machineIn(2, 3, proxy.PhaseServing), machineIn(3, 1, proxy.PhaseSuspended))
		w.mustEcho(a)
		w.mustEcho(b)
		if got := w.takeWakes(); len(got) != 0 {
			t.Errorf("woke %v as well", got)
		}
	})
}

func TestAppThatListensLateIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := machineIn(1, 1, proxy.PhaseServing)
		m.Cold = true
		w.set(m)
		a, b := w.dial(), w.dial()
		time.Sleep(59 * time.Second)
		g := w.boot(1)
		begin := time.Now()
		w.mustEcho(a)
		w.mustEcho(b)
		if took := time.Since(begin); took > 5*time.Millisecond {
			t.Errorf("served %v after the app listened, want at most one probe", took)
		}
		if _, _, total := g.counts(); total != 2 {
			t.Errorf("the app saw %d connections, want the two of the clients", total)
		}
	})
}

func TestSealedMachineGetsNothingUntilANewerTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.boot(1)
		w.set(machineIn(1, 7, proxy.PhaseServing))
		c := w.dial()
		w.mustEcho(c)
		if ok, _ := w.p.Seal(context.Background(), machineID(1), 7); ok {
			t.Fatal("sealed a machine that holds a slot")
		}
		c.Close()
		synctest.Wait()
		if ok, _ := w.p.Seal(context.Background(), machineID(1), 7); !ok {
			t.Fatal("an empty machine was not sealed")
		}
		late := w.dial()
		served := make(chan error, 1)
		go func() { served <- echoes(late) }()
		w.set(machineIn(1, 7, proxy.PhaseServing)) // the table of before
		select {
		case err := <-served:
			t.Fatalf("a sealed machine served: %v", err)
		default:
		}
		w.set(machineIn(1, 8, proxy.PhaseServing))
		if err := <-served; err != nil {
			t.Errorf("not served after the seal ended: %v", err)
		}
	})
}

func TestOlderTableIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.version = 9
		w.set(machineIn(1, 1, proxy.PhaseServing))
		for _, old := range []proxy.Table{{Epoch: 1, Version: 9}, {Epoch: 0, Version: 99}} {
			err := w.p.SetTable(context.Background(), old)
			if !errors.Is(err, volant.ErrConflict) {
				t.Errorf("table %d of epoch %d: %v, want a conflict", old.Version, old.Epoch, err)
			}
		}
		if err := w.p.SetTable(context.Background(), proxy.Table{Epoch: 2, Version: 1}); err != nil {
			t.Errorf("a newer server's table: %v", err)
		}
	})
}

// Who has told a table can connect at once: the proxy listens when SetTable returns.
func TestTableIsListenedOnWhenItIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var listening atomic.Int32
		w := newWorld(t, func(c *proxy.Config) {
			listen := c.Listen
			c.Listen = func(ctx context.Context, ap netip.AddrPort) (net.Listener, error) {
				listening.Add(1)
				return listen(ctx, ap)
			}
		})
		synctest.Wait()
		if err := w.p.SetTable(t.Context(), proxy.Table{Version: 1, Epoch: 1, Region: "ams", Apps: []proxy.App{w.app}}); err != nil {
			t.Fatal(err)
		}
		if n := listening.Load(); n != 1 {
			t.Errorf("it listens on %d addresses, want 1", n)
		}
	})
}

func TestConnectionsEndWithTheirGuest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.boot(1)
		m := machineIn(1, 1, proxy.PhaseServing)
		m.Life = 7
		w.set(m)
		c := w.dial()
		w.mustEcho(c)
		m.Seq, m.Phase = 2, proxy.PhaseSuspended
		w.set(m)
		w.mustEcho(c) // its guest is kept
		m.Seq, m.Phase, m.Life = 3, proxy.PhaseBooting, 8
		w.set(m)
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("the connection outlived its guest")
		}
		if got := w.slots(); len(got) != 0 {
			t.Errorf("slots are %v, want none", got)
		}
	})
}
