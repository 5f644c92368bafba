package local

import (
	"context"
	"fmt"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// Seeder is a new, empty store.
type Seeder interface {
	// Seed writes all entries as the beginning of the given cluster epoch. It refuses a store which
	// has records, and one whose epoch is not older. Until it has finished, nobody can open the store.
	Seed(ctx context.Context, epoch uint64, entries []store.Entry) (store.Revision, error)
}

// Restored tells what a restore did.
type Restored struct {
	From    store.Revision `json:"from"`              // the copy's
	To      store.Revision `json:"to"`                // the new store's
	Records int            `json:"records"`           // tombstones included
	Damaged []string       `json:"damaged,omitempty"` // keys left out
}

// Restore seeds a new store from a node's file, under the next cluster epoch. Every record is kept as it is,
// tombstones and unknown fields included. A file with damaged records is refused unless skipDamaged;
// nodes which have those records keep them.
func Restore(ctx context.Context, path string, target Seeder, skipDamaged bool) (Restored, error) {
	var done Restored
	db, err := openFile(path, true)
	if err != nil {
		return done, err
	}
	defer db.Close() //nolint:errcheck // only read
	var entries []store.Entry
	err = guard(func() error {
		return db.View(func(tx *bbolt.Tx) error {
			if done.From, err = readRevision(tx); err != nil {
				return damage(path, err)
			}
			return tx.Bucket(bucketRecords).ForEach(func(k, raw []byte) error {
				e, _, err := unpack(string(k), raw)
				if err != nil {
					done.Damaged = append(done.Damaged, string(k))
					return nil //nolint:nilerr // told below
				}
				entries = append(entries, e)
				return nil
			})
		})
	})
	switch {
	case err != nil:
		return done, err
	case done.From.IsZero():
		return done, volant.Invalidf("%s is a copy which has never seen a store", path)
	case len(done.Damaged) > 0 && !skipDamaged:
		return done, volant.Errorf(volant.ErrPrecondition, "%s has %d damaged records: %s", path, len(done.Damaged), strings.Join(done.Damaged, ", ")).
			WithRemedy("restore from another node's copy, or leave them out with --skip-damaged")
	}
	if done.To, err = target.Seed(ctx, done.From.Epoch+1, entries); err != nil {
		return done, fmt.Errorf("restore from %s: %w", path, err)
	}
	done.Records = len(entries)
	return done, nil
}
