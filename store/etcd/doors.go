package etcd

import (
	"context"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/etcdhttp"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// doors are the listeners of a member.
type doors struct {
	peerL, clientL net.Listener
	low            func() error // why no more is written, or nil
	peers          *http.Server
	clients        *grpc.Server
}

const (
	// unackedTime bounds how long a connection may be without an answer from the other host.
	unackedTime = 5 * time.Second
	pingTime    = 10 * time.Second
	farewell    = 2 * time.Second
)

// openDoors listens. Nobody is let in before serve.
func openDoors(ctx context.Context, cfg Config, low func() error) (*doors, error) {
	open := cfg.Open
	if open == nil {
		open = listen
	}
	peer, err := open(ctx, cfg.Listen.Peer)
	if err != nil {
		return nil, err
	}
	client, err := open(ctx, cfg.Listen.Client)
	if err != nil {
		return nil, errors.Join(err, peer.Close())
	}
	return &doors{peerL: peer, clientL: client, low: low}, nil
}

// listen listens at an address which may come to be later, as a mesh's does.
func listen(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
	lc := net.ListenConfig{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: unackedTime, Interval: time.Second, Count: 5},
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			if cerr := c.Control(func(fd uintptr) {
				err = errors.Join(
					unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1),
					unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unackedTime.Milliseconds())),
				)
			}); cerr != nil {
				return cerr
			}
			return err
		},
	}
	return lc.Listen(ctx, "tcp", at.String())
}

// serve lets others in.
func (d *doors) serve(m *member, lg *zap.Logger, to *slog.Logger) {
	d.peers = &http.Server{
		Handler:           etcdhttp.NewPeerHandler(lg, m.srv), // panics to end a connection; net/http sees to it
		ReadHeaderTimeout: 5 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          log.New(discard{}, "", 0),
	}
	d.clients = v3rpc.Server(m.srv, nil, d.unary(m),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
			defer m.recover(&err)
			return handler(srv, ss)
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingTime / 2, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingTime, Timeout: unackedTime}),
		grpc.WaitForHandlers(true),
	)
	go func() {
		if err := d.peers.Serve(d.peerL); err != nil && !errors.Is(err, http.ErrServerClosed) {
			to.Error("store no longer listens for members", "err", err)
		}
	}()
	go func() {
		if err := d.clients.Serve(d.clientL); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			to.Error("store no longer listens for nodes", "err", err)
		}
	}()
}

// unary turns writes away while the disk is nearly full, and a panic of etcd into a failure of the member.
func (d *doors) unary(m *member) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (res any, err error) {
		defer m.recover(&err)
		if t, ok := req.(*etcdserverpb.TxnRequest); ok && writesForGood(t) {
			if err := d.low(); err != nil {
				return nil, status.Error(codes.ResourceExhausted, err.Error())
			}
		}
		if m.err() != nil {
			return nil, status.Error(codes.Unavailable, m.err().Error())
		}
		return handler(ctx, req)
	}
}

// writesForGood says whether a transaction puts something that no lease takes away again.
func writesForGood(t *etcdserverpb.TxnRequest) bool {
	for _, op := range t.Success {
		if put := op.GetRequestPut(); put != nil && put.Lease == 0 {
			return true
		}
	}
	return false
}

// closeClients sends nodes away.
func (d *doors) closeClients() {
	if d.clients == nil {
		d.clientL.Close() //nolint:errcheck // it never served
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.clients.Stop()
	}()
	select {
	case <-done:
	case <-time.After(farewell):
	}
}

// closePeers sends other members away.
func (d *doors) closePeers() {
	if d.peers == nil {
		d.peerL.Close() //nolint:errcheck // it never served
		return
	}
	d.peers.Close() //nolint:errcheck // streams are cut
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
