package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/volant-edge/volant/bench/feed"
)

// feedRun lets package bench/feed measure a world, in a process of its own: its time is that of testing/synctest.
func feedRun(ctx context.Context, w feed.World) (r feed.Result, err error) {
	in, err := json.Marshal(w)
	if err != nil {
		return r, err
	}
	err = temp(func(dir string) error {
		out := filepath.Join(dir, "feed.json")
		cmd := exec.CommandContext(ctx, "go", "test", "-count", "1", "-timeout", "30m", "-run", "^TestFeed$", "./bench/feed")
		cmd.Env = append(os.Environ(), "VOLANT_FEED="+string(in), "VOLANT_FEED_OUT="+out)
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("bench/feed: %w\n%s", err, text)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			return err
		}
		return json.Unmarshal(b, &r)
	})
	return r, err
}

// feeds measures how a machine's state comes to all edges, with three regions on a good network.
func feeds(ctx context.Context, b *bench) ([]Row, error) {
	w := feed.World{
		Regions: 3, Hosts: 9, Machines: 100, Loss: 0.001, Jitter: 0.1, Every: 2 * time.Second, WarmUp: time.Minute,
		For: time.Duration(b.size(2000, 100)) * time.Second, Seed: 3,
	}
	r, err := feedRun(ctx, w)
	if err != nil {
		return nil, err
	}
	return []Row{Row{
		Name: "live_change", Value: r.LateP99, Unit: "ms over half a round trip", Spread: fmt.Sprintf("n=%d p50 %.1f max %.0f", r.Changes, r.LateP50, r.LateMax),
		Note: "a machine's change to the last of all edges, p99; 3 regions of 3 nodes, real feeds on a network in memory that loses 0.1 %",
	}.atMost(50)}, nil
}

// feeds300 measures it with 300 hosts, each of which is an edge as well, where one datagram in twenty is lost.
func feeds300(ctx context.Context, b *bench) ([]Row, error) {
	w := feed.World{
		Regions: 30, Hosts: 300, Machines: 100, Loss: 0.05, Jitter: 0.1, Every: 2 * time.Second, WarmUp: 30 * time.Second,
		For: time.Duration(b.size(20, 5)) * time.Second, Seed: 1,
	}
	r, err := feedRun(ctx, w)
	if err != nil {
		return nil, err
	}
	return []Row{
		Row{
			Name: "live_change_300", Value: r.LateRTT99, Unit: "ms over a round trip",
			Spread: fmt.Sprintf("n=%d; over half a round trip p50 %.0f p99 %.0f max %.0f; one edge p99 %.0f", r.Changes, r.LateP50, r.LateP99, r.LateMax, r.EdgeP99),
			Note:   "a machine's change to the last of 299 edges, p99; 30 regions, 100 machines a host, 5 % loss; real feeds on a network in memory",
		}.atMost(250),
		Row{
			Name: "live_traffic_300", Value: r.SentMost, Unit: "Mbit/s a host",
			Spread: fmt.Sprintf("mean %.2f, with WireGuard's headers %.2f; %.0f datagrams/s", r.Sent, r.SentWire, r.Datagrams),
			Note:   "sent by the busiest host, with UDP's and IPv6's headers, one change every 2 s on every host",
		}.atMost(1),
	}, nil
}
