// Command tcp measures the proxy's plain TCP against HAProxy in TCP mode and against a bare Go loop of
// io.Copy, which splices. Load (clients and the app) runs on one core and the proxy under test on another;
// the three take turns, and a ratio is the median over all rounds.
//
//	go run ./bench/tcp [-rounds 12] [-time 1.5s] [-first]
//
// It prints one JSON row per number. On a machine with other work use -first: else a proxy of several threads
// gets a larger share of a busy core than one of a single thread.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant/bench/proc"
	"github.com/volant-edge/volant/bench/stat"
	"github.com/volant-edge/volant/proxy"
)

const (
	loadCore  = 0
	proxyCore = 1
	priority  = 5 // real-time, of load and proxies
)

// row is one number of the report.
type row struct {
	Name      string  `json:"name"`
	Value     float64 `json:"value"`
	Unit      string  `json:"unit"`
	Peer      string  `json:"peer"`
	PeerValue float64 `json:"peer_value"`
	Ratio     float64 `json:"ratio"`
	Spread    float64 `json:"spread"` // of the ratio: distance of its quartiles
	CPU       float64 `json:"cpu"`    // seconds of the proxy's CPU per unit of work, and the peer's
	PeerCPU   float64 `json:"peer_cpu"`
	Reach     float64 `json:"reach"` // what Ratio must be; 0 for information
	OK        bool    `json:"ok"`
}

func main() {
	var err error
	switch {
	case len(os.Args) > 2 && os.Args[1] == "role-volant":
		err = runVolant(os.Args[2])
	case len(os.Args) > 3 && os.Args[1] == "role-bare":
		err = runBare(os.Args[2], os.Args[3])
	default:
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/tcp:", err)
		os.Exit(1)
	}
}

func runVolant(data string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return proxy.Main(ctx, proxy.Process{Data: data, Version: "bench", Grace: time.Second})
}

func run() error {
	rounds := flag.Int("rounds", 12, "interleaved rounds; at least 10 for a number to be quoted")
	length := flag.Duration("time", 1500*time.Millisecond, "length of one measurement")
	only := flag.String("only", "", "measure only bulk, conns or latency")
	first := flag.Bool("first", false, "run load and proxies before everything else on their cores (root); others there stand still meanwhile")
	target := flag.Int("target", 0, "which one to hold: 0 is Volant, 1 HAProxy, 2 the bare loop")
	profile := flag.Duration("hold", 0, "only load Volant for this long, for a profiler")
	flag.Parse()
	var each func(tid int) error
	if *first {
		each = realtime
	}
	if err := proc.OnCore(loadCore, each); err != nil {
		return err
	}
	b, err := newBench(*first)
	if err != nil {
		return err
	}
	defer b.close()
	if *profile > 0 {
		fmt.Fprintln(os.Stderr, "proxy process:", b.targets[*target].pid)
		return b.hold(*only, *profile, *target)
	}
	ok := true
	for _, m := range measures() {
		if *only != "" && *only != m.name {
			continue
		}
		rows, err := b.measure(m, *rounds, *length)
		if err != nil {
			return err
		}
		for _, r := range rows {
			line, err := json.Marshal(r)
			if err != nil {
				return err
			}
			fmt.Println(string(line))
			ok = ok && r.OK
		}
	}
	if !ok {
		return fmt.Errorf("a number is out of reach")
	}
	return nil
}

func realtime(tid int) error {
	err := unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: priority}, 0)
	if err != nil {
		return fmt.Errorf("give the load priority: %w", err)
	}
	return nil
}

// measure is one thing that is measured.
type measure struct {
	name, unit string
	scale      float64 // from work per second to unit
	reach      map[string]float64
	load       func(app *app, front netip.AddrPort, length time.Duration) (work float64, err error)
}

func measures() []measure {
	return []measure{
		{name: "bulk", unit: "Gbit/s", scale: 8e-9, reach: map[string]float64{"haproxy": 1.0}, load: loadBulk},
		{name: "conns", unit: "connections/s", scale: 1, reach: map[string]float64{"haproxy": 0.9}, load: loadConns},
	}
}

// sample is one measurement of one target.
type sample struct{ rate, cpu float64 }

func (b *bench) measure(m measure, rounds int, length time.Duration) ([]row, error) {
	samples := make([][]sample, len(b.targets))
	for i := -1; i < rounds; i++ { // the first warms up
		for k := range b.targets {
			j := (k + i + 1) % len(b.targets)
			s, err := b.sample(m, b.targets[j], length)
			if err != nil {
				return nil, fmt.Errorf("%s of %s: %w", m.name, b.targets[j].name, err)
			}
			if i >= 0 {
				samples[j] = append(samples[j], s)
			}
		}
	}
	var rows []row
	for j := 1; j < len(b.targets); j++ {
		peer := b.targets[j]
		r := row{
			Name: "tcp_" + m.name, Unit: m.unit, Peer: peer.name, Reach: m.reach[peer.kind],
			Value: stat.Median(rates(samples[0])) * m.scale, PeerValue: stat.Median(rates(samples[j])) * m.scale,
			CPU: stat.Median(cpus(samples[0])) / m.scale, PeerCPU: stat.Median(cpus(samples[j])) / m.scale,
		}
		var ratios []float64
		for i := range samples[0] {
			ratios = append(ratios, samples[0][i].rate/samples[j][i].rate)
		}
		r.Ratio = stat.Median(ratios)
		slices.Sort(ratios)
		r.Spread = ratios[len(ratios)*3/4] - ratios[len(ratios)/4]
		r.OK = r.Ratio >= r.Reach
		rows = append(rows, r)
	}
	return rows, nil
}

func (b *bench) sample(m measure, t target, length time.Duration) (sample, error) {
	before, err := proc.CPUTime(t.pid)
	if err != nil {
		return sample{}, err
	}
	begin := time.Now()
	work, err := m.load(b.app, t.front, length)
	if err != nil {
		return sample{}, err
	}
	took := time.Since(begin).Seconds()
	after, err := proc.CPUTime(t.pid)
	if err != nil {
		return sample{}, err
	}
	return sample{rate: work / took, cpu: (after - before).Seconds() / work}, nil
}

func (b *bench) hold(name string, length time.Duration, target int) error {
	for _, m := range measures() {
		if name == "" || name == m.name {
			s, err := b.sample(m, b.targets[target], length)
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "%s: %.2f %s, %.3g s of CPU per unit\n", m.name, s.rate*m.scale, m.unit, s.cpu/m.scale)
		}
	}
	return nil
}

func rates(ss []sample) (out []float64) {
	for _, s := range ss {
		out = append(out, s.rate)
	}
	return out
}

func cpus(ss []sample) (out []float64) {
	for _, s := range ss {
		out = append(out, s.cpu)
	}
	return out
}

// pinned is a command kept on the proxy's core.
func (b *bench) pinned(args ...string) *exec.Cmd {
	before := []string{"taskset", "-c", fmt.Sprint(proxyCore)}
	if b.realtime {
		before = append([]string{"chrt", "-r", fmt.Sprint(priority)}, before...)
	}
	return exec.Command(before[0], append(before[1:], args...)...)
}
