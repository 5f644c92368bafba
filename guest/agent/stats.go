package agent

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant/guest"
)

// Stats reads what the kernel counts, proc(5).
func (a *agent) Stats(context.Context) (guest.Stats, error) {
	s := guest.Stats{
		Processes: countProcesses(), CPU: map[string]guest.Counters{}, Disks: map[string]guest.Counters{},
		Links: map[string]guest.Counters{}, FileSystems: map[string]guest.Counters{},
	}
	err := errors.Join(
		withFile("/proc/meminfo", func(r io.Reader) { s.Memory = memory(r) }),
		withFile("/proc/loadavg", func(r io.Reader) { s.Load = load(r) }),
		withFile("/proc/stat", func(r io.Reader) { cpus(r, s.CPU) }),
		withFile("/proc/diskstats", func(r io.Reader) { disks(r, s.Disks) }),
		withFile("/proc/net/dev", func(r io.Reader) { links(r, s.Links) }),
		withFile("/proc/sys/fs/file-nr", func(r io.Reader) { s.Files = files(r) }),
	)
	var st unix.Statfs_t
	if unix.Statfs("/", &st) == nil {
		s.FileSystems["/"] = guest.Counters{
			"blocks": st.Blocks, "block_size": uint64(max(0, st.Bsize)), "blocks_free": st.Bfree, "blocks_avail": st.Bavail,
		}
	}
	return s, err
}

func withFile(path string, fn func(io.Reader)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	fn(f)
	return nil
}

// lines calls fn with the words of each line.
func lines(r io.Reader, fn func(words []string)) {
	for sc := bufio.NewScanner(r); sc.Scan(); {
		if words := strings.Fields(sc.Text()); len(words) > 0 {
			fn(words)
		}
	}
}

// number is 0 for what is none.
func number(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}

// named gives numbers their names, in order; a name of "" is left out.
func named(words []string, names ...string) guest.Counters {
	c := guest.Counters{}
	for i, name := range names {
		if i < len(words) && name != "" {
			c[name] = number(words[i])
		}
	}
	return c
}

// meminfoNames are the lines of /proc/meminfo that are told, by the names of their counters.
var meminfoNames = map[string]string{
	"MemTotal:": "mem_total", "MemFree:": "mem_free", "MemAvailable:": "mem_available", "Buffers:": "buffers", "Cached:": "cached",
	"SwapCached:": "swap_cached", "Active:": "active", "Inactive:": "inactive", "SwapTotal:": "swap_total", "SwapFree:": "swap_free",
	"Dirty:": "dirty", "Writeback:": "writeback", "Slab:": "slab", "Shmem:": "shmem", "VmallocTotal:": "vmalloc_total",
	"VmallocUsed:": "vmalloc_used", "VmallocChunk:": "vmalloc_chunk",
}

func memory(r io.Reader) guest.Counters {
	c := guest.Counters{}
	lines(r, func(w []string) {
		if name := meminfoNames[w[0]]; name != "" && len(w) > 1 {
			c[name] = number(w[1]) << 10 // KiB
		}
	})
	return c
}

func load(r io.Reader) (out [3]float64) {
	lines(r, func(w []string) {
		for i := range min(len(w), len(out)) {
			out[i], _ = strconv.ParseFloat(w[i], 64) // 0 for what is none
		}
	})
	return out
}

func cpus(r io.Reader, to map[string]guest.Counters) {
	lines(r, func(w []string) {
		if id, ok := strings.CutPrefix(w[0], "cpu"); ok && id != "" {
			to[id] = named(w[1:], "user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
		}
	})
}

func disks(r io.Reader, to map[string]guest.Counters) {
	lines(r, func(w []string) {
		if len(w) < 14 || !strings.HasPrefix(w[2], "vd") {
			return
		}
		to[w[2]] = named(w[3:], "reads_completed", "reads_merged", "sectors_read", "time_reading", "writes_completed", "writes_merged",
			"sectors_written", "time_writing", "io_in_progress", "time_io", "time_io_weighted")
	})
}

func links(r io.Reader, to map[string]guest.Counters) {
	lines(r, func(w []string) {
		name, ok := strings.CutSuffix(w[0], ":")
		if !ok || name == "lo" {
			return
		}
		to[name] = named(w[1:],
			"recv_bytes", "recv_packets", "recv_errs", "recv_drop", "recv_fifo", "recv_frame", "recv_compressed", "recv_multicast",
			"sent_bytes", "sent_packets", "sent_errs", "sent_drop", "sent_fifo", "sent_colls", "sent_carrier", "sent_compressed")
	})
}

func files(r io.Reader) guest.Counters {
	c := guest.Counters{}
	lines(r, func(w []string) { c = named(w, "allocated", "", "maximum") })
	return c
}
