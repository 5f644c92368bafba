package node

import (
	"context"
	"os"

	"github.com/volant-edge/volant/proxy"
)

// reachProxy finds the data directory's proxy process, or starts one in a cgroup of its own.
func (s *server) reachProxy(groups *cgroups) func(ctx context.Context) (Link, func(), error) {
	return func(ctx context.Context) (Link, func(), error) {
		self, err := os.Executable()
		if err != nil {
			return nil, nil, err
		}
		c, err := proxy.Ensure(ctx, proxy.Start{
			Data: s.dir, Args: []string{self, "proxy", "--data", s.dir.Root()}, Place: groups.placeProxy, Log: s.cfg.Log,
		})
		if err != nil {
			return nil, nil, err
		}
		return c, func() { _ = c.Close() }, nil // the link is broken or no longer wanted
	}
}
