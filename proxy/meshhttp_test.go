package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/proxy"
	"github.com/volant-edge/volant/volanttest/memnet"
)

// serveHTTP is a machine's app that speaks HTTP.
func (m *mesh) serveHTTP(k int, h http.HandlerFunc) {
	m.t.Helper()
	m.phase[k] = proxy.PhaseServing
	l, err := m.net.Listen(context.Background(), netip.AddrPortFrom(machineAddr(k), 8080))
	if err != nil {
		m.t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	m.t.Cleanup(func() { s.Close() })
	go s.Serve(l) //nolint:errcheck // ends with the test
}

// httpPort is the node's port at which HTTP is spoken.
func (n *meshNode) httpPort() netip.AddrPort { return netip.AddrPortFrom(n.front().Addr(), 8000) }

// do sends one request to the node, on a connection of its own.
func (n *meshNode) do(method, body string, header ...string) (int, string, http.Header) {
	n.m.t.Helper()
	c, err := n.m.net.Dial(context.Background(), n.httpPort())
	if err != nil {
		n.m.t.Fatal(err)
	}
	defer c.Close()
	r, err := http.NewRequest(method, "http://web.test/path?q=1", strings.NewReader(body))
	if err != nil {
		n.m.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	if err := r.Write(c); err != nil {
		n.m.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), r)
	if err != nil {
		n.m.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		n.m.t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

func TestMeshHTTP(t *testing.T) {
	for _, requests := range []bool{false, true} {
		t.Run(fmt.Sprintf("requests %v", requests), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMesh(t, 3)
				m.http, m.requests = true, requests
				for _, k := range []int{10, 20} {
					m.serveHTTP(k, func(w http.ResponseWriter, r *http.Request) {
						b, err := io.ReadAll(r.Body)
						if err != nil {
							panic(http.ErrAbortHandler)
						}
						fmt.Fprintf(w, "%s %s %s %d from %d by %s %s", r.Method, r.URL, r.Host, len(b), k, r.Header.Get("Fly-Client-Ip"), r.Header.Get("X-Big")[:min(4, len(r.Header.Get("X-Big")))])
					})
				}
				m.set(2, 3)
				edge := m.nodes[0]
				edge.p.SetRTT(nodeID(1), time.Millisecond)
				edge.p.SetRTT(nodeID(2), 40*time.Millisecond)
				big := strings.Repeat("big ", 2000)
				for _, tc := range []struct{ method, body, header, want string }{
					{"GET", "", "x", "GET /path?q=1 web.test 0 from 10 by 192.0.2.1 "},
					{"GET", "", big, "GET /path?q=1 web.test 0 from 10 by 192.0.2.1 big "},
					{"POST", big, "x", "POST /path?q=1 web.test 8000 from 10 by 192.0.2.1 "},
				} {
					name := "X-Other"
					if len(tc.header) > 1 {
						name = "X-Big"
					}
					if status, got, _ := edge.do(tc.method, tc.body, name, strings.TrimSpace(tc.header)); status != 200 || got != tc.want {
						t.Errorf("%d %q, want %q", status, got, tc.want)
					}
				}
				if _, got, _ := edge.do("GET", "", "Fly-Force-Instance-Id", string(machineID(20))); !strings.Contains(got, "from 20") {
					t.Errorf("a machine that was asked for by name: %q", got)
				}
				if status, _, _ := edge.do("GET", "", "Fly-Force-Instance-Id", "00000000000099"); status != 503 {
					t.Errorf("a machine that is not there: %d, want 503", status)
				}
				time.Sleep(15 * time.Second)
				for _, n := range m.nodes {
					if s := n.slots(); len(s) != 0 {
						t.Errorf("node %d: slots %v are held after the end", n.i, s)
					}
				}
			})
		})
	}
}

// TestMeshHTTPNeedsNoMoreTimeThanTCP counts round trips: the network in memory has no fast open, so there is one for
// the handshake, and one for all the rest.
func TestMeshHTTPNeedsNoMoreTimeThanTCP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2)
		m.http = true
		m.serveHTTP(10, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })
		m.set(2, 3)
		m.net.SetWire(slowMesh)
		began := time.Now()
		if status, got, _ := m.nodes[0].do("GET", ""); status != 200 || got != "hello" {
			t.Fatalf("%d %q", status, got)
		}
		if took := time.Since(began); took != 40*time.Millisecond {
			t.Errorf("a request took %s over a round trip of 20ms, want 40ms", took)
		}
		m = newMesh(t, 2)
		m.boot(10)
		m.set(2, 3)
		m.net.SetWire(slowMesh)
		began = time.Now()
		m.mustEcho(m.nodes[0].connect())
		if took := time.Since(began); took != 40*time.Millisecond {
			t.Errorf("a connection took %s over a round trip of 20ms, want 40ms", took)
		}
	})
}

// slowMesh is wires of 10 ms between nodes.
func slowMesh(from, to netip.Addr) memnet.Wire {
	if volant.MeshPrefix.Contains(from) && volant.MeshPrefix.Contains(to) {
		return memnet.Wire{Delay: 10 * time.Millisecond}
	}
	return memnet.Wire{}
}

func TestMeshWebsocketStaysAndHTTPBusyGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		m.http = true
		m.serveHTTP(10, func(w http.ResponseWriter, _ *http.Request) {
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			rw.Flush()
			io.Copy(c, rw)
		})
		m.serveHTTP(20, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "other") })
		m.set(1, 1)
		edge := m.nodes[0]
		edge.p.SetRTT(nodeID(1), time.Millisecond)
		edge.p.SetRTT(nodeID(2), 40*time.Millisecond)
		c, err := m.net.Dial(t.Context(), edge.httpPort())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		write(t, c, "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		br := bufio.NewReader(c)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%v, %v", resp, err)
		}
		write(t, c, "ping")
		b := make([]byte, 4)
		if _, err := io.ReadFull(br, b); err != nil || string(b) != "ping" {
			t.Fatalf("%q, %v", b, err)
		}
		m.tellSlots(edge, 10, 0, 99) // which is not so
		if status, got, _ := edge.do("GET", ""); status != 200 || got != "other" {
			t.Errorf("%d %q, want the other machine's answer", status, got)
		}
	})
}
