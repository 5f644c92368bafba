package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
)

const maxCA = 64 << 10

// CA returns the certificate of the server's development CA, as PEM.
func (c *Client) CA(ctx context.Context) ([]byte, error) {
	req, err := c.request(ctx, http.MethodGet, "/v1/ca", nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.send(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // it was only read
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxCA))
	if err != nil {
		return nil, fmt.Errorf("read the CA: %w", err)
	}
	return b, nil
}
