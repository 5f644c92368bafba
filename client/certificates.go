package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/volant-edge/volant/api"
)

func certPath(app, host string) string { return appPath(app) + "/certificates/" + url.PathEscape(host) }

// Certificates lists the host names that an app serves.
func (c *Client) Certificates(ctx context.Context, app string) ([]api.CertificateSummary, error) {
	var all []api.CertificateSummary
	for cursor := ""; ; {
		var page api.CertificateList
		q := url.Values{"limit": {"500"}, "cursor": {cursor}}
		if err := c.do(ctx, http.MethodGet, appPath(app)+"/certificates?"+q.Encode(), nil, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Certificates...)
		if cursor = page.NextCursor; cursor == "" {
			return all, nil
		}
	}
}

// AddHost lets an app serve a host name without a certificate of its own.
func (c *Client) AddHost(ctx context.Context, app, host string) (api.Certificate, error) {
	var out api.Certificate
	err := c.do(ctx, http.MethodPost, appPath(app)+"/certificates", api.CreateCertificate{Hostname: host}, &out)
	return out, err
}

// AddCertificate lets an app serve a host name with a certificate.
func (c *Client) AddCertificate(ctx context.Context, app string, in api.CreateCustomCertificate) (api.Certificate, error) {
	var out api.Certificate
	err := c.do(ctx, http.MethodPost, appPath(app)+"/certificates/custom", in, &out)
	return out, err
}

// Certificate reads a host name and its certificate.
func (c *Client) Certificate(ctx context.Context, app, host string) (api.Certificate, error) {
	var out api.Certificate
	err := c.do(ctx, http.MethodGet, certPath(app, host), nil, &out)
	return out, err
}

// CheckCertificate looks up where a host name leads.
func (c *Client) CheckCertificate(ctx context.Context, app, host string) (api.Certificate, error) {
	var out api.Certificate
	err := c.do(ctx, http.MethodPost, certPath(app, host)+"/check", nil, &out)
	return out, err
}

// RemoveCertificate ends that an app serves a host name.
func (c *Client) RemoveCertificate(ctx context.Context, app, host string) error {
	return c.do(ctx, http.MethodDelete, certPath(app, host), nil, nil)
}
