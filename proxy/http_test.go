package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/proxy"
)

// site is a world whose app speaks HTTP.
type site struct {
	*world
	certs []proxy.Cert
	roots *x509.CertPool
	port  netip.AddrPort
}

// webApp is a machine's app; it keeps its own count of requests in flight and of open connections.
type webApp struct {
	busy, most, served atomic.Int64
	conns, mostConns   atomic.Int64
}

func (a *webApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	most(&a.most, a.busy.Add(1))
	defer a.busy.Add(-1)
	a.served.Add(1)
	switch r.URL.Path {
	case "/slow":
		time.Sleep(time.Second)
	case "/die":
		panic(http.ErrAbortHandler)
	case "/half":
		w.Header().Set("Content-Length", "1000")
		fmt.Fprint(w, "half")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case "/early":
		w.WriteHeader(http.StatusForbidden) // the body is not read
		return
	case "/stream":
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			http.NewResponseController(w).Flush()
			time.Sleep(time.Second)
		}
		return
	case "/ws":
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
		rw.Flush()
		io.Copy(c, rw)
		return
	case "/headers":
		h := r.Header.Clone()
		h.Set("Host", r.Host)
		for _, name := range slices.Sorted(maps.Keys(h)) {
			fmt.Fprintf(w, "%s: %s\n", name, strings.Join(h[name], " | "))
		}
		return
	case "/echo":
		io.Copy(w, r.Body)
		return
	case "/trailer":
		w.Header().Set("Trailer", "X-Sum")
		io.WriteString(w, "body")
		w.Header().Set("X-Sum", "42")
		return
	}
	w.Header().Set("X-App", "1")
	fmt.Fprintf(w, "%s %s %s", r.Method, r.Host, r.URL.RequestURI())
}

func most(m *atomic.Int64, n int64) {
	for old := m.Load(); n > old && !m.CompareAndSwap(old, n); old = m.Load() {
	}
}

// app boots machine n with a web app.
func (s *site) bootWeb(n int) *webApp {
	s.t.Helper()
	l, err := s.net.Listen(context.Background(), netip.AddrPortFrom(machineAddr(n), 8080))
	if err != nil {
		s.t.Fatal(err)
	}
	a := &webApp{}
	srv := &http.Server{Handler: a, ConnState: func(_ net.Conn, st http.ConnState) {
		switch st {
		case http.StateNew:
			most(&a.mostConns, a.conns.Add(1))
		case http.StateClosed, http.StateHijacked:
			a.conns.Add(-1)
		case http.StateActive, http.StateIdle:
		}
	}}
	go srv.Serve(l) //nolint:errcheck // ends with the test
	s.t.Cleanup(func() {
		srv.Close() // the same
		for a.busy.Load() > 0 {
			time.Sleep(time.Second)
		}
	})
	return a
}

func newSite(t *testing.T, port proxy.Port, change ...func(*proxy.Service)) *site {
	t.Helper()
	s := &site{world: newWorld(t), roots: x509.NewCertPool(), port: front}
	port.Listen = []netip.AddrPort{front}
	s.app.Services[0].Listen, s.app.Services[0].Ports = nil, []proxy.Port{port}
	s.app.Hosts = []string{"web.test"}
	for _, f := range change {
		f(&s.app.Services[0])
	}
	return s
}

// table gives the proxy the app with the machines, and others beside it.
func (s *site) table(others []proxy.App, shared []netip.Addr, machines ...proxy.Machine) {
	s.t.Helper()
	s.app.Machines = machines
	s.version++
	tab := proxy.Table{Version: s.version, Epoch: 1, Region: "ams", Apps: append([]proxy.App{s.app}, others...), Shared: shared, Certs: s.certs}
	if err := s.p.SetTable(context.Background(), tab); err != nil {
		s.t.Fatal(err)
	}
	synctest.Wait()
}

// cert gives the proxy a certificate for a name.
func (s *site) cert(name string) {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	c := proxy.Cert{
		Hostname: name, Chain: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb}),
	}
	s.certs = append(s.certs, c)
	s.roots.AppendCertsFromPEM(c.Chain)
}

// browser is a client whose connections all go to the proxy.
func (s *site) browser(h2 bool) *http.Client {
	tr := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return s.net.Dial(ctx, s.port) },
		TLSClientConfig:   &tls.Config{RootCAs: s.roots},
		ForceAttemptHTTP2: h2, MaxIdleConnsPerHost: 1000, DisableCompression: true,
	}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (s *site) get(c *http.Client, url string, change ...func(*http.Request)) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range change {
		f(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		s.t.Errorf("%s %s: %v", req.Method, url, err)
		return answer{}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Errorf("%s %s: body: %v", req.Method, url, err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

func (s *site) want(got answer, status int, body string) {
	s.t.Helper()
	if got.status != status || !strings.Contains(got.body, body) {
		s.t.Errorf("got %d %q, want %d with %q", got.status, got.body, status, body)
	}
}

func httpPort() proxy.Port { return proxy.Port{Handlers: []string{"http"}} }

func httpsPort() proxy.Port { return proxy.Port{Handlers: []string{"http", "tls"}} }

func TestHTTPRequestsAreServedAndHoldNoSlotAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		a := s.bootWeb(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		c := s.browser(false)
		got := s.get(c, "http://web.test/a//b%2Fc?x=1&y=%20")
		s.want(got, 200, "GET web.test /a//b%2Fc?x=1&y=%20")
		if got.header.Get("Server") != "Volant" || got.header.Get("X-App") != "1" || !strings.HasSuffix(got.header.Get("Fly-Request-Id"), "-ams") {
			t.Errorf("response headers: %v", got.header)
		}
		synctest.Wait()
		if n := s.slots(); len(n) != 0 {
			t.Errorf("an idle keep-alive connection holds slots: %v", n)
		}
		s.want(s.get(c, "http://web.test/again"), 200, "again")
		synctest.Wait()
		if a.served.Load() != 2 || a.conns.Load() != 0 {
			t.Errorf("the app served %d requests and has %d connections open, want 2 and 0", a.served.Load(), a.conns.Load())
		}
	})
}

func TestHTTPSlotsAreExact(t *testing.T) {
	for _, requests := range []bool{false, true} {
		t.Run(fmt.Sprintf("requests=%v", requests), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, httpPort(), func(svc *proxy.Service) { svc.Requests = requests })
				apps := []*webApp{s.bootWeb(1), s.bootWeb(2)}
				s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing), machineIn(2, 1, proxy.PhaseServing))
				c := s.browser(false)
				var wg sync.WaitGroup
				for i := range 60 {
					wg.Go(func() { s.want(s.get(c, fmt.Sprintf("http://web.test/slow?%d", i)), 200, "slow") })
				}
				wg.Wait()
				synctest.Wait()
				for i, a := range apps {
					if a.most.Load() != 3 || !requests && a.mostConns.Load() > 3 {
						t.Errorf("machine %d had %d requests and %d connections at once, the hard limit is 3", i+1, a.most.Load(), a.mostConns.Load())
					}
				}
				if n := s.slots(); len(n) != 0 {
					t.Errorf("slots that are left: %v", n)
				}
				open := apps[0].conns.Load() + apps[1].conns.Load()
				if requests != (open > 0) {
					t.Errorf("%d connections to the apps are open afterwards", open)
				}
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if open := apps[0].conns.Load() + apps[1].conns.Load(); open != 0 {
					t.Errorf("%d connections stay open", open)
				}
			})
		})
	}
}

func TestAStaleIdleConnectionCostsNoRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort(), func(svc *proxy.Service) { svc.Requests = true })
		l, err := s.net.Listen(t.Context(), netip.AddrPortFrom(machineAddr(1), 8080))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() { // an app that says keep-alive and closes after each response
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
						fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
						time.Sleep(time.Second)
					}
					c.Close()
				}()
			}
		}()
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		c := s.browser(false)
		s.want(s.get(c, "http://web.test/1"), 200, "ok")
		time.Sleep(1500 * time.Millisecond)
		s.want(s.get(c, "http://web.test/2"), 200, "ok")
		time.Sleep(2 * time.Second) // for the app to end
	})
}

func TestRequestHeadersThatTheAppSees(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpsPort())
		s.cert("web.test")
		s.bootWeb(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		got := s.get(s.browser(false), "https://web.test/headers", func(r *http.Request) {
			for k, v := range map[string]string{
				"Fly-Client-IP": "6.6.6.6", "Volant-Region": "forged", "X-Forwarded-For": "10.0.0.1", "Connection": "close, X-Secret", "X-Secret": "1",
				"Keep-Alive": "5", "TE": "gzip", "Proxy-Authorization": "x", "X-Mine": "kept", "Fly-Region": "forged", "Fly-Src": "forged", "Via": "1.0 other",
			} {
				r.Header.Set(k, v)
			}
		})
		id := got.header.Get("Fly-Request-Id")
		client := strings.Split(strings.Split(got.body, "Fly-Client-Ip: ")[1], "\n")[0]
		want := strings.NewReplacer("ID", id, "CLIENT", client).Replace(`Connection: close
Fly-Client-Ip: CLIENT
Fly-Forwarded-Port: 80
Fly-Region: ams
Fly-Request-Id: ID
Host: web.test
User-Agent: Go-http-client/1.1
Via: 1.0 other | 1.1 volant
Volant-Client-Ip: CLIENT
Volant-Forwarded-Port: 80
Volant-Region: ams
Volant-Request-Id: ID
X-Forwarded-For: 10.0.0.1, CLIENT, 127.77.0.1
X-Forwarded-Port: 80
X-Forwarded-Proto: https
X-Forwarded-Ssl: on
X-Mine: kept
`)
		if diff := cmp.Diff(want, got.body); diff != "" {
			t.Error(diff)
		}
	})
}

func TestWebsocketsHoldASlotForLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		s.bootWeb(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		c := s.dial()
		fmt.Fprint(c, "GET /ws HTTP/1.1\r\nHost: web.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n")
		br := bufio.NewReader(c)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "websocket" {
			t.Fatalf("got %v, %v", resp, err)
		}
		hello := make([]byte, 5)
		if _, err := io.ReadFull(br, hello); err != nil || string(hello) != "hello" {
			t.Errorf("what came with the head: %q, %v", hello, err)
		}
		fmt.Fprint(c, "ping")
		ping := make([]byte, 4)
		if _, err := io.ReadFull(br, ping); err != nil || string(ping) != "ping" {
			t.Errorf("echo: %q, %v", ping, err)
		}
		time.Sleep(time.Hour)
		if n := s.slots()[machineID(1)]; n != 1 {
			t.Errorf("an open websocket holds %d slots, want 1", n)
		}
		fmt.Fprint(c, "pong")
		if _, err := io.ReadFull(br, ping); err != nil || string(ping) != "pong" {
			t.Errorf("after an hour: %q, %v", ping, err)
		}
		c.Close()
		time.Sleep(time.Second)
		synctest.Wait()
		if n := s.slots(); len(n) != 0 {
			t.Errorf("a closed websocket holds %v", n)
		}
	})
}

func TestHTTP2StreamsTakeASlotEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpsPort(), func(svc *proxy.Service) { svc.Soft, svc.Hard = 100, 100 })
		s.cert("web.test")
		a := s.bootWeb(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		c := s.browser(true)
		s.want(s.get(c, "https://web.test/"), 200, "GET")
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { s.want(s.get(c, "https://web.test/slow"), 200, "slow") })
		}
		time.Sleep(500 * time.Millisecond)
		if n := s.slots()[machineID(1)]; n != 100 {
			t.Errorf("100 streams hold %d slots", n)
		}
		wg.Wait()
		if a.most.Load() != 100 {
			t.Errorf("the app saw %d requests at once, want 100", a.most.Load())
		}
	})
}

func TestStreamsArriveAsTheyAreSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		s.bootWeb(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		began := time.Now()
		resp, err := s.browser(false).Get("http://web.test/stream")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		br := bufio.NewReader(resp.Body)
		for i := range 3 {
			line, err := br.ReadString('\n')
			if err != nil || line != fmt.Sprintf("data: %d\n", i) || time.Since(began).Round(time.Second) != time.Duration(i)*time.Second {
				t.Errorf("event %d came after %s: %q, %v", i, time.Since(began), line, err)
			}
			if _, err := br.ReadString('\n'); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestBodiesAndTrailersPassBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		s.bootWeb(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		c := s.browser(false)
		big := strings.Repeat("0123456789", 50_000)
		resp, err := c.Post("http://web.test/echo", "text/plain", strings.NewReader(big))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(b) != big {
			t.Errorf("%d bytes came back (%v), want %d", len(b), err, len(big))
		}
		resp, err = c.Post("http://web.test/echo", "text/plain", io.MultiReader(strings.NewReader("chunked"))) // no length
		if err != nil {
			t.Fatal(err)
		}
		b, _ = io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != "chunked" {
			t.Errorf("a body without a length: %q", b)
		}
		resp, err = c.Get("http://web.test/trailer")
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.Trailer.Get("X-Sum") != "42" {
			t.Errorf("trailer: %v", resp.Trailer)
		}
		s.want(s.get(c, "http://web.test/early", func(r *http.Request) {
			r.Method, r.Body, r.ContentLength = "POST", io.NopCloser(strings.NewReader(big)), int64(len(big))
		}), 403, "")
		time.Sleep(time.Second) // net/http closes slowly after that
	})
}

func TestFailuresOfTheAppAreAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		s.bootWeb(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		c := s.browser(false)
		got := s.get(c, "http://web.test/die")
		s.want(got, 502, "without an answer")
		if !strings.Contains(got.body, got.header.Get("Fly-Request-Id")) {
			t.Errorf("the page does not name the request: %q", got.body)
		}
		if resp, err := c.Get("http://web.test/half"); err == nil {
			if _, err = io.ReadAll(resp.Body); err == nil {
				t.Error("half a body looks like a whole one")
			}
			resp.Body.Close()
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if n := s.slots(); len(n) != 0 {
			t.Errorf("slots that are left: %v", n)
		}
	})
}

func TestFullQueuesAnswer503(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		s.app.MaxQueue = 1
		s.bootWeb(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		c := s.browser(false)
		var wg sync.WaitGroup
		var full atomic.Int64
		for range 5 { // three are served, one waits, one is refused
			wg.Go(func() {
				got := s.get(c, "http://web.test/slow")
				if got.status == 503 && got.header.Get("Retry-After") != "" && strings.Contains(got.body, "queue is full") {
					full.Add(1)
				}
			})
			synctest.Wait()
		}
		wg.Wait()
		if full.Load() != 1 {
			t.Errorf("%d were refused, want 1", full.Load())
		}
		if got := s.refusals(); !slices.Equal(got, []string{"queue_full"}) {
			t.Errorf("records of refusals: %v", got)
		}
	})
}

func TestAClientThatGoesAwayFreesItsSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		s.bootWeb(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://web.test/slow", nil)
			if resp, err := s.browser(false).Do(req); err == nil {
				resp.Body.Close()
			}
		}()
		time.Sleep(100 * time.Millisecond)
		if n := s.slots()[machineID(1)]; n != 1 {
			t.Errorf("a request in flight holds %d slots", n)
		}
		cancel()
		time.Sleep(12 * time.Second)
		synctest.Wait()
		if n := s.slots(); len(n) != 0 {
			t.Errorf("slots of a client that is gone: %v", n)
		}
	})
}

func TestForceHTTPS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := httpPort()
		p.ForceHTTPS = true
		s := newSite(t, p)
		s.table(nil, nil)
		got := s.get(s.browser(false), "http://web.test:80/a?b=c")
		s.want(got, 301, "")
		if l := got.header.Get("Location"); l != "https://web.test/a?b=c" {
			t.Errorf("Location: %s", l)
		}
		if len(s.takeWakes()) != 0 {
			t.Error("a redirect woke a machine")
		}
	})
}

func TestResponseOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := httpPort()
		p.HTTP = &volant.HTTPOptions{Response: &volant.HTTPResponse{Headers: map[string]any{"x-app": false, "X-Set": "a", "X-List": []any{"b", "c"}}}}
		s := newSite(t, p)
		s.bootWeb(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		c := s.browser(false)
		got := s.get(c, "http://web.test/")
		if got.header.Get("X-App") != "" || got.header.Get("X-Set") != "a" || !slices.Equal(got.header.Values("X-List"), []string{"b", "c"}) {
			t.Errorf("edited headers: %v", got.header)
		}
		s.app.Services[0].Ports[0].HTTP = &volant.HTTPOptions{Response: &volant.HTTPResponse{Pristine: true}}
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		got = s.get(c, "http://web.test/")
		for _, name := range []string{"Server", "Via", "Fly-Request-Id"} {
			if got.header.Get(name) != "" {
				t.Errorf("a pristine response has %s: %s", name, got.header.Get(name))
			}
		}
	})
}

// other is a second app at the same address.
func (s *site) other(name string, machine int) proxy.App {
	o := s.app
	o.ID, o.Name, o.Hosts = volant.AppID("app_"+name), name, []string{name + ".test", "*." + name + ".test"}
	o.Machines = []proxy.Machine{machineIn(machine, 1, proxy.PhaseServing)}
	return o
}

func TestSharedAddressesAreLedByHostName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		a, b := s.bootWeb(1), s.bootWeb(2)
		s.table([]proxy.App{s.other("api", 2)}, []netip.Addr{front.Addr()}, machineIn(1, 1, proxy.PhaseServing))
		c := s.browser(false)
		host := func(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }
		// One connection, each request led anew.
		for i, h := range []string{"web.test", "API.test:80", "v1.api.test", "web.test."} {
			s.want(s.get(c, "http://web.test/"+fmt.Sprint(i), host(h)), 200, "GET")
		}
		if a.served.Load() != 2 || b.served.Load() != 2 {
			t.Errorf("the apps served %d and %d requests, want 2 each", a.served.Load(), b.served.Load())
		}
		s.want(s.get(c, "http://web.test/", host("nobody.test")), 404, "no app at this shared address")
		if got := s.refusals(); !slices.Equal(got, []string{"unknown_host"}) {
			t.Errorf("records: %v", got)
		}
	})
}

func TestSharedAddressesByTLSName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpsPort())
		for _, name := range []string{"web.test", "*.api.test", "none.test"} {
			s.cert(name)
		}
		a, b := s.bootWeb(1), s.bootWeb(2)
		s.table([]proxy.App{s.other("api", 2)}, []netip.Addr{front.Addr()}, machineIn(1, 1, proxy.PhaseServing))
		c := s.browser(true)
		s.want(s.get(c, "https://web.test/"), 200, "GET web.test")
		s.want(s.get(c, "https://v1.api.test/"), 200, "GET v1.api.test")
		if a.served.Load() != 1 || b.served.Load() != 1 {
			t.Errorf("the apps served %d and %d requests", a.served.Load(), b.served.Load())
		}
		s.want(s.get(c, "https://web.test/", func(r *http.Request) { r.Host = "v1.api.test" }), 421, "another app")
		for name, rule := range map[string]string{"none.test": "unknown_host", "api.test": "no_certificate"} {
			s.refusals()
			if _, err := c.Get("https://" + name); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
				t.Errorf("%s: %v, want an alert that the name is not recognized", name, err)
			}
			time.Sleep(100 * time.Millisecond) // records are told together
			if got := s.refusals(); !slices.Equal(got, []string{rule}) {
				t.Errorf("%s: records %v, want %s", name, got, rule)
			}
		}
	})
}

func TestTLSAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, proxy.Port{Handlers: []string{"tls"}, TLS: &volant.TLSOptions{ALPN: []string{"mqtt"}, Versions: []string{"TLSv1.3"}}})
		s.cert("web.test")
		g := s.boot(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		c := tls.Client(s.dial(), &tls.Config{RootCAs: s.roots, ServerName: "web.test", NextProtos: []string{"mqtt"}})
		s.mustEcho(c)
		if st := c.ConnectionState(); st.NegotiatedProtocol != "mqtt" || st.Version != tls.VersionTLS13 {
			t.Errorf("negotiated %q, version %x", st.NegotiatedProtocol, st.Version)
		}
		if err := c.CloseWrite(); err != nil {
			t.Error(err)
		}
		if b, err := io.ReadAll(c); err != nil || len(b) != 0 {
			t.Errorf("after half-close: %q, %v", b, err)
		}
		c.Close()
		synctest.Wait()
		if open, _, total := g.counts(); open != 0 || total != 1 {
			t.Errorf("the app has %d of %d connections open", open, total)
		}
		old := tls.Client(s.dial(), &tls.Config{RootCAs: s.roots, ServerName: "web.test", MaxVersion: tls.VersionTLS12})
		if err := old.Handshake(); err == nil {
			t.Error("TLS 1.2 is taken though only 1.3 is allowed")
		}
		silent := s.dial()
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if _, err := silent.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a client that says nothing is kept: %v", err)
		}
	})
}

func TestProxyProtocolTellsTheClient(t *testing.T) {
	for version, want := range map[string]string{"v1": "PROXY TCP4 ", "v2": "\r\n\r\n\x00\r\nQUIT\n"} {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(t, proxy.Port{Handlers: []string{"proxy_proto"}, ProxyProto: version})
			s.boot(1)
			s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
			c := s.dial()
			fmt.Fprint(c, "x")
			b := make([]byte, len(want))
			if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
				t.Errorf("%s: the app got %q (%v), want %q", version, b, err, want)
			}
		})
	}
}

func TestPostgresTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, proxy.Port{Handlers: []string{"pg_tls"}})
		s.cert("web.test")
		s.boot(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		c := s.dial()
		ask := func(code uint32, want byte) {
			t.Helper()
			if _, err := c.Write([]byte{0, 0, 0, 8, byte(code >> 24), byte(code >> 16), byte(code >> 8), byte(code)}); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 1)
			if _, err := io.ReadFull(c, b); err != nil || b[0] != want {
				t.Fatalf("request %d: %q, %v", code, b, err)
			}
		}
		ask(80877104, 'N')
		ask(80877103, 'S')
		s.mustEcho(tls.Client(c, &tls.Config{RootCAs: s.roots, ServerName: "web.test"}))
		plain := s.dial()
		if _, err := plain.Write([]byte{0, 0, 0, 8, 0, 3, 0, 0}); err != nil { // a start without TLS
			t.Fatal(err)
		}
		b, err := io.ReadAll(plain)
		if err != nil || !bytes.Contains(b, []byte("sslmode=require")) {
			t.Errorf("without TLS: %q, %v", b, err)
		}
	})
}

func TestHostileRequestsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		a := s.bootWeb(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		for name, raw := range map[string]string{
			"two lengths":             "POST /a HTTP/1.1\r\nHost: web.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
			"a strange coding":        "POST /a HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
			"a space before a colon":  "GET /a HTTP/1.1\r\nHost: web.test\r\nX-A : b\r\n\r\n",
			"no host":                 "GET /a HTTP/1.1\r\n\r\n",
			"two hosts":               "GET /a HTTP/1.1\r\nHost: web.test\r\nHost: b\r\n\r\n",
			"a line break in a value": "GET /a HTTP/1.1\r\nHost: web.test\r\nX-A: b\rc\r\n\r\n",
			"a huge header":           "GET /a HTTP/1.1\r\nHost: web.test\r\nX-A: " + strings.Repeat("a", 80<<10) + "\r\n\r\n",
			"a tunnel":                "CONNECT web.test:443 HTTP/1.1\r\nHost: web.test\r\n\r\n",
		} {
			c := s.dial()
			go io.WriteString(c, raw)
			c.SetReadDeadline(time.Now().Add(time.Minute)) //nolint:errcheck // the read tells
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if resp.StatusCode < 400 {
				t.Errorf("%s is answered %d", name, resp.StatusCode)
			}
			c.Close()
		}
		if a.served.Load() != 0 {
			t.Errorf("the app got %d of them", a.served.Load())
		}
		slow := s.dial()
		io.WriteString(slow, "GET / HTTP/1.1\r\nHost:")
		time.Sleep(11 * time.Second)
		if _, err := io.ReadAll(slow); err != nil {
			t.Logf("slow headers: %v", err)
		}
		synctest.Wait()
	})
}

func TestSleepingMachinesWakeForARequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseSuspended))
		done := make(chan answer, 1)
		go func() { done <- s.get(s.browser(false), "http://web.test/woken") }()
		if got := s.takeWakes(); !slices.Equal(got, []volant.MachineID{machineID(1)}) {
			t.Fatalf("wakes: %v", got)
		}
		s.bootWeb(1)
		time.Sleep(time.Second)
		s.table(nil, nil, machineIn(1, 2, proxy.PhaseServing))
		s.want(<-done, 200, "woken")
	})
}

func TestShutdownLetsIdleClientsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		s.bootWeb(1)
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing))
		c := s.browser(false)
		s.want(s.get(c, "http://web.test/"), 200, "GET")
		var wg sync.WaitGroup
		wg.Go(func() { s.want(s.get(c, "http://web.test/slow"), 200, "slow") })
		wg.Go(func() { s.want(s.get(c, "http://web.test/slow"), 200, "slow") })
		time.Sleep(100 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := s.p.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

func TestHTTPOnRealSockets(t *testing.T) {
	a := &webApp{}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: a}
	go srv.Serve(l)   //nolint:errcheck // ends with the test
	defer srv.Close() // the same
	p, err := proxy.New(proxy.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	at, app := freeAddr(t), netip.MustParseAddrPort(l.Addr().String())
	tab := tableOf(1, at, app)
	tab.Apps[0].Services[0].Listen = nil
	tab.Apps[0].Services[0].Ports = []proxy.Port{{Listen: []netip.AddrPort{at}, Handlers: []string{"http"}}}
	if err := p.SetTable(ctx, tab); err != nil {
		t.Fatal(err)
	}
	dialSoon(t, at).Close() // it listens
	c := &http.Client{Transport: &http.Transport{}}
	defer c.CloseIdleConnections()
	for i := range 20 {
		resp, err := c.Get(fmt.Sprintf("http://%s/%d", at, i))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close() // it was read
		if want := fmt.Sprintf("GET %s /%d", at, i); err != nil || string(b) != want {
			t.Errorf("got %q, %v; want %q", b, err, want)
		}
	}
	for n := range 1000 {
		held, err := p.Slots(ctx)
		if err != nil || len(held) == 0 {
			break
		}
		if n == 999 {
			t.Errorf("slots that are left: %v", held)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
