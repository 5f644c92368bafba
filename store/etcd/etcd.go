package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// historyRevs is how many revisions of history are kept for watches that follow.
const historyRevs = 10_000

// Config configures a Store.
type Config struct {
	Dir string // of this member alone; made if missing
	// Name is the node's ID, by which the member is known to others.
	Name string
	// Listen is where other members and nodes reach this one, in the mesh. A store that had none before keeps
	// its data and becomes the first of several. Zero: nobody reaches it, and it stays alone.
	Listen Addrs
	// Join has an empty directory become a member of a cluster that there is: the answer of AddMember. It says
	// nothing once the member has started.
	Join *InitialCluster
	// Floor is the newest revision this node has seen, from its copy. A store that is older is not
	// opened: it lost something. Zero accepts everything, and then an empty directory becomes a
	// fresh store at epoch 1.
	Floor store.Revision
	Quota int64 // bytes the database may take; 4 GiB if zero
	// Reserve is what must be free on the disk for writes to be taken; 192 MiB if zero. etcd sets aside 64 MiB
	// at a time for its log.
	Reserve int64
	// StartTime bounds how long the member may take to serve; 15s if zero. It takes less than one, but one of
	// several waits for a majority of them; then it goes on waiting in Run.
	StartTime time.Duration
	// Election is how long members go without their leader before they choose another; 1s if zero. Heartbeats
	// come ten times as often. It must be the same on all members, and several times the longest round trip.
	Election time.Duration
	// Open makes a listener; nil listens by TCP. For tests.
	Open func(context.Context, netip.AddrPort) (net.Listener, error)
	Log  *slog.Logger // nil discards
}

// Store is an etcd member in this process.
type Store struct {
	kv
	admin
	cfg    Config
	low    atomic.Bool // the disk is nearly full
	voters atomic.Int64

	opening sync.Mutex // held while the directory is opened

	mu      sync.Mutex // guards the fields below
	member  *member
	waiting *member // runs and does not serve yet: a majority of the members is missing
	id      identity
	seen    store.Revision // newest it has served
	down    error          // why there is no member
	stuck   bool           // a broken member did not let go of the directory
	closed  bool
}

var _ store.Store = (*Store)(nil)

// Open starts the member in cfg.Dir and waits until it serves.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s := New(cfg)
	if err := s.Start(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// New returns a Store which is down until Start has opened it, or Run.
func New(cfg Config) *Store {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Name == "" {
		cfg.Name = memberName
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
	if cfg.Election == 0 {
		cfg.Election = time.Second
		if cfg.Listen.IsZero() { // nobody to wait for
			cfg.Election = 200 * time.Millisecond
		}
	}
	s := &Store{cfg: cfg, seen: cfg.Floor, down: errors.New("not started")}
	s.kv = kv{keys: keysUnder(""), at: s.session}
	s.admin = admin{at: s.session, status: s.statusOf}
	return s
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

// errWaiting marks the error of a member which runs and waits for others.
var errWaiting = errors.New("")

func (s *Store) open(ctx context.Context) error {
	s.opening.Lock()
	defer s.opening.Unlock()
	if m, err := s.running(); err == nil && m.err() == nil || s.pending() != nil {
		return err // somebody else was faster
	}
	_, err := os.Stat(filepath.Join(s.cfg.Dir, "member", "snap", "db"))
	if errors.Is(err, os.ErrNotExist) && s.cfg.Join == nil && !s.floor().IsZero() {
		return behind("the intent in "+s.cfg.Dir, "is empty", s.floor())
	}
	m, err := start(ctx, s.cfg, s.lowNow)
	if err != nil {
		return err
	}
	err = m.ready(ctx, s.cfg.StartTime)
	switch {
	case err == nil:
		return s.settle(ctx, m)
	case errors.Is(err, errWaiting):
		s.mu.Lock()
		s.waiting = m
		s.mu.Unlock()
		return fmt.Errorf("%w%w", volant.Errorf(volant.ErrUnavailable, "it waits for a majority of the store's members").
			WithRemedy("start volant server on the other control nodes; if most of them are lost for good, run volant control restore on one"), errWaiting)
	default:
		return m.undo(ctx, s.cfg.Dir, err)
	}
}

// settle takes a member into service which has become ready.
func (s *Store) settle(ctx context.Context, m *member) error {
	id, rev, err := s.identify(ctx, &memberSession{store: s, member: m}, s.floor().IsZero())
	switch {
	case errors.Is(err, errEmpty):
		err = behind("the intent in "+s.cfg.Dir, "is empty", s.floor())
	case err == nil && rev.Before(s.floor()):
		err = behind("the intent in "+s.cfg.Dir, "is at "+rev.String(), s.floor())
	case err == nil:
		err = m.announce(ctx, s.cfg)
	}
	again := errors.Is(err, volant.ErrUnavailable) && m.several() && m.err() == nil // the majority went again
	s.mu.Lock()
	switch {
	case err == nil:
		s.member, s.waiting, s.id, s.seen, s.down = m, nil, id, rev, nil
	case again:
		s.waiting = m
		err = fmt.Errorf("%w%w", err, errWaiting)
	default:
		s.waiting = nil
	}
	s.mu.Unlock()
	if err != nil && !again {
		return m.undo(ctx, s.cfg.Dir, err)
	}
	if err == nil {
		s.noteEpoch(id)
		s.lookAtDisk()
	}
	return err
}

func behind(what, how string, floor store.Revision) error {
	return volant.Errorf(volant.ErrPrecondition, "%s %s, but this node has seen %s", what, how, floor).
		WithRemedy("bring the directory back, or stop volant server and run volant control restore, which makes a new one from this node's copy")
}

func (s *Store) floor() store.Revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// Close stops the member. A leader hands its office on first.
func (s *Store) Close() error { return s.shut(true) }

func (s *Store) shut(politely bool) error {
	s.mu.Lock()
	m := s.member
	if m == nil {
		m = s.waiting
	}
	s.member, s.waiting, s.down, s.closed = nil, nil, errors.New("closed"), true
	s.mu.Unlock()
	if m == nil {
		return nil
	}
	sound := m.err() == nil
	if sound && politely {
		m.handOver()
	}
	if !m.close() {
		return volant.Errorf(volant.ErrUnavailable, "the store did not close in time")
	}
	if sound && politely {
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

// running returns the member that serves.
func (s *Store) running() (*member, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.member == nil {
		return nil, downBecause(s.down)
	}
	return s.member, nil
}

func (s *Store) session() (session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.member == nil {
		return nil, downBecause(s.down)
	}
	return &memberSession{store: s, member: s.member, id: s.id}, nil
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

// Down says why the store is down, or nil.
func (s *Store) Down() error {
	m, err := s.running()
	switch {
	case err != nil:
		return err
	case m.err() != nil:
		return volant.Errorf(volant.ErrUnavailable, "the store is down: %v", m.err())
	case m.srv.Leader() == 0:
		return errLeaderless()
	}
	return nil
}

// memberSession is the member in this process as it was at one moment.
type memberSession struct {
	store  *Store
	member *member
	id     identity
}

func (s *memberSession) identity() identity { return s.id }

// do makes a call. A write on its way to a leader that dies waits for an answer which never comes, so that it is given
// up early where there are several members.
func (s *memberSession) do(ctx context.Context, safe bool, fn func(context.Context, *clientv3.Client) (*etcdserverpb.ResponseHeader, error)) error {
	if err := ctx.Err(); err != nil {
		return inWords(err)
	}
	within := callTime
	if !safe && s.member.several() {
		within = attemptTime
	}
	whole, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	if err := s.member.led(whole); err != nil {
		return err
	}
	for {
		err := s.member.call(whole, func(c *clientv3.Client) error {
			_, err := fn(whole, c)
			return err
		})
		if err == nil || !safe || !passing(err) || s.member.err() != nil || whole.Err() != nil {
			if ctx.Err() == nil && errors.Is(err, context.Canceled) {
				return volant.Errorf(volant.ErrUnavailable, "store: the call was broken off")
			}
			return s.member.inWords(err)
		}
		select {
		case <-whole.Done():
			return s.member.inWords(err)
		case <-time.After(retryPause):
		}
	}
}

func (s *memberSession) renew(ctx context.Context, id clientv3.LeaseID) error {
	return s.do(ctx, true, func(ctx context.Context, c *clientv3.Client) (*etcdserverpb.ResponseHeader, error) {
		_, err := c.KeepAliveOnce(ctx, id)
		return nil, err
	})
}

func (s *memberSession) takes(ops []store.Op) error {
	if err := s.member.gone(); err != nil {
		s.member.fail(err)
	}
	if slices.ContainsFunc(ops, func(op store.Op) bool { return op.Verb == store.Put && op.Lease == 0 }) {
		return s.store.lowNow()
	}
	return nil
}

func (s *memberSession) kept() error {
	if err := s.member.gone(); err != nil { // it went to a directory which nobody will read
		s.member.fail(err)
		return inWords(err)
	}
	return nil
}

func (s *memberSession) watch(ctx context.Context, key string, opts ...clientv3.OpOption) (clientv3.WatchChan, func() bool, error) {
	var ch clientv3.WatchChan
	err := s.member.call(ctx, func(c *clientv3.Client) error {
		ch = c.Watch(ctx, key, opts...)
		return nil
	})
	if err != nil {
		return nil, nil, s.member.inWords(err)
	}
	return ch, func() bool { return s.member.srv.Leader() != 0 }, nil
}

func (s *memberSession) ended() <-chan struct{} { return s.member.broken }

func (s *memberSession) why() error { return downBecause(s.member.why) }

func (s *memberSession) saw(rev store.Revision) {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	if s.store.seen.Before(rev) {
		s.store.seen = rev
	}
}

// statusOf asks a member how it is: this one by a call, others over the mesh.
func (s *Store) statusOf(ctx context.Context, other *etcdserverpb.Member) (*clientv3.StatusResponse, error) {
	m, err := s.running()
	if err != nil {
		return nil, err
	}
	if other.ID != uint64(m.srv.MemberID()) {
		return statusAt(ctx, other.ClientURLs, dialing{})
	}
	var st *clientv3.StatusResponse
	err = m.call(ctx, func(c *clientv3.Client) (err error) {
		st, err = c.Status(ctx, memberURL)
		return err
	})
	if err != nil { // the call may go on, and write st
		return nil, err
	}
	return st, nil
}

func (s *memberSession) changed() error {
	return volant.Errorf(volant.ErrUnavailable, "the store was restored under a newer epoch").WithRemedy("restart volant server on this node")
}

func (s *memberSession) became(id identity, rev store.Revision) {
	s.store.noteEpoch(id)
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	s.store.id, s.store.seen = id, rev
}

// epochFile says in the directory which cluster epoch it is of, for who has not opened it.
const epochFile = "epoch"

func (s *Store) noteEpoch(id identity) {
	if err := os.WriteFile(filepath.Join(s.cfg.Dir, epochFile), []byte(id.mark), 0o600); err != nil {
		s.cfg.Log.Warn("store's epoch not noted", "err", err)
	}
}

// epochOf reads what noteEpoch wrote; 0 if there is nothing.
func epochOf(dir string) uint64 {
	b, err := os.ReadFile(filepath.Join(dir, epochFile))
	if err != nil {
		return 0
	}
	epoch, err := parseMark(string(b))
	if err != nil {
		return 0
	}
	return epoch
}

// leads says whether this member leads the others now.
func (s *Store) leads() bool {
	m, err := s.running()
	return err == nil && m.err() == nil && m.srv.Leader() == m.srv.MemberID()
}
