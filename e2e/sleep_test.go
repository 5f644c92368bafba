package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/volanttest/live"
)

// Sleep is real: no process bears the machine and its memory has come back; after the wake a counter in
// its RAM, an open file and a connection inside the guest go on.
func TestSleepKeepsEverythingAndCostsNothing(t *testing.T) {
	t.Parallel()
	s := common(t)
	addr := deploy(t, s, "sleeps", "testserver", 8080, `min = 0`)
	for i := 1; i <= 3; i++ {
		if got := ask(t, addr, "ram-counter"); got != fmt.Sprint(i) {
			t.Fatalf("ram-counter is %s, want %d", got, i)
		}
	}
	id := machines(t, s, "sleeps")[0].ID
	if got := ask(t, addr, "inner"); got != "1" {
		t.Fatalf("a connection and an open file inside the guest: %s, want 1", got)
	}
	if n := len(vmm(s, id)); n != 1 {
		t.Fatalf("%d processes bear the awake machine, want 1: %v", n, vmm(s, id))
	}
	for round := range 2 {
		sleep(t, s, "sleeps", "suspend")
		if left := vmm(s, id); len(left) != 0 {
			t.Errorf("processes bear the suspended machine: %v", left)
		}
		if left, _ := filepath.Glob("/dev/shm/volant-" + s.Node() + "/*" + id + "*"); len(left) != 0 {
			t.Errorf("the suspended machine's memory is still in %v", left)
		}
		if got := ask(t, addr, "ram-counter"); got != fmt.Sprint(4+round) {
			t.Errorf("after wake %d ram-counter is %s, want %d", round+1, got, 4+round)
		}
		if got := ask(t, addr, "inner"); got != fmt.Sprint(2+round) {
			t.Errorf("after wake %d the connection and the open file inside the guest: %s, want %d", round+1, got, 2+round)
		}
	}
	sleep(t, s, "sleeps", "stop")
	if got := ask(t, addr, "ram-counter"); got != "1" {
		t.Errorf("after a stop ram-counter is %s, want 1: it booted anew", got)
	}
}

// vmm are the processes that bear a machine.
func vmm(s *live.Server, id string) []string {
	var out []string
	for _, p := range live.Processes(s.Dir) {
		if strings.Contains(p, id) {
			out = append(out, p)
		}
	}
	return out
}

// A snapshot that is missing, cut short, of another machine, or with a flipped byte in its state gives a cold
// boot, a line in why, and no failed connection.
func TestDamagedSnapshotsBootCold(t *testing.T) {
	t.Parallel()
	s := common(t)
	addr := deploy(t, s, "damaged", "testserver", 8080, `min = 0`)
	other := deploy(t, s, "damaged-other", "testserver", 8080, `min = 0`)
	ask(t, other, "ram-counter")
	sleep(t, s, "damaged-other", "suspend")
	foreign := snapshotDir(t, s, machines(t, s, "damaged-other")[0].ID)
	ask(t, addr, "ram-counter")
	id := machines(t, s, "damaged")[0].ID
	sleep(t, s, "damaged", "suspend")
	old := filepath.Join(t.TempDir(), "old")
	if err := replaceDir(old, snapshotDir(t, s, id)); err != nil {
		t.Fatal(err)
	}
	ask(t, addr, "ram-counter")
	for _, d := range []struct {
		name   string
		damage func(dir string) error
	}{
		{"memory missing", func(dir string) error { return os.Remove(filepath.Join(dir, microvm.MemoryFile)) }},
		{"state missing", func(dir string) error { return os.Remove(filepath.Join(dir, microvm.StateFile)) }},
		{"memory cut short", func(dir string) error { return os.Truncate(filepath.Join(dir, microvm.MemoryFile), 1<<20) }},
		{"state cut short", func(dir string) error { return os.Truncate(filepath.Join(dir, microvm.StateFile), 100) }},
		{"state byte flipped", func(dir string) error { return flip(filepath.Join(dir, microvm.StateFile)) }},
		{"of another machine", func(dir string) error { return replaceDir(dir, foreign) }},
		{"of another generation", func(dir string) error { return replaceDir(dir, old) }},
		{"directory missing", os.RemoveAll},
	} {
		t.Run(d.name, func(t *testing.T) {
			sleep(t, s, "damaged", "suspend")
			if err := d.damage(snapshotDir(t, s, id)); err != nil {
				t.Fatal(err)
			}
			if got := ask(t, addr, "ram-counter"); got != "1" {
				t.Errorf("ram-counter is %s, want 1: a cold boot", got)
			}
			recs, err := s.API.Why(t.Context(), id, nil, 20)
			if err != nil {
				t.Fatal(err)
			}
			cold := 0
			for _, r := range recs {
				if r.Rule == "cold_boot" {
					cold++
				}
			}
			if cold == 0 {
				t.Errorf("why has no line for the refused snapshot:\n%s", whyText(t, s, id))
			}
		})
	}
	if text := whyText(t, s, "damaged"); strings.Contains(text, "refusal") {
		t.Errorf("connections were refused:\n%s", text)
	}
}

// snapshotDir is the directory of a suspended machine's snapshot.
func snapshotDir(t *testing.T, s *live.Server, id string) string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(s.Data, "host", "snapshots", id+"-*"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("machine %s has the snapshots %v (%v), want one", id, dirs, err)
	}
	return dirs[0]
}

// flip changes one bit in the middle of a file.
func flip(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 1
	return os.WriteFile(path, b, 0o600)
}

// replaceDir puts another snapshot's files in place of one's own.
func replaceDir(dir, with string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return exec.Command("cp", "-a", "--sparse=always", with, dir).Run()
}
