package datadir_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
)

// TestMain lets the test binary play a second process that holds the directory in $HOLD.
func TestMain(m *testing.M) {
	if dir := os.Getenv("HOLD"); dir != "" {
		if _, err := datadir.Open(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("held")
		if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func open(t *testing.T, root string) *datadir.Dir {
	t.Helper()
	d, err := datadir.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return d
}

func TestNodeIDIsMadeOnce(t *testing.T) {
	root := filepath.Join(t.TempDir(), "new", "data")
	d := open(t, root)
	id := d.Node()
	if len(id) != 8 {
		t.Fatalf("node ID is %q, want 8 hex digits", id)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := open(t, root).Node(); got != id {
		t.Errorf("node ID after a restart is %s, want %s", got, id)
	}
	a, err := datadir.Attach(root)
	if err != nil || a.Node() != id {
		t.Errorf("attached: %v, %v; want node %s", a, err, id)
	}
}

func TestSecondServerIsRefusedAndToldWhoHoldsIt(t *testing.T) {
	root := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), "HOLD="+root)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("other process says %q, %v", line, err)
	}
	_, err = datadir.Open(root)
	if err == nil {
		t.Fatal("two servers opened one directory")
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	if !errors.Is(err, volant.ErrPrecondition) || !strings.Contains(err.Error(), "process "+pid) || !strings.Contains(err.Error(), "kill "+pid) {
		t.Errorf("error is %q, want one that names process %s and what to do", err, pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() //nolint:errcheck // killed
	in.Close() // its reader is gone
	open(t, root)
}

func TestNewerFormatIsRefusedWithTheCure(t *testing.T) {
	root := t.TempDir()
	d, err := datadir.OpenAt(root, 7)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for name, openIt := range map[string]func(string) (*datadir.Dir, error){"Open": datadir.Open, "Attach": datadir.Attach} {
		_, err := openIt(root)
		if !errors.Is(err, volant.ErrPrecondition) || !strings.Contains(err.Error(), "run the newer volant again") {
			t.Errorf("%s: error is %v, want a refusal with its cure", name, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(root, "FORMAT")); err != nil || string(b) != "7\n" {
		t.Errorf("FORMAT became %q, %v", b, err)
	}
}

func TestMigrationsRunForwardOnceAndAgainAfterAFailure(t *testing.T) {
	root := t.TempDir()
	if err := open(t, root).Close(); err != nil {
		t.Fatal(err)
	}
	var ran []int
	fail := true
	ms := []datadir.Migration{
		{To: 2, Run: func(string) error { ran = append(ran, 2); return nil }},
		{To: 3, Run: func(string) error {
			ran = append(ran, 3)
			if fail {
				return errors.New("no space")
			}
			return nil
		}},
	}
	if _, err := datadir.OpenAt(root, 3, ms...); err == nil || !strings.Contains(err.Error(), "migrate to format 3: no space") {
		t.Fatalf("error is %v, want the failed migration", err)
	}
	fail = false
	for range 2 {
		d, err := datadir.OpenAt(root, 3, ms...)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := fmt.Sprint(ran), "[2 3 3]"; got != want {
		t.Errorf("migrations ran %v, want %v", got, want)
	}
}

func TestOpenGoesOnAfterACrashInTheFirstOpen(t *testing.T) {
	root := t.TempDir()
	d := open(t, root)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, "FORMAT")); err != nil { // written last
		t.Fatal(err)
	}
	open(t, root)
}

func TestForeignDirectoryIsLeftAlone(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "letters"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := datadir.Open(root); !errors.Is(err, volant.ErrInvalid) {
		t.Errorf("error is %v, want a refusal", err)
	}
	if _, err := datadir.Attach(root); !errors.Is(err, volant.ErrNotFound) {
		t.Errorf("error of Attach is %v, want not found", err)
	}
	if names, err := os.ReadDir(root); err != nil || len(names) != 1 {
		t.Errorf("directory now holds %v, %v", names, err)
	}
}

func TestDamagedFilesAreNamed(t *testing.T) {
	garbage := func(path string) error { return os.WriteFile(path, []byte("garbage"), 0o600) }
	for file, damage := range map[string]func(string) error{"node-id": garbage, "./node-id": os.Remove, "FORMAT": garbage, "count/epoch": garbage} {
		root := t.TempDir()
		d := open(t, root)
		if _, err := d.Next(datadir.CounterEpoch); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if err := damage(filepath.Join(root, file)); err != nil {
			t.Fatal(err)
		}
		d, err := datadir.Open(root)
		if err == nil {
			_, err = d.Next(datadir.CounterEpoch)
			if cerr := d.Close(); cerr != nil {
				t.Error(cerr)
			}
		}
		if !errors.Is(err, volant.ErrInvalid) || !strings.Contains(err.Error(), filepath.Clean(file)) {
			t.Errorf("%s: error is %v, want one that names the file", file, err)
		}
	}
}

func TestCounterNeverGivesAValueTwice(t *testing.T) {
	root := t.TempDir()
	d := open(t, root)
	other, err := datadir.Attach(root)
	if err != nil {
		t.Fatal(err)
	}
	const each = 20
	var wg sync.WaitGroup
	got := make(chan uint64, 2*each)
	for _, dir := range []*datadir.Dir{d, other} {
		wg.Go(func() {
			for range each {
				n, err := dir.Next(datadir.CounterEpoch)
				if err != nil {
					t.Error(err)
				}
				got <- n
			}
		})
	}
	wg.Wait()
	close(got)
	seen := map[uint64]bool{}
	for n := range got {
		if seen[n] || n < 1 || n > 2*each {
			t.Errorf("value %d was given twice or is out of range", n)
		}
		seen[n] = true
	}
	if n, err := d.Counter(datadir.CounterEpoch); err != nil || n != 2*each {
		t.Errorf("counter stands at %d, %v; want %d", n, err, 2*each)
	}
	if n, err := d.Counter("other"); err != nil || n != 0 {
		t.Errorf("a fresh counter stands at %d, %v", n, err)
	}
}

func TestSubDirectoriesHaveTheirModes(t *testing.T) {
	d := open(t, t.TempDir())
	if err := os.Mkdir(d.Path("secrets"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{"secrets": 0o700, "store": 0o700, "vm": 0o711, "images": 0o711} {
		path, err := d.Sub(name)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", name, fi.Mode().Perm(), want)
		}
	}
	if _, err := d.Sub("../outside"); !errors.Is(err, volant.ErrInvalid) {
		t.Errorf("error is %v, want a refusal", err)
	}
}

func TestSocketPathThatTheKernelCannotTakeIsRefused(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), strings.Repeat("d", 100)))
	if _, err := d.Socket("api.sock"); !errors.Is(err, volant.ErrInvalid) || !strings.Contains(err.Error(), "shorter path") {
		t.Errorf("error is %v, want a refusal with its cure", err)
	}
}

// A process that was killed while it started another one leaves its lock to that for a moment.
func TestLockOfAProcessThatIsGoneIsWaitedFor(t *testing.T) {
	root := t.TempDir()
	d, err := datadir.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(root, "lock", "server"), os.O_RDWR|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(f, dead.Process.Pid)
	opened := make(chan error)
	go func() {
		d, err := datadir.Open(root)
		if err == nil {
			err = d.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Errorf("after the lock was given back: %v", err)
	}
}
