package proxy_test

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant/proxy"
)

func TestNumbersCountConnectionsAndBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.app.MaxQueue = 1
		w.boot(1)
		w.set(machineIn(1, 1, proxy.PhaseServing))
		conns := []io.Closer{}
		for range 5 { // three served, one waits, one is refused
			c := w.dial()
			conns = append(conns, c)
			synctest.Wait()
			if len(conns) <= 3 {
				w.mustEcho(c)
			}
		}
		conns[0].Close()
		conns[3].Close()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		all, err := w.p.Numbers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n := all.Apps["app_1"]
		if n.Served < 3 || n.Ended < 1 || n.Refused["queue_full"] != 1 || n.Slots != int(n.Served-n.Ended) {
			t.Errorf("got %+v", n)
		}
		if n.BytesIn == 0 || n.BytesIn != n.BytesOut {
			t.Errorf("echoed bytes: got %d in, %d out", n.BytesIn, n.BytesOut)
		}
		if h := n.Connect; h.Count != n.Served || len(h.Counts) != len(proxy.SecondsBounds()) || h.Counts[len(h.Counts)-1] != h.Count {
			t.Errorf("connect: got %+v", h)
		}
	})
}

func TestNumbersOverTheSocketWhileConnectionsGoOn(t *testing.T) {
	p := newProcess(t)
	front, app := freeAddr(t), echoServer(t)
	c, _ := p.ensure()
	if err := c.SetTable(t.Context(), tableOf(1, front, app)); err != nil {
		t.Fatal(err)
	}
	conn := dialSoon(t, front)
	if _, err := conn.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	for range 1000 { // a connection that is open is counted once a second
		n, err := c.Numbers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if a := n.Apps["app_1"]; a.Served == 1 && a.Ended == 0 && a.BytesIn == 1000 && a.BytesOut == 1000 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Error("the bytes of an open connection were not counted")
}
