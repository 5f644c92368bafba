package proxy

import (
	"bufio"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// pooledTime is how long a connection to a machine is kept that no request uses.
const pooledTime = 4 * time.Second

// pooledMost bounds the idle connections to one port of a machine.
const pooledMost = 32

// upConn is a connection to a machine that HTTP is spoken on.
type upConn struct {
	net.Conn
	br     *bufio.Reader
	used   bool        // it has served a request before
	timer  *time.Timer // ends it while it is idle
	pooled *place

	up, down atomic.Int64 // bytes of this request
	head     atomic.Int64 // bytes that the head of a response may still have
}

const (
	headMost = 1 << 20 // of a response's head, informational ones before it included
	noBound  = 1 << 62
)

var errHead = errors.New("the head of the app's response is over 1 MiB")

func newUpConn(c net.Conn) *upConn {
	u := &upConn{Conn: c}
	u.head.Store(noBound)
	u.br = bufio.NewReader(u)
	return u
}

func (u *upConn) Read(b []byte) (int, error) {
	n, err := u.Conn.Read(b)
	u.down.Add(int64(n))
	if u.head.Add(-int64(n)) < 0 {
		return 0, errHead
	}
	return n, err
}

func (u *upConn) Write(b []byte) (int, error) {
	n, err := u.Conn.Write(b)
	u.up.Add(int64(n))
	return n, err
}

// CloseWrite sends FIN.
func (u *upConn) CloseWrite() error {
	closeWrite(u.Conn)
	return nil
}

// SetLinger is net.TCPConn's, where the connection has it.
func (u *upConn) SetLinger(s int) error {
	if l, ok := u.Conn.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(s)
	}
	return nil
}

// pool keeps idle connections to the machines of services whose slots are requests.
type pool struct {
	mu     sync.Mutex // guards the following
	idle   map[*place][]*upConn
	closed bool
}

// take is an idle connection to the seat's port of its machine, nil if there is none.
func (p *pool) take(st seat) net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[st.place]
	if len(list) == 0 || st.life.isOver() {
		return nil
	}
	u := list[len(list)-1]
	p.removeLocked(u)
	u.used = true
	u.up.Store(0)
	u.down.Store(0)
	return u
}

// put keeps a connection for the next request.
func (p *pool) put(u *upConn, pl *place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle[pl]) >= pooledMost {
		u.Close() //nolint:errcheck // nobody needs it
		return
	}
	if p.idle == nil {
		p.idle = map[*place][]*upConn{}
	}
	p.idle[pl] = append(p.idle[pl], u)
	u.pooled = pl
	u.timer = time.AfterFunc(pooledTime, func() { p.drop(u) })
}

// drop ends a connection that was idle for too long.
func (p *pool) drop(u *upConn) {
	p.mu.Lock()
	idle := u.pooled != nil
	if idle {
		p.removeLocked(u)
	}
	p.mu.Unlock()
	if idle {
		u.Close() //nolint:errcheck // nobody needs it
	}
}

func (p *pool) removeLocked(u *upConn) {
	list := p.idle[u.pooled]
	for i := range list {
		if list[i] == u {
			list = append(list[:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(p.idle, u.pooled)
	} else {
		p.idle[u.pooled] = list
	}
	u.pooled = nil
	u.timer.Stop()
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, list := range p.idle {
		for _, u := range list {
			u.timer.Stop()
			u.Close() //nolint:errcheck // nobody needs it
		}
	}
	p.idle = nil
}
