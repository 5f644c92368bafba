package feed

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/bench/stat"
	"github.com/volant-edge/volant/live"
	"github.com/volant-edge/volant/volanttest/memnet"
)

const (
	headers   = 40 + 8           // IPv6, UDP
	wireGuard = 20 + 8 + 16 + 16 // IPv4 and UDP outside, WireGuard's head and tag
	bodySize  = 10               // a machine's state, as proxies tell it
)

// TestFeed measures the world that VOLANT_FEED holds as JSON, and writes the result to the file VOLANT_FEED_OUT names;
// with none it sees in a small one that all changes arrive.
func TestFeed(t *testing.T) {
	w := World{
		Regions: 3, Hosts: 6, Machines: 10, Loss: 0.05, Jitter: 0.1, Every: time.Second,
		WarmUp: 10 * time.Second, For: 20 * time.Second, Seed: 1,
	}
	if in := os.Getenv("VOLANT_FEED"); in != "" {
		if err := json.Unmarshal([]byte(in), &w); err != nil {
			t.Fatal(err)
		}
	}
	before, begun := cpu(), time.Now()
	var r Result
	synctest.Test(t, func(t *testing.T) { r = run(t, w) })
	r.Took = time.Since(begun).Seconds()
	r.CPU = (cpu() - before).Seconds() / (w.WarmUp + w.For).Seconds() / float64(w.Hosts)
	if r.Missing > 0 || r.Changes == 0 {
		t.Errorf("%d of %d changes did not arrive everywhere", r.Missing, r.Changes)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if out := os.Getenv("VOLANT_FEED_OUT"); out != "" {
		if err := os.WriteFile(out, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s", b)
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// planet is a world at work.
type planet struct {
	w     World
	delay [][]time.Duration
	net   memnet.Network
	rnd   *rand.Rand
	at    map[netip.AddrPort]int

	mu      sync.Mutex
	counted bool
	sent    []int                          // bytes, by node
	count   []int                          // datagrams
	changes map[machine]map[uint64]*spread // open ones, by number
	late    []float64
	lateRTT []float64
	all     []float64
	edges   []float64
	resent  uint64
	fulls   uint64
}

// machine is one of a host.
type machine struct{ host, index int }

// spread is how far a change has come.
type spread struct {
	begun   time.Time
	at      []time.Duration // by edge; 0: not there
	left    int
	lateMax time.Duration
	rttMax  time.Duration
	allMax  time.Duration
}

func id(i int) volant.NodeID { return volant.NodeID(fmt.Sprintf("%08x", i+1)) }

func addr(i int) netip.AddrPort { return netip.AddrPortFrom(volant.MeshAddr(id(i)), volant.LivePort) }

func (p *planet) oneWay(i, j int) time.Duration { return p.delay[i%p.w.Regions][j%p.w.Regions] }

func (p *planet) weather(from, to netip.AddrPort, size int) []time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	i, j := p.at[from], p.at[to]
	if p.counted {
		p.sent[i] += size
		p.count[i]++
	}
	if p.rnd.Float64() < p.w.Loss {
		return nil
	}
	d := p.oneWay(i, j)
	return []time.Duration{d + time.Duration(p.rnd.Float64()*p.w.Jitter*float64(d))}
}

func run(t *testing.T, w World) Result {
	rnd := rand.New(rand.NewPCG(w.Seed, 5))
	p := &planet{
		w: w, rnd: rnd, at: map[netip.AddrPort]int{}, sent: make([]int, w.Hosts), count: make([]int, w.Hosts),
		changes: map[machine]map[uint64]*spread{},
		delay:   delays(w.Regions, func() (x, y float64) { return rnd.Float64() * 100, rnd.Float64() * 50 }),
	}
	p.net.SetWeather(p.weather)
	ctx, cancel := context.WithCancel(t.Context())
	var parts sync.WaitGroup
	feeds := make([]*live.Feed, w.Hosts)
	for i := range w.Hosts {
		p.at[addr(i)] = i
	}
	heap := heapMB()
	for i := range w.Hosts {
		feeds[i] = p.start(ctx, t, &parts, i)
	}
	time.Sleep(w.WarmUp)
	for i, f := range feeds {
		if n := len(f.Facts()); n != (w.Hosts-1)*w.Machines {
			t.Errorf("node %d knows %d facts after the warm-up", i, n)
			break
		}
	}
	heap = heapMB() - heap
	p.totals(feeds, -1)
	p.mu.Lock()
	p.counted = true
	p.mu.Unlock()
	stop := time.Now().Add(w.For)
	var writers sync.WaitGroup
	for i, f := range feeds {
		seed := rnd.Uint64()
		writers.Go(func() { p.work(t, i, f, stop, rand.New(rand.NewPCG(seed, uint64(i)))) }) //nolint:gosec // an index
	}
	writers.Wait()
	p.mu.Lock()
	p.counted = false
	p.mu.Unlock()
	time.Sleep(10 * time.Second)
	p.totals(feeds, 1)
	cancel()
	parts.Wait()
	r := p.result()
	r.HeapMB = heap / float64(w.Hosts)
	return r
}

func heapMB() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

func (p *planet) totals(feeds []*live.Feed, sign int) {
	for _, f := range feeds {
		n := f.Numbers()
		p.resent += n.Resent * uint64(sign) //nolint:gosec // it wraps back
		p.fulls += n.Fulls * uint64(sign)   //nolint:gosec // the same
	}
}

func (p *planet) start(ctx context.Context, t *testing.T, parts *sync.WaitGroup, i int) *live.Feed {
	f := live.New(live.Config{Node: id(i), Epoch: 1})
	var peers []live.Peer
	for j := range p.w.Hosts {
		if j != i {
			peers = append(peers, live.Peer{Node: id(j), Addr: addr(j), Want: live.KindsOf(live.Route, live.Slots)})
		}
	}
	f.SetPeers(peers)
	var facts []live.Fact
	for m := range p.w.Machines {
		facts = append(facts, fact(m, 0))
	}
	if err := f.SetAll(live.KindsOf(live.Route, live.Slots), facts...); err != nil {
		t.Fatal(err)
	}
	conn, err := p.net.ListenPacket(ctx, addr(i))
	if err != nil {
		t.Fatal(err)
	}
	parts.Go(func() {
		if err := f.Run(ctx, conn, live.Events{Fact: func(x live.Fact) { p.heard(i, x) }}); err != nil {
			t.Error(err)
		}
	})
	return f
}

// fact is a machine's state of that number, as long as a real one.
func fact(machine int, number uint64) live.Fact {
	body := binary.BigEndian.AppendUint64(make([]byte, 0, bodySize), number)
	return live.Fact{Key: live.Key{Kind: live.Route, ID: fmt.Sprintf("%014x", machine)}, Body: body[:bodySize]}
}

// work changes machines of a host, at random moments.
func (p *planet) work(t *testing.T, i int, f *live.Feed, stop time.Time, rnd *rand.Rand) {
	for number := uint64(1); ; number++ {
		time.Sleep(min(time.Duration(rnd.ExpFloat64()*float64(p.w.Every)), time.Until(stop)))
		if !time.Now().Before(stop) {
			return
		}
		m := rnd.IntN(p.w.Machines)
		p.mu.Lock()
		of := machine{i, m}
		if p.changes[of] == nil {
			p.changes[of] = map[uint64]*spread{}
		}
		p.changes[of][number] = &spread{begun: time.Now(), at: make([]time.Duration, p.w.Hosts), left: p.w.Hosts - 1}
		p.mu.Unlock()
		if err := f.Set(fact(m, number)); err != nil {
			t.Error(err)
		}
	}
}

// heard takes a fact at an edge. It stands for the earlier ones of its machine that have not come: nobody needs them.
func (p *planet) heard(edge int, x live.Fact) {
	p.mu.Lock()
	defer p.mu.Unlock()
	host, err := strconv.ParseInt(string(x.Node), 16, 0)
	index, err2 := strconv.ParseInt(x.Key.ID, 16, 0)
	if err != nil || err2 != nil {
		return
	}
	m := machine{int(host) - 1, int(index)}
	number := binary.BigEndian.Uint64(x.Body)
	for n, s := range p.changes[m] {
		if n <= number && s.at[edge] == 0 {
			p.arrived(m, n, s, edge)
		}
	}
}

func (p *planet) arrived(m machine, number uint64, s *spread, edge int) {
	took := max(time.Since(s.begun), 1)
	s.at[edge] = took
	half := p.oneWay(m.host, edge)
	p.edges = append(p.edges, millis(took-half))
	s.lateMax, s.rttMax, s.allMax = max(s.lateMax, took-half), max(s.rttMax, took-2*half), max(s.allMax, took)
	if s.left--; s.left == 0 {
		p.late = append(p.late, millis(s.lateMax))
		p.lateRTT = append(p.lateRTT, millis(s.rttMax))
		p.all = append(p.all, millis(s.allMax))
		delete(p.changes[m], number)
	}
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (p *planet) result() Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := Result{
		Changes: len(p.all), Resent: p.resent, Fulls: p.fulls,
		LateP50: stat.Quantile(p.late, 0.5), LateP99: stat.Quantile(p.late, 0.99), LateMax: stat.Quantile(p.late, 1),
		LateRTT99: stat.Quantile(p.lateRTT, 0.99), AllP99: stat.Quantile(p.all, 0.99), EdgeP99: stat.Quantile(p.edges, 0.99),
	}
	for _, open := range p.changes {
		r.Changes += len(open)
		for _, s := range open {
			r.Missing += s.left
		}
	}
	mbit := func(bytes, datagrams, head int) float64 {
		return float64(bytes+datagrams*head) * 8 / 1e6 / p.w.For.Seconds()
	}
	bytes, datagrams := 0, 0
	for i := range p.sent {
		bytes, datagrams = bytes+p.sent[i], datagrams+p.count[i]
		r.SentMost = max(r.SentMost, mbit(p.sent[i], p.count[i], headers))
	}
	n := len(p.sent)
	r.Sent, r.SentWire = mbit(bytes, datagrams, headers)/float64(n), mbit(bytes, datagrams, headers+wireGuard)/float64(n)
	r.Datagrams = float64(datagrams) / p.w.For.Seconds() / float64(n)
	return r
}
