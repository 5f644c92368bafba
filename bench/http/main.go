// Command http measures the proxy's HTTP/1.1 against HAProxy in HTTP mode: requests a second on connections that
// are kept, and how long one takes under a light load. Load (clients and the app) has one core and the proxy under
// test another; both take turns, and a ratio is the median over all rounds.
//
//	go run ./bench/http [-rounds 12] [-time 1.5s]
//
// It prints one JSON row per number.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/volant-edge/volant/bench/proc"
	"github.com/volant-edge/volant/bench/stat"
	"github.com/volant-edge/volant/proxy"
)

const (
	loadCore  = 0
	proxyCore = 1
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
	CPU       float64 `json:"cpu"`    // seconds of the proxy's CPU per request, and the peer's
	PeerCPU   float64 `json:"peer_cpu"`
	Reach     float64 `json:"reach"` // what Ratio must be; 0 for information
}

func main() {
	var err error
	if len(os.Args) > 2 && os.Args[1] == "role-volant" {
		err = runVolant(os.Args[2])
	} else {
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/http:", err)
		os.Exit(1)
	}
}

func runVolant(data string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return proxy.Main(ctx, proxy.Process{Data: data, Version: "bench", Grace: time.Second})
}

func run() error {
	rounds := flag.Int("rounds", 12, "rounds in turn; at least 10 for a number to be quoted")
	length := flag.Duration("time", 1500*time.Millisecond, "length of one measurement")
	flag.Parse()
	if err := proc.OnCore(loadCore, nil); err != nil {
		return err
	}
	b, err := newBench()
	if err != nil {
		return err
	}
	defer b.close()
	for _, m := range measures() {
		r, err := b.measure(m, *rounds, *length)
		if err != nil {
			return err
		}
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		fmt.Println(string(line))
	}
	return nil
}

// measure is a load, and the number that is taken of it.
type measure struct {
	name, unit string
	clients    int
	every      time.Duration // each sends one request per every; 0: as soon as it has the answer
	value      func(*result) float64
}

func measures() []measure {
	return []measure{
		{"http_requests", "requests/s", 64, 0, func(r *result) float64 { return float64(len(r.times)) / r.took.Seconds() }},
		{"http_p99", "ms", 16, 20 * time.Millisecond, func(r *result) float64 {
			slices.Sort(r.times)
			return float64(r.times[len(r.times)*99/100]) / float64(time.Millisecond)
		}},
	}
}

func (b *bench) measure(m measure, rounds int, length time.Duration) (row, error) {
	values, cpus := make([][]float64, len(b.targets)), make([][]float64, len(b.targets))
	for i := -1; i < rounds; i++ { // the first warms up
		for k := range b.targets {
			j := (k + i + 1) % len(b.targets)
			t := b.targets[j]
			before, err := proc.CPUTime(t.pid)
			if err != nil {
				return row{}, err
			}
			res, err := load(t.front, m.clients, m.every, length)
			if err != nil {
				return row{}, fmt.Errorf("%s of %s: %w", m.name, t.name, err)
			}
			after, err := proc.CPUTime(t.pid)
			if err != nil {
				return row{}, err
			}
			if i >= 0 {
				cpus[j] = append(cpus[j], (after-before).Seconds()/float64(len(res.times)))
				values[j] = append(values[j], m.value(res))
			}
		}
	}
	var ratios []float64
	for i := range values[0] {
		ratios = append(ratios, values[0][i]/values[1][i])
	}
	slices.Sort(ratios)
	return row{
		Name: m.name, Unit: m.unit, Peer: b.targets[1].name, Value: stat.Median(values[0]), PeerValue: stat.Median(values[1]),
		Ratio: stat.Median(ratios), Spread: ratios[len(ratios)*3/4] - ratios[len(ratios)/4], CPU: stat.Median(cpus[0]), PeerCPU: stat.Median(cpus[1]),
	}, nil
}
