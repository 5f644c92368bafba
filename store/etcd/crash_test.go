package etcd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
	"github.com/volant-edge/volant/store/local"
)

// crashDir tells a child of the test binary where to write until it is killed.
const crashDir = "VOLANT_TEST_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := writeUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// writeUntilKilled runs a store and its copy, writes records, and says on its output what was acknowledged
// ("ack KEY REVISION") and what the copy has ("copy REVISION").
func writeUntilKilled(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	copied, err := local.Open(local.Config{Path: filepath.Join(dir, "copy")})
	if err != nil {
		return err
	}
	s, err := etcd.Open(ctx, etcd.Config{Dir: filepath.Join(dir, "etcd"), Floor: copied.Revision()})
	if err != nil {
		return err
	}
	go copied.Run(ctx, s) //nolint:errcheck // killed
	go s.Run(ctx)         //nolint:errcheck // killed
	for w := range 4 {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				app := &volant.App{Meta: volant.Meta{Org: "o", App: volant.AppID(id), ID: id}, Name: strings.Repeat("x", rand.IntN(2000))}
				rev, err := store.Create(ctx, s, "crash", app)
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				fmt.Println("ack", app.Key(), rev)
			}
		}()
	}
	_, rev, err := copied.List(ctx, "")
	if err != nil {
		return err
	}
	for {
		err = copied.Watch(ctx, "", rev, func(b store.Batch) error {
			fmt.Println("copy", b.Rev)
			rev = b.Rev
			return nil
		})
		if !errors.Is(err, store.ErrCompacted) {
			return err
		}
		if _, rev, err = copied.List(ctx, ""); err != nil {
			return err
		}
	}
}

// A process that is killed at any moment loses nothing that it said was written, and the copy is never
// behind what it told its watchers.
func TestKilledProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acked := map[string]store.Revision{}
	var told store.Revision
	for round := range 5 {
		child := exec.Command(os.Args[0]) //nolint:noctx // killed below, in any case
		child.Env = append(os.Environ(), crashDir+"="+dir)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		deadline := time.AfterFunc(40*time.Second, func() { child.Process.Kill() }) //nolint:errcheck // it may have ended
		stop, lines := 20+rand.IntN(200), bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if n == stop {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			words := strings.Fields(lines.Text())
			if len(words) < 2 { // cut off by the kill
				break
			}
			rev, err := store.ParseRevision(words[len(words)-1])
			switch {
			case err != nil:
			case words[0] == "ack":
				acked[words[1]] = rev
			default:
				told = rev
			}
		}
		deadline.Stop()
		child.Wait() //nolint:errcheck // killed
		if len(acked) < 5*(round+1) {
			t.Fatalf("round %d: %d records acknowledged", round, len(acked))
		}
		checkAfterKill(t, dir, acked, told)
	}
	t.Logf("%d records acknowledged", len(acked))
}

func checkAfterKill(t *testing.T, dir string, acked map[string]store.Revision, told store.Revision) {
	t.Helper()
	copied, err := local.Open(local.Config{Path: filepath.Join(dir, "copy")})
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close() // the test would have failed
	s, err := etcd.Open(t.Context(), etcd.Config{Dir: filepath.Join(dir, "etcd"), Floor: copied.Revision()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() // the test would have failed
	if copied.Revision().Before(told) {
		t.Errorf("the copy is at %s, and had told of %s", copied.Revision(), told)
	}
	if st := copied.Status(); len(st.Bad)+len(st.Alarms) > 0 {
		t.Errorf("copy: %+v", st)
	}
	for _, r := range []store.Reader{s, copied} {
		list, at, err := r.List(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		have := make(map[string]store.Entry, len(list))
		for _, e := range list {
			have[e.Key] = e
			if _, err := store.DecodeAny(e.Key, e.Value); err != nil {
				t.Error(err)
			}
		}
		for key, rev := range acked {
			if !at.Before(rev) && have[key].Mod != rev {
				t.Errorf("%T at %s: %s is of %s, acknowledged at %s", r, at, key, have[key].Mod, rev)
			}
			if r == store.Reader(s) && at.Before(rev) {
				t.Errorf("the store is at %s, and acknowledged %s", at, rev)
			}
		}
	}
}

// The whole restore with real engines: a node's copy seeds a new store, which the node then follows.
func TestRestoreFromACopy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "copy")
	s := open(t, etcd.Config{Dir: filepath.Join(dir, "old")})
	for i := range 300 { // more than one transaction's worth
		id := fmt.Sprint(i)
		if _, err := store.Create(t.Context(), s, "x", &volant.App{Meta: volant.Meta{App: volant.AppID(id), ID: id}}); err != nil {
			t.Fatal(err)
		}
	}
	copied, err := local.Open(local.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	want, from, err := s.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := copied.Replace(want, from); err != nil {
		t.Fatal(err)
	}
	if err := copied.Close(); err != nil {
		t.Fatal(err)
	}

	next := open(t, etcd.Config{Dir: filepath.Join(dir, "new")})
	done, err := local.Restore(t.Context(), path, next, false)
	if err != nil || done.Records != 300 || done.To.Epoch != 2 || done.From != from {
		t.Fatalf("%+v, %v", done, err)
	}
	if _, err := local.Restore(t.Context(), path, next, false); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("restored twice: %v", err)
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	next = open(t, etcd.Config{Dir: filepath.Join(dir, "new"), Floor: from}) // epoch 2 is newer, whatever its revision
	got, at, err := next.List(t.Context(), "")
	if err != nil || len(got) != 300 || at.Epoch != 2 {
		t.Fatalf("%d records at %s, %v", len(got), at, err)
	}
	for i := range got {
		if got[i].Key != want[i].Key || string(got[i].Value) != string(want[i].Value) {
			t.Errorf("record %s changed", got[i].Key)
		}
	}
	// What was read under the old epoch cannot be written under the new one.
	if _, err := next.Commit(t.Context(), store.Op{Key: want[0].Key, Expect: want[0].Mod}); !errors.Is(err, volant.ErrConflict) {
		t.Errorf("revision of the old epoch: %v", err)
	}
	copied, err = local.Open(local.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close() // the test is over
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- copied.Run(ctx, next) }()
	within(t, "followed", func() bool { return copied.Revision().Epoch == 2 })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A restore that was killed half way leaves a store that nobody takes for a whole one.
func TestUnfinishedRestore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := etcd.Open(t.Context(), etcd.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	bad := []store.Entry{{Key: "app/a/a"}, {Key: "app/a/a"}} // the same key twice in one transaction is refused
	if _, err := s.Seed(t.Context(), 2, bad); err == nil {
		t.Fatal("seeded")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.Open(t.Context(), etcd.Config{Dir: dir}); !errors.Is(err, volant.ErrPrecondition) {
		t.Errorf("opened after an unfinished restore: %v", err)
	}
}
