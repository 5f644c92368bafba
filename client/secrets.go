package client

import (
	"context"
	"net/http"

	"github.com/volant-edge/volant/api"
)

// Secrets lists an app's secrets, without their values.
func (c *Client) Secrets(ctx context.Context, app string) (api.AppSecrets, error) {
	var out api.AppSecrets
	err := c.do(ctx, http.MethodGet, appPath(app)+"/secrets", nil, &out)
	return out, err
}

// SetSecrets sets and, where a value is nil, unsets secrets in one step.
func (c *Client) SetSecrets(ctx context.Context, app string, values map[string]*string) (api.AppSecrets, error) {
	var out api.AppSecrets
	err := c.do(ctx, http.MethodPost, appPath(app)+"/secrets", api.SetSecrets{Values: values}, &out)
	return out, err
}
