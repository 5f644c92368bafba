package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant/api"
)

func TestReach(t *testing.T) {
	for _, c := range []struct {
		row  Row
		want string
		ok   bool
	}{
		{Row{Value: 900}.atMost(900), "<= 900", true},
		{Row{Value: 900.1}.atMost(900), "<= 900", false},
		{Row{Value: 0.9}.atLeast(1), ">= 1", false},
		{Row{Value: 0}.exactly(0), "= 0", true},
		{Row{Value: 1}.exactly(0), "= 0", false},
		{Row{Value: 7}.told(), "", true},
	} {
		if c.row.Reach != c.want || c.row.OK != c.ok {
			t.Errorf("%v: reach %q ok %v, want %q and %v", c.row.Value, c.row.Reach, c.row.OK, c.want, c.ok)
		}
	}
}

// A run of some rows keeps the others of the file.
func TestJSONKeepsWhatWasNotMeasured(t *testing.T) {
	file := filepath.Join(t.TempDir(), "build", "bench.json")
	for _, rows := range [][]Row{{{Name: "a", Value: 1}, {Name: "b", Value: 2}}, {{Name: "b", Value: 3}, {Name: "c", Value: 4}}} {
		if err := writeJSON(file, rows); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got []Row
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Row{{Name: "a", Value: 1}, {Name: "b", Value: 3}, {Name: "c", Value: 4}}, got); diff != "" {
		t.Error(diff)
	}
}

func TestRunChoosesByName(t *testing.T) {
	m := measure{names: []string{"wake_p50", "wake_ratio"}}
	for name, want := range map[string]bool{"": true, "wake": true, "p50": true, "cold": false} {
		if got := m.wanted(name); got != want {
			t.Errorf("-run %q: %v, want %v", name, got, want)
		}
	}
	rows := chosen([]Row{{Name: "wake_p50"}, {Name: "wake_ratio"}}, "ratio")
	if diff := cmp.Diff([]Row{{Name: "wake_ratio"}}, rows); diff != "" {
		t.Error(diff)
	}
}

func TestNamesAreOfOneMeasureEach(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range measures() {
		for _, n := range m.names {
			if seen[n] {
				t.Errorf("%s is there twice", n)
			}
			seen[n] = true
		}
		if m.limit <= 0 || m.run == nil {
			t.Errorf("%v has no bound or nothing to run", m.names)
		}
	}
}

func TestMovesAreBootsAndSleeps(t *testing.T) {
	m, awake := movesOf([]api.Machine{
		{State: "started", Boots: 3}, {State: "suspended", Boots: 2}, {State: "starting", Boots: 1}, {State: "created"},
	})
	if want := (moves{out: 6, in: 4}); m != want || awake != 2 {
		t.Errorf("%+v with %d awake, want %+v with 2", m, awake, want)
	}
}

func TestPlainRowsKeepReachAndCPU(t *testing.T) {
	rows, err := plainRows([]byte(`{"name":"tcp_bulk","value":9,"unit":"Gbit/s","peer":"haproxy 2.6","peer_value":10,"ratio":0.9,"spread":0.1,"cpu":1,"peer_cpu":2,"reach":1}
{"name":"tcp_bulk","value":9,"unit":"Gbit/s","peer":"bare Go splice loop","peer_value":10,"ratio":0.9,"spread":0.1,"cpu":1,"peer_cpu":2,"reach":0}
`), 12)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rows {
		got = append(got, strings.TrimSpace(r.Name+" "+r.Reach))
	}
	want := []string{"tcp_bulk_haproxy_ratio >= 1", "tcp_bulk_haproxy_cpu", "tcp_bulk_bare_ratio", "tcp_bulk_bare_cpu"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if rows[0].OK || !rows[2].OK {
		t.Errorf("ok is %v and %v, want only the one without a reach", rows[0].OK, rows[2].OK)
	}
}
