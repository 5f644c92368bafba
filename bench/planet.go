package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/bench/stat"
	"github.com/volant-edge/volant/lab"
	"github.com/volant-edge/volant/volanttest/planet"
)

// planet builds a lab for fn and removes everything of it.
func (b *bench) planet(ctx context.Context, c lab.Config, fn func(*planet.Planet) error) (err error) {
	c.Name = "bench"
	p, err := planet.Up(ctx, b.build, c)
	if p != nil {
		defer func() { err = errors.Join(err, p.Close()) }()
	}
	if err != nil {
		return err
	}
	if err := fn(p); err != nil {
		return fmt.Errorf("%w\n%s", err, p.Logs())
	}
	return nil
}

// app deploys the test server by a config and returns where a port of it is.
func (b *bench) app(ctx context.Context, p *planet.Planet, name, config string, port int) (netip.AddrPort, error) {
	ip, err := p.Deploy(ctx, name, b.archive("testserver"), config)
	return netip.AddrPortFrom(ip, uint16(port)), err //nolint:gosec // ours
}

// times are the visits' that succeeded, in milliseconds, and how many did not, with the first error.
func times(vs []planet.Visit) (ms []float64, failed int, first error) {
	for _, v := range vs {
		if v.Err == nil {
			ms = append(ms, float64(v.Took.Microseconds())/1000)
			continue
		}
		failed++
		if first == nil {
			first = v.Err
		}
	}
	return ms, failed, first
}

// wire measures round trips of one byte from a region's clients to a server until stop is closed, in milliseconds.
func wire(ctx context.Context, p *planet.Planet, region string, to *lab.Node, every time.Duration, stop <-chan struct{}) ([]float64, error) {
	var l net.Listener
	if err := p.Inside(to.Name, func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(to.Addr4.String(), "7001"))
		return err
	}); err != nil {
		return nil, err
	}
	defer l.Close() //nolint:errcheck // nobody is there any more
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		io.Copy(c, c) //nolint:errcheck // until the other side ends
		c.Close()     //nolint:errcheck // likewise
	}()
	c, err := p.ClientDial(ctx, region, 200, l.Addr().String())
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // the samples are here
	var out []float64
	buf := make([]byte, 1)
	for {
		begun := time.Now()
		if _, err := c.Write(buf); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return nil, err
		}
		out = append(out, float64(time.Since(begun).Microseconds())/1000)
		select {
		case <-stop:
			return out, nil
		case <-time.After(every):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// quantiles says where samples lie.
func quantiles(v []float64) string {
	return fmt.Sprintf("n=%d p50 %.2f p90 %.2f p99 %.2f max %.2f", len(v), stat.Quantile(v, 0.5), stat.Quantile(v, 0.9), stat.Quantile(v, 0.99), stat.Quantile(v, 1))
}

// nodeOf is the server of a machine, where each region has one server.
func nodeOf(p *planet.Planet, m api.Machine) *lab.Node {
	ns := p.Nodes()
	i := slices.IndexFunc(ns, func(n *lab.Node) bool { return n.Region == m.Region })
	if i < 0 {
		return nil
	}
	return ns[i]
}
