package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/volant-edge/volant"
)

// attempts bounds how often Apply starts anew because somebody else changed a record in between.
const attempts = 32

// Load returns a record, or volant.ErrNotFound if there is none or it is a tombstone.
func Load[T any, P record[T]](ctx context.Context, r Reader, key string) (*T, error) {
	rec, _, err := LoadAny[T, P](ctx, r, key)
	if err == nil && P(rec).Head().Tombstone {
		return nil, NotFound(key)
	}
	return rec, err
}

// LoadAny returns a record, which may be a tombstone, and its revision.
func LoadAny[T any, P record[T]](ctx context.Context, r Reader, key string) (*T, Revision, error) {
	e, err := r.Get(ctx, key)
	if err != nil {
		return nil, Revision{}, err
	}
	rec, err := Decode[T, P](key, e.Value)
	return rec, e.Mod, err
}

// All returns the records whose keys begin with prefix, tombstones left out. Records which cannot be
// read do not hinder the others; the error tells of them.
func All[T any, P record[T]](ctx context.Context, r Reader, prefix string) ([]*T, Revision, error) {
	recs, rev, err := AllWithTombstones[T, P](ctx, r, prefix)
	return slices.DeleteFunc(recs, func(rec *T) bool { return P(rec).Head().Tombstone }), rev, err
}

// AllWithTombstones is All with tombstones.
func AllWithTombstones[T any, P record[T]](ctx context.Context, r Reader, prefix string) ([]*T, Revision, error) {
	entries, rev, err := r.List(ctx, prefix)
	if err != nil {
		return nil, Revision{}, err
	}
	var recs []*T
	var errs []error
	for _, e := range entries {
		rec, err := Decode[T, P](e.Key, e.Value)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		recs = append(recs, rec)
	}
	return recs, rev, errors.Join(errs...)
}

// Create writes a new record and fills in its head. It fails with volant.ErrExists if there is one
// under its key, be it a tombstone.
func Create(ctx context.Context, s Store, actor string, rec volant.Record) (Revision, error) {
	return Apply(ctx, s, actor, Creation(rec))
}

// Update changes a record by fn, which may be called several times, and returns it as written.
func Update[T any, P record[T]](ctx context.Context, s Store, actor, key string, fn func(*T) error) (*T, Revision, error) {
	var out *T
	rev, err := Apply(ctx, s, actor, Edit[T, P](key, func(rec *T) error {
		out = rec
		return fn(rec)
	}))
	if err != nil {
		return nil, Revision{}, err
	}
	return out, rev, nil
}

// Delete makes a record a tombstone.
func Delete(ctx context.Context, s Store, actor, key string) (Revision, error) {
	return Apply(ctx, s, actor, Removal(key))
}

// Change is what Apply does to one key. It returns the operation, or nil if nothing is to be done,
// and the revision it saw.
type Change func(ctx context.Context, r Reader, actor string) (*Op, Revision, error)

// Apply makes all changes in one Commit, or none of them. Where somebody else changes one of the
// records in between, it starts anew.
func Apply(ctx context.Context, s Store, actor string, changes ...Change) (Revision, error) {
	var err error
	for n := range attempts {
		if n > 2 { // crowded: step back a little longer each time
			select {
			case <-ctx.Done():
				return Revision{}, fmt.Errorf("%w (%w)", ctx.Err(), err)
			case <-time.After(time.Duration(n) * time.Millisecond):
			}
		}
		var ops []Op
		var seen Revision
		for _, change := range changes {
			op, rev, err := change(ctx, s, actor)
			if err != nil {
				return Revision{}, err
			}
			if op != nil {
				ops = append(ops, *op)
			}
			if seen.Before(rev) {
				seen = rev
			}
		}
		if len(ops) == 0 {
			return seen, nil
		}
		var rev Revision
		if rev, err = s.Commit(ctx, ops...); err == nil || !errors.Is(err, volant.ErrConflict) {
			return rev, err
		}
	}
	return Revision{}, fmt.Errorf("gave up after %d attempts: %w", attempts, err)
}

// Creation is the Change which writes a new record and fills in its head.
func Creation(rec volant.Record) Change {
	return func(_ context.Context, _ Reader, actor string) (*Op, Revision, error) {
		h := rec.Head()
		if kind := kindOf(rec); kind != "" {
			h.Kind = kind
		}
		now := time.Now().UTC()
		h.Schema, h.Generation, h.Actor, h.Created, h.Updated = volant.SchemaMajor, 1, actor, now, now
		value, err := encode(nil, nil, rec)
		if err != nil {
			return nil, Revision{}, err
		}
		return &Op{Key: h.Key(), Value: value}, Revision{}, nil
	}
}

// Claim is the Change which writes a new record, or one in place of a tombstone: for names and
// addresses, which are given again.
func Claim(rec volant.Record) Change {
	create := Creation(rec)
	return func(ctx context.Context, r Reader, actor string) (*Op, Revision, error) {
		op, seen, err := create(ctx, r, actor)
		if err != nil {
			return nil, seen, err
		}
		old, err := r.Get(ctx, op.Key)
		if errors.Is(err, volant.ErrNotFound) {
			return op, seen, nil
		}
		if err != nil {
			return nil, seen, err
		}
		was, err := DecodeAny(op.Key, old.Value)
		if err != nil {
			return nil, seen, err
		}
		if !was.Head().Tombstone {
			return nil, seen, volant.Errorf(volant.ErrExists, "%s is taken", op.Key)
		}
		rec.Head().Generation = was.Head().Generation + 1
		op.Value, err = encode(nil, nil, rec)
		op.Expect = old.Mod
		return op, old.Mod, err
	}
}

// Edit is the Change which rewrites a record by fn. It keeps fields which this binary does not know,
// counts the generation up, and writes nothing if fn changed nothing. A tombstone is not found.
func Edit[T any, P record[T]](key string, fn func(*T) error) Change {
	return func(ctx context.Context, r Reader, actor string) (*Op, Revision, error) {
		return edit(ctx, r, actor, key, P(new(T)), P(new(T)), func(rec volant.Record) error {
			return fn((*T)(rec.(P)))
		})
	}
}

// Removal is the Change which makes a record a tombstone. A machine's wish becomes RunDestroyed.
func Removal(key string) Change {
	return func(ctx context.Context, r Reader, actor string) (*Op, Revision, error) {
		return edit(ctx, r, actor, key, forKey(key), forKey(key), func(rec volant.Record) error {
			rec.Head().Tombstone = true
			if m, ok := rec.(*volant.Machine); ok {
				m.Run = volant.RunDestroyed
			}
			return nil
		})
	}
}

// IfThere is the Change without an error where there is no record.
func IfThere(change Change) Change {
	return func(ctx context.Context, r Reader, actor string) (*Op, Revision, error) {
		op, rev, err := change(ctx, r, actor)
		if errors.Is(err, volant.ErrNotFound) {
			return nil, rev, nil
		}
		return op, rev, err
	}
}

// Raw is the Change which adds an operation as it is, such as a Term's Guard.
func Raw(op Op) Change {
	return func(context.Context, Reader, string) (*Op, Revision, error) { return &op, Revision{}, nil }
}

func edit(ctx context.Context, r Reader, actor, key string, old, rec volant.Record, fn func(volant.Record) error) (*Op, Revision, error) {
	e, err := r.Get(ctx, key)
	if err != nil {
		return nil, Revision{}, err
	}
	if err := decode(key, e.Value, old); err != nil {
		return nil, Revision{}, err
	}
	if old.Head().Tombstone {
		return nil, Revision{}, NotFound(key)
	}
	if err := decode(key, e.Value, rec); err != nil { // a second copy, which shares nothing with old
		return nil, Revision{}, err
	}
	if err := fn(rec); err != nil {
		return nil, Revision{}, err
	}
	if h := rec.Head(); h.Key() != key {
		return nil, Revision{}, volant.Invalidf("record %s: an edit cannot rename it to %s", key, h.Key())
	}
	if same, err := equal(old, rec); err != nil || same {
		return nil, e.Mod, err
	}
	h := rec.Head()
	*h = volant.Meta{
		Kind: h.Kind, Schema: volant.SchemaMajor, Org: h.Org, App: h.App, ID: h.ID, Tombstone: h.Tombstone,
		Generation: old.Head().Generation + 1, Actor: actor, Created: old.Head().Created, Updated: time.Now().UTC(),
	}
	value, err := encode(e.Value, old, rec)
	if err != nil {
		return nil, Revision{}, err
	}
	return &Op{Key: key, Expect: e.Mod, Value: value}, e.Mod, nil
}

func equal(a, b volant.Record) (bool, error) {
	x, err := json.Marshal(a)
	if err != nil {
		return false, err
	}
	y, err := json.Marshal(b)
	return bytes.Equal(x, y), err
}
