package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/http2"

	"github.com/volant-edge/volant"
)

// httpCaller is a request for which a netRoad finds a machine.
type httpCaller struct {
	w http.ResponseWriter
	r *http.Request
	x *exchange
	c *frontConn

	body     *requestBody // nil if the request has none
	status   int          // of the response that the client was given; 0: none
	broken   bool         // the response ended before its end
	complete bool         // the whole response came from the machine
	gone     bool         // the client was, when there was no response
	switched bool         // the connection was another protocol's

	wish      *wish
	by        volant.MachineID // that has it now
	whole     []byte           // the request, of one without a body to a machine on another node
	source    string           // of a request that was sent on: from where
	again     *replay          // the machine sends it on
	badReplay error            // it would, but cannot be understood
}

func (g *httpCaller) watch() (data, gone <-chan struct{}) { return nil, g.r.Context().Done() }

// early writes the request down, so that it can go with the one to the host: of one without a body.
func (g *httpCaller) early(d *netRoad, most int) func() []byte {
	g.whole = nil
	if g.r.ContentLength == 0 && !d.route.port.h2 {
		var b bytes.Buffer
		g.by = d.seat.place.m.id
		if err := g.outgoing(d).Write(&b); err == nil { // else it fails again when it is written to the machine
			g.whole = b.Bytes()
		}
	}
	head := g.whole[:min(len(g.whole), most)]
	return func() []byte { return head }
}

func (g *httpCaller) refuse(d *netRoad, farewell bool) {
	if farewell {
		g.answer(d.road.rule, time.Second)
	}
}

// relay does the exchange with the machine.
func (g *httpCaller) relay(d *netRoad) (up, down int64, how end, linger func()) {
	g.by = d.seat.place.m.id
	u, ok := d.machine.(*upConn)
	if !ok {
		u = newUpConn(d.machine)
	}
	how, reusable := g.exchange(d, u)
	if how == endStale { // it closed the idle connection as the request came
		u.Close() //nolint:errcheck // it is gone
		c, err := d.p.cfg.Dial(g.r.Context(), d.seat.addr)
		if err != nil {
			return 0, 0, g.failed(d, err), nil
		}
		u = newUpConn(c)
		how, reusable = g.exchange(d, u)
	}
	up, down = u.up.Load()+int64(d.sent), u.down.Load()
	switch {
	case reusable && d.seat.node == nil:
		d.p.pool.put(u, d.seat.place)
		return up, down, how, nil
	case g.switched: // its relay has seen the machine's side close
		return up, down, how, nil
	case d.route.port.requests && g.complete: // the request is over, which frees the slot
		d.p.sessions.Go(func() { letGo(u) })
		return up, down, how, nil
	}
	return up, down, how, func() { letGo(u) }
}

// exchange sends the request and hands the response to the client.
func (g *httpCaller) exchange(d *netRoad, u *upConn) (how end, reusable bool) {
	left := context.AfterFunc(g.r.Context(), func() { u.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // it is closed next
	ended := make(chan struct{})
	go func() {
		select {
		case <-d.seat.life.over:
			abort(u.Conn)
		case <-d.ctx.Done():
			abort(u.Conn)
		case <-ended:
		}
	}()
	defer close(ended)
	if d.route.port.h2 {
		how = g.two(d, u)
	} else {
		how, reusable = g.one(d, u)
	}
	if !left() {
		reusable = false
	}
	u.SetDeadline(time.Time{}) //nolint:errcheck // a connection that cannot is gone
	return how, reusable
}

// outgoing is the request as the machine gets it.
func (g *httpCaller) outgoing(d *netRoad) *http.Request {
	out := g.r.Clone(context.WithoutCancel(g.r.Context()))
	switching := upgrade(g.r.Header)
	if strings.EqualFold(switching, "h2c") {
		switching = "" // it would take what follows out of our sight
	}
	inward(out.Header, g.r, g.c, g.x, string(d.route.region))
	if g.source != "" {
		out.Header.Set("Fly-Replay-Src", g.source)
		out.Header.Set("Volant-Replay-Src", g.source)
	}
	if g.wish != nil && g.wish.prefer != "" && g.wish.prefer != g.by {
		out.Header.Set("Fly-Preferred-Instance-Unavailable", string(g.wish.prefer))
	}
	out.Header.Del("Expect") // net/http tells the client to go on when its body is first read
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header.Set("User-Agent", "") // else one would be made up
	}
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host = "http", d.seat.addr.String()
	out.Host = g.r.Host
	out.Trailer = g.r.Trailer
	out.Close = (!d.route.port.requests || d.seat.node != nil) && switching == ""
	if g.r.ContentLength == 0 {
		out.Body = http.NoBody
	} else {
		if g.body == nil {
			g.body = &requestBody{from: out.Body, budget: &d.p.kept}
		}
		out.Body = g.body
	}
	if switching != "" && g.r.ProtoMajor == 1 {
		out.Header.Set("Connection", "Upgrade")
		out.Header.Set("Upgrade", switching)
	}
	return out
}

// one speaks HTTP/1.1 with the machine.
func (g *httpCaller) one(d *netRoad, u *upConn) (how end, reusable bool) {
	out := g.outgoing(d)
	rc := http.NewResponseController(g.w)
	rc.EnableFullDuplex() //nolint:errcheck // HTTP/2 is so anyway
	sent := make(chan error, 1)
	go func() {
		if d.sent > 0 {
			_, err := u.Write(g.whole[d.sent:])
			sent <- err
			return
		}
		sent <- out.Write(u)
	}()
	resp, err := g.head(u, out)
	if err != nil {
		g.gone = g.r.Context().Err() != nil // which stopSending may make so
		serr := g.stopSending(u, rc, sent)
		if u.used && u.down.Load() == 0 && (g.body == nil || !g.body.begun.Load()) && !g.gone {
			return endStale, false
		}
		return g.failed(d, errors.Join(err, serr)), false
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		if err := <-sent; err != nil {
			return g.failed(d, err), false
		}
		return g.change(d, u, resp), false
	}
	if g.replayed(resp) {
		u.SetWriteDeadline(time.Unix(1, 0)) //nolint:errcheck // a connection that cannot is gone
		<-sent                              // what it has read of the body is sent again
		return g.sentOn(d), false
	}
	how = g.deliver(d, resp)
	resp.Body.Close() //nolint:errcheck // what is wrong with it was seen
	serr := g.stopSending(u, rc, sent)
	reusable = how == endBoth && serr == nil && d.route.port.requests && !resp.Close && u.br.Buffered() == 0
	return how, reusable
}

// stopSending returns when the request is no longer written: its body is not to be read when the handler has
// returned.
func (g *httpCaller) stopSending(u *upConn, rc *http.ResponseController, sent <-chan error) error {
	if g.body != nil {
		select {
		case err := <-sent:
			return err
		default:
		}
		u.SetWriteDeadline(time.Unix(1, 0)) //nolint:errcheck // a connection that cannot is gone
		if !g.body.whole.Load() {
			rc.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // the client's connection ends with the response
		}
	}
	return <-sent
}

// head reads the head of the response; informational ones go to the client as they come.
func (g *httpCaller) head(u *upConn, out *http.Request) (*http.Response, error) {
	u.head.Store(headMost)
	defer u.head.Store(noBound)
	for range 16 {
		resp, err := http.ReadResponse(u.br, out)
		if err != nil {
			return nil, err
		}
		switch {
		case resp.StatusCode == http.StatusSwitchingProtocols || resp.StatusCode >= 200:
			return resp, nil
		case resp.StatusCode != http.StatusContinue:
			h := g.w.Header()
			maps.Copy(h, resp.Header)
			g.w.WriteHeader(resp.StatusCode)
			clear(h)
		}
	}
	return nil, errors.New("the app sent more than 16 informational responses")
}

// two speaks HTTP/2 without TLS with the machine.
func (g *httpCaller) two(d *netRoad, u *upConn) end {
	cc, err := h2Transport.NewClientConn(u) //nolint:staticcheck // that of net/http dials itself
	if err != nil {
		return g.failed(d, err)
	}
	defer cc.Close() //nolint:errcheck // nothing else uses it
	rc := http.NewResponseController(g.w)
	rc.EnableFullDuplex() //nolint:errcheck // HTTP/2 is so anyway
	out := g.outgoing(d)
	if te := g.r.Header.Get("Te"); te == "trailers" {
		out.Header.Set("Te", te) // gRPC asks for them
	}
	ctx, cancel := context.WithCancel(g.r.Context())
	defer cancel()
	resp, err := cc.RoundTrip(out.WithContext(ctx))
	if err != nil {
		g.gone = g.r.Context().Err() != nil
		return g.failed(d, err)
	}
	defer resp.Body.Close() //nolint:errcheck // what is wrong with it was seen
	if g.replayed(resp) {
		if g.body != nil && !g.body.whole.Load() {
			g.body.drop() // its sender may not have ended, and must not read on for the next
		}
		return g.sentOn(d)
	}
	return g.deliver(d, resp)
}

var h2Transport = &http2.Transport{AllowHTTP: true, DisableCompression: true} //nolint:staticcheck // the same

// sentOn ends an exchange whose response was fly-replay.
func (g *httpCaller) sentOn(d *netRoad) end {
	if g.badReplay != nil {
		g.x.failed(g.badReplay.Error())
		g.answer(ruleReplay, 0)
		d.route.app.counts.refused[ruleReplay].Add(1)
	}
	return endBoth
}

// failed answers a request whose app gave no response.
func (g *httpCaller) failed(d *netRoad, err error) end {
	g.x.failed(err.Error())
	if g.gone {
		return endClientReset
	}
	g.answer(ruleBroken, 0)
	d.route.app.counts.refused[ruleBroken].Add(1)
	return endMachineReset
}

// deliver hands a response to the client.
func (g *httpCaller) deliver(d *netRoad, resp *http.Response) end {
	h := g.w.Header()
	maps.Copy(h, resp.Header)
	hopByHop(h)
	for name := range resp.Trailer {
		h.Add("Trailer", name)
	}
	d.route.port.edit(h, g.x)
	g.closing()
	g.w.WriteHeader(resp.StatusCode)
	g.status = resp.StatusCode
	g.x.answered(resp.StatusCode)
	rerr, werr := g.copyBody(resp)
	for name, vs := range resp.Trailer {
		for _, v := range vs {
			if _, announced := h[name]; announced {
				h.Add(name, v)
			} else {
				h.Add(http.TrailerPrefix+name, v)
			}
		}
	}
	switch {
	case werr != nil || g.r.Context().Err() != nil:
		g.broken = true
		return endClientReset
	case rerr != nil:
		g.x.failed(rerr.Error())
		g.broken = true
		return endMachineReset
	}
	g.complete = true
	return endBoth
}

// answer answers in the proxy's own name.
func (g *httpCaller) answer(why rule, wait time.Duration) {
	g.closing()
	answer(g.w, g.r, g.x, why, wait)
	g.status = g.x.status
}

// closing ends a client's HTTP/1 connection with this response if the request's body was not read to its end:
// what is left of it would be taken for the next request.
func (g *httpCaller) closing() {
	if g.r.ProtoMajor == 1 && g.body != nil && !g.body.whole.Load() {
		g.c.unread.Store(true)
		g.w.Header().Set("Connection", "close")
	}
}

// copyBody copies the body. What the machine has sent is never held back for more to come.
func (g *httpCaller) copyBody(resp *http.Response) (rerr, werr error) {
	bp := buffers.Get().(*[]byte)
	defer buffers.Put(bp)
	rc := http.NewResponseController(g.w)
	if resp.ContentLength < 0 || resp.ContentLength > int64(len(*bp)) {
		if err := rc.Flush(); err != nil {
			return nil, err
		}
	}
	for {
		n, err := resp.Body.Read(*bp)
		if n > 0 {
			if _, err := g.w.Write((*bp)[:n]); err != nil {
				return nil, err
			}
			if n < len(*bp) && err == nil {
				if err := rc.Flush(); err != nil {
					return nil, err
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
	}
}

// change makes the client's connection and the machine's one, as both agreed to (RFC 9110 §7.8).
func (g *httpCaller) change(d *netRoad, u *upConn, resp *http.Response) end {
	asked, got := upgrade(g.r.Header), upgrade(resp.Header)
	if asked == "" || g.r.ProtoMajor != 1 {
		return g.failed(d, fmt.Errorf("the app changed to %q, which was not asked for", got))
	}
	client, rw, err := http.NewResponseController(g.w).Hijack()
	if err != nil {
		return g.failed(d, err)
	}
	defer client.Close()            //nolint:errcheck // closed before in every orderly end
	client.SetDeadline(time.Time{}) //nolint:errcheck // a connection that cannot is closed, which reads show
	h := resp.Header.Clone()
	hopByHop(h)
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", got)
	d.route.port.edit(h, g.x)
	g.status = resp.StatusCode
	g.x.answered(resp.StatusCode)
	fmt.Fprintf(rw, "HTTP/1.1 %03d %s\r\n", resp.StatusCode, http.StatusText(resp.StatusCode)) //nolint:errcheck // Flush tells
	h.Write(rw)                                                                                //nolint:errcheck // Flush tells
	io.WriteString(rw, "\r\n")                                                                 //nolint:errcheck // Flush tells
	if err := rw.Flush(); err != nil {
		return endClientReset
	}
	e := early{}
	if n := rw.Reader.Buffered(); n > 0 {
		e.data, _ = rw.Peek(n) // they are there
	}
	g.switched = true
	if strings.EqualFold(got, "websocket") {
		w, over := &websocket{Conn: client}, make(chan struct{})
		defer close(over)
		go w.askLater(d.seat.leave, d.p.fronts.leaving, over)
		client = w
	}
	_, _, how := relay(d.ctx, client, &upgraded{u}, d.seat.life.over, e)
	return how
}

// upgraded reads first what came with the head.
type upgraded struct{ *upConn }

func (u *upgraded) Read(b []byte) (int, error) {
	if u.br.Buffered() > 0 {
		return u.br.Read(b)
	}
	return u.upConn.Read(b)
}

var _ net.Conn = (*upgraded)(nil)
