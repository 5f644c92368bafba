// Package backend answers for the machines of a lab's node whose engine is fake. Each machine has an IPv6 address which
// ends in its ID; one process listens on all of them, on the ports that apps commonly have, and is another server for
// each: what one machine counts is not seen by another.
//
// What it speaks is testserver's; GET / says region, node and machine.
//
// # Not here
//
// The server itself: package testserver. Who gives machines their addresses: package node.
package backend

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/volant-edge/volant/volanttest/testserver"
)

// Config says for whom to answer.
type Config struct {
	Region, Node string
	Ports        []int // Ports() if empty
}

// Ports are those that apps commonly listen on.
func Ports() []int { return []int{22, 80, 443, 1883, 3000, 4000, 5000, 5432, 6379, 8000, 8080, 9000} }

// Run answers until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	if len(cfg.Ports) == 0 {
		cfg.Ports = Ports()
	}
	b := &backend{cfg: cfg, machines: map[netip.Addr]*queue{}}
	g, ctx := errgroup.WithContext(ctx)
	b.g, b.ctx = g, ctx
	for _, port := range cfg.Ports {
		l, err := net.Listen("tcp6", fmt.Sprintf("[::]:%d", port))
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { l.Close() }) //nolint:errcheck // ends Accept, which tells
		g.Go(func() error { return b.accept(l) })
	}
	return g.Wait()
}

type backend struct {
	cfg Config
	g   *errgroup.Group
	ctx context.Context //nolint:containedctx // of all that Run started

	mu       sync.Mutex // guards machines
	machines map[netip.Addr]*queue
}

func (b *backend) accept(l net.Listener) error {
	for {
		c, err := l.Accept()
		if b.ctx.Err() != nil {
			return nil //nolint:nilerr // asked to end
		}
		if err != nil { // such as too many open files
			var ne net.Error
			if errors.As(err, &ne) {
				time.Sleep(10 * time.Millisecond)
				continue
			}
			return err
		}
		to, ok := c.LocalAddr().(*net.TCPAddr)
		if !ok {
			continue
		}
		select {
		case b.machine(to.AddrPort().Addr()).conns <- c:
		case <-b.ctx.Done():
		}
	}
}

// machine is the server of an address, made when it is first asked for.
func (b *backend) machine(at netip.Addr) *queue {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.machines[at]
	if q == nil {
		q = &queue{conns: make(chan net.Conn), done: make(chan struct{}), addr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, 0))}
		b.machines[at] = q
		s := &testserver.Server{Name: fmt.Sprintf("%s/%s/%s", b.cfg.Region, b.cfg.Node, ID(at)), Exit: func(int) {}}
		b.g.Go(func() error { return s.Serve(b.ctx, q) })
	}
	return q
}

// ID is the machine with an address.
func ID(at netip.Addr) string {
	a := at.As16()
	return hex.EncodeToString(a[9:])
}

// queue is a listener that is given its connections.
type queue struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	addr  net.Addr
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queue) Addr() net.Addr { return q.addr }
