package node

import (
	"context"
	"log/slog"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/host"
)

type cgroups struct{}

func openCgroups(volant.NodeID, *slog.Logger) (*cgroups, error) { return &cgroups{}, nil }

func (*cgroups) cores() [][]int       { return nil }
func (*cgroups) placeProxy(int) error { return nil }

func (*cgroups) Add(context.Context, volant.MachineID, int) error           { return nil }
func (*cgroups) Limit(context.Context, volant.MachineID, host.Limits) error { return nil }
func (*cgroups) Pin(int, int) error                                         { return nil }
func (*cgroups) Remove(context.Context, volant.MachineID) error             { return nil }
func (*cgroups) Sweep(context.Context, func(volant.MachineID) bool) ([]string, error) {
	return nil, nil
}

func (*cgroups) cleanup(context.Context) ([]string, error) { return nil, nil }
