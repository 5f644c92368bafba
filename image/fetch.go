package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/volant-edge/volant"
)

const (
	connectWithin = 10 * time.Second
	tries         = 4
	longestPause  = 20 * time.Second // that a registry may ask for
)

var (
	errSilent = errors.New("the registry was silent for too long")
	errPlain  = errors.New("plain http is refused")
)

// NewTransport returns an HTTP transport for registries. Allow, if not nil, says which addresses may be
// connected to: a server that pulls for others does not let them reach into its own network.
func NewTransport(allow func(netip.AddrPort) error) *http.Transport {
	dialer := &net.Dialer{Timeout: connectWithin}
	dial := dialer.DialContext
	if allow != nil {
		dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			d := *dialer
			if !isProxy(addr) {
				d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
					ip, err := netip.ParseAddrPort(address)
					if err != nil {
						return err
					}
					return allow(netip.AddrPortFrom(ip.Addr().Unmap().WithZone(""), ip.Port()))
				}
			}
			return d.DialContext(ctx, network, addr)
		}
	}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dial, TLSHandshakeTimeout: connectWithin, ForceAttemptHTTP2: true,
		MaxIdleConnsPerHost: 8, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 256 << 10,
	}
}

// isProxy says whether the environment's proxy is at addr: it, not we, decides where requests go.
func isProxy(addr string) bool {
	for _, scheme := range []string{"http", "https"} {
		u, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: scheme, Host: "registry.invalid"}})
		if err != nil || u == nil {
			continue
		}
		port := u.Port()
		if port == "" {
			port = map[string]string{"http": "80", "https": "443", "socks5": "1080"}[u.Scheme]
		}
		if net.JoinHostPort(u.Hostname(), port) == addr {
			return true
		}
	}
	return false
}

func isLocalhost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.IsLoopback()
	}
	return host == "localhost"
}

// guarded refuses plain HTTP where it may not be, and ends a request when the other side is silent.
type guarded struct {
	base  http.RoundTripper
	plain func(host string) bool
	stall time.Duration
}

func (g *guarded) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !g.plain(req.URL.Host) {
		return nil, fmt.Errorf("%w: %s", errPlain, req.URL.Host)
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	watch := time.AfterFunc(g.stall, func() { cancel(errSilent) })
	resp, err := g.base.RoundTrip(req.WithContext(ctx))
	if err != nil {
		watch.Stop()
		if context.Cause(ctx) == errSilent { //nolint:errorlint // our own value
			err = errSilent
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &watched{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, watch: watch, stall: g.stall}
	return resp, nil
}

// watched is a body whose sender may take its time, but not stop.
type watched struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	watch  *time.Timer
	stall  time.Duration
}

func (w *watched) Read(b []byte) (int, error) {
	w.watch.Reset(w.stall)
	n, err := w.ReadCloser.Read(b)
	w.watch.Stop()                                                                  // the reader may take its time
	if err != nil && !errors.Is(err, io.EOF) && context.Cause(w.ctx) == errSilent { //nolint:errorlint // our own value
		err = errSilent
	}
	return n, err
}

func (w *watched) Close() error {
	w.watch.Stop()
	err := w.ReadCloser.Close()
	w.cancel(nil)
	return err
}

// fetcher reads one repository. It is the layout of an image in a registry.
type fetcher struct {
	r      Remote
	ref    Ref
	ctx    context.Context //nolint:containedctx // a Source's Open has none
	cancel context.CancelFunc
	http   *http.Client
	base   string

	docs  map[volant.Digest][]byte
	sizes map[volant.Digest]int64
}

// Close ends what is still fetched.
func (f *fetcher) Close() error {
	f.cancel()
	if t, ok := f.r.Base.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
	return nil
}

func (f *fetcher) open(path string) (io.ReadCloser, int64, error) {
	d := volant.Digest("sha256:" + strings.TrimPrefix(path, "blobs/sha256/"))
	if raw, ok := f.docs[d]; ok {
		return io.NopCloser(bytes.NewReader(raw)), int64(len(raw)), nil
	}
	n, ok := f.sizes[d]
	if !ok {
		return nil, 0, volant.Errorf(volant.ErrNotFound, "blob %s is not of this image", d)
	}
	return f.reader(f.ctx, d, n), n, nil
}

// get asks for a path of the repository and wants an answer with content.
func (f *fetcher) get(ctx context.Context, path string, head http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.base+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header = head
	resp, err := f.http.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		pause := retryAfter(resp)
		resp.Body.Close() //nolint:errcheck // the error at hand matters more
		return nil, &paused{err, pause}
	}
	return resp, nil
}

// paused is an error with the pause that the registry wants before the next request.
type paused struct {
	error
	pause time.Duration
}

func (p *paused) Unwrap() error { return p.error }

func retryAfter(resp *http.Response) time.Duration {
	n, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return time.Duration(min(n, 3600)) * time.Second
}

// again does fn until it works, fails for good, or has failed often enough.
func (f *fetcher) again(ctx context.Context, fn func() error) error {
	pause := f.r.Retry
	for try := 1; ; try++ {
		err := fn()
		if err == nil || try == tries || !temporary(err) || ctx.Err() != nil {
			return err
		}
		wait := pause
		var p *paused
		if errors.As(err, &p) && p.pause > 0 {
			wait = p.pause
		}
		if wait > longestPause {
			return err
		}
		pause *= 2
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

// temporary says whether the same request may work a moment later.
func temporary(err error) bool {
	var t *transport.Error
	var network *net.OpError
	switch {
	case errors.Is(err, errPlain), errors.Is(err, errSilent), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	case errors.As(err, &t):
		return t.StatusCode == http.StatusTooManyRequests || t.StatusCode >= 500 && t.StatusCode != http.StatusNotImplemented
	case errors.As(err, &network) && network.Op == "dial":
		return false
	default:
		return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.As(err, &network)
	}
}

// reader reads a blob of n bytes, and goes on where it was after a broken connection.
func (f *fetcher) reader(ctx context.Context, d volant.Digest, n int64) *blobReader {
	return &blobReader{f: f, ctx: ctx, digest: d, size: n, pause: f.r.Retry}
}

type blobReader struct {
	f      *fetcher
	ctx    context.Context //nolint:containedctx // a reader's life is one call of its owner
	digest volant.Digest
	size   int64

	body  io.ReadCloser
	at    int64
	tries int
	pause time.Duration
	err   error
}

func (b *blobReader) Read(p []byte) (int, error) {
	for {
		switch {
		case b.err != nil:
			return 0, b.err
		case b.at == b.size:
			b.err = io.EOF
			return 0, b.err
		}
		n, err := b.read(p[:min(int64(len(p)), b.size-b.at)])
		b.at += int64(n)
		if n > 0 {
			b.tries, b.pause = 0, b.f.r.Retry // it moves
		}
		if err != nil && b.at < b.size {
			b.broken(err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

func (b *blobReader) read(p []byte) (int, error) {
	if b.body == nil {
		if err := b.begin(); err != nil {
			return 0, err
		}
	}
	return b.body.Read(p)
}

// begin asks for the rest of the blob.
func (b *blobReader) begin() error {
	head := http.Header{}
	if b.at > 0 {
		head.Set("Range", fmt.Sprintf("bytes=%d-", b.at))
	}
	resp, err := b.f.get(b.ctx, "/blobs/"+string(b.digest), head) //nolint:bodyclose // by broken or Close
	if err != nil {
		return err
	}
	b.body = resp.Body
	var skip int64
	switch from, ok := contentRange(resp); {
	case resp.StatusCode == http.StatusOK:
		skip = b.at // it does not do ranges
	case !ok || from > b.at:
		return volant.Errorf(volant.ErrUnavailable, "the registry sends another part of blob %s than was asked for", b.digest).
			WithRemedy("try again")
	default:
		skip = b.at - from
	}
	if _, err := io.CopyN(io.Discard, b.body, skip); err != nil {
		return err
	}
	return nil
}

func contentRange(resp *http.Response) (from int64, ok bool) {
	if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &from); err != nil || from < 0 {
		return 0, false
	}
	return from, true
}

// broken decides whether to go on after an error.
func (b *blobReader) broken(err error) {
	if b.body != nil {
		b.body.Close() //nolint:errcheck // it is broken
		b.body = nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	b.tries++
	again := temporary(err) || errors.Is(err, errSilent) && b.at > 0
	if b.ctx.Err() != nil || !again || b.tries >= tries {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = volant.Errorf(volant.ErrUnavailable, "blob %s ended after %s of %s, %d times running", b.digest, size(b.at), size(b.size), b.tries).
				WithRemedy("try again; if it stays so, the copy in the registry is damaged: push the image again")
		}
		b.err = fmt.Errorf("blob %s: %w", b.digest, b.f.explain(err))
		return
	}
	wait := b.pause
	var p *paused
	if errors.As(err, &p) && p.pause > 0 {
		wait = min(p.pause, longestPause)
	}
	b.pause *= 2
	select {
	case <-time.After(wait):
	case <-b.ctx.Done():
	}
}

func (b *blobReader) Close() error {
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}
