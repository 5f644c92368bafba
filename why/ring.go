package why

import (
	"slices"
	"sync"
)

// Ring keeps the newest records in memory. Adding copies the record into a place that is there
// already, so that it suits what happens with every connection.
type Ring struct {
	mu      sync.Mutex // guards those below
	records []Record
	next    int    // where the next one goes
	added   uint64 // in all
}

// NewRing returns a Ring of the n newest records.
func NewRing(n int) *Ring { return &Ring{records: make([]Record, max(1, n))} }

// Add takes a record, and drops the oldest where the ring is full.
func (r *Ring) Add(rec Record) {
	r.mu.Lock()
	r.records[r.next] = rec
	r.next++
	if r.next == len(r.records) {
		r.next = 0
	}
	r.added++
	r.mu.Unlock()
}

// Query returns the records that q selects, newest first.
func (r *Ring) Query(q Query) []Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Record
	n := min(r.added, uint64(len(r.records)))
	for i := range int(n) {
		at := r.next - 1 - i
		if at < 0 {
			at += len(r.records)
		}
		if rec := r.records[at]; q.Match(rec) {
			out = append(out, rec)
			if len(out) == q.limit() {
				break
			}
		}
	}
	return out
}

// Match says whether q selects r.
func (q Query) Match(r Record) bool {
	return (q.Org == "" || q.Org == r.Org) &&
		(q.App == "" || q.App == r.App) &&
		(q.Machine == "" || q.Machine == r.Machine) &&
		(q.Request == "" || q.Request == r.Request) &&
		(q.Node == "" || string(q.Node) == r.Attrs["node"]) &&
		(len(q.Kinds) == 0 || slices.Contains(q.Kinds, r.Kind)) &&
		!r.Time.Before(q.Since)
}

// limit bounds what a query returns.
func (q Query) limit() int {
	if q.Limit <= 0 {
		return 100
	}
	return min(q.Limit, 10_000)
}

// Merge joins lists of records which are newest first, and keeps the newest that q allows.
func Merge(q Query, lists ...[]Record) []Record {
	out := slices.Concat(lists...)
	slices.SortStableFunc(out, func(a, b Record) int { return b.Time.Compare(a.Time) })
	out = slices.CompactFunc(out, same) // the proxy keeps some that the server has put on disk
	return out[:min(len(out), q.limit())]
}

func same(a, b Record) bool {
	return a.Time.Equal(b.Time) && a.Kind == b.Kind && a.Rule == b.Rule && a.App == b.App && a.Machine == b.Machine &&
		a.Request == b.Request && a.Text == b.Text
}
