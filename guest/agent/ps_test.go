package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant/guest"
)

func TestProcessesParseWhatTheKernelWrites(t *testing.T) {
	boot := bootTime(strings.NewReader("cpu  1 2\nbtime 1700000000\nprocesses 9\n"))
	p, ok := parseStat("42 (a ) b) S 1 42 42 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 250 1000000 3 18446744073709551615 1 1\n", boot)
	if !ok || p.PID != 42 || p.Command != "a ) b" || p.CPU != 2000 || !p.Started.Equal(time.UnixMilli(1700000002500)) || p.RSS != 3*4096 {
		t.Errorf("process %+v, %v", p, ok)
	}
	for _, bad := range []string{"", "42", "42 (x", "42 (x) S 1 2"} {
		if p, ok := parseStat(bad, boot); ok {
			t.Errorf("%q reads as %+v", bad, p)
		}
	}
	got := map[string]guest.Listen{}
	listening(strings.NewReader("  sl  local_address rem_address   st\n"+
		"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 777 1\n"+
		"   1: 0100007F:1F91 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 778 1\n"), "tcp", got)
	listening(strings.NewReader("   0: 00000000000000000000000001000000:0050 0:0 0A 0:0 00:0 0 0 0 779 1\n   1: zz:1 0:0 0A 0:0 00:0 0 0 0 780 1\n"), "tcp6", got)
	listening(strings.NewReader("   0: 00000000:0035 00000000:0000 07 0:0 00:0 0 0 0 781 1\n"), "udp", got)
	want := map[string]guest.Listen{
		"socket:[777]": {Proto: "tcp", Address: "127.0.0.1:8080"}, "socket:[779]": {Proto: "tcp", Address: "[::1]:80"}, "socket:[781]": {Proto: "udp", Address: "0.0.0.0:53"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("42 (a) S 1 42 42 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 250 1000000 3 1 1 1", "0100007F:1F90")
	f.Fuzz(func(_ *testing.T, stat, socket string) {
		parseStat(stat, time.Unix(0, 0))
		parseSocket(socket)
	})
}
