package agent

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant/guest"
)

func TestStatsParseWhatTheKernelWrites(t *testing.T) {
	mem := memory(strings.NewReader("MemTotal:         503300 kB\nMemFree: 1 kB\nHugePages_Total:       0\nOdd:\n"))
	if diff := cmp.Diff(guest.Counters{"mem_total": 503300 << 10, "mem_free": 1 << 10}, mem); diff != "" {
		t.Error("memory:", diff)
	}
	if got := load(strings.NewReader("0.25 0.5 1.00 1/60 77\n")); got != [3]float64{0.25, 0.5, 1} {
		t.Error("load:", got)
	}
	cpu := map[string]guest.Counters{}
	cpus(strings.NewReader("cpu  9 9 9\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 5\n"), cpu)
	want := guest.Counters{
		"user": 1, "nice": 2, "system": 3, "idle": 4, "iowait": 5, "irq": 6, "softirq": 7, "steal": 8, "guest": 9, "guest_nice": 10,
	}
	if diff := cmp.Diff(map[string]guest.Counters{"0": want}, cpu); diff != "" {
		t.Error("cpu:", diff)
	}
	disk := map[string]guest.Counters{}
	disks(strings.NewReader(" 254 0 vda 1 2 3 4 5 6 7 8 9 10 11 0 0\n 7 0 loop0 1 1 1 1 1 1 1 1 1 1 1\n 254 1 vdb 1\n"), disk)
	if len(disk) != 1 || disk["vda"]["reads_completed"] != 1 || disk["vda"]["time_io_weighted"] != 11 {
		t.Error("disks:", disk)
	}
	link := map[string]guest.Counters{}
	links(strings.NewReader("Inter-|   Receive\n face |bytes\n    lo: 1 1\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"), link)
	if len(link) != 1 || link["eth0"]["recv_multicast"] != 8 || link["eth0"]["sent_bytes"] != 9 || link["eth0"]["sent_compressed"] != 16 {
		t.Error("links:", link)
	}
	if diff := cmp.Diff(guest.Counters{"allocated": 96, "maximum": 1000}, files(strings.NewReader("96\t0\t1000\n"))); diff != "" {
		t.Error("files:", diff)
	}
}
