package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

// Row is one number.
type Row struct {
	Name      string  `json:"name"`
	Value     float64 `json:"value"`
	Unit      string  `json:"unit"`
	Peer      string  `json:"peer,omitempty"` // what PeerValue is of
	PeerValue float64 `json:"peer_value,omitempty"`
	Spread    string  `json:"spread,omitempty"`
	Reach     string  `json:"reach,omitempty"` // such as "<= 900"; empty: for information
	OK        bool    `json:"ok"`
	Note      string  `json:"note,omitempty"`
}

// atMost, atLeast and exactly set what the value must be.
func (r Row) atMost(x float64) Row  { return r.must("<=", x, r.Value <= x) }
func (r Row) atLeast(x float64) Row { return r.must(">=", x, r.Value >= x) }
func (r Row) exactly(x float64) Row { return r.must("=", x, r.Value == x) }

// told is a row for information.
func (r Row) told() Row {
	r.OK = true
	return r
}

func (r Row) must(op string, x float64, ok bool) Row {
	r.Reach, r.OK = op+" "+number(x), ok
	return r
}

func number(x float64) string {
	switch {
	case x == float64(int64(x)):
		return fmt.Sprintf("%d", int64(x))
	case x >= 100 || x <= -100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10 || x <= -10:
		return fmt.Sprintf("%.1f", x)
	case x >= 0.01:
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.3g", x)
}

// printTable writes rows for people.
func printTable(w io.Writer, rows []Row) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "name\tvalue\tunit\tpeer\tpeer value\treach\tok\tspread") //nolint:errcheck // Flush tells
	for _, r := range rows {
		ok, peer := "yes", ""
		if !r.OK {
			ok = "NO"
		}
		if r.Peer != "" {
			peer = number(r.PeerValue)
		}
		cells := []string{r.Name, number(r.Value), r.Unit, dash(r.Peer), dash(peer), dash(r.Reach), ok, dash(r.Spread)}
		fmt.Fprintln(t, strings.Join(cells, "\t")) //nolint:errcheck // Flush tells
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		if r.Note != "" {
			fmt.Fprintf(w, "%s: %s\n", r.Name, r.Note) //nolint:errcheck // a note
		}
	}
	return nil
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// writeJSON writes rows for programs. Rows of an earlier run that this one did not measure stay.
func writeJSON(path string, rows []Row) error {
	var old []Row
	if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &old) != nil {
		old = nil // not ours
	}
	all := merge(old, rows)
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// merge puts fresh rows in place of old ones of the same name, and new ones at the end.
func merge(old, fresh []Row) []Row {
	at := map[string]int{}
	out := make([]Row, 0, len(old)+len(fresh))
	for _, r := range append(append([]Row(nil), old...), fresh...) {
		if i, ok := at[r.Name]; ok {
			out[i] = r
			continue
		}
		at[r.Name] = len(out)
		out = append(out, r)
	}
	return out
}
