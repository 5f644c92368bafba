package etcd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

const (
	pageSize = 1000
	// callTime bounds a call whose context has no end, all its attempts together.
	callTime = 10 * time.Second
	// beatEvery is how often a watch looks whether it is still being told, and silence how long it goes on
	// without knowing.
	beatEvery = 2 * time.Second
	silence   = 8 * time.Second
)

// keys are the keys that a store has in etcd.
type keys struct {
	data    string // of the intent: data + KEY
	epoch   string // the cluster epoch, and a mark of this history
	seeding string // while a restore is under way
}

func keysUnder(prefix string) keys {
	return keys{data: prefix + "volant/", epoch: prefix + "volant-epoch", seeding: prefix + "volant-seeding"}
}

// identity is what a store must still be for what was read from it to hold.
type identity struct {
	epoch   uint64
	mark    string // the epoch key's value; every commit requires it
	cluster uint64 // etcd's own ID: a store that was made anew has another
}

// session is somebody who answers as one identity.
type session interface {
	identity() identity
	// do calls etcd with a bound on its time, and returns its error in our words. A call that is safe may be
	// made several times.
	do(ctx context.Context, safe bool, fn func(context.Context, *clientv3.Client) (*etcdserverpb.ResponseHeader, error)) error
	// renew renews a lease.
	renew(ctx context.Context, id clientv3.LeaseID) error
	// takes says why a commit of ops is not taken, or nil.
	takes(ops []store.Op) error
	// kept says, after a commit, why it was not kept, or nil.
	kept() error
	// watch opens a watch. beat asks whether it is still being told: true says so at once, otherwise only an
	// answer in the channel does.
	watch(ctx context.Context, key string, opts ...clientv3.OpOption) (ch clientv3.WatchChan, beat func() bool, err error)
	// ended is closed when this session is over, and why says why.
	ended() <-chan struct{}
	why() error
	// saw notes the newest revision heard.
	saw(rev store.Revision)
	// changed is the error of a commit whose epoch key was not as expected.
	changed() error
	// became makes the session's identity another one, and rev the newest it has seen.
	became(id identity, rev store.Revision)
}

// kv is a store.Store over whoever answers now.
type kv struct {
	keys keys
	at   func() (session, error)
}

var _ store.Store = kv{}

// Get implements store.Reader.
func (k kv) Get(ctx context.Context, key string) (store.Entry, error) {
	s, err := k.at()
	if err != nil {
		return store.Entry{}, err
	}
	var res *clientv3.GetResponse
	err = s.do(ctx, true, func(ctx context.Context, c *clientv3.Client) (_ *etcdserverpb.ResponseHeader, err error) {
		res, err = c.Get(ctx, k.keys.data+key)
		return (*etcdserverpb.RangeResponse)(res).GetHeader(), err
	})
	if err != nil {
		return store.Entry{}, err
	}
	if len(res.Kvs) == 0 {
		return store.Entry{}, store.NotFound(key)
	}
	kv := res.Kvs[0]
	return k.entry(s.identity().epoch, kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision), nil
}

func (k kv) entry(epoch uint64, key, value []byte, created, mod int64) store.Entry {
	return store.Entry{
		Key:     strings.TrimPrefix(string(key), k.keys.data),
		Value:   value,
		Created: store.Revision{Epoch: epoch, Rev: uint64(created)},
		Mod:     store.Revision{Epoch: epoch, Rev: uint64(mod)},
	}
}

// List implements store.Reader.
func (k kv) List(ctx context.Context, prefix string) ([]store.Entry, store.Revision, error) {
	for {
		out, rev, err := k.list(ctx, prefix)
		if !errors.Is(err, store.ErrCompacted) { // compacted between two pages: anew
			return out, rev, err
		}
	}
}

func (k kv) list(ctx context.Context, prefix string) ([]store.Entry, store.Revision, error) {
	s, err := k.at()
	if err != nil {
		return nil, store.Revision{}, err
	}
	epoch := s.identity().epoch
	var out []store.Entry
	var at int64
	from, end := k.keys.data+prefix, clientv3.GetPrefixRangeEnd(k.keys.data+prefix)
	for {
		var res *clientv3.GetResponse
		err := s.do(ctx, true, func(ctx context.Context, c *clientv3.Client) (_ *etcdserverpb.ResponseHeader, err error) {
			res, err = c.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(at))
			return (*etcdserverpb.RangeResponse)(res).GetHeader(), err
		})
		if err != nil {
			return nil, store.Revision{}, err
		}
		if at == 0 {
			at = res.Header.Revision
		}
		for _, kv := range res.Kvs {
			out = append(out, k.entry(epoch, kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision))
		}
		if !res.More {
			return out, store.Revision{Epoch: epoch, Rev: uint64(at)}, nil
		}
		from = string(res.Kvs[len(res.Kvs)-1].Key) + "\x00"
	}
}

// Commit implements store.Store.
func (k kv) Commit(ctx context.Context, ops ...store.Op) (store.Revision, error) {
	if err := store.CheckOps(ops); err != nil {
		return store.Revision{}, err
	}
	s, err := k.at()
	if err != nil {
		return store.Revision{}, err
	}
	if err := s.takes(ops); err != nil {
		return store.Revision{}, err
	}
	id := s.identity()
	ifs := []clientv3.Cmp{clientv3.Compare(clientv3.Value(k.keys.epoch), "=", id.mark)}
	var then, otherwise []clientv3.Op
	for _, op := range ops {
		if !op.Expect.IsZero() && op.Expect.Epoch != id.epoch {
			return store.Revision{}, store.Mismatch(op)
		}
		key := k.keys.data + op.Key
		ifs = append(ifs, clientv3.Compare(clientv3.ModRevision(key), "=", int64(op.Expect.Rev)))
		otherwise = append(otherwise, clientv3.OpGet(key, clientv3.WithKeysOnly()))
		switch op.Verb {
		case store.Check:
		case store.Put:
			then = append(then, clientv3.OpPut(key, string(op.Value), clientv3.WithLease(clientv3.LeaseID(op.Lease))))
		case store.Erase:
			then = append(then, clientv3.OpDelete(key))
		}
	}
	res, err := txn(ctx, s, false, ifs, then, otherwise)
	if err == nil {
		err = s.kept()
	}
	if err != nil {
		return store.Revision{}, err
	}
	if !res.Succeeded {
		return store.Revision{}, mismatch(s, ops, res)
	}
	rev := store.Revision{Epoch: id.epoch, Rev: uint64(res.Header.Revision)}
	s.saw(rev)
	return rev, nil
}

func txn(ctx context.Context, s session, safe bool, ifs []clientv3.Cmp, then, otherwise []clientv3.Op) (*clientv3.TxnResponse, error) {
	var res *clientv3.TxnResponse
	err := s.do(ctx, safe, func(ctx context.Context, c *clientv3.Client) (_ *etcdserverpb.ResponseHeader, err error) {
		res, err = c.Txn(ctx).If(ifs...).Then(then...).Else(otherwise...).Commit()
		return (*etcdserverpb.TxnResponse)(res).GetHeader(), err
	})
	if err != nil { // the call may go on, and write res
		return nil, err
	}
	return res, nil
}

// mismatch finds the op whose key was not as expected.
func mismatch(s session, ops []store.Op, res *clientv3.TxnResponse) error {
	for i, op := range ops {
		var mod int64
		if kvs := res.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
			mod = kvs[0].ModRevision
		}
		if uint64(mod) != op.Expect.Rev {
			return store.Mismatch(op)
		}
	}
	return s.changed()
}

// Watch implements store.Reader.
func (k kv) Watch(ctx context.Context, prefix string, after store.Revision, fn func(store.Batch) error) error {
	s, err := k.at()
	if err != nil {
		return err
	}
	epoch := s.identity().epoch
	var now int64
	if err := s.do(ctx, true, func(ctx context.Context, c *clientv3.Client) (*etcdserverpb.ResponseHeader, error) {
		res, err := c.Get(ctx, k.keys.epoch)
		if err == nil {
			now = res.Header.Revision
		}
		return (*etcdserverpb.RangeResponse)(res).GetHeader(), err
	}); err != nil {
		return err
	}
	switch {
	case (store.Revision{Epoch: epoch, Rev: uint64(now)}).Before(after):
		return store.ErrAhead
	case after.Epoch != epoch:
		return store.ErrCompacted
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, beat, err := s.watch(ctx, k.keys.data+prefix, clientv3.WithPrefix(), clientv3.WithRev(int64(after.Rev)+1), clientv3.WithProgressNotify())
	if err != nil {
		return err
	}
	return k.follow(ctx, s, ch, beat, fn)
}

// follow hands on what a watch is told.
func (k kv) follow(ctx context.Context, s session, ch clientv3.WatchChan, beat func() bool, fn func(store.Batch) error) error {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	heard := time.Now()
	id := s.identity()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ended():
			return s.why()
		case <-tick.C:
			if beat() {
				heard = time.Now()
			}
			if time.Since(heard) > silence {
				return volant.Errorf(volant.ErrUnavailable, "the store has told nothing for %s", time.Since(heard).Round(time.Second))
			}
		case res, ok := <-ch:
			heard = time.Now()
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case !ok:
				return volant.Errorf(volant.ErrUnavailable, "the store ended the watch")
			case res.Err() != nil:
				return inWords(res.Err())
			case res.Header.ClusterId != id.cluster:
				return s.changed()
			}
			if b := k.batch(id.epoch, res); !b.Rev.IsZero() {
				s.saw(b.Rev)
				if err := fn(b); err != nil {
					return err
				}
			}
		}
	}
}

// batch reads one answer of a watch. The header of one with events may be ahead of them.
func (k kv) batch(epoch uint64, res clientv3.WatchResponse) store.Batch {
	var b store.Batch
	for _, e := range res.Events {
		ev := store.Event{Entry: k.entry(epoch, e.Kv.Key, e.Kv.Value, e.Kv.CreateRevision, e.Kv.ModRevision)}
		if e.Type == clientv3.EventTypeDelete {
			ev = store.Event{Entry: store.Entry{Key: ev.Key, Mod: ev.Mod}, Deleted: true}
		}
		b.Events, b.Rev = append(b.Events, ev), ev.Mod
	}
	if res.IsProgressNotify() {
		b.Rev = store.Revision{Epoch: epoch, Rev: uint64(res.Header.Revision)}
	}
	return b
}

// Grant implements store.Store. etcd counts in seconds and rounds up, which gives a holder more.
func (k kv) Grant(ctx context.Context, ttl time.Duration) (store.LeaseID, error) {
	s, err := k.at()
	if err != nil {
		return 0, err
	}
	var id store.LeaseID
	err = s.do(ctx, true, func(ctx context.Context, c *clientv3.Client) (*etcdserverpb.ResponseHeader, error) {
		res, err := c.Grant(ctx, int64((ttl+time.Second-1)/time.Second)) // one granted twice runs out unused
		if err != nil {
			return nil, err
		}
		id = store.LeaseID(res.ID)
		return res.ResponseHeader, nil
	})
	if err != nil {
		return 0, err
	}
	return id, nil
}

// Renew implements store.Store.
func (k kv) Renew(ctx context.Context, id store.LeaseID) error {
	s, err := k.at()
	if err != nil {
		return err
	}
	return s.renew(ctx, clientv3.LeaseID(id))
}

// Revoke implements store.Store.
func (k kv) Revoke(ctx context.Context, id store.LeaseID) error {
	s, err := k.at()
	if err != nil {
		return err
	}
	return s.do(ctx, false, func(ctx context.Context, c *clientv3.Client) (*etcdserverpb.ResponseHeader, error) {
		res, err := c.Revoke(ctx, clientv3.LeaseID(id))
		return (*etcdserverpb.LeaseRevokeResponse)(res).GetHeader(), err
	})
}

// errEmpty is the error of identify for a store which may not be made a fresh one.
var errEmpty = errors.New("there is no intent in the store")

// identify reads whose intent this is. A fresh store becomes epoch 1, if it may.
func (k kv) identify(ctx context.Context, s session, mayMake bool) (identity, store.Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	fresh := []clientv3.Cmp{
		clientv3.Compare(clientv3.CreateRevision(k.keys.epoch), "=", 0),
		clientv3.Compare(clientv3.CreateRevision(k.keys.seeding), "=", 0),
	}
	read := []clientv3.Op{clientv3.OpGet(k.keys.epoch), clientv3.OpGet(k.keys.seeding)}
	id := identity{epoch: 1, mark: newMark(1)}
	found := []clientv3.Op{clientv3.OpPut(k.keys.epoch, id.mark)}
	if !mayMake {
		found = read
	}
	res, err := txn(ctx, s, true, fresh, found, read)
	if err != nil {
		return identity{}, store.Revision{}, fmt.Errorf("read the cluster epoch: %w", err)
	}
	id.cluster = res.Header.ClusterId
	switch {
	case res.Succeeded && !mayMake:
		return identity{}, store.Revision{}, errEmpty
	case !res.Succeeded:
		if len(res.Responses[1].GetResponseRange().Kvs) > 0 {
			return identity{}, store.Revision{}, volant.Errorf(volant.ErrPrecondition, "a restore into this store was not finished").
				WithRemedy("move its directory away and run volant control restore again")
		}
		id.mark = string(res.Responses[0].GetResponseRange().Kvs[0].Value)
		if id.epoch, err = parseMark(id.mark); err != nil {
			return identity{}, store.Revision{}, err
		}
	}
	return id, store.Revision{Epoch: id.epoch, Rev: uint64(res.Header.Revision)}, nil
}

// newMark is the value of the epoch key: the epoch, and what tells two histories of one epoch apart.
func newMark(epoch uint64) string {
	b := make([]byte, 8)
	rand.Read(b)
	return strconv.FormatUint(epoch, 10) + " " + hex.EncodeToString(b)
}

func parseMark(mark string) (uint64, error) {
	number, _, _ := strings.Cut(mark, " ") // a store of an older volant has the number alone
	epoch, err := strconv.ParseUint(number, 10, 64)
	if err != nil || epoch == 0 {
		return 0, fmt.Errorf("the cluster epoch %q is no number", mark)
	}
	return epoch, nil
}

// inWords gives an error of etcd the kind that callers act on.
func inWords(err error) error {
	var known *volant.Error
	switch {
	case err == nil, errors.As(err, &known), errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, rpctypes.ErrLeaseNotFound), errors.Is(err, rpctypes.ErrGRPCLeaseNotFound):
		return volant.Errorf(volant.ErrNotFound, "the lease has run out")
	case errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, rpctypes.ErrGRPCCompacted):
		return store.ErrCompacted
	case errors.Is(err, rpctypes.ErrNoSpace), errors.Is(err, rpctypes.ErrGRPCNoSpace):
		return volant.Errorf(volant.ErrUnavailable, "the store has reached its quota").
			WithRemedy("give it a larger quota; it compacts itself and takes writes again when there is room")
	case errors.Is(err, context.DeadlineExceeded):
		return volant.Errorf(volant.ErrUnavailable, "the store did not answer in time; a change on its way may have been made").
			WithRemedy("look whether it was, and try again")
	default:
		return volant.Errorf(volant.ErrUnavailable, "store: %v", err)
	}
}
