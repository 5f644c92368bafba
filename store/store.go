package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/volant-edge/volant"
)

// Bounds on what a store takes.
const (
	MaxKey    = 512     // bytes of a key
	MaxValue  = 1 << 20 // bytes of a value
	MaxOps    = 128     // operations in one Commit
	MaxCommit = 4 << 20 // bytes of all values of one Commit
)

// Store is an engine which keeps intent. Its errors are of kind volant.ErrUnavailable where trying
// again may help; a Commit which failed so may have been applied.
type Store interface {
	Reader
	// Commit applies all ops or none. An op whose key is not as expected fails it with
	// volant.ErrExists (it should not exist), volant.ErrStaleTerm (a Check) or volant.ErrConflict.
	Commit(ctx context.Context, ops ...Op) (Revision, error)
	// Grant makes a lease: keys put under it are deleted when it is not renewed for ttl.
	Grant(ctx context.Context, ttl time.Duration) (LeaseID, error)
	// Renew gives the lease its whole ttl again; volant.ErrNotFound if it has run out.
	Renew(ctx context.Context, id LeaseID) error
	// Revoke ends the lease and deletes its keys.
	Revoke(ctx context.Context, id LeaseID) error
}

// Reader is the reading half of a Store. A node's local copy is one too.
type Reader interface {
	// Get returns the entry of a key, or volant.ErrNotFound.
	Get(ctx context.Context, key string) (Entry, error)
	// List returns all entries whose keys begin with prefix, by key, as they were at one revision.
	List(ctx context.Context, prefix string) ([]Entry, Revision, error)
	// Watch calls fn with all changes after the given revision in order, and follows until ctx ends
	// or fn returns an error, which it then returns. It returns ErrCompacted when it can no longer tell
	// all changes since then: List, and watch from there. It returns ErrAhead when the revision
	// lies in this store's future.
	Watch(ctx context.Context, prefix string, after Revision, fn func(Batch) error) error
}

// Revision orders all intent: by the cluster epoch, which grows with each restore, then by the
// engine's own revision. The zero Revision is before everything.
type Revision struct {
	Epoch uint64 `json:"epoch"`
	Rev   uint64 `json:"rev"`
}

// Compare returns -1, 0 or +1 as r is before, at or after o.
func (r Revision) Compare(o Revision) int {
	return cmp.Or(cmp.Compare(r.Epoch, o.Epoch), cmp.Compare(r.Rev, o.Rev))
}

// Before says whether r is older than o.
func (r Revision) Before(o Revision) bool { return r.Compare(o) < 0 }

// IsZero says whether r is the revision before everything.
func (r Revision) IsZero() bool { return r == Revision{} }

// String writes epoch.revision, as in "1.4032".
func (r Revision) String() string { return fmt.Sprintf("%d.%d", r.Epoch, r.Rev) }

// ParseRevision reads what String writes.
func ParseRevision(s string) (Revision, error) {
	e, n, ok := strings.Cut(s, ".")
	epoch, err1 := strconv.ParseUint(e, 10, 64)
	rev, err2 := strconv.ParseUint(n, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return Revision{}, volant.Invalidf("revision %q: write epoch.number, such as 1.4032", s)
	}
	return Revision{Epoch: epoch, Rev: rev}, nil
}

// Entry is a key and its value.
type Entry struct {
	Key     string
	Value   []byte   // not to be changed
	Created Revision // when the key came to be
	Mod     Revision // when the value was written
}

// Event is one change of a key. Of an entry that is Deleted only Key and Mod are set: a lease's key
// that ran out, or an old tombstone swept.
type Event struct {
	Entry
	Deleted bool
}

// Batch is what changed up to a revision. It may be without events.
type Batch struct {
	Events []Event
	Rev    Revision
}

// Op is one operation of a Commit.
type Op struct {
	Verb   Verb
	Key    string
	Expect Revision // the entry's Mod; zero: the key must not exist
	Value  []byte   // of a Put
	Lease  LeaseID  // of a Put: the key lives as long as this lease; zero for good
}

// Verb says what an Op does.
type Verb uint8

// The verbs.
const (
	Put   Verb = iota // writes Value
	Check             // writes nothing: the Commit holds only while the key is as expected
	Erase             // removes the key; never used for records, which become tombstones
)

// LeaseID names a lease.
type LeaseID int64

// Errors of Watch, and of Commit with too much in it.
var (
	ErrCompacted = errors.New("history is compacted")
	ErrAhead     = errors.New("revision is ahead of the store")
)

// CheckOps says what is wrong with the operations of a Commit, or nil. Engines call it.
func CheckOps(ops []Op) error {
	if len(ops) == 0 || len(ops) > MaxOps {
		return volant.Invalidf("commit of %d operations: use 1 to %d", len(ops), MaxOps)
	}
	seen := make(map[string]bool, len(ops))
	size := 0
	for _, op := range ops {
		if err := CheckKey(op.Key); err != nil {
			return err
		}
		if seen[op.Key] {
			return volant.Invalidf("commit has key %s twice", op.Key)
		}
		seen[op.Key] = true
		if len(op.Value) > MaxValue {
			return volant.Invalidf("value of %s has %d bytes: at most %d", op.Key, len(op.Value), MaxValue)
		}
		if size += len(op.Value); size > MaxCommit {
			return volant.Invalidf("commit of more than %d bytes", MaxCommit)
		}
	}
	return nil
}

// CheckKey says what is wrong with a key, or nil.
func CheckKey(key string) error {
	if key == "" || len(key) > MaxKey {
		return volant.Invalidf("key of %d bytes: use 1 to %d", len(key), MaxKey)
	}
	for i := range len(key) {
		if key[i] <= ' ' || key[i] > '~' {
			return volant.Invalidf("key %q: use visible ASCII characters", key)
		}
	}
	return nil
}

// Mismatch is the error of a Commit for an op whose key is not as expected. Engines call it.
func Mismatch(op Op) error {
	switch {
	case op.Verb == Check:
		return volant.Errorf(volant.ErrStaleTerm, "%s is no longer held at %s", op.Key, op.Expect)
	case op.Expect.IsZero():
		return volant.Errorf(volant.ErrExists, "%s already exists", op.Key)
	}
	return volant.Errorf(volant.ErrConflict, "%s was changed since %s", op.Key, op.Expect)
}

// NotFound is the error for a key that does not exist. Engines call it.
func NotFound(key string) error { return volant.Errorf(volant.ErrNotFound, "%s not found", key) }
