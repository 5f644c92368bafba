package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/hostnet"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/internal/atomicfile"
	"github.com/volant-edge/volant/internal/daemon"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/why"
)

// WithDefaults fills the defaults into a configuration.
func WithDefaults(c Config) Config { return c.withDefaults() }

// APISocket is the name of the API's socket in the sub-directory run of the data directory.
const APISocket = "api.sock"

// server is one running server process: the real parts of a Platform, and what keeps them.
type server struct {
	cfg    Config
	dir    *datadir.Dir
	member *membership // of the cluster that it joined; nil: it is the first
	epoch  uint64

	mesh     *meshNode // nil: this server is alone
	intent   *intent
	why      *why.Rings
	images   *image.Store
	net      *hostnet.Net
	engine   microvm.Engine
	platform *Platform
}

// Serve runs a server until ctx ends.
func Serve(ctx context.Context, cfg Config) error {
	given := cfg
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return err
	}
	s := &server{cfg: cfg}
	closeAll, err := s.open(ctx, given)
	defer closeAll()
	if err != nil {
		return err
	}
	err = s.run(ctx)
	if errors.Is(err, errNodeRemoved) {
		return s.leave()
	}
	return err
}

// open opens and builds everything; the returned func closes what was opened, last first.
func (s *server) open(ctx context.Context, given Config) (closeAll func(), err error) {
	var closers []func() error
	closeAll = func() {
		for _, end := range slices.Backward(closers) {
			if err := end(); err != nil {
				s.cfg.Log.Warn("not closed cleanly", "err", err)
			}
		}
	}
	if s.dir, err = datadir.Open(s.cfg.Data); err != nil {
		return closeAll, err
	}
	closers = append(closers, s.dir.Close)
	if err = s.enter(ctx, given); err != nil {
		return closeAll, err
	}
	if s.epoch, err = s.dir.Next("server"); err != nil {
		return closeAll, err
	}
	if err = s.openMesh(ctx); err != nil {
		return closeAll, err
	}
	whyDir, err := s.dir.Sub("why")
	if err != nil {
		return closeAll, err
	}
	if s.why, err = why.Open(whyDir, why.Config{Log: s.cfg.Log}); err != nil {
		return closeAll, err
	}
	closers = append(closers, s.why.Close)
	if s.intent, err = openIntent(ctx, s.dir, s.intentConfig()); err != nil {
		return closeAll, err
	}
	closers = append(closers, s.intent.close)
	parts, closer, err := s.parts(ctx)
	closers = append(closers, closer)
	if err != nil {
		return closeAll, err
	}
	s.platform, err = NewPlatform(parts)
	return closeAll, err
}

// run starts the rooms and waits for their end.
func (s *server) run(ctx context.Context) error {
	began := time.Now()
	l, err := net.Listen("tcp", s.cfg.API.Listen)
	if err != nil {
		return volant.Errorf(volant.ErrUnavailable, "the API cannot listen: %v", err).WithRemedy("free the address or name another with --listen")
	}
	defer func() { _ = l.Close() }() // the API's server closes it first
	local, err := s.localAPI()
	if err != nil {
		return err
	}
	defer func() { _ = local.Close() }() // likewise
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return named("why", s.why.Run(ctx)) })
	g.Go(func() error { return named("intent", s.intent.run(ctx)) })
	g.Go(func() error { return named("network", s.net.Run(ctx)) })
	if s.mesh != nil {
		g.Go(func() error { return named("mesh", s.mesh.run(ctx, s.platform)) })
	}
	g.Go(func() error { return named("platform", s.platform.Run(ctx)) })
	g.Go(func() error { return named("images", s.collect(ctx)) })
	g.Go(func() error {
		if err := s.platform.Ready(ctx); err != nil {
			return named("start", err)
		}
		if err := atomicfile.Write(s.dir.Path("api.addr"), []byte(l.Addr().String()+"\n"), 0o644); err != nil {
			return err
		}
		s.cfg.Log.Info("server started", "node", s.dir.Node(), "api", l.Addr().String(), "engine", s.engine.Name(), "took", time.Since(began))
		g.Go(func() error { return named("api", s.platform.API().Serve(ctx, local)) })
		return named("api", s.platform.API().Serve(ctx, l))
	})
	return g.Wait()
}

// localAPI listens where only root can connect, and only root can have listened: a client on this machine
// that finds the root token by itself must not give it to whoever has the TCP port while no server runs.
func (s *server) localAPI() (net.Listener, error) {
	path, err := s.dir.Socket(APISocket)
	if err != nil {
		return nil, err
	}
	l, err := daemon.Listen(path)
	if err != nil {
		return nil, fmt.Errorf("socket of the API: %w", err)
	}
	return l, nil
}

func named(room string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return fmt.Errorf("%s: %w", room, err)
}

func (s *server) name() string {
	if s.cfg.Name != "" {
		return s.cfg.Name
	}
	name, err := os.Hostname()
	if err != nil {
		return string(s.dir.Node())
	}
	return name
}
