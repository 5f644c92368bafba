package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
	"github.com/volant-edge/volant/volanttest/live"
	"github.com/volant-edge/volant/volanttest/testserver"
)

// The store's directory is deleted under a running node, and the node restarted without it: machines serve and
// wake, connections go on, and a write is refused with what to do. That brings every record back, and then all
// goes on as before.
func TestStoreIsLostAndRestored(t *testing.T) {
	t.Parallel()
	s := start(t)
	const scale = "min = 0\nidle_timeout = \"1h\""
	awakeAt := deploy(t, s, "awake", "testserver", 8080, scale)
	asleepAt := deploy(t, s, "asleep", "testserver", 8080, scale)
	gone := deploy(t, s, "gone", "testserver", 8080, scale)
	for _, addr := range []string{awakeAt, asleepAt, gone} {
		ask(t, addr, "ram-counter")
	}
	sleep(t, s, "asleep", "suspend")
	if err := s.API.DestroyApp(t.Context(), "gone", true); err != nil {
		t.Fatal(err)
	}
	sound(t, s)
	held, err := testserver.StartEcho(dial(t, awakeAt), 1)
	if err != nil {
		t.Fatal(err)
	}
	serves := func(when, counter string) {
		t.Helper()
		if err := held.Exchange(1000); err != nil {
			t.Fatalf("%s: the connection that was open: %v", when, err)
		}
		ask(t, awakeAt, "count")
		if got := ask(t, asleepAt, "ram-counter"); got != counter {
			t.Errorf("%s: ram-counter is %s, want %s", when, got, counter)
		}
		sleep(t, s, "asleep", "suspend")
	}
	s.Stop()
	before := records(t, s)
	for _, kind := range []string{"app", "release", "machine", "address", "token", "node", "org"} {
		if !hasKind(before, kind) {
			t.Errorf("there is no record of kind %s to lose", kind)
		}
	}
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	serves("before", "2")

	if err := os.RemoveAll(filepath.Join(s.Data, "etcd")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the loss is noticed", func() bool { return strings.Contains(s.Log(), "store broke") })
	refusesWrites(t, s)
	serves("with the store's directory deleted", "3")
	s.Kill()
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	serves("started without the store", "4")
	refusesWrites(t, s)

	s.Stop()
	out, err := s.Volant(t.Context(), "control", "restore")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, records(t, s)); diff != "" {
		t.Errorf("records (-before +restored):\n%s\n%s", diff, out)
	}
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	serves("restored", "5")
	deploy(t, s, "awake", "testserver", 8080, scale)
	ask(t, awakeAt, "count")
	deploy(t, s, "new", "testserver", 8080, scale)
	if err := held.Exchange(1000); err != nil {
		t.Error(err)
	}
	sound(t, s)
}

// refusesWrites fails unless a write is refused with what to do.
func refusesWrites(t *testing.T, s *live.Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := s.API.CreateApp(ctx, "refused", ""); !errors.Is(err, volant.ErrUnavailable) {
		t.Errorf("a write without a store: %v, want it unavailable", err)
	}
	out, err := s.Volant(ctx, "apps", "create", "refused")
	if err == nil || !strings.Contains(out, "volant control restore") {
		t.Errorf("volant apps create without a store: %v, want a remedy", err)
	}
}

// records are all records of the store of a server that does not run.
func records(t *testing.T, s *live.Server) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	st, err := etcd.Open(ctx, etcd.Config{Dir: filepath.Join(s.Data, "etcd")})
	if err != nil {
		t.Fatal(err)
	}
	entries, _, err := st.List(ctx, "")
	if err := errors.Join(err, st.Close()); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		if !strings.HasPrefix(e.Key, store.TermPrefix) {
			out[e.Key] = string(e.Value)
		}
	}
	return out
}

func hasKind(records map[string]string, kind string) bool {
	for _, value := range records {
		var head volant.Meta
		if json.Unmarshal([]byte(value), &head) == nil && string(head.Kind) == kind {
			return true
		}
	}
	return false
}

// A damaged copy of the intent is set aside and made anew from the store. Where both are damaged the server says so
// and does not start; proxy and machines serve on.
func TestDamagedIntent(t *testing.T) {
	t.Parallel()
	s := start(t)
	addr := deploy(t, s, "app", "testserver", 8080, "min = 0\nidle_timeout = \"1h\"")
	held, err := testserver.StartEcho(dial(t, addr), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := held.Exchange(1000); err != nil {
		t.Fatal(err)
	}
	copyFile := filepath.Join(s.Data, "intent", "copy.db")
	s.Stop()
	before := records(t, s)
	scramble(t, copyFile)
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a, err := s.API.App(t.Context(), "app"); err != nil || a.Release != 1 {
		t.Errorf("the app after its copy was damaged: %+v, %v", a, err)
	}
	if aside, err := filepath.Glob(copyFile + ".damaged-*"); err != nil || len(aside) != 1 {
		t.Errorf("the damaged copy was set aside as %v (%v), want one file", aside, err)
	}
	s.Stop()
	if diff := cmp.Diff(before, records(t, s)); diff != "" {
		t.Errorf("records (-before +after):\n%s", diff)
	}

	scramble(t, copyFile)
	db := filepath.Join(s.Data, "etcd", "member", "snap", "db")
	good, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	scramble(t, db)
	err = s.Run(t.Context())
	if !errors.Is(err, live.ErrExited) {
		t.Fatalf("with both damaged the server ran: %v", err)
	}
	for _, want := range []string{"neither the store nor its copy can be opened", "volant control restore --from"} {
		if !strings.Contains(s.Log(), want) {
			t.Errorf("the server said nothing of %q", want)
		}
	}
	if err := held.Exchange(1000); err != nil {
		t.Error(err)
	}
	ask(t, addr, "count")
	if err := os.WriteFile(db, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := held.Exchange(1000); err != nil {
		t.Error(err)
	}
	sound(t, s)
}

// scramble overwrites the pages of a database which say where all others are.
func scramble(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xa5}, 16<<10), 0); err != nil {
		t.Fatal(err)
	}
}
