package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/proxy"
)

// bootHandler boots machine n with an app of the test's own.
func (s *site) bootHandler(n int, h http.HandlerFunc) {
	s.t.Helper()
	l, err := s.net.Listen(context.Background(), netip.AddrPortFrom(machineAddr(n), 8080))
	if err != nil {
		s.t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(l) //nolint:errcheck // ends with the test
	s.t.Cleanup(func() {
		srv.Close()                 // the same
		time.Sleep(2 * time.Second) // of the bubble, for handlers to end
	})
}

// says answers with the machine's number, the body and where the request was before.
func says(n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		src, unavailable := r.Header.Get("Fly-Replay-Src"), r.Header.Get("Fly-Preferred-Instance-Unavailable")
		fmt.Fprintf(w, "machine %d, body %q, from %q, unavailable %q", n, b, src, unavailable)
	}
}

// sends sends each request on.
func sends(where string, read bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if read {
			io.Copy(io.Discard, r.Body)
		}
		w.Header().Set("Fly-Replay", where)
		fmt.Fprint(w, "nobody sees this")
	}
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

func body(text string) func(*http.Request) {
	return func(r *http.Request) {
		r.Method, r.Body, r.ContentLength = "POST", io.NopCloser(strings.NewReader(text)), int64(len(text))
	}
}

func TestClientsMayNameTheirMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		for n := 1; n <= 3; n++ {
			s.bootHandler(n, says(n))
		}
		machines := []proxy.Machine{machineIn(1, 1, proxy.PhaseServing), machineIn(2, 1, proxy.PhaseServing), machineIn(3, 1, proxy.PhaseServing)}
		machines[2].Cordoned = true
		s.table(nil, nil, machines...)
		c := s.browser(false)
		id := func(n int) string { return string(machineID(n)) }
		for range 10 {
			for n := 1; n <= 2; n++ {
				s.want(s.get(c, "http://web.test/", header("Fly-Force-Instance-Id", id(n))), 200, fmt.Sprintf("machine %d,", n))
				s.want(s.get(c, "http://web.test/", header("Fly-Prefer-Instance-Id", id(n))), 200, fmt.Sprintf("machine %d,", n))
			}
		}
		s.want(s.get(c, "http://web.test/", header("Fly-Prefer-Instance-Id", id(3))), 200, fmt.Sprintf("unavailable %q", id(3)))
		s.want(s.get(c, "http://web.test/", header("Fly-Force-Instance-Id", id(3))), 503, "is cordoned or draining")
		s.want(s.get(c, "http://web.test/", header("Fly-Force-Instance-Id", id(9))), 503, "machine that was asked for")
		s.want(s.get(c, "http://web.test/", header("Fly-Force-Region", "fra, ams")), 200, "machine")
		s.want(s.get(c, "http://web.test/", header("Fly-Force-Region", "fra")), 503, "no machine is in the regions")
		s.want(s.get(c, "http://web.test/", header("Fly-Prefer-Region", "fra")), 200, "machine")
	})
}

func TestWhoWaitsForOneMachineHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		var mu sync.Mutex
		served := map[int]int{}
		for n := 1; n <= 2; n++ {
			s.bootHandler(n, func(w http.ResponseWriter, _ *http.Request) {
				mu.Lock()
				served[n]++
				mu.Unlock()
				time.Sleep(time.Second)
				fmt.Fprintf(w, "machine %d,", n)
			})
		}
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing), machineIn(2, 1, proxy.PhaseServing))
		c := s.browser(false)
		var wg sync.WaitGroup
		forced := header("Fly-Force-Instance-Id", string(machineID(1)))
		for range 6 { // three slots: the others wait
			wg.Go(func() { s.want(s.get(c, "http://web.test/", forced), 200, "machine 1,") })
		}
		time.Sleep(100 * time.Millisecond)
		began := time.Now()
		s.want(s.get(c, "http://web.test/"), 200, "machine 2,")
		if took := time.Since(began); took > 1500*time.Millisecond {
			t.Errorf("a request with a free slot waited: %s", took)
		}
		wg.Wait()
		if served[1] != 6 || served[2] != 1 {
			t.Errorf("served: %v", served)
		}
		synctest.Wait()
		if n := s.slots(); len(n) != 0 {
			t.Errorf("slots that are left: %v", n)
		}
	})
}

func TestAMachineThatIsNamedIsWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		s.bootHandler(1, says(1))
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing), machineIn(2, 1, proxy.PhaseStopped), machineIn(3, 1, proxy.PhaseSuspended))
		done := make(chan answer, 1)
		go func() {
			done <- s.get(s.browser(false), "http://web.test/", header("Fly-Force-Instance-Id", string(machineID(2))))
		}()
		if got := s.takeWakes(); len(got) != 1 || got[0] != machineID(2) {
			t.Fatalf("wakes: %v", got)
		}
		s.bootHandler(2, says(2))
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing), machineIn(2, 2, proxy.PhaseServing), machineIn(3, 1, proxy.PhaseSuspended))
		s.want(<-done, 200, "machine 2,")
	})
}

func TestReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, httpPort())
		s.bootHandler(1, func(w http.ResponseWriter, r *http.Request) { sends(r.URL.Query().Get("to"), false)(w, r) })
		s.bootHandler(2, says(2))
		s.bootHandler(3, says(3))
		foreign := s.other("far", 3)
		foreign.Org = "org_x"
		s.table([]proxy.App{s.other("api", 3), foreign}, []netip.Addr{front.Addr()},
			machineIn(1, 1, proxy.PhaseServing), machineIn(2, 1, proxy.PhaseServing))
		c := s.browser(false)
		to := func(where string) func(*http.Request) {
			return func(r *http.Request) {
				r.URL.RawQuery = "to=" + strings.ReplaceAll(where, ";", "%3B")
				r.Header.Set("Fly-Prefer-Instance-Id", string(machineID(1)))
			}
		}
		for where, want := range map[string]string{
			"instance=" + string(machineID(2)):                "machine 2,",
			"prefer_instance=" + string(machineID(2)):         "machine 2,",
			"elsewhere=true;state=cart=7":                     "machine 2,",
			"app=api":                                         "machine 3,",
			"app=api;region=any;state=x":                      "machine 3,",
			"app=api;prefer_instance=" + string(machineID(2)): "machine 3,",
		} {
			got := s.get(c, "http://web.test/", to(where), body("once"))
			s.want(got, 200, want+` body "once", from "instance=`+string(machineID(1))+";region=ams;t=")
			if _, state, _ := strings.Cut(where, "state="); state != "" && !strings.Contains(got.body, ";state="+state) {
				t.Errorf("%s: no state: %s", where, got.body)
			}
		}
		for where, want := range map[string]string{
			"app=none":                         "an app that its organization does not have",
			"app=far":                          "an app that its organization does not have",
			"timeout=1s":                       "fly-replay cannot be read",
			"instance=" + string(machineID(1)): "more than 10 times",
		} {
			s.want(s.get(c, "http://web.test/", to(where)), 502, want)
		}
		s.want(s.get(c, "http://web.test/", to("region=fra")), 503, "regions that were asked for")
		big := strings.Repeat("x", 2<<20)
		s.want(s.get(c, "http://web.test/read", to("elsewhere=true"), body(strings.Repeat("x", 1<<20))), 200, "machine 2,")
		s.bootHandler(4, sends("elsewhere=true", true))
		s.table(nil, nil, machineIn(2, 1, proxy.PhaseServing), machineIn(4, 1, proxy.PhaseServing))
		s.want(s.get(c, "http://web.test/", header("Fly-Prefer-Instance-Id", string(machineID(4))), body(big)), 502, "over 1 MiB")
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if n := s.slots(); len(n) != 0 {
			t.Errorf("slots that are left: %v", n)
		}
	})
}

func TestReplayOverHTTP2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := httpsPort()
		p.HTTP = &volant.HTTPOptions{}
		s := newSite(t, p)
		s.cert("web.test")
		s.bootHandler(1, sends("elsewhere=true", true))
		s.bootHandler(2, says(2))
		s.table(nil, nil, machineIn(1, 1, proxy.PhaseServing), machineIn(2, 1, proxy.PhaseServing))
		c := s.browser(true)
		for range 5 {
			s.want(s.get(c, "https://web.test/", header("Fly-Prefer-Instance-Id", string(machineID(1))), body("b")), 200, `machine 2, body "b"`)
		}
	})
}
