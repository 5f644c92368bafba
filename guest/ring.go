package guest

import (
	"context"
	"fmt"
	"sync"
	"time"
)

const (
	maxLine      = 8 << 10 // of text in one LogLine; a longer line is cut into several
	lineOverhead = 96      // what a line costs in a Ring beside its text
)

// Ring keeps the last log lines, up to a number of bytes; the oldest go first. Append never waits.
type Ring struct {
	max int

	mu    sync.Mutex
	lines []LogLine
	bytes int
	next  uint64
	news  chan struct{} // closed by the next Append; nil if nobody waits
}

// NewRing returns a Ring of at most size bytes. Sequence numbers begin with 1.
func NewRing(size int) *Ring {
	return &Ring{max: size, next: 1}
}

// Append adds a line, in pieces if it is long.
func (r *Ring) Append(source, text string) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		n := min(len(text), maxLine)
		r.lines = append(r.lines, LogLine{Seq: r.next, Time: now, Source: source, Text: text[:n]})
		r.next++
		r.bytes += n + lineOverhead
		if text = text[n:]; text == "" {
			break
		}
	}
	drop := 0
	for r.bytes > r.max && drop < len(r.lines)-1 {
		r.bytes -= len(r.lines[drop].Text) + lineOverhead
		drop++
	}
	if drop > 0 {
		clear(r.lines[:drop]) // lets the texts go; append moves the rest when it must grow
		r.lines = r.lines[drop:]
	}
	if r.news != nil {
		close(r.news)
		r.news = nil
	}
}

// After returns lines with a sequence number of at least from, at most n, or a channel that is
// closed when there are some. Lines that are gone are told by one line of source "init".
func (r *Ring) After(from uint64, n int) ([]LogLine, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	from = max(from, 1)
	if len(r.lines) == 0 || from >= r.next {
		if r.news == nil {
			r.news = make(chan struct{})
		}
		return nil, r.news
	}
	var out []LogLine
	oldest := r.lines[0]
	if from < oldest.Seq {
		out = append(out, LogLine{
			Seq: oldest.Seq - 1, Time: oldest.Time, Source: sources[0],
			Text: fmt.Sprintf("%d log lines were dropped here: nobody read them in time", oldest.Seq-from),
		})
		from = oldest.Seq
	}
	rest := r.lines[from-oldest.Seq:]
	return append(out, rest[:min(n, len(rest))]...), nil
}

// Follow calls fn for each line from the given sequence number on, also for those still to come,
// until ctx ends or fn fails.
func (r *Ring) Follow(ctx context.Context, from uint64, fn func(LogLine) error) error {
	for {
		lines, news := r.After(from, 256)
		for _, l := range lines {
			if err := fn(l); err != nil {
				return err
			}
			from = l.Seq + 1
		}
		if len(lines) > 0 {
			continue
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
