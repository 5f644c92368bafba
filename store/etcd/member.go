package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/features"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

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
	srv    *etcdserver.EtcdServer
	client *clientv3.Client
	wal    os.FileInfo // the directory it writes to, to see when it is taken away
	walDir string

	broken chan struct{} // closed when etcd gave up
	once   sync.Once
	why    error // set before broken is closed
}

// start opens the directory and serves it. It returns an error for a damaged one.
func start(ctx context.Context, cfg Config) (m *member, err error) {
	if err := prepare(cfg.Dir); err != nil {
		return nil, damaged(cfg.Dir, err)
	}
	m = &member{broken: make(chan struct{})}
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
	case <-time.After(cfg.StartTime):
		err = errors.New("not started in time: another process may have it open")
		m.fail(err)
	}
	if err == nil {
		err = m.ready(ctx, cfg.StartTime)
	}
	if err != nil {
		if broke := m.err(); broke != nil {
			err = broke
		}
		free := m.close() && m.err() == nil
		if ctx.Err() == nil {
			err = damaged(cfg.Dir, err)
		} else {
			err = ctx.Err()
		}
		if !free {
			err = fmt.Errorf("%w%w", err, errHeld)
		}
		return nil, err
	}
	return m, nil
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
	urls, err := types.NewURLs([]string{memberURL})
	if err != nil {
		return err
	}
	lg := m.logger(cfg.Log)
	srv, err := etcdserver.NewServer(config.ServerConfig{
		Name:                        memberName,
		DataDir:                     cfg.Dir,
		ClientURLs:                  urls,
		PeerURLs:                    urls,
		InitialPeerURLsMap:          types.URLsMap{memberName: urls},
		InitialClusterToken:         memberName,
		NewCluster:                  true,
		TickMs:                      50,
		ElectionTicks:               4,
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
		MaxRequestBytes:             store.MaxCommit + 1<<20,
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
		ServerFeatureGate:           features.NewDefaultServerFeatureGate(memberName, lg),
		Logger:                      lg,
	})
	if err != nil {
		return err
	}
	m.srv = srv
	srv.Start()
	m.client = v3client.New(srv)
	m.walDir = filepath.Join(cfg.Dir, "member", "wal")
	m.wal, err = os.Stat(m.walDir)
	return err
}

// ready waits until the member serves.
func (m *member) ready(ctx context.Context, within time.Duration) error {
	select {
	case <-m.srv.ReadyNotify():
		return nil
	case <-m.broken:
		return m.why
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(within):
		return errors.New("it did not become its own leader in time: its log may have lost its end")
	}
}

// close stops the member. It says whether the directory is free again.
func (m *member) close() bool {
	done := make(chan struct{})
	go func() {
		var err error
		defer close(done)
		defer m.recover(&err)
		if m.client != nil {
			m.client.Close() //nolint:errcheck // an in-process client has nothing to flush
		}
		if m.srv != nil {
			m.srv.HardStop()
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

// logger leads etcd's log into ours, and takes from it the right to end the process.
func (m *member) logger(log *slog.Logger) *zap.Logger {
	end := hook{m}
	return zap.New(&core{log: log}, zap.WithFatalHook(end), zap.WithPanicHook(end))
}

// hook runs where etcd's logger would exit or panic.
type hook struct{ m *member }

func (h hook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	text := e.Message
	if cause, ok := enc.Fields["error"]; ok {
		text = fmt.Sprintf("%s: %v", text, cause)
	}
	h.m.fail(errors.New(text))
	runtime.Goexit()
}

// core hands etcd's log lines to slog: its warnings as ours, the rest for debugging.
type core struct {
	log    *slog.Logger
	fields []zapcore.Field
}

func (c *core) Enabled(l zapcore.Level) bool {
	return l >= zapcore.DPanicLevel || c.log.Enabled(context.Background(), level(l))
}

func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{log: c.log, fields: append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(c.fields[:len(c.fields):len(c.fields)], fields...) {
		f.AddTo(enc)
	}
	l := level(e.Level)
	if newStore(e.Message) {
		l = slog.LevelDebug
	}
	c.log.Log(context.Background(), l, "etcd", "text", e.Message, "fields", enc.Fields)
	return nil
}

// newStore says whether etcd complains of what is missing in every store until its first write: the term,
// by which it tells the version of its own storage. It finds out later.
func newStore(text string) bool {
	return text == "Failed to detect schema version" || text == "failed to update storage version"
}

func (c *core) Sync() error { return nil }

func level(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}
