package host_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
)

// webOf answers each request with what the status says, and notes the last one.
func webOf(status *atomic.Int64, last *atomic.Pointer[http.Request]) func(net.Conn) {
	return func(c net.Conn) {
		defer c.Close() // the test is over
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		last.Store(req)
		if status.Load() == 0 {
			time.Sleep(time.Hour)
		}
		body := "the app says " + strings.Repeat("x", 100_000)
		fmt.Fprintf(c, "HTTP/1.1 %d Some Text\r\nLocation: http://elsewhere.test/\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
			status.Load(), len(body), body)
	}
}

func TestHTTPChecksAsk(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		var status atomic.Int64
		var last atomic.Pointer[http.Request]
		status.Store(200)
		r.disks.web = webOf(&status, &last)
		_, id := awakeRig(t, r, func(m *volant.Machine) {
			m.Config.Services[0].Checks = []volant.ServiceCheck{{
				Type: "http", Interval: volant.Duration(10 * time.Second), Timeout: volant.Duration(2 * time.Second), Method: "post", Path: "/health?x=1",
				Headers: []volant.CheckHeader{{Name: "X-Forwarded-Proto", Values: []string{"https"}}, {Name: "host", Values: []string{"web.test"}}},
			}}
		})
		time.Sleep(time.Second)
		synctest.Wait()
		if v := r.have(id); !v.Ready || v.Checks[0].Status != volant.CheckPassing || !strings.Contains(v.Checks[0].Output, "200") {
			t.Errorf("with status 200: %+v", v.Checks)
		}
		req := last.Load()
		if req.Method != http.MethodPost || req.RequestURI != "/health?x=1" || req.Host != "web.test" || req.Header.Get("X-Forwarded-Proto") != "https" {
			t.Errorf("the app was asked %s %s of %s, %v", req.Method, req.RequestURI, req.Host, req.Header)
		}
		for _, c := range []struct {
			status int64
			want   string
		}{{302, "302"}, {500, "the app says xxx"}, {0, "deadline exceeded"}} {
			status.Store(c.status)
			time.Sleep(25 * time.Second)
			synctest.Wait()
			v := r.have(id)
			if v.Checks[0].Status != volant.CheckCritical || !strings.Contains(v.Checks[0].Output, c.want) || len(v.Checks[0].Output) > 400 {
				t.Errorf("with status %d: %+v", c.status, v.Checks)
			}
		}
		status.Store(204)
		time.Sleep(25 * time.Second)
		synctest.Wait()
		if v := r.have(id); v.Checks[0].Status != volant.CheckPassing {
			t.Errorf("after it mended: %+v", v.Checks)
		}
		r.suspend(id)
		last.Store(nil)
		time.Sleep(time.Minute)
		if last.Load() != nil {
			t.Error("a sleeping machine was asked")
		}
		time.Sleep(time.Hour) // for apps that hang
	})
}

func TestChecksOfTheMachineAsAWhole(t *testing.T) {
	bubble(t, func(t *testing.T, r *rig) {
		var status atomic.Int64
		var last atomic.Pointer[http.Request]
		status.Store(200)
		r.disks.web = webOf(&status, &last)
		_, id := awakeRig(t, r, func(m *volant.Machine) {
			m.Config.Checks = map[string]volant.MachineCheck{
				"ready": {ServiceCheck: volant.ServiceCheck{Type: "http", Port: 9}, Kind: volant.CheckReadiness},
				"info":  {ServiceCheck: volant.ServiceCheck{Type: "http", Port: 9}},
			}
		})
		time.Sleep(time.Second)
		synctest.Wait()
		kinds := map[string]bool{}
		for _, c := range r.have(id).Checks {
			kinds[c.Name] = c.Informational
			if c.Status != volant.CheckPassing {
				t.Errorf("check %+v", c)
			}
		}
		if len(kinds) != 2 || kinds["ready"] || !kinds["info"] {
			t.Errorf("checks, and whether they are informational: %v", kinds)
		}
	})
}
