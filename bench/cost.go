package main

import (
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
	"github.com/volant-edge/volant/bench/stat"
	"github.com/volant-edge/volant/volanttest/live"
)

// costMachines are several, and costRounds too, since others work on the machine as well.
const (
	costMachines = 6
	costRounds   = 5
)

// suspended measures what sleeping machines cost.
func suspended(ctx context.Context, b *bench) ([]Row, error) {
	var c cost
	err := b.server(ctx, func(s *live.Server) error {
		ip, err := s.Deploy(ctx, "cost", b.archive("nginx"), config("cost", 80, concurrency(1, 1), fmt.Sprintf("min = 0\nmax = %d", costMachines)))
		if err != nil {
			return err
		}
		if err := templateReady(ctx, s); err != nil {
			return err
		}
		for range b.size(costRounds, 1) {
			if err := c.round(ctx, s, net.JoinHostPort(ip, "80")); err != nil {
				return err
			}
		}
		c.disk, err = allocated(filepath.Join(s.Data, "host", "snapshots"))
		return err
	})
	if err != nil {
		return nil, err
	}
	const mb = costMachines << 20
	return []Row{
		Row{
			Name: "suspended_processes", Value: float64(c.processes), Unit: "processes",
			Note: fmt.Sprintf("that bear one of %d suspended machines", costMachines),
		}.exactly(0),
		Row{
			Name: "suspended_memory", Value: float64(c.left) / mb, Unit: "MB a machine", Peer: "the same awake", PeerValue: stat.Median(c.used) / mb,
			Note: "shared memory and processes' own memory",
		}.exactly(0),
		Row{
			Name: "suspended_memory_returned", Value: stat.Median(c.returned), Unit: "of it", Spread: stat.Spread(c.returned, "%.2f"),
			Note: "by how much the whole system's anonymous and shared memory falls when they go to sleep",
		}.atLeast(0.8),
		Row{Name: "suspended_disk", Value: float64(c.disk) / mb, Unit: "MB a machine"}.told(),
	}, nil
}

// cost is what was seen of machines awake and asleep.
type cost struct {
	processes      int
	left           int64 // bytes
	disk           int64
	used, returned []float64
}

// round wakes all machines and puts them to sleep.
func (c *cost) round(ctx context.Context, s *live.Server, addr string) error {
	if err := hold(ctx, s, addr, costMachines); err != nil {
		return err
	}
	awake, err := readMemory(ctx, s)
	if err != nil {
		return err
	}
	if err := suspend(ctx, s, "cost"); err != nil {
		return err
	}
	if err := pause(ctx, 500*time.Millisecond); err != nil { // the kernel frees what a process had a little later
		return err
	}
	asleep, err := readMemory(ctx, s)
	if err != nil {
		return err
	}
	c.processes, c.left = max(c.processes, asleep.processes), max(c.left, asleep.used)
	c.used = append(c.used, float64(awake.used))
	c.returned = append(c.returned, float64(awake.system-asleep.system)/float64(awake.used-asleep.used))
	return nil
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

// memory is what is in use, in bytes. MemAvailable would tell less: a virtual machine's balloon moves it.
type memory struct {
	system    int64 // of all processes and all shared memory
	used      int64 // of the machines
	processes int
}

func readMemory(ctx context.Context, s *live.Server) (m memory, err error) {
	for _, key := range []string{"AnonPages:", "Shmem:"} {
		n, err := kilobytes("/proc/meminfo", key)
		if err != nil {
			return m, err
		}
		m.system += n
	}
	if m.used, err = allocated("/dev/shm/volant-" + s.Node()); err != nil {
		return m, err
	}
	ms, err := s.API.Machines(ctx, "cost")
	if err != nil {
		return m, err
	}
	for _, x := range ms {
		for _, p := range processesOf(s, x.ID) {
			var pid int
			if _, err := fmt.Sscanf(p, "process %d", &pid); err != nil {
				return m, fmt.Errorf("%q: %w", p, err)
			}
			own, err := kilobytes(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss_Anon:")
			if err != nil {
				return m, err
			}
			m.used += own
			m.processes++
		}
	}
	return m, nil
}

// kilobytes is the value of a line of a file of the kernel's, in bytes.
func kilobytes(file, key string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			var n int64
			_, err := fmt.Sscan(rest, &n)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("%s has no line %s", file, key)
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
