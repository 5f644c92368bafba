package host

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
)

// check is one check and whether it has passed since the machine awoke.
type check struct {
	volant.Check
	passed bool
	hidden bool // not asked for: it only says when a machine that nobody can connect to yet listens
}

// asked is a check as the machine's config asks for it.
type asked struct {
	name string
	port int
	how  volant.ServiceCheck
	info bool
}

// askedChecks are the checks of a machine's services and of the machine itself.
func askedChecks(cfg *volant.MachineConfig) []asked {
	var out []asked
	for i := range cfg.Services {
		s := &cfg.Services[i]
		for j, c := range s.Checks {
			a := asked{name: s.CheckName(i, j), port: c.Port, how: c}
			if a.port == 0 {
				a.port = s.InternalPort
			}
			out = append(out, a)
		}
	}
	for name, c := range cfg.Checks {
		out = append(out, asked{name: name, port: c.Port, how: c.ServiceCheck, info: c.Kind != volant.CheckReadiness})
	}
	return out
}

// runCheck probes one port of an awake machine, quickly until it passes for the first time.
func (m *machine) runCheck(ctx context.Context, a asked) {
	interval, timeout := a.how.Interval.D(), a.how.Timeout.D()
	if interval <= 0 {
		interval = checkInterval
	}
	if timeout <= 0 {
		timeout = checkTimeout
	}
	probe := func() (string, bool) { return m.probe(ctx, a.port, timeout) }
	if a.how.Type == volant.CheckHTTP {
		client := m.checkClient(&a.how)
		probe = func() (string, bool) { return m.probeHTTP(ctx, client, &a, timeout) }
	}
	graceEnd := time.Now().Add(a.how.Grace.D())
	passed := false
	for ctx.Err() == nil {
		output, ok := probe()
		if ctx.Err() != nil {
			return
		}
		if ok || time.Now().After(graceEnd) {
			m.checked(a.name, ok, output)
		}
		passed = passed || ok
		if passed {
			m.pause(ctx, interval)
		} else {
			m.pause(ctx, min(interval, checkEager))
		}
	}
}

func (m *machine) address(port int) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return netip.AddrPortFrom(m.link.IP(), uint16(port)).String() //nolint:gosec // checks are checked when they are written
}

// probe says whether a port accepts a connection.
func (m *machine) probe(ctx context.Context, port int, timeout time.Duration) (output string, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := m.h.dial(ctx, "tcp", m.address(port))
	if err != nil {
		return err.Error(), false
	}
	if err := conn.Close(); err != nil {
		return err.Error(), false
	}
	return "connected to port " + strconv.Itoa(port), true
}

// checkBody bounds what is read of an answer, and checkOutput what is shown of it.
const (
	checkBody   = 4 << 10
	checkOutput = 200
)

// checkClient is the client of an http check. Each request has a connection of its own.
func (m *machine) checkClient(c *volant.ServiceCheck) *http.Client {
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				return m.h.dial(ctx, network, addr)
			},
			DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
			TLSClientConfig: &tls.Config{
				InsecureSkipVerify: c.TLSSkipVerify, //nolint:gosec // the app's owner asks for it, for a port of the app's own
				ServerName:         c.TLSServerName, MinVersion: tls.VersionTLS12,
			},
		},
	}
}

// probeHTTP says whether a request is answered with a status of 2xx.
func (m *machine) probeHTTP(ctx context.Context, client *http.Client, a *asked, timeout time.Duration) (output string, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	method := strings.ToUpper(a.how.Method)
	req, err := http.NewRequestWithContext(ctx, method, a.how.URL(m.address(a.port)), nil)
	if err != nil {
		return err.Error(), false
	}
	req.Header.Set("User-Agent", "Volant-Check")
	for _, h := range a.how.Headers {
		if strings.EqualFold(h.Name, "Host") && len(h.Values) > 0 {
			req.Host = h.Values[0]
			continue
		}
		req.Header.Del(h.Name)
		for _, v := range h.Values {
			req.Header.Add(h.Name, v)
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		return err.Error(), false
	}
	defer resp.Body.Close() //nolint:errcheck // it was read as far as it matters
	body, err := io.ReadAll(io.LimitReader(resp.Body, checkBody))
	ok = resp.StatusCode >= 200 && resp.StatusCode < 300
	output = resp.Status
	if !ok {
		text := strings.TrimSpace(string(body[:min(len(body), checkOutput)]))
		output = strings.ToValidUTF8(fmt.Sprintf("%s: %s", resp.Status, text), "?")
	}
	if err != nil && ok {
		return "the body of the answer: " + err.Error(), false
	}
	return output, ok
}
