package etcd

import (
	"context"
	"fmt"
	"strconv"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// Seed makes the entries the beginning of the given cluster epoch. The store must be without records.
// Until all is written the store bears a mark, and cannot be opened.
func (s *Store) Seed(ctx context.Context, epoch uint64, entries []store.Entry) (store.Revision, error) {
	_, old, err := s.at()
	if err != nil {
		return store.Revision{}, err
	}
	if epoch <= old {
		return store.Revision{}, volant.Errorf(volant.ErrPrecondition, "the store is at epoch %d and cannot become epoch %d", old, epoch)
	}
	is := clientv3.Compare(clientv3.Value(keyEpoch), "=", strconv.FormatUint(old, 10))
	empty := clientv3.Compare(clientv3.CreateRevision(keyPrefix), "=", 0).WithPrefix()
	if _, err := s.seedTxn(ctx, []clientv3.Cmp{is, empty}, clientv3.OpPut(keySeeding, strconv.FormatUint(epoch, 10)), clientv3.OpDelete(keyEpoch)); err != nil {
		return store.Revision{}, err
	}
	var ops []clientv3.Op
	size := 0
	flush := func() error {
		if len(ops) == 0 {
			return nil
		}
		_, err := s.seedTxn(ctx, nil, ops...)
		ops, size = nil, 0
		return err
	}
	for _, e := range entries {
		if len(ops) == store.MaxOps || size+len(e.Value) > store.MaxCommit {
			if err := flush(); err != nil {
				return store.Revision{}, err
			}
		}
		ops, size = append(ops, clientv3.OpPut(keyPrefix+e.Key, string(e.Value))), size+len(e.Value)
	}
	if err := flush(); err != nil {
		return store.Revision{}, err
	}
	rev, err := s.seedTxn(ctx, nil, clientv3.OpPut(keyEpoch, strconv.FormatUint(epoch, 10)), clientv3.OpDelete(keySeeding))
	if err != nil {
		return store.Revision{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch = epoch
	s.seen = store.Revision{Epoch: epoch, Rev: uint64(rev)}
	return s.seen, nil
}

func (s *Store) seedTxn(ctx context.Context, ifs []clientv3.Cmp, ops ...clientv3.Op) (int64, error) {
	var res *clientv3.TxnResponse
	err := s.do(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		res, err = c.Txn(ctx).If(ifs...).Then(ops...).Commit()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("seed the store: %w", err)
	}
	if !res.Succeeded {
		return 0, volant.Errorf(volant.ErrPrecondition, "the store is not empty").
			WithRemedy("restore into a new directory; move the old one away, do not delete it")
	}
	return res.Header.Revision, nil
}
