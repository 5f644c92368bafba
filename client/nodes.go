package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/volant-edge/volant/api"
)

// Nodes lists the servers.
func (c *Client) Nodes(ctx context.Context) ([]api.Node, error) {
	var out []api.Node
	err := c.do(ctx, http.MethodGet, "/v1/nodes", nil, &out)
	return out, err
}

func nodePath(node string) string { return "/v1/nodes/" + url.PathEscape(node) }

// Node reads a server, by its ID or name.
func (c *Client) Node(ctx context.Context, node string) (api.Node, error) {
	var out api.Node
	err := c.do(ctx, http.MethodGet, nodePath(node), nil, &out)
	return out, err
}

// ChangeNode drains, undrains, promotes or demotes a server.
func (c *Client) ChangeNode(ctx context.Context, node, how string) (api.Node, error) {
	var out api.Node
	err := c.do(ctx, http.MethodPost, nodePath(node)+"/"+how, nil, &out)
	return out, err
}

// RemoveNode throws a server out; force does so though it is alive and has machines.
func (c *Client) RemoveNode(ctx context.Context, node string, force bool) (api.RemovedNode, error) {
	var out api.RemovedNode
	err := c.do(ctx, http.MethodDelete, nodePath(node)+"?force="+boolean(force), nil, &out)
	return out, err
}

// JoinTokens lists the tokens by which servers join.
func (c *Client) JoinTokens(ctx context.Context) ([]api.JoinToken, error) {
	var out api.JoinTokenList
	err := c.do(ctx, http.MethodGet, "/v1/join-tokens", nil, &out)
	return out.Tokens, err
}

// CreateJoinToken makes a token by which servers join. The answer is the only one that shows it.
func (c *Client) CreateJoinToken(ctx context.Context, t api.CreateJoinToken) (api.CreatedJoinToken, error) {
	var out api.CreatedJoinToken
	err := c.do(ctx, http.MethodPost, "/v1/join-tokens", t, &out)
	return out, err
}

// RevokeJoinToken revokes a token by which servers join, by its ID.
func (c *Client) RevokeJoinToken(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/v1/join-tokens/"+url.PathEscape(id), nil, nil)
}

// Regions lists the regions that have a server, and those that were described.
func (c *Client) Regions(ctx context.Context) ([]api.Region, error) {
	var out api.Regions
	err := c.do(ctx, http.MethodGet, "/v1/platform/regions?all=true", nil, &out)
	return out.Regions, err
}

// SetRegion describes a region.
func (c *Client) SetRegion(ctx context.Context, code string, r api.SetRegion) (api.Region, error) {
	var out api.Region
	err := c.do(ctx, http.MethodPut, "/v1/platform/regions/"+url.PathEscape(code), r, &out)
	return out, err
}

// RemoveRegion forgets how a region was described.
func (c *Client) RemoveRegion(ctx context.Context, code string) error {
	return c.do(ctx, http.MethodDelete, "/v1/platform/regions/"+url.PathEscape(code), nil, nil)
}
