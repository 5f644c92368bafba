package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/features"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

const (
	memberName = "volant"
	// memberURL is the peer URL in the member's own record. Nothing listens there.
	memberURL = "http://127.0.0.1:2380"
	// checkMark stands in the directory while a start has not proved good. One that is found there has
	// the next start read the whole database first, for damage which would end the process.
	checkMark = "unproven-start"
	proven    = 10 * time.Second
	// closeTime bounds how long a member may take to close.
	closeTime = 10 * time.Second
)

// member is one started etcd server.
type member struct {
	srv     *etcdserver.EtcdServer
	client  *clientv3.Client
	doors   *doors      // its listeners; nil if it has none
	wal     os.FileInfo // the directory it writes to, to see when it is taken away
	walDir  string
	joins   bool          // it began as one of several
	closing chan struct{} // closed when it is told to end
	ending  sync.Once

	broken chan struct{} // closed when etcd gave up
	once   sync.Once
	why    error // set before broken is closed
}

// start opens the directory and starts to serve it. It returns an error for a damaged one.
func start(ctx context.Context, cfg Config, low func() error) (m *member, err error) {
	if err := wasRemoved(cfg.Dir); err != nil {
		return nil, err
	}
	if err := prepare(cfg.Dir); err != nil {
		return nil, damaged(cfg.Dir, err)
	}
	if cfg.Join != nil && !started(cfg.Dir) {
		if err := startedBefore(ctx, cfg); err != nil {
			return nil, err
		}
	}
	joins, err := joined(cfg)
	if err != nil {
		return nil, damaged(cfg.Dir, err)
	}
	m = &member{broken: make(chan struct{}), closing: make(chan struct{}), joins: joins}
	if !cfg.Listen.IsZero() {
		if m.doors, err = openDoors(ctx, cfg, low); err != nil {
			return nil, volant.Errorf(volant.ErrUnavailable, "the store cannot listen in the mesh: %v", err).
				WithRemedy("see whether the mesh is up, and whether another process has the port")
		}
	}
	started := make(chan error, 1)
	go func() {
		err := errors.New("etcd gave up")
		defer func() { started <- err }() // also when etcd ends this goroutine
		defer m.recover(&err)
		err = m.serve(cfg)
	}()
	select {
	case err = <-started:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(cfg.StartTime + joinTime):
		err = errors.New("not started in time: another process may have it open")
		m.fail(err)
	}
	switch {
	case err != nil && cfg.Join != nil && m.srv == nil && m.err() == nil:
		m.close()
		return nil, volant.Errorf(volant.ErrUnavailable, "join the store's other members: %.300s", err.Error()).
			WithRemedy("see whether the other control nodes are up and the mesh reaches them")
	case err != nil:
		return nil, m.undo(ctx, cfg.Dir, err)
	}
	return m, nil
}

// joinTime is what a start may take longer for asking the other members first.
const joinTime = 15 * time.Second

// undo closes a member whose start failed, and returns why.
func (m *member) undo(ctx context.Context, dir string, err error) error {
	if broke := m.err(); broke != nil {
		err = broke
	}
	free := m.close() && m.err() == nil
	var known *volant.Error
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case !errors.As(err, &known):
		err = damaged(dir, err)
	}
	if !free {
		err = fmt.Errorf("%w%w", err, errHeld)
	}
	return err
}

// errHeld marks the error of a start which could not be undone: the directory cannot be opened again
// by this process. It says nothing of its own.
var errHeld = errors.New("")

// prepare makes the directory, and looks for damage to its database.
func prepare(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	mark := filepath.Join(dir, checkMark)
	_, err := os.Stat(mark)
	if err := checkDatabase(filepath.Join(dir, "member", "snap", "db"), err == nil); err != nil {
		return err
	}
	return os.WriteFile(mark, nil, 0o600)
}

func damaged(dir string, err error) error {
	return volant.Errorf(volant.ErrUnavailable, "open the intent in %s: %v", dir, err).
		WithRemedy("if the disk is sound and has room, stop volant server and run volant control restore, which sets the directory aside and makes a new one from this node's copy")
}

func (m *member) serve(cfg Config) error {
	urls, err := types.NewURLs([]string{cfg.Listen.peerURL()})
	if err != nil {
		return err
	}
	lg := m.logger(cfg.Log)
	sc := config.ServerConfig{
		Name:                        cfg.Name,
		DataDir:                     cfg.Dir,
		ClientURLs:                  urls,
		PeerURLs:                    urls,
		InitialPeerURLsMap:          types.URLsMap{cfg.Name: urls},
		InitialClusterToken:         memberName + newMark(0), // no two clusters are taken for one
		NewCluster:                  true,
		TickMs:                      uint(cfg.Election.Milliseconds() / ticksPerElection),
		ElectionTicks:               ticksPerElection,
		InitialElectionTickAdvance:  true,
		PreVote:                     true,
		StrictReconfigCheck:         true,
		SnapshotCount:               10_000,
		SnapshotCatchUpEntries:      5_000,
		MaxSnapFiles:                3,
		MaxWALFiles:                 3,
		BackendBatchInterval:        100 * time.Millisecond,
		BackendFreelistType:         bbolt.FreelistMapType,
		QuotaBackendBytes:           cfg.Quota,
		MaxTxnOps:                   2*store.MaxOps + 8,
		MaxRequestBytes:             maxRequest,
		AutoCompactionMode:          "revision",
		AutoCompactionRetention:     historyRevs,
		CompactionBatchLimit:        1000,
		CompactionSleepInterval:     10 * time.Millisecond,
		WatchProgressNotifyInterval: 10 * time.Second,
		WarningApplyDuration:        time.Second,
		WarningUnaryRequestDuration: 2 * time.Second,
		AuthToken:                   "",
		BcryptCost:                  10,
		TokenTTL:                    300,
		MaxLearners:                 1,
		ServerFeatureGate:           features.NewDefaultServerFeatureGate(cfg.Name, lg),
		Logger:                      lg,
	}
	if err := m.place(cfg, &sc); err != nil {
		return err
	}
	srv, err := etcdserver.NewServer(sc)
	if err != nil {
		return err
	}
	m.srv = srv
	srv.Start()
	m.client = v3client.New(srv)
	m.walDir = filepath.Join(cfg.Dir, "member", "wal")
	if m.wal, err = os.Stat(m.walDir); err != nil {
		return err
	}
	go m.attend(cfg)
	if m.doors != nil {
		m.doors.serve(m, lg, cfg.Log)
	}
	return nil
}

const (
	ticksPerElection = 10
	maxRequest       = store.MaxCommit + 1<<20
)

// place says in etcd's words where the member listens, and which others there are.
func (m *member) place(cfg Config, sc *config.ServerConfig) (err error) {
	if cfg.Listen.IsZero() {
		return nil
	}
	if sc.ClientURLs, err = types.NewURLs([]string{urlOf(cfg.Listen.Client)}); err != nil {
		return err
	}
	host := cfg.Listen.Peer.Addr().String()
	if cfg.Listen.Peer.Addr().Is6() {
		host = "[" + host + "]"
	}
	sc.PeerTLSInfo.LocalAddr = host // others see it come from where they know it
	if cfg.Join == nil {
		return nil
	}
	sc.NewCluster = false
	sc.InitialPeerURLsMap = types.URLsMap{}
	for name, peer := range cfg.Join.Peers {
		if sc.InitialPeerURLsMap[name], err = types.NewURLs([]string{peer}); err != nil {
			return err
		}
	}
	return nil
}

// attend waits until etcd ends by itself, which it does when the member was removed from the cluster.
func (m *member) attend(cfg Config) {
	select {
	case <-m.closing:
		return
	case <-m.srv.StopNotify():
	}
	select {
	case <-m.closing:
		return
	case <-m.broken: // the cause is known already
		if !m.srv.IsIDRemoved(uint64(m.srv.MemberID())) {
			return
		}
	default:
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, removedMark), nil, 0o600); err != nil {
		cfg.Log.Error("removed member not marked", "err", err)
	}
	m.fail(errRemoved(cfg.Dir))
}

// several says whether there are other members too, as far as this one knows: it reads its log first.
func (m *member) several() bool {
	return m.srv != nil && (m.joins || len(m.srv.Cluster().Members()) > 1)
}

// ready waits until the member serves. One of several may have to wait for others: that is errWaiting.
func (m *member) ready(ctx context.Context, within time.Duration) error {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if m.doors == nil && m.several() {
			return volant.Errorf(volant.ErrPrecondition, "the store here is one of several members, and this node has no mesh").
				WithRemedy("configure the mesh again: [mesh] endpoint")
		}
		select {
		case <-m.srv.ReadyNotify():
			if m.doors == nil && m.several() {
				continue
			}
			return nil
		case <-m.broken:
			return m.why
		case <-tick.C:
		case <-ctx.Done():
			if m.several() {
				return errWaiting
			}
			return ctx.Err()
		case <-deadline.C:
			if m.several() {
				return errWaiting
			}
			return errors.New("it did not become its own leader in time: its log may have lost its end")
		}
	}
}

// announce tells the cluster where this member listens now, if it has another address there.
func (m *member) announce(ctx context.Context, cfg Config) error {
	own, want := m.srv.Cluster().Member(m.srv.MemberID()), cfg.Listen.peerURL()
	if m.doors == nil || own == nil || len(own.PeerURLs) == 1 && own.PeerURLs[0] == want {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return m.inWords(m.call(ctx, func(c *clientv3.Client) error {
		_, err := c.MemberUpdate(ctx, uint64(m.srv.MemberID()), []string{want})
		return err
	}))
}

// led waits a little until the members have a leader, as they do within two elections if most of them are up.
func (m *member) led(ctx context.Context) error {
	if m.srv.Leader() != 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	tick := time.NewTicker(retryPause)
	defer tick.Stop()
	for m.srv.Leader() == 0 {
		select {
		case <-ctx.Done():
			return errLeaderless()
		case <-m.broken:
			return downBecause(m.why)
		case <-tick.C:
		}
	}
	return nil
}

func errLeaderless() error {
	return volant.Errorf(volant.ErrUnavailable, "the store is down: most of its members do not answer").
		WithRemedy("start volant server on the other control nodes, or see why this one does not reach them; if most of them are lost for good, run volant control restore on one")
}

// handOver gives the leader's office to another member, if there is one, so that nobody has to miss it.
func (m *member) handOver() {
	done := make(chan struct{})
	go func() {
		var err error
		defer close(done)
		defer m.recover(&err)
		m.srv.TryTransferLeadershipOnShutdown() //nolint:errcheck // they choose another soon
	}()
	select {
	case <-done:
	case <-time.After(handOverTime):
	}
}

const handOverTime = 2 * time.Second

// close stops the member. It says whether the directory is free again.
func (m *member) close() bool {
	m.ending.Do(func() { close(m.closing) })
	done := make(chan struct{})
	go func() {
		var err error
		defer close(done)
		defer m.recover(&err)
		if m.doors != nil {
			m.doors.closeClients()
		}
		if m.client != nil {
			m.client.Close() //nolint:errcheck // an in-process client has nothing to flush
		}
		if m.srv != nil {
			m.srv.HardStop()
		}
		if m.doors != nil {
			m.doors.closePeers()
		}
	}()
	select {
	case <-done:
		return true
	case <-time.After(closeTime):
		return false
	}
}

// fail ends the member's usefulness. The first cause is kept.
func (m *member) fail(err error) {
	m.once.Do(func() {
		m.why = err
		close(m.broken)
	})
}

func (m *member) err() error {
	select {
	case <-m.broken:
		return m.why
	default:
		return nil
	}
}

// gone says what happened to the directory under the member, or nil.
func (m *member) gone() error {
	now, err := os.Stat(m.walDir)
	switch {
	case err != nil:
		return fmt.Errorf("the store's directory was taken away: %w", err)
	case !os.SameFile(now, m.wal):
		return errors.New("the store's directory was replaced")
	}
	return nil
}

// recover turns a panic of etcd in our goroutine into a failure of the member.
func (m *member) recover(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("etcd panicked: %v", p)
		m.fail(*err)
	}
}

// inWords is for the error of a call to this member, which may have broken meanwhile.
func (m *member) inWords(err error) error {
	if broke := m.err(); broke != nil && errors.Is(err, broke) {
		return downBecause(broke)
	}
	return inWords(err)
}

// call runs fn, which calls into etcd, on a goroutine of its own, which etcd may end.
func (m *member) call(ctx context.Context, fn func(*clientv3.Client) error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("etcd gave up")
		defer func() { done <- err }()
		defer m.recover(&err)
		err = fn(m.client)
	}()
	select {
	case err := <-done:
		if broke := m.err(); broke != nil { // be it that etcd said yes: it may not be on the disk
			return broke
		}
		return err
	case <-m.broken:
		return m.why
	case <-ctx.Done():
		return ctx.Err()
	}
}
