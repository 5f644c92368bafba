package node

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/peer"
)

// apiCall is the path below which a control node serves the API to nodes without one.
const apiCall = "/api"

// serveForwarded answers requests to the API that came to other nodes. Who asks is known by its token, as everywhere.
func (p *Platform) serveForwarded() {
	p.peers.Raw(apiCall+"/", func(w http.ResponseWriter, r peer.Request) error {
		if !p.isControl() {
			return volant.Errorf(volant.ErrUnserved, "node %s serves no API", p.Node)
		}
		inner := r.Clone(r.Context())
		inner.URL.Path = strings.TrimPrefix(inner.URL.Path, apiCall)
		inner.URL.RawPath = strings.TrimPrefix(inner.URL.RawPath, apiCall)
		p.api.ServeHTTP(w, inner)
		return nil
	})
}

// isControl says whether this node keeps the intent and serves the API itself.
func (p *Platform) isControl() bool {
	n, ok := p.cat.Snapshot().Node(p.Node)
	return !p.Mesh.IsValid() || !ok || n.Has(volant.RoleControl)
}

// forward is where requests to this node's API go: to a control node, or nil for here. A node that reaches none
// answers by itself what it can.
func (p *Platform) forward() http.Handler {
	if p.isControl() {
		return nil
	}
	var controls []volant.NodeID
	for id, n := range p.cat.Snapshot().Nodes() {
		if !n.Tombstone && n.Has(volant.RoleControl) && id != p.Node {
			controls = append(controls, id)
		}
	}
	if len(controls) == 0 {
		return nil
	}
	slices.Sort(controls)
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: netip.AddrPortFrom(volant.MeshAddr(controls[0]), volant.PeerPort).String(), Path: apiCall})
			r.Out.Host = r.In.Host
			r.SetXForwarded()
		},
		Transport:     firstOf{p.forwards, controls},
		FlushInterval: -1,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if errors.Is(err, context.Canceled) {
				return
			}
			p.api.Fail(w, r, volant.Errorf(volant.ErrUnavailable, "no control node answers: %v", err).
				WithRemedy("connections are served on; look at the control nodes, see `volant nodes list` there"))
		},
	}
}

// firstOf sends a request to the first control node that can be connected to.
type firstOf struct {
	to    http.RoundTripper
	nodes []volant.NodeID
}

func (f firstOf) RoundTrip(r *http.Request) (*http.Response, error) {
	var errs []error
	for _, id := range f.nodes {
		try := r.Clone(r.Context())
		if try.Body != nil {
			try.Body = io.NopCloser(r.Body) // a transport closes it, and the next node wants it
		}
		try.URL.Host = netip.AddrPortFrom(volant.MeshAddr(id), volant.PeerPort).String()
		res, err := f.to.RoundTrip(try)
		if err == nil {
			return res, nil
		}
		errs = append(errs, err)
		var op *net.OpError
		if !errors.As(err, &op) || op.Op != "dial" { // it may have been heard: not twice
			break
		}
	}
	return nil, errors.Join(errs...)
}
