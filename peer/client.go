package peer

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
)

const (
	dialWithin = 3 * time.Second
	// headWithin bounds how long a call may go unanswered; a longer bound of its context does not help.
	headWithin = 2 * time.Minute
)

// Client calls other nodes.
type Client struct{ http *http.Client }

// NewClient returns a Client. dial replaces the kernel's TCP if it is not nil; Dial otherwise.
func NewClient(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *Client {
	if dial == nil {
		dial = Dial
	}
	return &Client{&http.Client{Transport: &http.Transport{
		DialContext: dial, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute, ResponseHeaderTimeout: headWithin,
		DisableCompression: true,
	}}}
}

// Dial connects to another node. It gives up soon, and notices within seconds that a node is gone.
func Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialWithin, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3,
	}}
	return d.DialContext(ctx, network, addr)
}

// Call has a node do something: in is what it is told, out what it answers; either may be nil. call is a method and
// path, such as "POST /host/wake".
func (c *Client) Call(ctx context.Context, node volant.NodeID, call string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("call %s: %w", call, err)
		}
		body = bytes.NewReader(b)
	}
	res, err := c.Open(ctx, node, call, body, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close() //nolint:errcheck // only read
	if out == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(res.Body, MaxBody)) // so that the connection is used again
	} else {
		err = json.NewDecoder(io.LimitReader(res.Body, MaxBody)).Decode(out)
	}
	if err != nil {
		return unreachable(node, err)
	}
	return nil
}

// Open begins a call whose answer is read by the caller, who closes its Body.
func (c *Client) Open(ctx context.Context, node volant.NodeID, call string, body io.Reader, header http.Header) (*http.Response, error) {
	method, path, ok := strings.Cut(call, " ")
	addr := volant.MeshAddr(node)
	if !ok || !addr.IsValid() {
		return nil, volant.Invalidf("call %q of node %q is none", call, node)
	}
	url := "http://" + netip.AddrPortFrom(addr, volant.PeerPort).String() + path
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", call, err)
	}
	maps.Copy(req.Header, header)
	res, err := c.http.Do(req)
	if err != nil {
		return nil, unreachable(node, err)
	}
	switch {
	case res.StatusCode < http.StatusMultipleChoices:
		return res, nil
	case res.Header.Get(headerError) == "":
		err = volant.Errorf(volant.ErrUnserved, "node %s does not know the call %s", node, call).
			WithRemedy("run the same release of volant on all nodes")
	default:
		var w volant.WireError
		if derr := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&w); derr != nil {
			err = unreachable(node, derr)
		} else {
			err = w.Err()
		}
	}
	_ = res.Body.Close() // only read
	return nil, err
}

func unreachable(node volant.NodeID, err error) error {
	return volant.Errorf(volant.ErrUnavailable, "node %s does not answer: %v", node, err)
}

// Close ends the connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }
