package guest_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/volant-edge/volant/guest"
)

func TestRingDropsTheOldest(t *testing.T) {
	r := guest.NewRing(100 << 10)
	for i := 1; i <= 1000; i++ {
		r.Append("stdout", fmt.Sprintf("%d %s", i, strings.Repeat("x", 1000)))
	}
	lines, _ := r.After(11, 1000)
	kept := len(lines) - 1
	if kept < 80 || kept > 100 {
		t.Fatalf("kept %d lines of about 1100 bytes in 100 KiB", kept)
	}
	dropped := 1000 - kept - 10 // the reader has the first ten
	if got, want := lines[0].Text, fmt.Sprintf("%d log lines were dropped here: nobody read them in time", dropped); got != want {
		t.Errorf("first line: got %q, want %q", got, want)
	}
	for i, l := range lines {
		if want := uint64(1000 - kept + i); l.Seq != want {
			t.Fatalf("line %d: got seq %d, want %d", i, l.Seq, want)
		}
	}
	if lines, _ := r.After(1001, 10); len(lines) != 0 {
		t.Errorf("after the last: got %d lines", len(lines))
	}
}

func TestRingCutsLongLines(t *testing.T) {
	r := guest.NewRing(1 << 20)
	long := strings.Repeat("y", 20<<10)
	r.Append("stdout", long)
	r.Append("stdout", "")
	lines, _ := r.After(0, 10)
	if len(lines) != 4 || lines[0].Text+lines[1].Text+lines[2].Text != long || lines[3].Text != "" {
		t.Errorf("got %d lines", len(lines))
	}
	tiny := guest.NewRing(1)
	tiny.Append("stdout", "the last line stays whatever its size")
	if lines, _ := tiny.After(0, 10); len(lines) != 1 {
		t.Errorf("a tiny ring: got %d lines, want 1", len(lines))
	}
}
