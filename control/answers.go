package control

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/volant-edge/volant/internal/atomicfile"
)

// Bounds of the answers kept. Beyond them the oldest go first.
const (
	maxAnswers     = 10_000
	maxAnswerBytes = 64 << 20
)

// answers are kept in the files of a directory, or in memory where there is none. A file's name is when it ends, as
// Unix seconds in 12 digits, and its key.
type answers struct {
	dir string

	mu    sync.Mutex // guards the fields below
	max   int
	byKey map[string]*list.Element
	old   list.List // oldest first
	bytes int
	busy  map[string]bool // keys of requests being carried out
}

type kept struct {
	key  string
	ends time.Time
	size int
	mem  []byte // where there is no directory
}

// openAnswers finds what is kept in dir. What is there is no more than a cache: what cannot be read is left out.
func openAnswers(dir string, most int) (*answers, error) {
	a := &answers{dir: dir, max: most, byKey: map[string]*list.Element{}, busy: map[string]bool{}}
	if dir == "" {
		return a, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return a, fmt.Errorf("directory of answers: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return a, fmt.Errorf("directory of answers: %w", err)
	}
	var found []*kept
	for _, e := range entries {
		ends, key, ok := strings.Cut(e.Name(), "-")
		sec, err := strconv.ParseInt(ends, 10, 64)
		st, gone := e.Info()
		if !ok || err != nil || gone != nil {
			continue
		}
		found = append(found, &kept{key: key, ends: time.Unix(sec, 0), size: int(st.Size())})
	}
	slices.SortStableFunc(found, func(x, y *kept) int { return x.ends.Compare(y.ends) })
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range found {
		a.addLocked(k)
	}
	return a, nil
}

func (a *answers) path(k *kept) string {
	return filepath.Join(a.dir, fmt.Sprintf("%012d-%s", k.ends.Unix(), k.key))
}

// begin marks a key's request as being carried out; it is false where one is already.
func (a *answers) begin(key string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.busy[key] {
		return false
	}
	a.busy[key] = true
	return true
}

func (a *answers) end(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.busy, key)
}

func (a *answers) load(key string, now time.Time) ([]byte, bool) {
	a.mu.Lock()
	e, ok := a.byKey[key]
	if ok && !now.Before(keptOf(e).ends) {
		a.dropLocked(e)
		ok = false
	}
	var k kept
	if ok {
		k = *keptOf(e)
	}
	a.mu.Unlock()
	if !ok || a.dir == "" {
		return k.mem, ok
	}
	f, err := os.Open(a.path(&k))
	if err != nil {
		return nil, false
	}
	defer func() { _ = f.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(f, 4*maxAnswer))
	return b, err == nil
}

func (a *answers) save(key string, b []byte, ends time.Time) error {
	k := &kept{key: key, ends: ends.Truncate(time.Second), size: len(b)}
	if a.dir == "" {
		k.mem = b
	} else if err := atomicfile.Write(a.path(k), b, 0o600); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for e := a.old.Front(); e != nil && time.Now().After(keptOf(e).ends); e = a.old.Front() {
		a.dropLocked(e)
	}
	a.addLocked(k)
	return nil
}

func (a *answers) addLocked(k *kept) {
	if e, ok := a.byKey[k.key]; ok {
		if old := keptOf(e); old.ends.Equal(k.ends) { // its file is the new one's
			a.old.Remove(e)
			a.bytes -= old.size
		} else {
			a.dropLocked(e)
		}
	}
	a.byKey[k.key] = a.old.PushBack(k)
	a.bytes += k.size
	for len(a.byKey) > a.max || a.bytes > maxAnswerBytes {
		a.dropLocked(a.old.Front())
	}
}

func (a *answers) dropLocked(e *list.Element) {
	k := keptOf(e)
	a.old.Remove(e)
	delete(a.byKey, k.key)
	a.bytes -= k.size
	if a.dir == "" {
		return
	}
	if err := os.Remove(a.path(k)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return // it ends by its name
	}
}

func keptOf(e *list.Element) *kept { return e.Value.(*kept) } //nolint:forcetypeassert // the list holds nothing else
