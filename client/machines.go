package client

import (
	"context"
	"net/http"

	"github.com/volant-edge/volant/api"
)

// PatchMachine changes the parts of a machine's config that config names, by a JSON merge patch: null
// removes one. With version it does so only if the machine's is that still.
func (c *Client) PatchMachine(ctx context.Context, app, id, version string, config any) (api.Machine, error) {
	in := struct {
		Config         any    `json:"config"`
		CurrentVersion string `json:"current_version,omitempty"`
	}{config, version}
	var out api.Machine
	err := c.do(ctx, http.MethodPatch, machinePath(app, id), in, &out)
	return out, err
}

// MachineVersions lists the configs a machine has and had, newest first.
func (c *Client) MachineVersions(ctx context.Context, app, id string) ([]api.MachineVersion, error) {
	var out []api.MachineVersion
	err := c.do(ctx, http.MethodGet, machinePath(app, id)+"/versions", nil, &out)
	return out, err
}

// MachineLease returns who holds a machine's lease. Where nobody does the error is volant.ErrNotFound.
func (c *Client) MachineLease(ctx context.Context, app, id string) (api.Lease, error) {
	var out api.Lease
	err := c.do(ctx, http.MethodGet, machinePath(app, id)+"/lease", nil, &out)
	return out, err
}

// StopMachine asks a machine's main process to end, in its own time or as s says.
func (c *Client) StopMachine(ctx context.Context, app, id string, s api.StopMachine) error {
	return c.do(ctx, http.MethodPost, machinePath(app, id)+"/stop", s, nil)
}

// SignalMachine sends a signal, such as SIGHUP, to a machine's main process.
func (c *Client) SignalMachine(ctx context.Context, app, id, signal string) error {
	return c.do(ctx, http.MethodPost, machinePath(app, id)+"/signal", api.SignalMachine{Signal: signal}, nil)
}

// UpdateMachine gives a machine a whole new config; a running one is replaced in place.
func (c *Client) UpdateMachine(ctx context.Context, app, id string, m api.UpdateMachine) (api.Machine, error) {
	var out api.Machine
	err := c.do(ctx, http.MethodPost, machinePath(app, id), m, &out)
	return out, err
}

// Processes lists what runs in an awake machine.
func (c *Client) Processes(ctx context.Context, app, id string) ([]api.Process, error) {
	var out []api.Process
	err := c.do(ctx, http.MethodGet, machinePath(app, id)+"/ps", nil, &out)
	return out, err
}

// Memory says how much memory an awake machine has left.
func (c *Client) Memory(ctx context.Context, app, id string) (api.Memory, error) {
	var out api.Memory
	err := c.do(ctx, http.MethodGet, machinePath(app, id)+"/memory", nil, &out)
	return out, err
}
