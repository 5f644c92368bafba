package appfile

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
)

// problem is one thing wrong at a place.
type problem struct {
	pos  pos
	text string
}

func (p *problem) Error() string { return p.text }

// reader collects the problems of a file while its tables are read.
type reader struct {
	problems []*problem
	ignored  []*problem // what is asked for and not acted on
	warnings []*problem
}

func (r *reader) wrong(at pos, format string, args ...any) {
	r.problems = append(r.problems, &problem{at, fmt.Sprintf(format, args...)})
}

// unserved is a problem unless the caller allows what is not acted on.
func (r *reader) unserved(at pos, format string, args ...any) {
	r.ignored = append(r.ignored, &problem{at, fmt.Sprintf(format, args...)})
}

func (r *reader) warn(at pos, format string, args ...any) {
	r.warnings = append(r.warnings, &problem{at, fmt.Sprintf(format, args...)})
}

// section reads one table: each key that is asked for is known, and end tells of the others.
type section struct {
	r     *reader
	t     *table
	path  string // such as "services.ports"; empty for the file itself
	known map[string]bool
}

func (r *reader) section(t *table, path string) *section {
	return &section{r: r, t: t, path: path, known: map[string]bool{}}
}

// name is a key with its path.
func (s *section) name(key string) string {
	if s.path == "" {
		return key
	}
	return s.path + "." + key
}

// get is the value of a key, which is known from now on; nil where it is missing or null.
func (s *section) get(key string) *value {
	s.known[key] = true
	if !s.has(key) {
		return nil
	}
	return s.t.vals[key]
}

func (s *section) has(key string) bool {
	v := s.t.vals[key]
	return v != nil && !v.null()
}

// at is the place of a key that is there.
func (s *section) at(key string) pos { return s.t.vals[key].pos }

// end tells of keys which were not asked for. Those in fly are Fly's, each with what to do instead.
func (s *section) end(fly map[string]string) {
	for _, k := range s.t.keys {
		if s.known[k] {
			continue
		}
		at := s.at(k)
		if cure, ok := fly[k]; ok {
			if !s.t.vals[k].nothing() {
				s.r.unserved(at, "%s is not acted on: %s", s.name(k), cure)
			}
			continue
		}
		text := fmt.Sprintf("unknown key %s", s.name(k))
		if near := s.nearest(k, fly); near != "" {
			text += fmt.Sprintf("; did you mean %s?", near)
		}
		s.r.wrong(at, "%s", text)
	}
}

// nearest is the known key most like k, or "" where none is like it.
func (s *section) nearest(k string, fly map[string]string) string {
	return nearest(k, slices.Sorted(maps.Keys(s.known)), slices.Sorted(maps.Keys(fly)))
}

// nearest is the word of the lists most like w, or "" where none is like it.
func nearest(w string, lists ...[]string) string {
	plain := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "-", "_")) }
	best, least := "", max(2, len(w)/3)+1
	for _, n := range slices.Concat(lists...) {
		if d := distance(plain(w), plain(n)); d < least && 2*d <= max(len(w), len(n)) {
			best, least = n, d
		}
	}
	return best
}

// distance is the number of letters to add, drop or change between a and b.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return math.MaxInt
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}

func (s *section) str(key string, to *string) bool {
	v := s.get(key)
	if v == nil {
		return false
	}
	if v.kind != kindString {
		s.r.wrong(v.pos, "%s is %s: write a string in quotes", s.name(key), v.what())
		return false
	}
	*to = v.text
	return true
}

// oneOf reads a string that must be one of some words.
func (s *section) oneOf(key string, to *string, words ...string) bool {
	var w string
	if !s.str(key, &w) {
		return false
	}
	if !slices.Contains(words, w) {
		text := fmt.Sprintf("%s is %q: use one of %s", s.name(key), w, strings.Join(words, ", "))
		if near := nearest(w, words); near != "" {
			text += fmt.Sprintf("; did you mean %s?", near)
		}
		s.r.wrong(s.at(key), "%s", text)
		return false
	}
	*to = w
	return true
}

func (s *section) boolean(key string, to *bool) bool {
	v := s.get(key)
	if v == nil {
		return false
	}
	if v.kind != kindBool {
		s.r.wrong(v.pos, "%s is %s: write true or false", s.name(key), v.what())
		return false
	}
	*to = v.text == "true"
	return true
}

func (s *section) integer(key string, to *int, least, most int) bool {
	v := s.get(key)
	if v == nil {
		return false
	}
	n, ok := v.int()
	if !ok {
		s.r.wrong(v.pos, "%s is %s: write a whole number from %d to %d", s.name(key), v.what(), least, most)
		return false
	}
	if n < least || n > most {
		s.r.wrong(v.pos, "%s is %s: use %d to %d", s.name(key), v.text, least, most)
		return false
	}
	*to = n
	return true
}

func (v *value) int() (int, bool) {
	if v.kind != kindInt {
		return 0, false
	}
	n, err := strconv.ParseInt(v.text, 0, 64)
	if err != nil { // decimal numbers may have a sign, underscores are fine with base 0
		return 0, false
	}
	return int(n), true
}

// duration reads a string such as "15s", or a number of unit, within bounds.
func (s *section) duration(key string, to *volant.Duration, unit, least, most time.Duration) bool {
	d, ok := s.anyDuration(key, unit)
	if !ok {
		return false
	}
	if d < least || d > most {
		s.r.wrong(s.at(key), "%s is %s: use %s to %s", s.name(key), short(d), short(least), short(most))
		return false
	}
	*to = volant.Duration(d)
	return true
}

// clamped is as duration, but takes the nearest bound with a warning.
func (s *section) clamped(key string, to *volant.Duration, unit, least, most time.Duration) {
	d, ok := s.anyDuration(key, unit)
	if !ok {
		return
	}
	if in := min(max(d, least), most); in != d {
		s.r.warn(s.at(key), "%s is %s, outside %s to %s: %s is used", s.name(key), short(d), short(least), short(most), short(in))
		d = in
	}
	*to = volant.Duration(d)
}

// maxCount bounds a number of any unit, so that it makes no duration overflow.
const maxCount = 1_000_000_000

func (s *section) anyDuration(key string, unit time.Duration) (time.Duration, bool) {
	v := s.get(key)
	if v == nil {
		return 0, false
	}
	if n, ok := v.int(); ok {
		if n < -maxCount || n > maxCount {
			s.r.wrong(v.pos, "%s is %s: write a number and a unit, such as \"15s\" or \"2m\"", s.name(key), v.text)
			return 0, false
		}
		return time.Duration(n) * unit, true
	}
	d, err := time.ParseDuration(v.text)
	if err != nil || v.kind != kindString {
		s.r.wrong(v.pos, "%s is %s: write a number and a unit, such as \"15s\" or \"2m\"", s.name(key), v.what())
		return 0, false
	}
	return d, true
}

// short writes a duration without zero units: 24h, not 24h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// strs reads a list of strings.
func (s *section) strs(key string, to *[]string) bool {
	v := s.get(key)
	if v == nil {
		return false
	}
	out := []string{}
	for _, e := range v.list {
		if e.kind != kindString {
			s.r.wrong(v.pos, "%s has %s in it: write a list of strings, such as [\"a\", \"b\"]", s.name(key), e.what())
			return false
		}
		out = append(out, e.text)
	}
	if v.kind != kindList {
		s.r.wrong(v.pos, "%s is %s: write a list of strings, such as [\"a\", \"b\"]", s.name(key), v.what())
		return false
	}
	*to = out
	return true
}

// tables are the tables under a key, written as [key] or [[key]]; a section is made of each.
func (s *section) tables(key string) []*section {
	v := s.get(key)
	switch {
	case v == nil:
		return nil
	case v.table != nil:
		return []*section{s.r.section(v.table, s.name(key))}
	case v.kind == kindList:
		var out []*section
		for _, e := range v.list {
			if e.table == nil {
				s.r.wrong(e.pos, "%s has %s in it: write tables, such as [[%s]]", s.name(key), e.what(), s.name(key))
				return nil
			}
			out = append(out, s.r.section(e.table, s.name(key)))
		}
		return out
	}
	s.r.wrong(v.pos, "%s is %s: write it as a table, such as [%s]", s.name(key), v.what(), s.name(key))
	return nil
}

// named are the tables under a key that is a table of tables, such as [checks.NAME].
func (s *section) named(key string) []*section {
	all := s.one(key)
	if all == nil {
		return nil
	}
	var out []*section
	for _, name := range all.t.keys {
		if t := all.one(name); t != nil {
			out = append(out, t)
		}
	}
	return out
}

// one is the single table under a key, or nil.
func (s *section) one(key string) *section {
	all := s.tables(key)
	if len(all) > 1 {
		s.r.wrong(all[1].t.pos, "%s is given %d times: give it once", s.name(key), len(all))
	}
	if len(all) == 0 {
		return nil
	}
	return all[0]
}

func sortProblems(ps []*problem) {
	slices.SortStableFunc(ps, func(a, b *problem) int {
		return cmp.Or(cmp.Compare(a.pos.line, b.pos.line), cmp.Compare(a.pos.column, b.pos.column))
	})
}
