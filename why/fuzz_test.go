package why_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/volant-edge/volant/why"
)

// FuzzOpen puts any bytes where a segment was: the rings open, read what checks, and go on.
func FuzzOpen(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("volant-why 1 1\n"))
	f.Add([]byte("volant-why 1 18446744073709551615\n"))
	f.Add([]byte("volant-why 1 9223372036854775807\n"))
	f.Add([]byte("volant-why 1 7\n0f0f0f0f {\"kind\":\"scale\"}\n1234"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "scale.1.log"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			r, err := why.Open(dir, why.Config{})
			if err != nil {
				t.Fatal(err)
			}
			r.Add(why.Record{Kind: why.Scale, Rule: "r", Text: "after"})
			recs, err := r.Query(why.Query{Kinds: []why.Kind{why.Scale}})
			if err != nil || len(recs) == 0 {
				t.Fatalf("got %v, %v", recs, err)
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
