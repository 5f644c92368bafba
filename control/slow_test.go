package control_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/volant-edge/volant/volanttest"
)

// pipes is a listener in memory.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "unix"} }

func TestABodyThatStopsArrivingEndsItsRequest(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		l := make(pipes)
		ctx, cancel := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- p.Node.API().Serve(ctx, l) }()
		for _, c := range []struct {
			path, method string
			within       time.Duration
		}{
			{"/v1/apps", "POST", 31 * time.Second},
			{"/v1/blobs/sha256:" + strings.Repeat("0", 64), "PUT", 61 * time.Second},
			{"/v1/nodes", "POST", 31 * time.Second}, // which reads no body
		} {
			client, server := net.Pipe()
			l <- server
			_, err := fmt.Fprintf(client, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 50\r\n\r\n{", c.method, c.path, p.Token())
			if err != nil {
				t.Fatalf("%s: %v", c.path, err)
			}
			begun := time.Now()
			res, err := http.ReadResponse(bufio.NewReader(client), nil)
			if err != nil {
				t.Fatalf("%s: %v", c.path, err)
			}
			if _, err := io.Copy(io.Discard, res.Body); err != nil {
				t.Errorf("%s: %v", c.path, err)
			}
			if took := time.Since(begun); took > c.within {
				t.Errorf("%s: %s after %v, want an answer within %v", c.path, res.Status, took, c.within)
			}
			res.Body.Close()
			client.Close()
		}
		close(l)
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}
