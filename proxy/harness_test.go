package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/volanttest/memnet"
	"github.com/volant-edge/volant/why"
)

var front = netip.MustParseAddrPort("127.77.0.1:80")

// world is a proxy with one app on a network in memory, for tests inside a synctest bubble.
type world struct {
	t       *testing.T
	net     *memnet.Network
	p       *proxy.Proxy
	version uint64
	app     proxy.App

	mu    sync.Mutex
	loads []proxy.Load
	wakes []proxy.Wake
	whys  []why.Record
}

func newWorld(t *testing.T, change ...func(*proxy.Config)) *world {
	t.Helper()
	w := &world{t: t, net: &memnet.Network{}}
	w.app = proxy.App{
		ID: "app_1", Name: "web", Org: volant.OrgPersonal, MaxQueue: 100, MaxPerPeer: 100, QueueTime: volant.Duration(30 * time.Second),
		Services: []proxy.Service{{Listen: []netip.AddrPort{front}, InternalPort: 8080, Soft: 2, Hard: 3}},
		CanGrow:  true,
	}
	cfg := proxy.Config{Listen: w.net.Listen, Dial: w.net.Dial}
	for _, f := range change {
		f(&cfg)
	}
	p, err := proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.p = p
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	wg.Go(func() { p.Watch(ctx, w.events()) }) //nolint:errcheck // ends with ctx
	t.Cleanup(func() { cancel(); wg.Wait() })
	return w
}

func (w *world) events() proxy.Events {
	return proxy.Events{
		Load: func(l proxy.Load) { w.mu.Lock(); w.loads = append(w.loads, l); w.mu.Unlock() },
		Wake: func(x proxy.Wake) { w.mu.Lock(); w.wakes = append(w.wakes, x); w.mu.Unlock() },
		Why:  func(r why.Record) { w.mu.Lock(); w.whys = append(w.whys, r); w.mu.Unlock() },
	}
}

// set makes machines the app's machines and gives the proxy the table.
func (w *world) set(machines ...proxy.Machine) {
	w.t.Helper()
	w.app.Machines = machines
	w.version++
	t := proxy.Table{Version: w.version, Epoch: 1, Region: "ams", Apps: []proxy.App{w.app}}
	if err := w.p.SetTable(context.Background(), t); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

func machineID(n int) volant.MachineID { return volant.MachineID(fmt.Sprintf("%014x", n)) }

func machineAddr(n int) netip.Addr { return netip.AddrFrom4([4]byte{172, 27, 0, byte(n)}) }

func machineIn(n int, seq uint64, phase proxy.Phase) proxy.Machine {
	m := proxy.Machine{ID: machineID(n), Seq: seq, Phase: phase}
	if phase == proxy.PhaseServing {
		m.Addr = machineAddr(n)
	}
	return m
}

// guest is a machine's app: it echoes, and keeps its own count of open connections.
type guest struct {
	l         net.Listener
	mu        sync.Mutex
	open, max int
	total     int
}

func (w *world) boot(n int) *guest {
	w.t.Helper()
	l, err := w.net.Listen(context.Background(), netip.AddrPortFrom(machineAddr(n), 8080))
	if err != nil {
		w.t.Fatal(err)
	}
	g := &guest{l: l}
	w.t.Cleanup(func() { l.Close() })
	go g.serve()
	return g
}

func (g *guest) serve() {
	for {
		c, err := g.l.Accept()
		if err != nil {
			return
		}
		g.mu.Lock()
		g.open++
		g.total++
		g.max = max(g.max, g.open)
		g.mu.Unlock()
		go func() {
			_, _ = io.Copy(c, c) // until it ends, however it does
			g.mu.Lock()
			g.open--
			g.mu.Unlock()
			c.Close()
		}()
	}
}

func (g *guest) counts() (open, most, total int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open, g.max, g.total
}

func (w *world) dial() net.Conn {
	w.t.Helper()
	c, err := w.net.Dial(context.Background(), front)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	return c
}

// echoes says whether the connection is served, by one byte there and back.
func echoes(c net.Conn) error {
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	var b [1]byte
	_, err := io.ReadFull(c, b[:])
	return err
}

func (w *world) mustEcho(c net.Conn) {
	w.t.Helper()
	if err := echoes(c); err != nil {
		w.t.Fatalf("connection is not served: %v", err)
	}
}

func (w *world) slots() map[volant.MachineID]int {
	w.t.Helper()
	s, err := w.p.Slots(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) takeWakes() []volant.MachineID {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []volant.MachineID
	for _, x := range w.wakes {
		out = append(out, x.Machine)
	}
	w.wakes = nil
	return out
}

func (w *world) lastLoad() proxy.Load {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.loads) == 0 {
		return proxy.Load{}
	}
	return w.loads[len(w.loads)-1]
}

func (w *world) refusals() []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, r := range w.whys {
		if r.Kind == why.Refusal {
			out = append(out, r.Rule)
		}
	}
	w.whys = nil
	return out
}
