package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// measure makes some of the rows.
type measure struct {
	names []string // of its rows, for -run
	limit time.Duration
	run   func(ctx context.Context, b *bench) ([]Row, error)
}

// bench is what all measures share.
type bench struct {
	build string // the directory of what `make bench` builds
	short bool   // few samples, for development
}

// size is how much of something to do.
func (b *bench) size(full, short int) int {
	if b.short {
		return short
	}
	return full
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	b := &bench{}
	only := flag.String("run", "", "measure only what has this in its name")
	out := flag.String("out", "build/bench.json", "the file for programs")
	flag.StringVar(&b.build, "build", "build", "the directory of binary, kernel and images")
	flag.BoolVar(&b.short, "short", false, "few samples: to see that it works, not to quote")
	flag.Parse()
	var err error
	if b.build, err = filepath.Abs(b.build); err != nil {
		return err
	}
	var rows []Row
	var failed []string
	for _, m := range measures() {
		if !m.wanted(*only) || ctx.Err() != nil {
			continue
		}
		mctx, cancel := context.WithTimeout(ctx, m.limit)
		begun := time.Now()
		got, err := m.run(mctx, b)
		cancel()
		if err != nil {
			failed = append(failed, fmt.Sprintf("%s: %v", strings.Join(m.names, ", "), err))
			continue
		}
		b.say("%s measured in %s", m.names[0], time.Since(begun).Round(time.Second))
		rows = append(rows, chosen(got, *only)...)
	}
	if len(rows) > 0 {
		if err := printTable(os.Stdout, rows); err != nil {
			return err
		}
		if err := writeJSON(*out, rows); err != nil {
			return err
		}
	}
	switch {
	case len(failed) > 0:
		return fmt.Errorf("not measured:\n%s", strings.Join(failed, "\n"))
	case ctx.Err() != nil:
		return ctx.Err()
	case len(rows) == 0:
		return fmt.Errorf("nothing is named %q", *only)
	}
	return nil
}

func (m measure) wanted(name string) bool {
	for _, n := range m.names {
		if strings.Contains(n, name) || name != "" && strings.HasPrefix(name, n) {
			return true
		}
	}
	return false
}

func chosen(rows []Row, name string) []Row {
	var out []Row
	for _, r := range rows {
		if strings.Contains(r.Name, name) {
			out = append(out, r)
		}
	}
	return out
}

func measures() []measure {
	return []measure{
		{[]string{"first_start_template", "first_start_template_ratio"}, 10 * time.Minute, firstTemplate},
		{[]string{"first_start_cold", "first_start_cold_ratio"}, 15 * time.Minute, firstCold},
		{[]string{"wake_p50", "wake_p99", "wake_ratio"}, 15 * time.Minute, wakes},
		{[]string{"suspended_processes", "suspended_memory", "suspended_memory_returned", "suspended_disk"}, 5 * time.Minute, suspended},
		{[]string{"limit_over_guest", "limit_over_kernel", "limit_unaccounted", "limit_waiting_beside_free_slot"}, 10 * time.Minute, limits},
		{[]string{"scaling_closed_by_us", "scaling_refused", "scaling_outs", "scaling_ins"}, 12 * time.Minute, scaling},
		{[]string{"deploys_closed_by_us", "deploys_refused", "deploys_wrong_release_served"}, 15 * time.Minute, deploys},
		{[]string{"deploy_rolling", "deploy_canary", "deploy_bluegreen", "deploy_immediate"}, 10 * time.Minute, strategies},
		{[]string{"restart_survivors", "restart_slots_apart"}, 10 * time.Minute, outlive},
		{[]string{"tcp_bulk", "tcp_conns"}, 10 * time.Minute, twoCores("tcp")},
		{[]string{"http_requests", "http_p99"}, 5 * time.Minute, twoCores("http")},
		{[]string{"api_reads", "api_read_p99", "api_writes"}, 5 * time.Minute, apiSpeed},
		{[]string{"examples"}, time.Minute, examples},
		{[]string{"pick", "pick_allocs"}, 3 * time.Minute, picks},
		{[]string{"machine_record_bytes"}, 5 * time.Minute, records},
		{[]string{"live_change"}, 10 * time.Minute, feeds},
		{[]string{"live_change_300", "live_traffic_300"}, 20 * time.Minute, feeds300},
		{[]string{"backhaul_connect", "backhaul_connect_p99"}, 5 * time.Minute, connects("backhaul_connect", 0, 0)},
		{[]string{"backhaul_connect_20ms", "backhaul_connect_20ms_p99"}, 5 * time.Minute, connects("backhaul_connect_20ms", 10*time.Millisecond, 0)},
		{[]string{"backhaul_loss"}, 5 * time.Minute, connects("backhaul_loss", 10*time.Millisecond, 0.01)},
		{[]string{"backhaul_bulk"}, 5 * time.Minute, bulk},
		{[]string{"host_cut"}, 10 * time.Minute, hostCut},
		{[]string{"control_dead"}, 10 * time.Minute, controlDead},
		{[]string{"burst_200", "burst_200_p99"}, 15 * time.Minute, burst},
		{[]string{"over_limit", "over_limit_unaccounted"}, 10 * time.Minute, floods},
		{[]string{"go_test"}, 10 * time.Minute, goTest},
	}
}
