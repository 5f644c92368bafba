// Package client is the Go client of Volant's HTTP API; the command line is built on it.
//
// # Invariants
//
//   - An error of the server comes back as *volant.Error with its kind, cause and remedy.
//   - A response is read up to a bound unless the call streams.
package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/why"
)

// maxBody bounds a response that does not stream.
const maxBody = 64 << 20

// Client speaks to one server. Its zero value is not usable; see New.
type Client struct {
	base  string
	token string
	http  *http.Client
}

// New returns a client of the server at addr (host:port or a URL) with a bearer token.
func New(addr, token string) *Client {
	base := addr
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	return NewTransport(base, token, &http.Transport{
		DialContext: dialer.DialContext, MaxIdleConnsPerHost: 16, IdleConnTimeout: 30 * time.Second,
	})
}

// NewSocket returns a client of the server whose unix socket is at path. Addr is what messages call it.
func NewSocket(path, addr, token string) *Client {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	return NewTransport("http://"+addr, token, &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		},
		MaxIdleConnsPerHost: 16, IdleConnTimeout: 30 * time.Second,
	})
}

// NewTransport returns a client that speaks to the server at base, a URL, through t.
func NewTransport(base, token string, t http.RoundTripper) *Client {
	return &Client{base: strings.TrimSuffix(base, "/"), token: token, http: &http.Client{Transport: t}}
}

// Host is the server's host and port.
func (c *Client) Host() string {
	_, host, _ := strings.Cut(c.base, "://")
	return host
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Apps lists the apps the token may see.
func (c *Client) Apps(ctx context.Context) ([]api.App, error) {
	var out api.AppList
	err := c.do(ctx, http.MethodGet, "/v1/apps", nil, &out)
	return out.Apps, err
}

// CreateApp makes an app.
func (c *Client) CreateApp(ctx context.Context, name, org string) (api.CreatedApp, error) {
	var out api.CreatedApp
	err := c.do(ctx, http.MethodPost, "/v1/apps", api.CreateApp{Name: name, OrgSlug: org}, &out)
	return out, err
}

// App returns one app.
func (c *Client) App(ctx context.Context, app string) (api.App, error) {
	var out api.App
	err := c.do(ctx, http.MethodGet, appPath(app), nil, &out)
	return out, err
}

// DestroyApp removes an app; force stops its machines first.
func (c *Client) DestroyApp(ctx context.Context, app string, force bool) error {
	return c.do(ctx, http.MethodDelete, appPath(app)+"?force="+boolean(force), nil, nil)
}

// HasBlob says whether the server has the blob.
func (c *Client) HasBlob(ctx context.Context, d volant.Digest) (bool, error) {
	err := c.do(ctx, http.MethodHead, "/v1/blobs/"+string(d), nil, nil)
	if errors.Is(err, volant.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// PutBlob uploads a blob of size bytes; the server verifies the digest.
func (c *Client) PutBlob(ctx context.Context, d volant.Digest, size int64, r io.Reader) error {
	req, err := c.request(ctx, http.MethodPut, "/v1/blobs/"+string(d), r)
	if err != nil {
		return err
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", "application/octet-stream")
	return c.finish(req, nil)
}

// Prepare makes the server build the root disk of an uploaded image, and reports its progress.
func (c *Client) Prepare(ctx context.Context, d volant.Digest, progress func(api.Progress)) error {
	_, err := c.progress(ctx, "/v1/images/"+string(d)+"/prepare", nil, progress)
	return err
}

// Resolve makes the server pull the image that a reference names, if it is not there, and returns its
// digest. Auth may be nil.
func (c *Client) Resolve(ctx context.Context, r api.ResolveImage, progress func(api.Progress)) (volant.Digest, error) {
	return c.progress(ctx, "/v1/images/resolve", r, progress)
}

// progress reads a streamed work to its outcome.
func (c *Client) progress(ctx context.Context, path string, body any, progress func(api.Progress)) (volant.Digest, error) {
	var failed error
	var last api.Progress
	err := c.stream(ctx, http.MethodPost, path, body, func(line []byte) error {
		last = api.Progress{}
		if err := json.Unmarshal(line, &last); err != nil {
			return err
		}
		if last.Error != nil {
			failed = errorOf(*last.Error, 0)
			return failed
		}
		if progress != nil {
			progress(last)
		}
		return nil
	})
	switch {
	case failed != nil:
		return "", failed
	case err == nil && last.Phase != "done":
		err = volant.Errorf(volant.ErrUnavailable, "the server ended the work before it was done").WithRemedy("try again")
	}
	return volant.Digest(last.Digest), err
}

// CreateRelease starts a deploy.
func (c *Client) CreateRelease(ctx context.Context, app string, r api.CreateRelease) (api.Release, error) {
	var out api.Release
	err := c.do(ctx, http.MethodPost, appPath(app)+"/releases", r, &out)
	return out, err
}

// Release returns one release of an app.
func (c *Client) Release(ctx context.Context, app string, version uint64) (api.Release, error) {
	var out api.Release
	err := c.do(ctx, http.MethodGet, fmt.Sprintf("%s/releases/%d", appPath(app), version), nil, &out)
	return out, err
}

// Releases lists an app's releases, newest first.
func (c *Client) Releases(ctx context.Context, app string) ([]api.Release, error) {
	var out []api.Release
	err := c.do(ctx, http.MethodGet, appPath(app)+"/releases", nil, &out)
	return out, err
}

// Machines lists an app's machines.
func (c *Client) Machines(ctx context.Context, app string) ([]api.Machine, error) {
	var out []api.Machine
	err := c.do(ctx, http.MethodGet, appPath(app)+"/machines", nil, &out)
	return out, err
}

// CreateMachine makes a machine by hand.
func (c *Client) CreateMachine(ctx context.Context, app string, m api.CreateMachine) (api.Machine, error) {
	var out api.Machine
	err := c.do(ctx, http.MethodPost, appPath(app)+"/machines", m, &out)
	return out, err
}

// Machine returns one machine.
func (c *Client) Machine(ctx context.Context, app, id string) (api.Machine, error) {
	var out api.Machine
	err := c.do(ctx, http.MethodGet, machinePath(app, id), nil, &out)
	return out, err
}

// FindMachine returns the machine with the ID, whatever its app.
func (c *Client) FindMachine(ctx context.Context, id string) (app string, m api.Machine, err error) {
	apps, err := c.Apps(ctx)
	if err != nil {
		return "", m, err
	}
	for _, a := range apps {
		m, err := c.Machine(ctx, a.Name, id)
		if err == nil {
			return a.Name, m, nil
		}
		if !errors.Is(err, volant.ErrNotFound) {
			return "", m, err
		}
	}
	return "", m, volant.Errorf(volant.ErrNotFound, "machine %s does not exist", id).WithRemedy("see `volant machine list`")
}

// MachineAction posts one of start, stop, suspend, restart, cordon, uncordon.
func (c *Client) MachineAction(ctx context.Context, app, id, action string) error {
	return c.do(ctx, http.MethodPost, machinePath(app, id)+"/"+url.PathEscape(action), nil, nil)
}

// DestroyMachine removes a machine; force kills a running one.
func (c *Client) DestroyMachine(ctx context.Context, app, id string, force bool) error {
	return c.do(ctx, http.MethodDelete, machinePath(app, id)+"?force="+boolean(force), nil, nil)
}

// Wait waits until the machine is in the state; timeout is from 1 s to 60 s.
func (c *Client) Wait(ctx context.Context, app, id, state string, timeout time.Duration) error {
	q := url.Values{"state": {state}, "timeout": {fmt.Sprint(int(timeout.Seconds()))}}
	return c.do(ctx, http.MethodGet, machinePath(app, id)+"/wait?"+q.Encode(), nil, nil)
}

// Exec runs a command in an awake machine and copies its output while it runs.
func (c *Client) Exec(ctx context.Context, app, id string, e api.Exec, stdout, stderr io.Writer) (api.ExecResult, error) {
	e.Stream = true
	var out *api.ExecResult
	var failed error
	err := c.stream(ctx, http.MethodPost, machinePath(app, id)+"/exec", e, func(line []byte) error {
		var f api.ExecFrame
		if err := json.Unmarshal(line, &f); err != nil {
			return err
		}
		if f.Error != "" {
			failed = errors.New(f.Error)
			return failed
		}
		if f.Exit != nil {
			out = f.Exit
			return nil
		}
		if _, err := stdout.Write(f.Stdout); err != nil {
			return err
		}
		_, err := stderr.Write(f.Stderr)
		return err
	})
	switch {
	case failed != nil:
		return api.ExecResult{}, failed
	case err != nil:
		return api.ExecResult{}, err
	case out == nil:
		return api.ExecResult{}, volant.Errorf(volant.ErrUnavailable, "the server ended the exec before the command did").WithRemedy("look at `volant logs` and try again")
	}
	return *out, nil
}

// Scale returns an app's scale settings and counts.
func (c *Client) Scale(ctx context.Context, app string) (api.Scale, error) {
	var out api.Scale
	err := c.do(ctx, http.MethodGet, appPath(app)+"/scale", nil, &out)
	return out, err
}

// SetScale changes some of an app's scale settings.
func (c *Client) SetScale(ctx context.Context, app string, p api.ScalePatch) (api.Scale, error) {
	var out api.Scale
	err := c.do(ctx, http.MethodPatch, appPath(app)+"/scale", p, &out)
	return out, err
}

// SetGroupScale changes some scale settings of one process group.
func (c *Client) SetGroupScale(ctx context.Context, app, group string, p api.ScalePatch) (api.Scale, error) {
	var out api.Scale
	err := c.do(ctx, http.MethodPatch, appPath(app)+"/scale?group="+url.QueryEscape(group), p, &out)
	return out, err
}

// Addresses lists an app's addresses.
func (c *Client) Addresses(ctx context.Context, app string) ([]api.IPAssignment, error) {
	var out struct {
		IPs []api.IPAssignment `json:"ips"`
	}
	err := c.do(ctx, http.MethodGet, appPath(app)+"/ip_assignments", nil, &out)
	return out.IPs, err
}

// Logs says which lines of an app's log are wanted.
type Logs struct {
	Machine  string // only of this one; empty: all
	Tail     int    // past lines
	Since    string // a time (RFC 3339), or how long ago, such as 10m; empty: no bound
	NoEvents bool   // leave out what the platform did
	Follow   bool   // go on with new lines until ctx ends
}

// Logs calls fn for each line of an app's log, the past ones first.
func (c *Client) Logs(ctx context.Context, app string, l Logs, fn func(api.LogEntry) error) error {
	q := url.Values{"tail": {fmt.Sprint(l.Tail)}, "follow": {boolean(l.Follow)}, "no_events": {boolean(l.NoEvents)}}
	if l.Machine != "" {
		q.Set("machine", l.Machine)
	}
	if l.Since != "" {
		q.Set("since", l.Since)
	}
	return c.stream(ctx, http.MethodGet, appPath(app)+"/logs?"+q.Encode(), nil, func(line []byte) error {
		var e api.LogEntry
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		return fn(e)
	})
}

// Why returns the reasons of recent decisions about what: an app's name, a machine's ID or a connection's.
func (c *Client) Why(ctx context.Context, what string, kinds []why.Kind, limit int) ([]why.Record, error) {
	q := url.Values{"limit": {fmt.Sprint(limit)}}
	for _, k := range kinds {
		q.Add("kind", string(k))
	}
	var out []why.Record
	err := c.do(ctx, http.MethodGet, "/v1/why/"+url.PathEscape(what)+"?"+q.Encode(), nil, &out)
	return out, err
}

func appPath(app string) string { return "/v1/apps/" + url.PathEscape(app) }

func machinePath(app, id string) string { return appPath(app) + "/machines/" + url.PathEscape(id) }

func boolean(b bool) string { return fmt.Sprint(b) }

func (c *Client) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	req.Header.Set("User-Agent", "volant")
	return req, nil
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	req, err := c.jsonRequest(ctx, method, path, in)
	if err != nil {
		return err
	}
	return c.finish(req, out)
}

func (c *Client) jsonRequest(ctx context.Context, method, path string, in any) (*http.Request, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := c.request(ctx, method, path, body)
	if err == nil && in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, err
}

func (c *Client) finish(req *http.Request, out any) error {
	res, err := c.send(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }() // read to its end; nothing more to learn
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", req.URL.Path, err)
	}
	if out == nil || len(body) == 0 {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("answer of %s: %w", req.URL.Path, err)
	}
	return nil
}

// send does the request and turns every answer that is not 2xx into an error. Where the server says that it came too
// soon, and when to come again, send waits and does so, for as long as the request's context and longest allow.
func (c *Client) send(req *http.Request) (*http.Response, error) {
	began, repeatable := time.Now(), req.Body == nil || req.GetBody != nil
	for {
		res, err := c.sendOnce(req)
		var soon *tooSoon
		if !errors.As(err, &soon) {
			return res, err
		}
		again := time.Now().Add(soon.wait)
		if end, ok := req.Context().Deadline(); ok && again.After(end) || again.Sub(began) > longest || !repeatable {
			return nil, soon.err
		}
		select {
		case <-req.Context().Done():
			return nil, soon.err
		case <-time.After(soon.wait):
		}
		if req.GetBody != nil {
			if req.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

// longest bounds how long a request is sent again and again.
const longest = time.Minute

// tooSoon is a request which the server did not do, since too many came before it.
type tooSoon struct {
	err  error
	wait time.Duration
}

func (t *tooSoon) Error() string { return t.err.Error() }

func (c *Client) sendOnce(req *http.Request) (*http.Response, error) {
	res, err := c.http.Do(req)
	if err != nil {
		if own, ok := errors.AsType[*volant.Error](err); ok { // of the transport
			return nil, own
		}
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return nil, volant.Errorf(volant.ErrUnavailable, "no server answers at %s: %v", c.base, op.Err).
				WithRemedy("start one with `volant server`, or name another with --addr")
		}
		return nil, err
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer func() { _ = res.Body.Close() }()                // the error is what counts
	body, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20)) // a torn body still leaves the status
	var e api.Error
	if json.Unmarshal(body, &e) != nil || e.Error == "" {
		e = api.Error{Error: fmt.Sprintf("%s %s: %s", req.Method, req.URL.Path, res.Status)}
	}
	err = errorOf(e, res.StatusCode)
	if sec, bad := strconv.Atoi(res.Header.Get("Retry-After")); bad == nil && sec >= 0 && res.StatusCode == http.StatusTooManyRequests {
		return nil, &tooSoon{err, time.Duration(sec) * time.Second}
	}
	return nil, err
}

func (c *Client) stream(ctx context.Context, method, path string, in any, fn func([]byte) error) error {
	req, err := c.jsonRequest(ctx, method, path, in)
	if err != nil {
		return err
	}
	res, err := c.send(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }() // the stream is over or given up
	sc := bufio.NewScanner(res.Body)
	sc.Buffer(make([]byte, 64<<10), 4<<20)
	for sc.Scan() {
		if len(bytes.TrimSpace(sc.Bytes())) == 0 {
			continue
		}
		if err := fn(sc.Bytes()); err != nil {
			return err
		}
	}
	return sc.Err()
}

// kinds are the words of the API for kinds of errors.
var kinds = map[string]error{
	"not_found": volant.ErrNotFound, "name_taken": volant.ErrExists, "invalid_argument": volant.ErrInvalid,
	"unauthorized": volant.ErrUnauthorized, "forbidden": volant.ErrForbidden, "conflict": volant.ErrConflict,
	"leased": volant.ErrLeased, "insufficient_capacity": volant.ErrNoCapacity,
	"failed_precondition": volant.ErrPrecondition, "unavailable": volant.ErrUnavailable,
	"rate_limited": volant.ErrLimited, "not_served": volant.ErrUnserved,
}

// Status is the API's word for the kind of err; "unknown" where it has none.
func Status(err error) string {
	for word, kind := range kinds {
		if errors.Is(err, kind) {
			return word
		}
	}
	return "unknown"
}

// errorOf gives an API error its kind back.
func errorOf(e api.Error, code int) error {
	kind, ok := kinds[e.Status]
	if !ok {
		switch code {
		case http.StatusNotFound:
			kind = volant.ErrNotFound
		case http.StatusUnauthorized:
			kind = volant.ErrUnauthorized
		default:
			kind = volant.ErrUnavailable
		}
	}
	return &volant.Error{Kind: kind, Text: e.Error, Remedy: e.Remedy}
}
