package why_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant/why"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func record(k why.Kind, i int) why.Record {
	return why.Record{Time: start.Add(time.Duration(i) * time.Second), Kind: k, App: "app_1", Rule: "r", Text: fmt.Sprint(i)}
}

func open(t *testing.T, dir string, cfg why.Config) *why.Rings {
	t.Helper()
	r, err := why.Open(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// texts are the texts of what q selects.
func texts(t *testing.T, r *why.Rings, q why.Query) string {
	t.Helper()
	recs, err := r.Query(q)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, rec := range recs {
		out = append(out, rec.Text)
	}
	return strings.Join(out, " ")
}

func TestRingKeepsTheNewest(t *testing.T) {
	r := why.NewRing(3)
	for i := range 5 {
		r.Add(record(why.Connection, i))
	}
	var got []string
	for _, rec := range r.Query(why.Query{}) {
		got = append(got, rec.Text)
	}
	if want := []string{"4", "3", "2"}; !cmp.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestRingAddsWithoutAllocating(t *testing.T) {
	r, rec := why.NewRing(100), record(why.Connection, 1)
	if n := testing.AllocsPerRun(200, func() { r.Add(rec) }); n != 0 {
		t.Errorf("%v allocations per record", n)
	}
}

func TestQuerySelects(t *testing.T) {
	all := why.Record{Time: start, Kind: why.Wake, Org: "o", App: "a", Machine: "m", Request: "q"}
	for name, tt := range map[string]struct {
		q    why.Query
		want bool
	}{
		"all":           {why.Query{}, true},
		"every field":   {why.Query{Org: "o", App: "a", Machine: "m", Request: "q", Kinds: []why.Kind{why.Wake}, Since: start}, true},
		"other org":     {why.Query{Org: "x"}, false},
		"other app":     {why.Query{App: "x"}, false},
		"other machine": {why.Query{Machine: "x"}, false},
		"other request": {why.Query{Request: "x"}, false},
		"other kinds":   {why.Query{Kinds: []why.Kind{why.Sleep, why.Scale}}, false},
		"later":         {why.Query{Since: start.Add(1)}, false},
	} {
		if got := tt.q.Match(all); got != tt.want {
			t.Errorf("%s: got %v, want %v", name, got, tt.want)
		}
	}
}

func TestRecordsOutliveTheProcess(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, why.Config{})
	want := record(why.Scale, 1)
	want.Machine, want.Attrs = "m", map[string]string{"k": "v"}
	r.Add(want)
	if _, err := r.Query(why.Query{}); err != nil { // writes
		t.Fatal(err)
	}
	got, err := open(t, dir, why.Config{}).Query(why.Query{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]why.Record{want}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestKindsAreMergedNewestFirst(t *testing.T) {
	r := open(t, t.TempDir(), why.Config{})
	for i, k := range []why.Kind{why.Wake, why.Connection, why.Scale, why.Refusal} {
		r.Add(record(k, i))
	}
	if got, want := texts(t, r, why.Query{}), "3 2 1 0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := texts(t, r, why.Query{Limit: 2}), "3 2"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAFloodOfOneKindPushesOutNoOther(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, why.Config{Bytes: 64 << 10, Buffer: 100})
	r.Add(record(why.Wake, 0))
	for i := range 3000 {
		r.Add(record(why.Refusal, i))
		if i%90 == 0 {
			texts(t, r, why.Query{Limit: 1})
		}
	}
	if got := texts(t, r, why.Query{Kinds: []why.Kind{why.Wake}}); got != "0" {
		t.Errorf("wakes: got %q, want 0", got)
	}
	if got := texts(t, r, why.Query{Kinds: []why.Kind{why.Refusal}, Limit: 3}); got != "2999 2998 2997" {
		t.Errorf("refusals: got %q", got)
	}
	for i := range 2 {
		st, err := os.Stat(filepath.Join(dir, fmt.Sprintf("refusal.%d.log", i)))
		if err != nil || st.Size() > 32<<10 {
			t.Errorf("segment %d: %v, %v", i, st, err)
		}
	}
	if n := r.Dropped(); n != 0 {
		t.Errorf("%d dropped", n)
	}
}

func TestWhatTheDiskCannotTakeIsCounted(t *testing.T) {
	r := open(t, t.TempDir(), why.Config{Buffer: 2})
	for i := range 5 {
		r.Add(record(why.Refusal, i))
	}
	if n := r.Dropped(); n != 3 {
		t.Errorf("%d dropped, want 3", n)
	}
	if got, want := texts(t, r, why.Query{}), "3 records came too fast to be kept 1 0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTornAndForeignLinesAreSkipped(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, why.Config{})
	r.Add(record(why.Scale, 1))
	r.Add(record(why.Scale, 2))
	texts(t, r, why.Query{})
	path := filepath.Join(dir, "scale.0.log")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b = append(bytes.Replace(b, []byte(`"text":"1"`), []byte(`"text":"9"`), 1), "no line of ours\n00000000 {}\n12345678 {\"te"...)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	r = open(t, dir, why.Config{})
	r.Add(record(why.Scale, 3))
	if got, want := texts(t, r, why.Query{}), "3 2"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestASegmentWithoutItsHeadIsOverwritten(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "scale.0.log"), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := open(t, dir, why.Config{})
	r.Add(record(why.Scale, 1))
	if got, want := texts(t, r, why.Query{}), "1"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestARecordTooLongLosesItsEnd(t *testing.T) {
	r := open(t, t.TempDir(), why.Config{})
	rec := record(why.Change, 1)
	rec.Text, rec.Attrs = strings.Repeat("x", 1<<20), map[string]string{"a": strings.Repeat("y", 1<<20)}
	r.Add(rec)
	if got := texts(t, r, why.Query{}); got != strings.Repeat("x", 1024) {
		t.Errorf("got %d bytes", len(got))
	}
}

func TestRunWritesWithinTheFlushTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		r, err := why.Open(dir, why.Config{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		size := func() int64 {
			st, err := os.Stat(filepath.Join(dir, "wake.0.log"))
			if err != nil {
				t.Fatal(err)
			}
			return st.Size()
		}
		before := size()
		r.Add(record(why.Wake, 1))
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if size() == before {
			t.Error("not written after the flush time")
		}
		before = size()
		r.Add(record(why.Wake, 2))
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if size() == before {
			t.Error("not written at the end")
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}

func BenchmarkRing(b *testing.B) {
	r, rec := why.NewRing(16384), record(why.Connection, 1)
	b.ReportAllocs()
	for b.Loop() {
		r.Add(rec)
	}
}
