package host

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/volant-edge/volant/guest"
)

// LogLine is one line of a machine's log. Seq grows over all its boots.
type LogLine struct {
	Seq    uint64    `json:"seq"`
	Time   time.Time `json:"time"`
	Source string    `json:"source"` // stdout, stderr, init
	Text   string    `json:"text"`
}

const (
	maxLogLine = 1 << 20 // bytes of a line on disk
	maxRecent  = 256     // lines kept in memory
)

// storedLine is a line on disk, with where it came from, so that a new session asks for what follows.
type storedLine struct {
	LogLine
	Boot  string `json:"boot"`
	Guest uint64 `json:"guest"` // its number in that boot
}

// logbook keeps a machine's log in two files of a bounded size: the older goes when the newer is full.
type logbook struct {
	dir string
	max int64

	mu     sync.Mutex // guards the following
	file   *os.File
	size   int64
	opened bool
	last   storedLine
	recent []storedLine  // the last ones, for those who follow
	news   chan struct{} // closed at each new line
}

func newLogbook(dir string, size int64) *logbook {
	if size <= 0 {
		size = 1 << 20
	}
	return &logbook{dir: dir, max: size, news: make(chan struct{})}
}

func (l *logbook) path(i int) string { return filepath.Join(l.dir, []string{"log", "log.old"}[i]) }

// next is the number of the first line wanted of a guest's boot.
func (l *logbook) next(boot string) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.openLocked()
	if l.last.Boot == boot && l.last.Seq > 0 {
		return l.last.Guest + 1
	}
	return 0
}

// add keeps one line. A full disk loses lines, and nothing else.
func (l *logbook) add(boot string, g guest.LogLine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.openLocked()
	if l.last.Seq > 0 && l.last.Boot == boot && g.Seq <= l.last.Guest {
		return
	}
	l.last = storedLine{
		LogLine: LogLine{Seq: l.last.Seq + 1, Time: g.Time, Source: g.Source, Text: g.Text}, Boot: boot, Guest: g.Seq,
	}
	if l.recent = append(l.recent, l.last); len(l.recent) > 2*maxRecent {
		l.recent = append([]storedLine(nil), l.recent[maxRecent:]...)
	}
	b, err := json.Marshal(l.last)
	if err != nil {
		return
	}
	if l.size+int64(len(b))+1 > l.max && l.size > 0 {
		l.turnLocked()
	}
	if l.file != nil {
		n, _ := l.file.Write(append(b, '\n')) // a torn line is skipped by the reader
		l.size += int64(n)
	}
	close(l.news)
	l.news = make(chan struct{})
}

func (l *logbook) openLocked() {
	if l.opened {
		return
	}
	l.opened = true
	for _, i := range []int{1, 0} {
		for _, line := range readLog(l.path(i)) {
			l.last = line
		}
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return
	}
	f, err := os.OpenFile(l.path(0), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	l.file = f
	if fi, err := f.Stat(); err == nil {
		l.size = fi.Size()
	}
	if l.size > 0 { // the last line may be torn
		n, _ := f.Write([]byte{'\n'})
		l.size += int64(n)
	}
}

// turnLocked begins a new file.
func (l *logbook) turnLocked() {
	if l.file == nil {
		return
	}
	err := errors.Join(l.file.Close(), os.Rename(l.path(0), l.path(1)))
	l.file, l.size = nil, 0
	if err != nil {
		return
	}
	if f, err := os.OpenFile(l.path(0), os.O_CREATE|os.O_RDWR|os.O_APPEND|os.O_TRUNC, 0o600); err == nil {
		l.file = f
	}
}

// read calls fn for the last tail lines, all if it is negative, and goes on with new ones if follow is set,
// until fn fails or ctx ends.
func (l *logbook) read(ctx context.Context, tail int, follow bool, fn func(LogLine) error) error {
	var seen uint64
	for first := true; ; first = false {
		l.mu.Lock()
		var lines []storedLine
		switch {
		case l.last.Seq <= seen && !first:
		case !first && len(l.recent) > 0 && l.recent[0].Seq <= seen+1:
			lines = l.recent // appended to, never changed
		default:
			lines = append(readLog(l.path(1)), readLog(l.path(0))...)
		}
		news := l.news
		l.mu.Unlock()
		if first && tail >= 0 && len(lines) > tail {
			seen = lines[len(lines)-tail-1].Seq
		}
		for _, line := range lines {
			if line.Seq <= seen {
				continue
			}
			seen = line.Seq
			if err := fn(line.LogLine); err != nil {
				return err
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil
		}
	}
}

// lastWords is the newest line that the app itself wrote, cut to what fits into a sentence.
func (l *logbook) lastWords() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range slices.Backward(l.recent) {
		text := strings.TrimSpace(line.Text)
		if line.Boot == l.last.Boot && line.Source != "init" && text != "" {
			return strings.ToValidUTF8(text[:min(len(text), 200)], "")
		}
	}
	return ""
}

func (l *logbook) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		_ = l.file.Close() // it is removed next
	}
	l.file, l.opened = nil, false
}

// readLog reads the whole lines of a file.
func readLog(path string) []storedLine {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var lines []storedLine
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, maxLogLine)
	for sc.Scan() {
		var line storedLine
		if json.Unmarshal(sc.Bytes(), &line) == nil && line.Seq > 0 {
			lines = append(lines, line)
		}
	}
	return lines
}
