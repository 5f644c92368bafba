package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/volant-edge/volant/api"
)

// AssignAddress gives an app an address.
func (c *Client) AssignAddress(ctx context.Context, app string, in api.AssignIP) (api.IPAssignment, error) {
	var out api.IPAssignment
	err := c.do(ctx, http.MethodPost, appPath(app)+"/ip_assignments", in, &out)
	return out, err
}

// ReleaseAddress takes an address from an app.
func (c *Client) ReleaseAddress(ctx context.Context, app, ip string) error {
	return c.do(ctx, http.MethodDelete, appPath(app)+"/ip_assignments/"+url.PathEscape(ip), nil, nil)
}
