package etcd

import (
	"context"
	"fmt"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// Seed makes the entries the beginning of the given cluster epoch. The store must be without records.
// Until all is written the store bears a mark, and cannot be opened.
func (k kv) Seed(ctx context.Context, epoch uint64, entries []store.Entry) (store.Revision, error) {
	s, err := k.at()
	if err != nil {
		return store.Revision{}, err
	}
	id := s.identity()
	if epoch <= id.epoch {
		return store.Revision{}, volant.Errorf(volant.ErrPrecondition, "the store is at epoch %d and cannot become epoch %d", id.epoch, epoch)
	}
	mark := newMark(epoch)
	is := clientv3.Compare(clientv3.Value(k.keys.epoch), "=", id.mark)
	empty := clientv3.Compare(clientv3.CreateRevision(k.keys.data), "=", 0).WithPrefix()
	if _, err := seedTxn(ctx, s, []clientv3.Cmp{is, empty}, clientv3.OpPut(k.keys.seeding, mark), clientv3.OpDelete(k.keys.epoch)); err != nil {
		return store.Revision{}, err
	}
	mine := []clientv3.Cmp{clientv3.Compare(clientv3.Value(k.keys.seeding), "=", mark)}
	var ops []clientv3.Op
	size := 0
	flush := func() error {
		if len(ops) == 0 {
			return nil
		}
		_, err := seedTxn(ctx, s, mine, ops...)
		ops, size = nil, 0
		return err
	}
	for _, e := range entries {
		if len(ops) == store.MaxOps || size+len(e.Value) > store.MaxCommit {
			if err := flush(); err != nil {
				return store.Revision{}, err
			}
		}
		ops, size = append(ops, clientv3.OpPut(k.keys.data+e.Key, string(e.Value))), size+len(e.Value)
	}
	if err := flush(); err != nil {
		return store.Revision{}, err
	}
	rev, err := seedTxn(ctx, s, mine, clientv3.OpPut(k.keys.epoch, mark), clientv3.OpDelete(k.keys.seeding))
	if err != nil {
		return store.Revision{}, err
	}
	seeded := store.Revision{Epoch: epoch, Rev: uint64(rev)}
	s.became(identity{epoch: epoch, mark: mark, cluster: id.cluster}, seeded)
	return seeded, nil
}

func seedTxn(ctx context.Context, s session, ifs []clientv3.Cmp, ops ...clientv3.Op) (int64, error) {
	res, err := txn(ctx, s, false, ifs, ops, nil)
	if err != nil {
		return 0, fmt.Errorf("seed the store: %w", err)
	}
	if !res.Succeeded {
		return 0, volant.Errorf(volant.ErrPrecondition, "the store is not empty").
			WithRemedy("restore into a new directory; move the old one away, do not delete it")
	}
	return res.Header.Revision, nil
}

// SetAside renames a member's directory, so that another one can begin in its place, and says how it is called
// now; "" if there is none. Nothing is deleted.
func SetAside(dir string) (string, error) {
	if _, err := os.Stat(dir); os.IsNotExist(err) {
		return "", nil
	}
	aside := fmt.Sprintf("%s.old-%s", dir, time.Now().UTC().Format("20060102T150405.000"))
	if err := os.Rename(dir, aside); err != nil {
		return "", fmt.Errorf("set the old store aside: %w", err)
	}
	return aside, nil
}
