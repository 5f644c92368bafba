package node

import (
	"context"
	"errors"
	"net"
	"slices"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/store"
)

// roles are those of this server: by its record as the copy of the intent has it, else as it was configured.
func (s *server) roles(ctx context.Context) ([]string, error) {
	n, _, err := store.LoadAny[volant.Node](ctx, s.intent.copy, volant.RecordKey(volant.KindNode, "", string(s.dir.Node())))
	switch {
	case errors.Is(err, volant.ErrNotFound):
		if len(s.cfg.Roles) == 0 {
			return allRoles(), nil
		}
		return s.cfg.Roles, nil
	case err != nil:
		return nil, err
	case n.Tombstone:
		return nil, s.leave()
	}
	return n.Roles, nil
}

// leave remembers that the cluster threw this server out, and returns the error that says so.
func (s *server) leave() error {
	m := s.member
	if m == nil { // the first server of the cluster; other nodes may never have told it
		m = &membership{Name: s.cfg.Name, Region: s.cfg.Region}
	}
	m.Removed = true
	return errors.Join(errRemoved(s.dir.Node()), m.write(s.dir.Path(memberFile)))
}

// noEngine is the engine of a server that runs no machines. What an engine made here before stays as it is.
type noEngine struct{}

var errNoHost = volant.Errorf(volant.ErrPrecondition, "this server runs no machines").WithRemedy("use one that has the role host; see `volant nodes list`")

func (noEngine) Name() string { return "none" }

func (noEngine) Probe(context.Context) (microvm.Capabilities, error) {
	return microvm.Capabilities{Accel: "none", Why: "this server has not the role host"}, nil
}

func (noEngine) Create(context.Context, microvm.Spec) (microvm.VM, error) { return nil, errNoHost }

func (noEngine) Restore(context.Context, microvm.Snapshot, microvm.Spec) (microvm.VM, error) {
	return nil, errNoHost
}

func (noEngine) Adopt(context.Context, microvm.Handle) (microvm.VM, error) { return nil, errNoHost }

func (noEngine) Sweep(context.Context, func(string) bool) ([]string, error) { return nil, nil }

// noTaps is the machine network of a server that runs no machines.
type noTaps struct{}

func (noTaps) Attach(context.Context, volant.MachineID, volant.OrgID) (host.Link, error) {
	return host.Link{Net: guest.Net{}, MAC: net.HardwareAddr{}}, errNoHost
}

func (noTaps) Detach(context.Context, volant.MachineID) error { return nil }

func (noTaps) Sweep(context.Context, func(volant.MachineID) bool) ([]string, error) { return nil, nil }

// runsMachines says whether roles have a server run machines.
func runsMachines(roles []string) bool { return slices.Contains(roles, volant.RoleHost) }
