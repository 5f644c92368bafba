// Package planet is a lab as tests and benchmarks use it: apps are deployed to it, and clients of its regions come.
//
// # Not here
//
// The network: package lab. The tests: e2e and bench.
package planet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/client"
	"github.com/volant-edge/volant/lab"
)

// Patience bounds waits for what takes a few seconds on a machine that is not busy.
const Patience = time.Minute

// Planet is a lab and the API of its first server.
type Planet struct {
	*lab.Lab
	API *client.Client
	dir string
}

// Up builds a lab in a directory of its own out of what the build directory has: the binary, and the guests' kernel. What
// it returns is to be closed, also beside an error.
func Up(ctx context.Context, build string, c lab.Config) (*Planet, error) {
	c.Bin, c.Kernel = filepath.Join(build, "volant"), filepath.Join(build, "kernel")
	var err error
	if c.Dir, err = os.MkdirTemp("", "vp-"); err != nil {
		return nil, err
	}
	p := &Planet{dir: c.Dir}
	if p.Lab, err = lab.Up(ctx, c); err != nil {
		if p.Lab, _ = lab.Open(c.Dir); p.Lab == nil { // nothing was built
			return nil, errors.Join(err, os.RemoveAll(c.Dir))
		}
		return p, err
	}
	p.API, err = p.Node(0).API()
	return p, err
}

// Close takes the lab away.
func (p *Planet) Close() error {
	if p.API != nil {
		p.API.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return errors.Join(p.Down(ctx), os.RemoveAll(p.dir))
}

// Logs are the ends of the servers' logs.
func (p *Planet) Logs() string {
	var b strings.Builder
	for _, n := range p.Nodes() {
		log := n.Log()
		fmt.Fprintf(&b, "%s:\n%s\n", n.Name, log[max(0, len(log)-4000):])
	}
	return b.String()
}

// Volant runs a verb against a server, as a user would.
func (p *Planet) Volant(ctx context.Context, n *lab.Node, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, p.Config().Bin, append([]string{"--data", n.Data()}, args...)...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("volant %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Deploy brings an app of a config into service and returns its IPv4 address.
func (p *Planet) Deploy(ctx context.Context, app, image, config string) (netip.Addr, error) {
	file := filepath.Join(p.dir, app+".toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return netip.Addr{}, err
	}
	if _, err := p.API.CreateApp(ctx, app, ""); err != nil {
		return netip.Addr{}, err
	}
	if _, err := p.Volant(ctx, p.Node(0), "deploy", "--app", app, "--image", image, "--config", file); err != nil {
		return netip.Addr{}, err
	}
	a, err := p.API.App(ctx, app)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, s := range a.Addresses {
		if ip, err := netip.ParseAddr(s); err == nil && ip.Is4() {
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("app %s has no IPv4 address: %v", app, a.Addresses)
}

// Until waits for a condition of an app's machines.
func (p *Planet) Until(ctx context.Context, app, what string, ok func([]api.Machine) bool) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	return p.UntilDone(ctx, app, what, ok)
}

// UntilDone is Until, for as long as ctx allows.
func (p *Planet) UntilDone(ctx context.Context, app, what string, ok func([]api.Machine) bool) error {
	for {
		ms, err := p.API.Machines(ctx, app)
		if err == nil && ok(ms) {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("this did not happen: %s; machines: %s (%w)", what, States(ms), err)
		}
	}
}

// States are machines in a line.
func States(ms []api.Machine) string {
	var out []string
	for _, m := range ms {
		out = append(out, fmt.Sprintf("%s in %s %s, %d connections (%s)", m.ID, m.Region, m.State, m.Slots, m.Reason))
	}
	return strings.Join(out, "; ")
}

// Count is how many machines are in a state.
func Count(ms []api.Machine, state string) int {
	n := 0
	for _, m := range ms {
		if m.State == state {
			n++
		}
	}
	return n
}

// Greet connects as the region's client i, says a command to the test server and has the first byte of its answer. The
// connection stays open, also beside an error if there is one.
func (p *Planet) Greet(ctx context.Context, region string, i int, addr netip.AddrPort, command string, within time.Duration) (net.Conn, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	begun := time.Now()
	c, err := p.ClientDial(ctx, region, i, addr.String())
	if err != nil {
		return nil, 0, err
	}
	if err := c.SetDeadline(begun.Add(within)); err != nil {
		return c, 0, err
	}
	if _, err := io.WriteString(c, command+"\n"); err != nil {
		return c, 0, err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return c, time.Since(begun), err
}

// Ask is one client's visit: how long it took until the first byte of the answer was there.
func (p *Planet) Ask(ctx context.Context, region string, i int, addr netip.AddrPort, within time.Duration) (time.Duration, error) {
	c, took, err := p.Greet(ctx, region, i, addr, "hostname", within)
	if c != nil {
		c.Close() //nolint:errcheck // it has its answer
	}
	return took, err
}

// Visit is one of many.
type Visit struct {
	At   time.Duration // of its begin, since that of all
	Took time.Duration
	Err  error
}

// Visits are n clients of a region who come at a steady rate, each with another address, and stay until all have their
// answer or, if stay is false, no longer than that.
func (p *Planet) Visits(ctx context.Context, region string, addr netip.AddrPort, rate, n int, stay bool, within time.Duration) []Visit {
	out := make([]Visit, n)
	var all, there sync.WaitGroup
	leave := make(chan struct{})
	command := "hostname"
	if stay {
		command = "hold"
	}
	begun := time.Now()
	for i := range n {
		select {
		case <-time.After(time.Until(begun.Add(time.Duration(i) * time.Second / time.Duration(rate)))):
		case <-ctx.Done():
			n = i
		}
		if ctx.Err() != nil {
			break
		}
		there.Add(1)
		all.Go(func() {
			v := &out[i]
			v.At = time.Since(begun)
			var c net.Conn
			c, v.Took, v.Err = p.Greet(ctx, region, i, addr, command, within)
			there.Done()
			if c == nil {
				return
			}
			if stay && v.Err == nil {
				<-leave
			}
			c.Close() //nolint:errcheck // it has its answer
		})
	}
	there.Wait()
	close(leave)
	all.Wait()
	return out[:n]
}
