package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

const (
	keyPrefix  = "volant/"
	keyEpoch   = "volant-epoch"
	keySeeding = "volant-seeding"
	pageSize   = 1000
	// historyRevs is how many revisions of history are kept for watches that follow.
	historyRevs = 10_000
	// callTime bounds a call whose context has no end.
	callTime = 10 * time.Second
)

// Config configures a Store.
type Config struct {
	Dir string // of this member alone; made if missing
	// Floor is the newest revision this node has seen, from its copy. A store that is older is not
	// opened: it lost something. Zero accepts everything, and then an empty directory becomes a
	// fresh store at epoch 1.
	Floor store.Revision
	Quota int64 // bytes the database may take; 4 GiB if zero
	// Reserve is what must be free on the disk for writes to be taken; 192 MiB if zero. etcd sets aside 64 MiB
	// at a time for its log.
	Reserve int64
	// StartTime bounds how long the member may take to serve; 15s if zero. It takes less than one.
	StartTime time.Duration
	Log       *slog.Logger // nil discards
}

// Store is an etcd member in this process.
type Store struct {
	cfg Config
	low atomic.Bool // the disk is nearly full

	mu     sync.Mutex // guards the fields below
	member *member
	epoch  uint64
	seen   store.Revision // newest it has served
	down   error          // why there is no member
	stuck  bool           // a broken member did not let go of the directory
	closed bool
}

var _ store.Store = (*Store)(nil)

// Open starts the member in cfg.Dir and waits until it serves.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s := New(cfg)
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// New returns a Store which is down until Start has opened it, or Run.
func New(cfg Config) *Store {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Quota == 0 {
		cfg.Quota = 4 << 30
	}
	if cfg.Reserve == 0 {
		cfg.Reserve = 192 << 20
	}
	if cfg.StartTime == 0 {
		cfg.StartTime = 15 * time.Second
	}
	return &Store{cfg: cfg, seen: cfg.Floor, down: errors.New("not started")}
}

// Start starts the member and waits until it serves. A Store whose Start failed is down, answers so, and Run
// tries again to open it.
func (s *Store) Start(ctx context.Context) error {
	err := s.open(ctx)
	if err != nil {
		s.mu.Lock()
		s.down, s.stuck = err, errors.Is(err, errHeld)
		s.mu.Unlock()
	}
	return err
}

func (s *Store) open(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(s.cfg.Dir, "member", "snap", "db")); errors.Is(err, os.ErrNotExist) && !s.floor().IsZero() {
		return behind(s.cfg.Dir, "is empty", s.floor())
	}
	m, err := start(ctx, s.cfg)
	if err != nil {
		return err
	}
	epoch, rev, err := claimEpoch(ctx, m)
	if err == nil && rev.Before(s.floor()) {
		err = behind(s.cfg.Dir, "is at "+rev.String(), s.floor())
	}
	if err != nil {
		m.close()
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.member, s.epoch, s.seen, s.down = m, epoch, rev, nil
	s.lookAtDisk()
	return nil
}

func behind(dir, what string, floor store.Revision) error {
	return volant.Errorf(volant.ErrPrecondition, "the intent in %s %s, but this node has seen %s", dir, what, floor).
		WithRemedy("bring the directory back, or stop volant server and run volant control restore, which makes a new one from this node's copy")
}

func (s *Store) floor() store.Revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// claimEpoch reads the cluster epoch, which a fresh store gets as 1.
func claimEpoch(ctx context.Context, m *member) (uint64, store.Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var res *clientv3.TxnResponse
	err := m.call(ctx, func(c *clientv3.Client) (err error) {
		res, err = c.Txn(ctx).If(
			clientv3.Compare(clientv3.CreateRevision(keyEpoch), "=", 0),
			clientv3.Compare(clientv3.CreateRevision(keySeeding), "=", 0),
		).Then(clientv3.OpPut(keyEpoch, "1")).Else(clientv3.OpGet(keyEpoch), clientv3.OpGet(keySeeding)).Commit()
		return err
	})
	if err != nil {
		return 0, store.Revision{}, fmt.Errorf("read the cluster epoch: %w", err)
	}
	epoch := uint64(1)
	if !res.Succeeded {
		if len(res.Responses[1].GetResponseRange().Kvs) > 0 {
			return 0, store.Revision{}, volant.Errorf(volant.ErrPrecondition, "a restore into this store was not finished").
				WithRemedy("move its directory away and run volant control restore again")
		}
		if epoch, err = strconv.ParseUint(string(res.Responses[0].GetResponseRange().Kvs[0].Value), 10, 64); err != nil || epoch == 0 {
			return 0, store.Revision{}, fmt.Errorf("the cluster epoch %q is no number", res.Responses[0].GetResponseRange().Kvs[0].Value)
		}
	}
	return epoch, store.Revision{Epoch: epoch, Rev: uint64(res.Header.Revision)}, nil
}

// Close stops the member.
func (s *Store) Close() error {
	s.mu.Lock()
	m := s.member
	s.member, s.down, s.closed = nil, errors.New("closed"), true
	s.mu.Unlock()
	if m == nil {
		return nil
	}
	sound := m.err() == nil
	if !m.close() {
		return volant.Errorf(volant.ErrUnavailable, "the store did not close in time")
	}
	if sound {
		return prove(s.cfg.Dir)
	}
	return nil
}

// prove says of the directory that a start from it was good.
func prove(dir string) error {
	if err := os.Remove(filepath.Join(dir, checkMark)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// at returns the member and the epoch it serves.
func (s *Store) at() (*member, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.member == nil {
		return nil, 0, downBecause(s.down)
	}
	return s.member, s.epoch, nil
}

// downBecause is the answer of a store that is down, with what to do.
func downBecause(err error) error {
	text, remedy := err.Error(), "it is tried again by itself; where its directory is lost, stop volant server and run volant control restore"
	var known *volant.Error
	if errors.As(err, &known) && known.Remedy != "" {
		text, remedy = known.Text, known.Remedy
	}
	return volant.Errorf(volant.ErrUnavailable, "the store is down: %s", text).WithRemedy("%s", remedy)
}

func (s *Store) saw(rev store.Revision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen.Before(rev) {
		s.seen = rev
	}
}

// do calls etcd with a bound on its time and returns its error in our words.
func (s *Store) do(ctx context.Context, fn func(context.Context, *clientv3.Client) error) error {
	m, _, err := s.at()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return inWords(err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return m.inWords(m.call(ctx, func(c *clientv3.Client) error { return fn(ctx, c) }))
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
	default:
		return volant.Errorf(volant.ErrUnavailable, "store: %v", err)
	}
}

// inWords is for the error of a call to a member, which may have broken meanwhile.
func (m *member) inWords(err error) error {
	if broke := m.err(); broke != nil && errors.Is(err, broke) {
		return downBecause(broke)
	}
	return inWords(err)
}

// Get implements store.Reader.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	_, epoch, err := s.at()
	if err != nil {
		return store.Entry{}, err
	}
	var res *clientv3.GetResponse
	err = s.do(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		res, err = c.Get(ctx, keyPrefix+key)
		return err
	})
	if err != nil {
		return store.Entry{}, err
	}
	if len(res.Kvs) == 0 {
		return store.Entry{}, store.NotFound(key)
	}
	kv := res.Kvs[0]
	return entry(epoch, kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision), nil
}

func entry(epoch uint64, key, value []byte, created, mod int64) store.Entry {
	return store.Entry{
		Key:     strings.TrimPrefix(string(key), keyPrefix),
		Value:   value,
		Created: store.Revision{Epoch: epoch, Rev: uint64(created)},
		Mod:     store.Revision{Epoch: epoch, Rev: uint64(mod)},
	}
}

// List implements store.Reader.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Entry, store.Revision, error) {
	for {
		out, rev, err := s.list(ctx, prefix)
		if !errors.Is(err, store.ErrCompacted) { // compacted between two pages: anew
			return out, rev, err
		}
	}
}

func (s *Store) list(ctx context.Context, prefix string) ([]store.Entry, store.Revision, error) {
	_, epoch, err := s.at()
	if err != nil {
		return nil, store.Revision{}, err
	}
	var out []store.Entry
	var at int64
	from, end := keyPrefix+prefix, clientv3.GetPrefixRangeEnd(keyPrefix+prefix)
	for {
		var res *clientv3.GetResponse
		err := s.do(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
			res, err = c.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(at))
			return err
		})
		if err != nil {
			return nil, store.Revision{}, err
		}
		if at == 0 {
			at = res.Header.Revision
		}
		for _, kv := range res.Kvs {
			out = append(out, entry(epoch, kv.Key, kv.Value, kv.CreateRevision, kv.ModRevision))
		}
		if !res.More {
			return out, store.Revision{Epoch: epoch, Rev: uint64(at)}, nil
		}
		from = string(res.Kvs[len(res.Kvs)-1].Key) + "\x00"
	}
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, ops ...store.Op) (store.Revision, error) {
	if err := store.CheckOps(ops); err != nil {
		return store.Revision{}, err
	}
	m, epoch, err := s.at()
	if err != nil {
		return store.Revision{}, err
	}
	if err := m.gone(); err != nil {
		m.fail(err)
	}
	if s.low.Load() && slices.ContainsFunc(ops, func(op store.Op) bool { return op.Verb == store.Put && op.Lease == 0 }) {
		return store.Revision{}, volant.Errorf(volant.ErrUnavailable, "the disk of the store is nearly full").
			WithRemedy("free at least %d MiB on the disk of %s", s.cfg.Reserve>>20, s.cfg.Dir)
	}
	ifs := []clientv3.Cmp{clientv3.Compare(clientv3.Value(keyEpoch), "=", strconv.FormatUint(epoch, 10))}
	var then, otherwise []clientv3.Op
	for _, op := range ops {
		if !op.Expect.IsZero() && op.Expect.Epoch != epoch {
			return store.Revision{}, store.Mismatch(op)
		}
		key := keyPrefix + op.Key
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
	var res *clientv3.TxnResponse
	err = s.do(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		res, err = c.Txn(ctx).If(ifs...).Then(then...).Else(otherwise...).Commit()
		return err
	})
	if err == nil {
		if err = m.gone(); err != nil { // it went to a directory which nobody will read
			m.fail(err)
			err = inWords(err)
		}
	}
	if err != nil {
		return store.Revision{}, err
	}
	if !res.Succeeded {
		return store.Revision{}, mismatch(ops, res)
	}
	rev := store.Revision{Epoch: epoch, Rev: uint64(res.Header.Revision)}
	s.saw(rev)
	return rev, nil
}

// mismatch finds the op whose key was not as expected.
func mismatch(ops []store.Op, res *clientv3.TxnResponse) error {
	for i, op := range ops {
		var mod int64
		if kvs := res.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
			mod = kvs[0].ModRevision
		}
		if uint64(mod) != op.Expect.Rev {
			return store.Mismatch(op)
		}
	}
	return volant.Errorf(volant.ErrUnavailable, "the store was restored under a newer epoch").WithRemedy("restart volant server on this node")
}

// Watch implements store.Reader.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Revision, fn func(store.Batch) error) error {
	m, epoch, err := s.at()
	if err != nil {
		return err
	}
	var now int64
	if err := s.do(ctx, func(ctx context.Context, c *clientv3.Client) error {
		res, err := c.Get(ctx, keyEpoch)
		if err == nil {
			now = res.Header.Revision
		}
		return err
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
	var ch clientv3.WatchChan
	if err := m.call(ctx, func(c *clientv3.Client) error {
		ch = c.Watch(ctx, keyPrefix+prefix, clientv3.WithPrefix(), clientv3.WithRev(int64(after.Rev)+1), clientv3.WithProgressNotify())
		return nil
	}); err != nil {
		return inWords(err)
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.broken:
			return downBecause(m.why)
		case res, ok := <-ch:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if !ok {
				return volant.Errorf(volant.ErrUnavailable, "the store ended the watch")
			}
			if err := res.Err(); err != nil {
				return inWords(err)
			}
			if b := batch(epoch, res); !b.Rev.IsZero() {
				s.saw(b.Rev)
				if err := fn(b); err != nil {
					return err
				}
			}
		}
	}
}

// batch reads one answer of a watch. The header of one with events may be ahead of them.
func batch(epoch uint64, res clientv3.WatchResponse) store.Batch {
	var b store.Batch
	for _, e := range res.Events {
		ev := store.Event{Entry: entry(epoch, e.Kv.Key, e.Kv.Value, e.Kv.CreateRevision, e.Kv.ModRevision)}
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
func (s *Store) Grant(ctx context.Context, ttl time.Duration) (id store.LeaseID, err error) {
	err = s.do(ctx, func(ctx context.Context, c *clientv3.Client) error {
		res, err := c.Grant(ctx, int64((ttl+time.Second-1)/time.Second))
		if err == nil {
			id = store.LeaseID(res.ID)
		}
		return err
	})
	return id, err
}

// Renew implements store.Store.
func (s *Store) Renew(ctx context.Context, id store.LeaseID) error {
	return s.do(ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.KeepAliveOnce(ctx, clientv3.LeaseID(id))
		return err
	})
}

// Revoke implements store.Store.
func (s *Store) Revoke(ctx context.Context, id store.LeaseID) error {
	return s.do(ctx, func(ctx context.Context, c *clientv3.Client) error {
		_, err := c.Revoke(ctx, clientv3.LeaseID(id))
		return err
	})
}
