package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// Config configures a Copy.
type Config struct {
	Path string       // the file; made if missing
	Log  *slog.Logger // nil discards
}

// Copy is a node's copy of the intent. It is a store.Reader which answers from the disk.
type Copy struct {
	cfg  Config
	log  *slog.Logger
	db   *bbolt.DB
	feed feed

	writing sync.Mutex // held over each change of the file, and so of rev and newest

	mu      sync.Mutex // guards the fields below
	rev     store.Revision
	newest  store.Entry // key and Mod of the newest record of rev's epoch
	bad     map[string]error
	missing map[string]bool
	alarms  []Alarm
	trouble error // why the store is not followed now
	seen    time.Time
	counts  map[string]int
}

var _ store.Reader = (*Copy)(nil)

// Alarm is something that a person should look at.
type Alarm struct {
	At   time.Time `json:"at"`
	Key  string    `json:"key,omitempty"`
	Text string    `json:"text"`
}

// Status tells how a copy is.
type Status struct {
	Revision store.Revision `json:"revision"`
	Bad      []string       `json:"bad,omitempty"`     // keys whose record failed its checksum
	Missing  []string       `json:"missing,omitempty"` // live records which the store no longer has
	Trouble  string         `json:"trouble,omitempty"` // why the store is not followed now
	Followed time.Time      `json:"followed,omitzero"` // when the store was last heard
	Alarms   []Alarm        `json:"alarms,omitempty"`  // the newest maxAlarms
	Refused  int            `json:"refused"`           // records refused since the start
}

// maxAlarms bounds how many alarms are kept to be read; the log has all.
const maxAlarms = 100

// Open opens the file, reads all of it once, and checks every record. For a file that cannot be used as
// it is the error is ErrDamaged.
func Open(cfg Config) (*Copy, error) {
	c := &Copy{cfg: cfg, log: cfg.Log, bad: map[string]error{}, missing: map[string]bool{}}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if c.db, err = openFile(cfg.Path, false); err != nil {
		return nil, err
	}
	err = c.view(func(tx *bbolt.Tx) error {
		if c.rev, err = readRevision(tx); err != nil {
			return err
		}
		return c.scan(tx)
	})
	if err != nil {
		c.db.Close() //nolint:errcheck // the first error tells more
		return nil, damage(cfg.Path, err)
	}
	if back, err := torn(cfg.Path); err != nil || back {
		c.alarm("", "the last write to the copy was torn; it went back to the one before, at "+c.rev.String())
	}
	c.feed.start(c.rev)
	return c, nil
}

// Rebuild sets a damaged file aside and makes a new one from the store.
func Rebuild(ctx context.Context, cfg Config, src store.Reader) (*Copy, error) {
	entries, rev, err := src.List(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("rebuild %s from the store: %w", cfg.Path, err)
	}
	aside := cfg.Path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000000000")
	if err := os.Rename(cfg.Path, aside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("set %s aside: %w", cfg.Path, err)
	}
	c, err := Open(cfg)
	if err != nil {
		return nil, err
	}
	if err := c.Replace(entries, rev); err != nil {
		c.db.Close() //nolint:errcheck // the first error tells more
		return nil, err
	}
	c.alarm("", "the copy's file was damaged; it was set aside as "+aside+" and made anew from the store at "+rev.String())
	return c, nil
}

// Close closes the file.
func (c *Copy) Close() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.db.Close()
}

// Revision is what the copy has got to.
func (c *Copy) Revision() store.Revision {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rev
}

// Status tells how the copy is.
func (c *Copy) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Status{Revision: c.rev, Followed: c.seen, Alarms: slices.Clone(c.alarms), Refused: c.counts["refused"]}
	for key := range c.bad {
		s.Bad = append(s.Bad, key)
	}
	for key := range c.missing {
		s.Missing = append(s.Missing, key)
	}
	slices.Sort(s.Bad)
	slices.Sort(s.Missing)
	if c.trouble != nil {
		s.Trouble = c.trouble.Error()
	}
	return s
}

// Get implements store.Reader.
func (c *Copy) Get(_ context.Context, key string) (e store.Entry, err error) {
	err = c.view(func(tx *bbolt.Tx) error {
		raw := tx.Bucket(bucketRecords).Get([]byte(key))
		if raw == nil {
			return store.NotFound(key)
		}
		e, _, err = unpack(key, raw)
		return err
	})
	return e, err
}

// List implements store.Reader. Bad records are left out; Status tells of them.
func (c *Copy) List(_ context.Context, prefix string) (out []store.Entry, rev store.Revision, err error) {
	err = c.view(func(tx *bbolt.Tx) error {
		if rev, err = readRevision(tx); err != nil {
			return err
		}
		cur := tx.Bucket(bucketRecords).Cursor()
		for k, raw := cur.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, raw = cur.Next() {
			e, _, err := unpack(string(k), raw)
			if err != nil {
				c.refuse(string(k), err)
				continue
			}
			out = append(out, e)
		}
		return nil
	})
	return out, rev, err
}

// Watch implements store.Reader.
func (c *Copy) Watch(ctx context.Context, prefix string, after store.Revision, fn func(store.Batch) error) error {
	p, err := c.feed.at(after)
	if errors.Is(err, store.ErrAhead) {
		c.settle()
		p, err = c.feed.at(after)
	}
	if err != nil {
		return err
	}
	return follow(ctx, p, prefix, fn)
}

// settle returns when watchers were told all that the file has: a List may have read what is still to be told.
func (c *Copy) settle() {
	c.writing.Lock()
	defer c.writing.Unlock()
}

// Apply takes a batch of changes which follows what the copy has.
func (c *Copy) Apply(b store.Batch) error {
	c.heard(nil)
	return c.change(b.Rev, func(w *writer) error {
		for _, e := range b.Events {
			if !c.rev.Before(e.Mod) { // already had
				continue
			}
			if err := w.take(e); err != nil {
				return err
			}
		}
		return nil
	})
}

// Replace takes the whole of a store as it is at a revision, and keeps what the store lacks.
func (c *Copy) Replace(entries []store.Entry, rev store.Revision) error {
	return c.change(rev, func(w *writer) error {
		have := make(map[string]bool, len(entries))
		for _, e := range entries {
			have[e.Key] = true
			if err := w.take(store.Event{Entry: e}); err != nil {
				return err
			}
		}
		var lacking []string
		cur := w.records.Cursor()
		for k, _ := cur.First(); k != nil; k, _ = cur.Next() {
			if !have[string(k)] {
				lacking = append(lacking, string(k))
			}
		}
		for _, key := range lacking {
			if err := w.lacks(key, rev); err != nil {
				return err
			}
		}
		return nil
	})
}

// change writes what fn does and the revision it leads to, and then tells the watchers.
func (c *Copy) change(rev store.Revision, fn func(*writer) error) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if rev.Before(c.rev) {
		return fmt.Errorf("the copy is at %s and is offered %s: %w", c.rev, rev, store.ErrAhead)
	}
	w := &writer{copy: c, newest: c.newest, same: rev.Epoch == c.rev.Epoch}
	if !w.same {
		w.newest = store.Entry{}
	}
	err := guard(func() error {
		return c.db.Update(func(tx *bbolt.Tx) error {
			w.records = tx.Bucket(bucketRecords)
			if err := fn(w); err != nil {
				return err
			}
			return writeRevision(tx, rev)
		})
	})
	if err != nil {
		return fmt.Errorf("write the copy: %w", err)
	}
	c.mu.Lock()
	c.rev, c.newest = rev, w.newest
	for _, e := range w.events {
		delete(c.bad, e.Key)
		delete(c.missing, e.Key)
	}
	for _, key := range w.missing {
		c.missing[key] = true
	}
	c.mu.Unlock()
	for _, key := range w.missing {
		c.alarm(key, "the store no longer has this record, which is not deleted; it is kept")
	}
	for key, err := range w.refused {
		c.refuse(key, err)
	}
	c.feed.publish(store.Batch{Events: w.events, Rev: rev})
	return nil
}

// writer is one change of the file under way.
type writer struct {
	copy    *Copy
	records *bbolt.Bucket
	same    bool // the revision is of the copy's epoch
	events  []store.Event
	missing []string
	refused map[string]error
	newest  store.Entry
}

// take writes one event if it is newer than what is there.
func (w *writer) take(e store.Event) error {
	if strings.HasPrefix(e.Key, store.TermPrefix) {
		return nil
	}
	if e.Deleted {
		return w.lacks(e.Key, e.Mod)
	}
	if err := checkEntry(e.Entry); err != nil {
		w.refuse(e.Key, err)
		return nil
	}
	if raw := w.records.Get([]byte(e.Key)); raw != nil {
		old, flags, err := unpack(e.Key, raw)
		switch {
		case err != nil: // a bad record is replaced
		case e.Mod.Before(old.Mod):
			w.refuse(e.Key, fmt.Errorf("the copy has %s and is offered %s", old.Mod, e.Mod))
			return nil
		case e.Mod == old.Mod && flags&flagMissing == 0:
			return nil
		}
	}
	w.events = append(w.events, e)
	if w.newest.Mod.Before(e.Mod) {
		w.newest = store.Entry{Key: e.Key, Mod: e.Mod}
	}
	return w.records.Put([]byte(e.Key), pack(e.Entry, 0))
}

// lacks deals with a key that the store does not have. Absence is no order: a live record stays.
func (w *writer) lacks(key string, rev store.Revision) error {
	raw := w.records.Get([]byte(key))
	if raw == nil {
		return nil
	}
	e, flags, err := unpack(key, raw)
	if err != nil || flags&flagMissing != 0 {
		return nil //nolint:nilerr // a bad record stays until the store has a good one
	}
	if store.IsRecord(key) {
		if !tombstone(e.Value) {
			w.missing = append(w.missing, key)
			return w.records.Put([]byte(key), pack(e, flags|flagMissing))
		}
		if !w.same { // a tombstone from before a restore costs little and may tell something
			return nil
		}
	}
	w.events = append(w.events, store.Event{Entry: store.Entry{Key: key, Mod: rev}, Deleted: true})
	return w.records.Delete([]byte(key))
}

func (w *writer) refuse(key string, err error) {
	if w.refused == nil {
		w.refused = map[string]error{}
	}
	w.refused[key] = err
}

func checkEntry(e store.Entry) error {
	if len(e.Value) > store.MaxValue {
		return volant.Invalidf("record of %d bytes: at most %d", len(e.Value), store.MaxValue)
	}
	return store.CheckKey(e.Key)
}

func tombstone(value []byte) bool {
	var head struct {
		Tombstone bool `json:"tombstone"`
	}
	return json.Unmarshal(value, &head) == nil && head.Tombstone
}

// scan checks all records and finds what is bad, missing and newest.
func (c *Copy) scan(tx *bbolt.Tx) error {
	return tx.Bucket(bucketRecords).ForEach(func(k, raw []byte) error {
		key := string(k)
		e, flags, err := unpack(key, raw)
		switch {
		case err != nil:
			c.refuse(key, err)
		case c.rev.Before(e.Mod):
			return fmt.Errorf("record %s of %s is newer than the file, which is at %s", key, e.Mod, c.rev)
		case flags&flagMissing != 0:
			c.missing[key] = true
		case e.Mod.Epoch == c.rev.Epoch && c.newest.Mod.Before(e.Mod):
			c.newest = store.Entry{Key: key, Mod: e.Mod}
		}
		return nil
	})
}

// refuse notes a record that is not taken.
func (c *Copy) refuse(key string, err error) {
	c.mu.Lock()
	again := errors.Is(err, errChecksum) && c.bad[key] != nil
	if errors.Is(err, errChecksum) {
		c.bad[key] = err
	}
	c.mu.Unlock()
	if !again {
		c.count("refused")
		c.alarm(key, err.Error())
	}
}

func (c *Copy) alarm(key, text string) {
	c.log.Error("copy alarm", "key", key, "text", text)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alarms = append(c.alarms, Alarm{At: time.Now(), Key: key, Text: text})
	if len(c.alarms) > maxAlarms {
		c.alarms = slices.Delete(c.alarms, 0, len(c.alarms)-maxAlarms)
	}
}

func (c *Copy) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	c.counts[what]++
}

func (c *Copy) view(fn func(*bbolt.Tx) error) error {
	return guard(func() error { return c.db.View(fn) })
}
