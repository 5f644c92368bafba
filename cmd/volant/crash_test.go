package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestServerPointsListsWriteAheadPoints(t *testing.T) {
	var out bytes.Buffer
	cmd := newRoot(&globals{})
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"server", "points", "--json"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	var got []string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, out.Bytes())
	}
	if !slices.Contains(got, "boot-made") || len(got) < 15 {
		t.Errorf("points are %v", got)
	}
}

func TestCrashPointRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, s := range []string{"wish", "wish:during", "wish:after:0", "wish:after:x", "wish:after:1:1"} {
		if _, err := crashPoint(s); err == nil {
			t.Errorf("crashPoint(%q) gives no error", s)
		}
	}
	for _, s := range []string{"", "wish:after", "wish:before:3", "@/file"} {
		if _, err := crashPoint(s); err != nil {
			t.Errorf("crashPoint(%q): %v", s, err)
		}
	}
}

// A held point lets others pass, and goes on when it is let go.
func TestArmedHoldsOnePointUntilReleased(t *testing.T) {
	file := filepath.Join(t.TempDir(), "crash")
	at, err := crashPoint("@" + file)
	if err != nil {
		t.Fatal(err)
	}
	at("wish", "after") // nothing is armed
	if err := os.WriteFile(file, []byte("wish:after hold\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	at("wish", "before")
	at("term", "after")
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("a point which was not named has acted: %v", err)
	}
	done := make(chan struct{})
	go func() { at("wish", "after"); close(done) }()
	for {
		if _, err := os.Stat(file + ".held"); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	at("wish", "after") // once is enough
	select {
	case <-done:
		t.Fatal("the point was not held")
	default:
	}
	if err := os.Remove(file + ".held"); err != nil {
		t.Fatal(err)
	}
	<-done
}
