package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/bench/stat"
	"github.com/volant-edge/volant/lab"
	"github.com/volant-edge/volant/volanttest/planet"
)

// far is a planet whose clients and whose machine are a wire apart: an edge in "near", a host in "far".
func far(oneWay time.Duration) lab.Config {
	return lab.Config{
		Regions: []string{"near", "far"}, Engine: "fake", Delays: map[string]time.Duration{"near-far": oneWay},
		Roles: map[string][]string{"near-1": {volant.RoleEdge, volant.RoleControl}, "far-1": {volant.RoleHost}},
	}
}

// service is a config of the test server with one machine awake and room for all that come.
func service(app string, port int) string {
	return config(app, port, concurrency(5000, 5000), "min = 1\nmax = 1\nidle_timeout = \"10m\"")
}

// withFar runs fn on such a planet, with the address of an app whose machine serves.
func withFar(ctx context.Context, b *bench, oneWay time.Duration, port int, fn func(p *planet.Planet, addr netip.AddrPort) error) error {
	return b.planet(ctx, far(oneWay), func(p *planet.Planet) error {
		addr, err := b.app(ctx, p, "far", service("far", port), port)
		if err != nil {
			return err
		}
		if err := p.Until(ctx, "far", "the machine serves", inState("started")); err != nil {
			return err
		}
		if _, err := p.Ask(ctx, "near", 0, addr, patience); err != nil {
			return fmt.Errorf("the first connection: %w", err)
		}
		return fn(p, addr)
	})
}

// connects measures what the backhaul adds to a connect and the first byte, over the round trip of the bare wire.
func connects(name string, oneWay time.Duration, loss float64) func(context.Context, *bench) ([]Row, error) {
	return func(ctx context.Context, b *bench) (rows []Row, err error) {
		err = withFar(ctx, b, oneWay, guestPort, func(p *planet.Planet, addr netip.AddrPort) error {
			const rate = 200
			p.Visits(ctx, "near", addr, rate, rate, false, 10*time.Second) // warms up
			stop := make(chan struct{})
			var bare []float64
			done := make(chan error, 1)
			go func() {
				var err error
				bare, err = wire(ctx, p, "near", p.Node(1), 50*time.Millisecond, stop)
				done <- err
			}()
			if err := pause(ctx, 500*time.Millisecond); err != nil { // the bare one is measured without loss
				return err
			}
			if err := p.Loss(ctx, "near", "far", loss); err != nil {
				return err
			}
			if loss > 0 {
				close(stop)
				if err := <-done; err != nil {
					return err
				}
			}
			vs := p.Visits(ctx, "near", addr, rate, b.size(4000, 400), false, 10*time.Second)
			if loss == 0 {
				close(stop)
				if err := <-done; err != nil {
					return err
				}
			}
			rows, err = connectRows(name, vs, bare, loss)
			return err
		})
		return rows, err
	}
}

func connectRows(name string, vs []planet.Visit, bare []float64, loss float64) ([]Row, error) {
	took, failed, first := times(vs)
	if failed > 0 {
		return nil, fmt.Errorf("%d of %d connections failed, the first: %w", failed, len(vs), first)
	}
	rtt := stat.Median(bare)
	note := fmt.Sprintf("200 connections a second; connect and first byte in ms: %s; a byte and back over the bare wire: %s", quantiles(took), quantiles(bare))
	p50 := Row{Name: name, Value: stat.Quantile(took, 0.5) - rtt, Unit: "ms", Peer: "round trip of the wire", PeerValue: rtt, Note: note}
	p99 := Row{Name: name + "_p99", Value: stat.Quantile(took, 0.99) - rtt, Unit: "ms", Peer: "round trip of the wire", PeerValue: rtt}
	if loss > 0 {
		p99.Name, p99.Note = name, note
		return []Row{p99.atMost(120)}, nil
	}
	return []Row{p50.atMost(1.5), p99.atMost(5)}, nil
}

// bulkPort is where the measure's own source of bytes listens on the machines' addresses.
const bulkPort = 9009

// bulk compares how fast bytes come through edge, tunnel and host with how fast iperf3 gets them through the same tunnel.
func bulk(ctx context.Context, b *bench) (rows []Row, err error) {
	if _, err := exec.LookPath("iperf3"); err != nil {
		return nil, fmt.Errorf("the peer: %w", err)
	}
	rounds, length := b.size(10, 2), 2*time.Second
	var ours, theirs []float64
	err = b.planet(ctx, far(0), func(p *planet.Planet) error {
		source, err := source(p, "far-1-m")
		if err != nil {
			return err
		}
		defer source.Close() //nolint:errcheck // nobody asks any more
		addr, err := b.app(ctx, p, "far", service("far", bulkPort), bulkPort)
		if err != nil {
			return err
		}
		if err := p.Until(ctx, "far", "the machine serves", inState("started")); err != nil {
			return err
		}
		for i := -1; i < rounds; i++ { // the first warms up
			mine, err := download(ctx, p, addr, length)
			if err != nil {
				return err
			}
			peer, err := iperf(ctx, p, length)
			if err != nil {
				return err
			}
			if i >= 0 {
				ours, theirs = append(ours, mine), append(theirs, peer)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	ratios := stat.Ratios(ours, theirs)
	return []Row{Row{
		Name: "backhaul_bulk", Value: stat.Median(ratios), Unit: "of iperf3", Peer: "iperf3, Gbit/s", PeerValue: stat.Median(theirs),
		Spread: stat.Spread(ratios, "%.2f"), Note: fmt.Sprintf("one stream to a client, %.2f Gbit/s through edge, tunnel and host", stat.Median(ours)),
	}.atLeast(0.9)}, nil
}

// source sends zeros to whoever connects, as iperf3 does.
func source(p *planet.Planet, node string) (net.Listener, error) {
	var l net.Listener
	err := p.Inside(node, func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort("::", strconv.Itoa(bulkPort)))
		return err
	})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close() //nolint:errcheck // the other side has ended
				for buf := make([]byte, 128<<10); ; {
					if _, err := c.Write(buf); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l, nil
}

// download is what a client of "near" gets, in Gbit/s.
func download(ctx context.Context, p *planet.Planet, addr netip.AddrPort, length time.Duration) (float64, error) {
	c, err := p.ClientDial(ctx, "near", 1, addr.String())
	if err != nil {
		return 0, err
	}
	defer c.Close() //nolint:errcheck // enough came
	begun := time.Now()
	if err := c.SetDeadline(begun.Add(length)); err != nil {
		return 0, err
	}
	n := 0
	for buf := make([]byte, 128<<10); ; {
		k, err := c.Read(buf)
		n += k
		if took := time.Since(begun); took >= length {
			return float64(n) * 8 / 1e9 / took.Seconds(), nil
		}
		if err != nil {
			return 0, fmt.Errorf("after %d bytes: %w", n, err)
		}
	}
}

// iperf is what iperf3 on the edge gets from the far server through the tunnel, in Gbit/s.
func iperf(ctx context.Context, p *planet.Planet, length time.Duration) (float64, error) {
	at := volant.MeshAddr(p.Node(1).ID()).String()
	server := exec.Command("iperf3", "-s", "-1", "-B", at)
	if err := p.Inside("far-1", server.Start); err != nil {
		return 0, err
	}
	defer server.Wait()         //nolint:errcheck // what it measured is the client's
	defer server.Process.Kill() //nolint:errcheck // it may have ended
	var out struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
		Error string `json:"error"`
	}
	for try := 0; ; try++ { // until the other one listens
		cmd := exec.Command("iperf3", "-c", at, "-R", "-J", "-t", strconv.Itoa(int(length.Seconds())))
		var text bytes.Buffer
		cmd.Stdout, cmd.Stderr = &text, &text
		err := p.Exec(ctx, "near-1", cmd)
		if jerr := json.Unmarshal(text.Bytes(), &out); jerr != nil {
			return 0, fmt.Errorf("iperf3: %w: %.300s", errors.Join(err, jerr), text.String())
		}
		if out.Error == "" && err == nil {
			break
		}
		if try == 20 {
			return 0, fmt.Errorf("iperf3: %s (%w)", out.Error, err)
		}
		out.Error = ""
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return out.End.Received.Rate / 1e9, nil
}
