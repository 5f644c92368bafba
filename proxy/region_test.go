package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant/proxy"
)

// web starts a machine that answers requests with its number, and with fly-replay what they ask for by "again".
func (m *mesh) web(k int) {
	m.t.Helper()
	m.phase[k] = proxy.PhaseServing
	l, err := m.net.Listen(context.Background(), netip.AddrPortFrom(machineAddr(k), 8080))
	if err != nil {
		m.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if again := r.URL.Query().Get("again"); again != "" && r.Header.Get("Fly-Replay-Src") == "" {
			w.Header().Set("Fly-Replay", again)
			return
		}
		time.Sleep(time.Second)
		fmt.Fprint(w, k)
	})}
	m.t.Cleanup(func() { srv.Close() })
	go func() { _ = srv.Serve(l) }()
}

// get sends a request by a connection of its own and returns its status and what the machine said.
func (n *meshNode) get(path string, head ...string) string {
	n.m.t.Helper()
	c, err := n.m.net.Dial(context.Background(), n.httpPort())
	if err != nil {
		n.m.t.Fatal(err)
	}
	defer c.Close()
	r, err := http.NewRequest(http.MethodGet, "http://web.test"+path, nil)
	if err != nil {
		n.m.t.Fatal(err)
	}
	for i := 0; i < len(head); i += 2 {
		r.Header.Set(head[i], head[i+1])
	}
	if err := r.Write(c); err != nil {
		n.m.t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), r)
	if err != nil {
		n.m.t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		n.m.t.Fatal(err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Sprint(res.StatusCode)
	}
	return string(b)
}

func TestRequestsSayInWhichRegion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 3)
		m.http = true
		for _, k := range []int{0, 10, 20} {
			m.web(k)
		}
		m.set(2, 2)
		n := m.nodes[0]
		for _, tt := range []struct {
			want string
			path string
			head []string
		}{
			{"0", "/", nil},
			{"10", "/", []string{"Fly-Force-Region", "r1"}},
			{"20", "/", []string{"Fly-Force-Region", "r9, r2"}},
			{"503", "/", []string{"Fly-Force-Region", "r9"}},
			{"0", "/", []string{"Fly-Force-Region", "r9,any"}},
			{"20", "/", []string{"Fly-Prefer-Region", "r2"}},
			{"0", "/", []string{"Fly-Prefer-Region", "r9"}},
			{"10", "/", []string{"Fly-Force-Region", "r1", "Fly-Prefer-Region", "r2"}},
			{"503", "/", []string{"Fly-Force-Region", "r1", "Fly-Force-Instance-Id", string(machineID(20))}},
			{"20", "/", []string{"Fly-Force-Region", "r2", "Fly-Force-Instance-Id", string(machineID(20))}},
			{"20", "/?again=" + "region%3Dr2", nil},
			{"10", "/?again=" + "instance%3D" + string(machineID(10)), nil},
			{"503", "/?again=" + "region%3Dr9", nil},
			{"0", "/?again=" + "region%3D%22r9,any%22", nil},
		} {
			if got := n.get(tt.path, tt.head...); got != tt.want {
				t.Errorf("%s %v: answered by %s, want %s", tt.path, tt.head, got, tt.want)
			}
		}
	})
}

// Who wants a region waits for a slot there while other machines have room, and lets others pass.
func TestRequestWaitsInItsRegion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2)
		m.http = true
		m.web(0)
		m.web(10)
		m.set(1, 1)
		n := m.nodes[0]
		began := time.Now()
		got := make(chan string, 3)
		for range 3 {
			go func() { got <- n.get("/", "Fly-Force-Region", "r1") }()
		}
		time.Sleep(100 * time.Millisecond)
		if by := n.get("/"); by != "0" || time.Since(began) > 2*time.Second {
			t.Errorf("who wants no region is answered by %s after %s", by, time.Since(began))
		}
		var all []string
		for range 3 {
			all = append(all, <-got)
		}
		if !slices.Equal(all, []string{"10", "10", "10"}) || time.Since(began) < 3*time.Second {
			t.Errorf("answered by %s after %s, want one after the other by 10", strings.Join(all, ", "), time.Since(began))
		}
	})
}

// A machine of the region that sleeps is woken, here or by its host, though others serve.
func TestRegionThatSleepsIsWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, 2)
		m.http = true
		m.web(0)
		m.web(10)
		for _, tt := range []struct {
			region       string
			sleeps, node int
		}{{"r0", 0, 0}, {"r1", 10, 1}} {
			m.phase[tt.sleeps] = proxy.PhaseSuspended
			m.set(2, 2)
			got := make(chan string, 1)
			go func() { got <- m.nodes[0].get("/", "Fly-Force-Region", tt.region) }()
			if w := m.nodes[tt.node].takeWakes(); !slices.Contains(w, machineID(tt.sleeps)) {
				t.Errorf("%s: woken is %v", tt.region, w)
			}
			m.phase[tt.sleeps] = proxy.PhaseServing
			m.set(2, 2)
			if by := <-got; by != fmt.Sprint(tt.sleeps) {
				t.Errorf("%s: answered by %s", tt.region, by)
			}
		}
	})
}
