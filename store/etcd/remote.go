package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// RemoteConfig configures a Remote.
type RemoteConfig struct {
	// Endpoints are URLs of members: Endpoint(mesh address), or those of an external etcd. SetEndpoints
	// changes them. With none the Remote is down.
	Endpoints []string
	// External says that the etcd is not Volant's own: its members are managed elsewhere, and a fresh one may
	// be taken for a new cluster's.
	External bool
	Prefix   string      // of all keys, for an etcd that is shared
	TLS      *tls.Config // for https endpoints
	// Floor is the newest revision this node has seen, from its copy. A store that is older is not used.
	Floor store.Revision
	// Dial makes a connection; nil is TCP. For tests.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	Log  *slog.Logger // nil discards
}

// Remote is a store whose members are elsewhere. Any of the endpoints will do; one that is dead, cut off,
// or of another cluster is left within seconds.
type Remote struct {
	kv
	admin
	cfg  RemoteConfig
	kick chan struct{} // capacity 1: look now

	mu     sync.Mutex // guards the fields below
	client *clientv3.Client
	now    *remoteSession // as whom the endpoints answered last; nil before they did
	seen   store.Revision
	down   error
	closed bool
}

var _ store.Store = (*Remote)(nil)

const (
	// attemptTime bounds one attempt of a call.
	attemptTime = 3 * time.Second
	// dialTime bounds how long a connection may take to be made, or to be acknowledged.
	dialTime = 3 * time.Second
	// Whose store it is is looked at every lookTime, and while it is down every lookEvery.
	lookTime = 5 * time.Second
	askTime  = 5 * time.Second
	// retryPause is waited before an attempt at another endpoint.
	retryPause = 50 * time.Millisecond
)

// NewRemote returns a Remote which is down until Start or Run has reached the store.
func NewRemote(cfg RemoteConfig) *Remote {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	r := &Remote{cfg: cfg, kick: make(chan struct{}, 1), seen: cfg.Floor, down: errors.New("not reached yet")}
	r.kv = kv{keys: keysUnder(cfg.Prefix), at: r.session}
	r.admin = admin{at: r.session, status: r.statusOf}
	if cfg.External {
		r.refuse = volant.Errorf(volant.ErrPrecondition, "the store is an external etcd, whose members Volant does not manage").
			WithRemedy("use etcdctl member")
	}
	r.SetEndpoints(cfg.Endpoints)
	return r
}

// SetEndpoints says where the members are now. None at all is no news, and ignored.
func (r *Remote) SetEndpoints(urls []string) {
	if len(urls) == 0 {
		return
	}
	urls = slices.Compact(slices.Sorted(slices.Values(urls)))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	if r.client != nil {
		if !slices.Equal(urls, r.client.Endpoints()) {
			r.client.SetEndpoints(urls...)
		}
		return
	}
	c, err := r.dialing().client(urls)
	if err != nil {
		r.down = err
		return
	}
	r.client = c
}

func (r *Remote) dialing() dialing {
	return dialing{tls: r.cfg.TLS, dial: r.cfg.Dial}
}

// Start waits until the store is reached, for as long as ctx lasts.
func (r *Remote) Start(ctx context.Context) error {
	for {
		err := r.look(ctx)
		if err == nil || ctx.Err() != nil || !errors.Is(err, volant.ErrUnavailable) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(lookEvery / 4):
		}
	}
}

// Run keeps looking whether the store is there, and whose it is, until ctx ends. A Remote works without it once
// it was reached, but does not notice when the store was restored.
func (r *Remote) Run(ctx context.Context) error {
	for {
		err := r.look(ctx)
		pause := lookTime
		if err != nil {
			pause = lookEvery / 2
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.kick:
		case <-time.After(pause):
		}
	}
}

// Close ends all connections.
func (r *Remote) Close() error {
	r.mu.Lock()
	c := r.client
	r.client, r.closed, r.down = nil, true, errors.New("closed")
	r.end(errors.New("closed"))
	r.mu.Unlock()
	if c == nil {
		return nil
	}
	if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close the store: %w", err)
	}
	return nil
}

// Down says why the store is down, or nil.
func (r *Remote) Down() error {
	_, err := r.session()
	return err
}

// epoch is that of the store as it answered last; 0 before it did.
func (r *Remote) epoch() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now == nil {
		return 0
	}
	return r.now.id.epoch
}

// look asks whose store it is, and notes the answer.
func (r *Remote) look(ctx context.Context) error {
	id, rev, err := r.ask(ctx)
	if err != nil && ctx.Err() != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.down
	if r.closed {
		return errors.New("closed")
	}
	if err != nil {
		r.down = err
		if was == nil || was.Error() != err.Error() {
			r.cfg.Log.Warn("store not reached", "err", err)
		}
		return err
	}
	if r.now == nil || r.now.id != id {
		if r.now != nil {
			r.cfg.Log.Warn("store is another one now", "epoch", id.epoch, "was", r.now.id.epoch)
		}
		r.end(errors.New("it was restored"))
		r.now = &remoteSession{remote: r, client: r.client, id: id, over: make(chan struct{})}
	}
	r.down = nil
	if r.seen.Before(rev) {
		r.seen = rev
	}
	if was != nil {
		r.cfg.Log.Info("store reached", "revision", rev.String())
	}
	return nil
}

// end ends what goes on in the name of the identity before. r.mu is held.
func (r *Remote) end(err error) {
	if r.now != nil {
		r.now.cause = volant.Errorf(volant.ErrUnavailable, "the store is down: %v", err)
		close(r.now.over)
		r.now = nil
	}
}

// ask asks the endpoints one after the other, until one answers in the name of a store that this node can follow.
func (r *Remote) ask(ctx context.Context) (identity, store.Revision, error) {
	r.mu.Lock()
	c, floor, now := r.client, r.seen, r.now
	down := r.down
	r.mu.Unlock()
	if c == nil {
		if down == nil || len(r.cfg.Endpoints) == 0 {
			down = errors.New("no control node is known")
		}
		return identity{}, store.Revision{}, volant.Errorf(volant.ErrUnavailable, "%v", down)
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var first error
	for range len(c.Endpoints()) {
		s := &remoteSession{remote: r, client: c}
		id, rev, err := r.identify(ctx, s, r.cfg.External && floor.IsZero())
		where := "the store at " + strings.Join(c.Endpoints(), ", ")
		switch {
		case errors.Is(err, errEmpty):
			err = behind(where, "is empty", floor)
		case err != nil:
		case rev.Before(floor):
			err = behind(where, "is at "+rev.String(), floor)
		case now != nil && id.epoch == now.id.epoch && id != now.id:
			err = volant.Errorf(volant.ErrPrecondition, "%s is another one than before, of the same epoch", where).
				WithRemedy("restart volant server on this node if that is intended")
		default:
			return id, rev, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil || errors.Is(err, volant.ErrUnavailable) { // it was tried at all of them already
			break
		}
	}
	return identity{}, store.Revision{}, first
}

func (r *Remote) session() (session, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down != nil || r.now == nil {
		down := r.down
		if down == nil {
			down = errors.New("not reached yet")
		}
		var known *volant.Error
		if errors.As(down, &known) && known.Remedy != "" {
			return nil, volant.Errorf(volant.ErrUnavailable, "the store is down: %s", known.Text).WithRemedy("%s", known.Remedy)
		}
		return nil, volant.Errorf(volant.ErrUnavailable, "the store is down: %v", down).
			WithRemedy("see whether the control nodes are up and reached; it is tried again by itself")
	}
	return r.now, nil
}

// statusOf asks a member how it is.
func (r *Remote) statusOf(ctx context.Context, m *etcdserverpb.Member) (*clientv3.StatusResponse, error) {
	return statusAt(ctx, m.ClientURLs, r.dialing())
}

// remoteSession is the store as it answered last.
type remoteSession struct {
	remote *Remote
	client *clientv3.Client
	id     identity
	over   chan struct{}
	cause  error // set before over is closed
}

func (s *remoteSession) identity() identity { return s.id }

// do makes a call. One that fails in a way that surely changed nothing is made again at another endpoint.
func (s *remoteSession) do(ctx context.Context, safe bool, fn func(context.Context, *clientv3.Client) (*etcdserverpb.ResponseHeader, error)) error {
	whole, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	for {
		err := s.attempt(whole, fn)
		switch {
		case ctx.Err() != nil && err != nil:
			return inWords(ctx.Err())
		case err == nil:
			return nil
		case !nothingDone(err) && (!safe || !passing(err)):
			return s.inWords(err)
		}
		select {
		case <-whole.Done():
			return s.inWords(err)
		case <-time.After(retryPause):
		}
	}
}

func (s *remoteSession) attempt(ctx context.Context, fn func(context.Context, *clientv3.Client) (*etcdserverpb.ResponseHeader, error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	h, err := fn(clientv3.WithRequireLeader(ctx), s.client)
	if err == nil && h != nil && s.id.cluster != 0 && h.ClusterId != s.id.cluster {
		return errOther // a commit there did nothing: its epoch key is another
	}
	return err
}

// errOther is the error of an answer by a member of another cluster: one from before a restore, say.
var errOther = errors.New("a member of another cluster answered")

// nothingDone says whether a call surely changed nothing, and another endpoint may answer it.
func nothingDone(err error) bool {
	return errors.Is(err, errOther) || errors.Is(err, rpctypes.ErrNoLeader) || errors.Is(err, rpctypes.ErrGRPCNoLeader) ||
		errors.Is(err, rpctypes.ErrGRPCNotSupportedForLearner) || strings.Contains(err.Error(), "rpc not supported for learner")
}

// passing says whether an error may pass when the call is made again.
func passing(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) {
		return true
	}
	var known rpctypes.EtcdError
	if errors.As(err, &known) {
		return known.Code() == codes.Unavailable
	}
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}

func (s *remoteSession) inWords(err error) error {
	if errors.Is(err, context.Canceled) { // not the caller's: the client was closed
		return volant.Errorf(volant.ErrUnavailable, "store: the connection ended")
	}
	return inWords(err)
}

// renew asks once on a stream of its own: clientv3 would ask again without a pause.
func (s *remoteSession) renew(ctx context.Context, id clientv3.LeaseID) error {
	return s.do(ctx, true, func(ctx context.Context, c *clientv3.Client) (*etcdserverpb.ResponseHeader, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := etcdserverpb.NewLeaseClient(c.ActiveConnection()).LeaseKeepAlive(ctx)
		if err != nil {
			return nil, rpctypes.Error(err)
		}
		if err := stream.Send(&etcdserverpb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil {
			return nil, rpctypes.Error(err)
		}
		res, err := stream.Recv()
		if err != nil {
			return nil, rpctypes.Error(err)
		}
		if res.TTL <= 0 && res.GetHeader().GetClusterId() == s.id.cluster {
			return nil, rpctypes.ErrLeaseNotFound
		}
		return res.Header, nil
	})
}

func (s *remoteSession) takes([]store.Op) error { return nil }

func (s *remoteSession) kept() error { return nil }

func (s *remoteSession) watch(ctx context.Context, key string, opts ...clientv3.OpOption) (clientv3.WatchChan, func() bool, error) {
	ctx = clientv3.WithRequireLeader(ctx)
	beat := func() bool {
		asking, cancel := context.WithTimeout(ctx, beatEvery/2)
		defer cancel()
		s.client.RequestProgress(asking) //nolint:errcheck // only the answer counts
		return false
	}
	return s.client.Watch(ctx, key, opts...), beat, nil
}

func (s *remoteSession) ended() <-chan struct{} { return s.over }

func (s *remoteSession) why() error { return s.cause }

func (s *remoteSession) saw(rev store.Revision) {
	s.remote.mu.Lock()
	defer s.remote.mu.Unlock()
	if s.remote.seen.Before(rev) {
		s.remote.seen = rev
	}
}

func (s *remoteSession) changed() error {
	select {
	case s.remote.kick <- struct{}{}:
	default:
	}
	return volant.Errorf(volant.ErrUnavailable, "the store was restored under a newer epoch").WithRemedy("try again: this node takes it up within seconds")
}

func (s *remoteSession) became(id identity, rev store.Revision) {
	r := s.remote
	r.mu.Lock()
	defer r.mu.Unlock()
	r.end(errors.New("it was restored"))
	r.now = &remoteSession{remote: r, client: s.client, id: id, over: make(chan struct{})}
	r.seen = rev
}

// dialing says how members are reached.
type dialing struct {
	tls  *tls.Config
	dial func(ctx context.Context, addr string) (net.Conn, error)
}

// client returns a client of the endpoints. It connects by itself, in its own time.
func (d dialing) client(urls []string) (*clientv3.Client, error) {
	dial := d.dial
	if dial == nil {
		nd := &net.Dialer{Timeout: dialTime, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second, Count: 3}}
		dial = func(ctx context.Context, addr string) (net.Conn, error) { return nd.DialContext(ctx, "tcp", addr) }
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints:            urls,
		TLS:                  d.tls,
		DialKeepAliveTime:    pingTime,
		DialKeepAliveTimeout: dialTime, // also how long bytes may be without an acknowledgement
		MaxCallSendMsgSize:   maxRequest + 1<<20,
		MaxCallRecvMsgSize:   1 << 30,
		MaxUnaryRetries:      3,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithNoProxy(),
			grpc.WithContextDialer(dial),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
				MinConnectTimeout: dialTime,
			}),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("endpoints %s: %w", strings.Join(urls, ", "), err)
	}
	return c, nil
}

// statusAt asks one member how it is.
func statusAt(ctx context.Context, urls []string, d dialing) (*clientv3.StatusResponse, error) {
	if len(urls) == 0 {
		return nil, errors.New("it listens nowhere")
	}
	c, err := d.client(urls[:1])
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // it was only asked
	return c.Status(ctx, urls[0])
}

// TLS returns the configuration for https endpoints of an external etcd. Empty names are not used; the files are
// read again for each connection.
func TLS(cert, key, ca string) (*tls.Config, error) {
	info := transport.TLSInfo{CertFile: cert, KeyFile: key, TrustedCAFile: ca}
	cfg, err := info.ClientConfig()
	if err != nil {
		return nil, volant.Invalidf("TLS for the store: %v", err)
	}
	return cfg, nil
}
