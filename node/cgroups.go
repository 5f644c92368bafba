package node

import (
	"context"
	"log/slog"
	"os"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cgroup"
	"github.com/volant-edge/volant/host"
)

// cgroups is the node's cgroups as the host and the edge ask for them.
type cgroups struct {
	*cgroup.Groups
	log *slog.Logger
}

func openCgroups(node volant.NodeID, log *slog.Logger) (*cgroups, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	g, err := cgroup.New(node, log)
	if err != nil {
		return nil, err
	}
	return &cgroups{g, log}, nil
}

// Limit is host's.
func (c *cgroups) Limit(ctx context.Context, id volant.MachineID, l host.Limits) error {
	return c.Groups.Limit(ctx, id, l)
}

// cores are the logical CPUs of each physical core; none where the kernel does not tell.
func (c *cgroups) cores() [][]int {
	cores, err := cgroup.Cores(os.DirFS("/sys/devices/system/cpu"))
	if err != nil {
		c.log.Warn("CPUs are not counted", "err", err)
		return nil
	}
	return cores
}

// placeProxy puts the proxy into a group of its own, so that what ends the server's does not end it.
func (c *cgroups) placeProxy(pid int) error {
	return c.Place(context.Background(), "proxy", pid)
}

// placeMesh does likewise for the mesh process.
func (c *cgroups) placeMesh(pid int) error {
	return c.Place(context.Background(), "mesh", pid)
}
