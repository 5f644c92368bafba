package client

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

// Images lists the tags of the server's own registry.
func (c *Client) Images(ctx context.Context) ([]api.Image, error) {
	var out api.ImageList
	err := c.do(ctx, http.MethodGet, "/v1/images", nil, &out)
	return out.Images, err
}

// TagImage gives an image whose blobs were uploaded a name, NAME or ORGANIZATION/NAME, and a tag in the
// server's own registry.
func (c *Client) TagImage(ctx context.Context, name, tag string, d volant.Digest) error {
	var raw json.RawMessage
	if err := c.do(ctx, http.MethodGet, "/v2/"+name+"/manifests/"+string(d), nil, &raw); err != nil {
		return err
	}
	req, err := c.request(ctx, http.MethodPut, "/v2/"+name+"/manifests/"+tag, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	return c.finish(req, nil)
}

// UntagImage removes a tag from the server's own registry.
func (c *Client) UntagImage(ctx context.Context, name, tag string) error {
	return c.do(ctx, http.MethodDelete, "/v2/"+name+"/manifests/"+tag, nil, nil)
}
