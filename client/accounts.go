package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/volant-edge/volant/api"
)

// Orgs lists the organizations that the token may see.
func (c *Client) Orgs(ctx context.Context) ([]api.Org, error) {
	var out api.OrgList
	err := c.do(ctx, http.MethodGet, "/v1/orgs", nil, &out)
	return out.Organizations, err
}

// CreateOrg makes an organization.
func (c *Client) CreateOrg(ctx context.Context, o api.CreateOrg) (api.Org, error) {
	var out api.Org
	err := c.do(ctx, http.MethodPost, "/v1/orgs", o, &out)
	return out, err
}

// Tokens lists the tokens that the client's token administers.
func (c *Client) Tokens(ctx context.Context) ([]api.Token, error) {
	var out api.TokenList
	err := c.do(ctx, http.MethodGet, "/v1/tokens", nil, &out)
	return out.Tokens, err
}

// CreateToken makes a token. The answer is the only one that shows it.
func (c *Client) CreateToken(ctx context.Context, t api.CreateToken) (api.CreatedToken, error) {
	var out api.CreatedToken
	err := c.do(ctx, http.MethodPost, "/v1/tokens", t, &out)
	return out, err
}

// RevokeToken revokes a token by its ID.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, "/v1/tokens/"+url.PathEscape(id), nil, nil)
}

// CurrentToken says what the client's token is.
func (c *Client) CurrentToken(ctx context.Context) (api.CurrentTokens, error) {
	var out api.CurrentTokens
	err := c.do(ctx, http.MethodGet, "/v1/tokens/current", nil, &out)
	return out, err
}
