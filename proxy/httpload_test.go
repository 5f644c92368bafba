package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant/proxy"
)

// doomed is a machine's app that ends when its machine is killed.
type doomed struct {
	webApp
	srv *http.Server
}

func (s *site) bootDoomed(n int) *doomed {
	s.t.Helper()
	l, err := s.net.Listen(context.Background(), netip.AddrPortFrom(machineAddr(n), 8080))
	if err != nil {
		s.t.Fatal(err)
	}
	d := &doomed{}
	d.srv = &http.Server{Handler: http.HandlerFunc(d.serve)}
	go d.srv.Serve(countedListener{l, d}) //nolint:errcheck // ends with the machine
	return d
}

// countedListener counts connections until the app closes its side of them.
type countedListener struct {
	net.Listener
	d *doomed
}

func (l countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	most(&l.d.mostConns, l.d.conns.Add(1))
	return &countedConn{Conn: c, d: l.d}, nil
}

type countedConn struct {
	net.Conn
	d    *doomed
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.d.conns.Add(-1) })
	return c.Conn.Close()
}

// serve answers after a while, sometimes with a body, without one, or not at all.
func (d *doomed) serve(w http.ResponseWriter, r *http.Request) {
	most(&d.most, d.busy.Add(1))
	defer d.busy.Add(-1)
	d.served.Add(1)
	time.Sleep(time.Duration(rand.IntN(50)) * time.Millisecond)
	switch rand.IntN(10) {
	case 0:
		panic(http.ErrAbortHandler)
	case 1:
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case 2:
		w.WriteHeader(http.StatusForbidden) // a body is not read
	case 3:
		w.Header().Set("Fly-Replay", "elsewhere=true")
	default:
		io.Copy(w, r.Body) // the client may be gone
		fmt.Fprint(w, "end")
	}
}

// kill ends the machine: its connections are reset, and it listens no more.
func (d *doomed) kill() { d.srv.Close() }

// TestHTTPSlotsStayExactAsMachinesFail drives random requests at machines that die and come back. Each machine
// has its own count of what reaches it.
func TestHTTPSlotsStayExactAsMachinesFail(t *testing.T) {
	for name, c := range map[string]struct{ requests, h2 bool }{
		"connections": {}, "requests": {requests: true}, "http2": {h2: true}, "http2 requests": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				port := httpPort()
				if c.h2 {
					port = httpsPort()
				}
				s := newSite(t, port, func(svc *proxy.Service) { svc.Requests = c.requests })
				s.cert("web.test")
				s.failUnderLoad(c.requests, c.h2)
			})
		})
	}
}

func (s *site) failUnderLoad(requests, h2 bool) {
	const machines, clients, each = 3, 24, 40
	var seq uint64
	lives := map[int]uint64{}
	apps := map[int]*doomed{}
	var all []*doomed
	alive := func() (out []proxy.Machine) {
		for n := 1; n <= machines; n++ {
			seq++
			m := machineIn(n, seq, proxy.PhaseGone)
			if apps[n] != nil {
				m = machineIn(n, seq, proxy.PhaseServing)
				m.Life = lives[n]
			}
			out = append(out, m)
		}
		return out
	}
	boot := func(n int) {
		lives[n]++
		apps[n] = s.bootDoomed(n)
		all = append(all, apps[n])
	}
	for n := 1; n <= machines; n++ {
		boot(n)
	}
	s.table(nil, nil, alive()...)
	var wg sync.WaitGroup
	var mu sync.Mutex
	statuses := map[int]int{}
	for range clients {
		wg.Go(func() {
			c := s.browser(h2)
			for range each {
				status := s.random(c, h2)
				mu.Lock()
				statuses[status]++
				mu.Unlock()
			}
		})
	}
	for round := range 12 {
		time.Sleep(100 * time.Millisecond)
		n := 1 + round%machines
		apps[n].kill()
		apps[n] = nil
		s.table(nil, nil, alive()...)
		time.Sleep(30 * time.Millisecond)
		boot(n)
		s.table(nil, nil, alive()...)
	}
	wg.Wait()
	time.Sleep(30 * time.Second)
	synctest.Wait()
	for _, a := range all {
		a.kill()
		if a.most.Load() > 3 || !requests && a.mostConns.Load() > 3 {
			s.t.Errorf("an app had %d requests and %d connections at once, the hard limit is 3", a.most.Load(), a.mostConns.Load())
		}
	}
	if n := s.slots(); len(n) != 0 {
		s.t.Errorf("slots that are left: %v", n)
	}
	if statuses[200] < clients*each/4 {
		s.t.Errorf("statuses: %v; that is no load", statuses)
	}
}

// random does one request of some kind; a client may give up. It returns the status, 0 for none.
func (s *site) random(c *http.Client, h2 bool) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if rand.IntN(8) == 0 {
		time.AfterFunc(time.Duration(rand.IntN(60))*time.Millisecond, cancel)
	}
	url, method := "http://web.test/", "GET"
	if h2 {
		url = "https://web.test/"
	}
	var send io.Reader
	switch rand.IntN(3) {
	case 0:
		method, send = "POST", strings.NewReader(strings.Repeat("x", rand.IntN(200<<10)))
	case 1:
		method, send = "PUT", io.LimitReader(rand.NewChaCha8([32]byte{}), int64(rand.IntN(50<<10))) // no length
	default:
	}
	req, err := http.NewRequestWithContext(ctx, method, url, send)
	if err != nil {
		s.t.Error(err)
		return 0
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0
	}
	return resp.StatusCode
}

func TestWhatIsLeftOfABodyIsNoRequest(t *testing.T) {
	hidden := "GET /hidden HTTP/1.1\r\nHost: web.test\r\n\r\n"
	for name, pause := range map[string]time.Duration{"at once": 0, "later": 100 * time.Millisecond} {
		for path, want := range map[string]int{"/early": 403, "/die": 502} {
			t.Run(path[1:]+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newSite(t, httpPort())
					a := s.bootWeb(1)
					s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
					c := s.dial()
					fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: web.test\r\nContent-Length: 100000\r\n\r\nabc", path)
					time.Sleep(pause)
					go io.WriteString(c, strings.Repeat(hidden, 100)) // it may be refused
					br := bufio.NewReader(c)
					resp, err := http.ReadResponse(br, nil)
					if err != nil || resp.StatusCode != want || !resp.Close {
						t.Fatalf("got %v, %v; want a %d that closes", resp, err, want)
					}
					io.Copy(io.Discard, resp.Body) // what comes next matters
					if b, err := io.ReadAll(br); err != nil || len(b) > 0 {
						t.Errorf("after the response: %q, %v", b, err)
					}
					time.Sleep(15 * time.Second)
					if n := a.served.Load(); n != 1 {
						t.Errorf("the app saw %d requests in one", n)
					}
					if n := s.slots(); len(n) != 0 {
						t.Errorf("slots that are left: %v", n)
					}
				})
			})
		}
	}
}

func TestAClientThatClosesItsSideGetsNoEmptyAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		s.bootWeb(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		c := s.dial()
		fmt.Fprint(c, "GET /slow HTTP/1.1\r\nHost: web.test\r\n\r\n")
		time.Sleep(100 * time.Millisecond)
		c.(interface{ CloseWrite() error }).CloseWrite() //nolint:errcheck,forcetypeassert // a connection in memory
		b, _ := io.ReadAll(c)
		if strings.HasPrefix(string(b), "HTTP/1.1 200") && !strings.Contains(string(b), "/slow") {
			t.Errorf("got %q", b)
		}
		time.Sleep(15 * time.Second)
	})
}

func TestWebsocketsOfAMachineAreAskedToLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		s.bootHandler(1, func(w http.ResponseWriter, _ *http.Request) {
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			rw.Flush()
			io.Copy(c, rw) // until it ends
		})
		m := machineIn(1, 1, proxy.PhaseServing)
		s.table(nil, nil, m)
		open := func() (net.Conn, *bufio.Reader) {
			c := s.dial()
			fmt.Fprint(c, "GET /ws HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n")
			br := bufio.NewReader(c)
			if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("got %v, %v", resp, err)
			}
			return c, br
		}
		c, br := open()
		goAway := func(br *bufio.Reader) {
			t.Helper()
			b := make([]byte, 4)
			if _, err := io.ReadFull(br, b); err != nil || string(b) != "\x88\x02\x03\xf4" {
				t.Fatalf("got %x, %v; want Close with 1012", b, err)
			}
		}
		echo := func(c net.Conn, br *bufio.Reader) {
			t.Helper()
			fmt.Fprint(c, "\x82\x02hi")
			b := make([]byte, 4)
			if _, err := io.ReadFull(br, b); err != nil || string(b) != "\x82\x02hi" {
				t.Fatalf("got %x, %v", b, err)
			}
		}
		m.Draining, m.Seq = true, 2
		s.table(nil, nil, m)
		time.Sleep(time.Hour)
		m.AskLeave, m.Seq = true, 3
		s.table(nil, nil, m)
		goAway(br)
		echo(c, br) // it is asked, not cut
		if n := s.slots()[machineID(1)]; n != 1 {
			t.Errorf("the websocket holds %d slots", n)
		}
		c.Close()
		m.Draining, m.AskLeave, m.Seq = false, false, 4
		s.table(nil, nil, m)
		c, br = open()
		time.Sleep(time.Minute)
		echo(c, br)
		go s.p.Shutdown(t.Context()) //nolint:errcheck // ends with the connection
		goAway(br)
		c.Close()
		time.Sleep(time.Second)
	})
}

func TestNoSmuggling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort(), func(svc *proxy.Service) { svc.Requests = true })
		a := s.bootWeb(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		hidden := "GET /hidden HTTP/1.1\r\nHost: web.test\r\n\r\n"
		for name, head := range map[string]string{
			"both, chunked wins":    "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
			"both, other order":     "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
			"two codings":           "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
			"a coding of 1.0":       "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
			"a signed length":       "Content-Length: +5\r\n\r\nabcde",
			"a list of lengths":     "Content-Length: 5, 5\r\n\r\nabcde",
			"a folded line":         "X-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
			"a bare line feed":      "X-A: b\nContent-Length: 5\r\n\r\nabcde",
			"a chunk that is wrong": "Transfer-Encoding: chunked\r\n\r\n5;a=\n\r\nabcde\r\n0\r\n\r\n",
		} {
			before := a.served.Load()
			c := s.dial()
			go io.WriteString(c, "POST /seen HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n"+head+hidden) // it may be refused
			br := bufio.NewReader(c)
			c.SetReadDeadline(time.Now().Add(time.Minute)) //nolint:errcheck // the read tells
			for n := 0; ; n++ {
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					break
				}
				b, _ := io.ReadAll(resp.Body)
				if n > 0 || strings.Contains(string(b), "/hidden") {
					t.Errorf("%s: the client got answer %d: %d %q", name, n+1, resp.StatusCode, b)
				}
			}
			c.Close()
			synctest.Wait()
			if n := a.served.Load() - before; n > 1 {
				t.Errorf("%s: the app saw %d requests in one", name, n)
			}
		}
	})
}
