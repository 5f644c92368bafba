package main

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest/live"
)

// suspended measures what sleeping machines cost: several, since MemAvailable is coarse.
func suspended(ctx context.Context, b *bench) ([]Row, error) {
	const n = 5
	var before, awake, asleep memory
	var processes int
	var disk int64
	err := b.server(ctx, func(s *live.Server) error {
		ip, err := s.Deploy(ctx, "cost", b.archive("nginx"), config("cost", 80,
			"[services.concurrency]\ntype = \"connections\"\nsoft_limit = 1\nhard_limit = 1", fmt.Sprintf("min = 0\nmax = %d", n)))
		if err != nil {
			return err
		}
		if err := templateReady(ctx, s); err != nil {
			return err
		}
		if before, err = readMemory(s); err != nil {
			return err
		}
		if err := hold(ctx, s, net.JoinHostPort(ip, "80"), n); err != nil {
			return err
		}
		if awake, err = readMemory(s); err != nil {
			return err
		}
		if err := suspend(ctx, s, "cost"); err != nil {
			return err
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil { // the kernel frees what a process had a little later
			return err
		}
		if asleep, err = readMemory(s); err != nil {
			return err
		}
		ms, err := s.API.Machines(ctx, "cost")
		if err != nil {
			return err
		}
		for _, m := range ms {
			processes += len(processesOf(s, m.ID))
		}
		disk, err = allocated(filepath.Join(s.Data, "host", "snapshots"))
		return err
	})
	if err != nil {
		return nil, err
	}
	used := float64(before.available - awake.available)
	left := float64(before.available - asleep.available)
	return []Row{
		Row{Name: "suspended_processes", Value: float64(processes), Unit: "processes", Note: fmt.Sprintf("that bear one of %d suspended machines", n)}.exactly(0),
		Row{
			Name: "suspended_memory", Value: max(left, 0) / n / (1 << 20), Unit: "MB a machine", Peer: "the same awake",
			PeerValue: used / n / (1 << 20), Spread: fmt.Sprintf("%d MB of shared memory awake, %d MB asleep", awake.shm>>20, asleep.shm>>20),
			Note: "MemAvailable against before the first start",
		}.atMost(8),
		Row{Name: "suspended_disk", Value: float64(disk) / n / (1 << 20), Unit: "MB a machine"}.told(),
	}, nil
}

// hold opens n connections at once, so that n machines are awake, and closes them.
func hold(ctx context.Context, s *live.Server, addr string, n int) error {
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close() //nolint:errcheck // they have said nothing
		}
	}()
	for range n {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		open = append(open, c)
	}
	return until(ctx, s, "cost", fmt.Sprintf("%d machines hold a connection", n), func(ms []api.Machine) bool {
		held := 0
		for _, m := range ms {
			if m.State == "started" && m.Slots == 1 {
				held++
			}
		}
		return held == n
	})
}

// memory is what the system has, in bytes.
type memory struct{ available, shm int64 }

func readMemory(s *live.Server) (m memory, err error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return m, err
	}
	defer f.Close() //nolint:errcheck // only read
	in := bufio.NewScanner(f)
	for in.Scan() {
		if rest, ok := strings.CutPrefix(in.Text(), "MemAvailable:"); ok {
			if _, err := fmt.Sscan(rest, &m.available); err != nil {
				return m, err
			}
			m.available <<= 10
		}
	}
	m.shm, err = allocated("/dev/shm/volant-" + s.Node())
	return m, err
}

// allocated is what the files below a directory take.
func allocated(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() {
			n += st.Blocks * 512
		}
		return nil
	})
	return n, err
}
