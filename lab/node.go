package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/client"
	"github.com/volant-edge/volant/internal/atomicfile"
)

// Node is a server of a lab.
type Node struct {
	nodePlan
	lab *Lab
}

// Nodes are the lab's servers, by region.
func (l *Lab) Nodes() []*Node {
	out := make([]*Node, 0, len(l.plan.Nodes))
	for _, n := range l.plan.Nodes {
		out = append(out, &Node{n, l})
	}
	return out
}

// Node is the i-th server, from 0.
func (l *Lab) Node(i int) *Node { return &Node{l.plan.Nodes[i], l} }

// Named is the server with that name.
func (l *Lab) Named(name string) (*Node, error) {
	n, ok := l.plan.node(name)
	if !ok {
		return nil, l.plan.unknown(name)
	}
	return &Node{n, l}, nil
}

// Data is the node's data directory.
func (n *Node) Data() string { return n.lab.file(n.Name) }

// ID is the node's ID, "" before its first start.
func (n *Node) ID() volant.NodeID {
	b, err := atomicfile.ReadChecked(filepath.Join(n.Data(), "node-id"), 64)
	if err != nil {
		return ""
	}
	return volant.NodeID(b)
}

// API is a client of the node's API with the root token, over the node's socket.
func (n *Node) API() (*client.Client, error) {
	addr, err := os.ReadFile(filepath.Join(n.Data(), "api.addr"))
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", n.Name, err)
	}
	token, err := os.ReadFile(filepath.Join(n.Data(), "root.token"))
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", n.Name, err)
	}
	return client.NewSocket(n.socket(), strings.TrimSpace(string(addr)), strings.TrimSpace(string(token))), nil
}

func (n *Node) socket() string { return filepath.Join(n.Data(), "run", "api.sock") }

// Log is what the node's server has logged.
func (n *Node) Log() string {
	b, err := os.ReadFile(n.lab.file(n.log()))
	if err != nil {
		return ""
	}
	return string(b)
}

func (n *Node) log() string { return n.Name + ".log" }

// Processes are those of the node: in its namespace, and what answers for its machines.
func (n *Node) Processes() ([]Process, error) {
	return processesIn(n.lab.plan.nodeNS(n.Name), n.lab.plan.machineNS(n.Name))
}

// backendNet is where machines of the fake engine are, one address each; see package node.
const backendNet = "fd00:9::/64"

// serverConfig is the text of a node's configuration.
func (l *Lab) serverConfig(n *Node) (string, error) {
	c := l.plan.Config
	host := ""
	if c.Engine == "fake" {
		host = fmt.Sprintf("fake_backend = %q\n", backendNet)
	}
	total, err := memoryMB()
	if err != nil {
		return "", err
	}
	// Each offers its share of what this machine has; the rest is for the servers themselves.
	share := max(1024, total*3/4/len(l.plan.Nodes))
	mesh, first := "", l.plan.Nodes[0]
	if len(l.plan.Nodes) > 1 {
		mesh = fmt.Sprintf("[mesh]\nendpoint = %q\n", netip.AddrPortFrom(n.Addr4, volant.MeshPort))
		if n.Name != first.Name {
			mesh += fmt.Sprintf("[join]\nserver = %q\ntoken_file = %q\n", netip.AddrPortFrom(first.Addr4, volant.MeshPort), l.file(tokenFile))
		}
	}
	return fmt.Sprintf("data = %q\nname = %q\nregion = %q\nroles = [\"%s\"]\n%s\n%s[edge]\npool4 = %q\npool6 = %q\n[host]\nengine = %q\nkernel_dir = %q\nmemory_reserve_mb = %d\n%s%s\n",
		n.Data(), n.Name, n.Region, strings.Join(l.plan.roles(n.nodePlan), `", "`), c.Server, mesh, c.Pool4, c.Pool6, c.Engine, c.Kernel, max(0, total-share), host, c.Host), nil
}

// whole says what is missing of the cluster as a node knows it, or nil.
func (l *Lab) whole(n *Node, known []api.Node) error {
	if len(known) != len(l.plan.Nodes) {
		return fmt.Errorf("node %s knows %d of %d nodes", n.Name, len(known), len(l.plan.Nodes))
	}
	for _, k := range known {
		if slices.Contains(k.Roles, volant.RoleControl) && k.Control != "member" {
			return fmt.Errorf("node %s is no member of the intent's store yet: %s", k.Name, k.Control)
		}
		if k.State != "ok" {
			return fmt.Errorf("node %s is %s to node %s", k.Name, k.State, n.Name)
		}
	}
	return nil
}

func memoryMB() (int, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	var kb int
	if _, err := fmt.Sscanf(string(b), "MemTotal: %d kB", &kb); err != nil {
		return 0, fmt.Errorf("/proc/meminfo: %w", err)
	}
	return kb >> 10, nil
}

// startAll starts the first node, and the others by a token that it gives.
func (l *Lab) startAll(ctx context.Context) error {
	nodes := l.Nodes()
	if err := nodes[0].start(ctx); err != nil {
		return err
	}
	if len(nodes) == 1 {
		return nil
	}
	if err := l.welcome(ctx, nodes[0], len(nodes)-1); err != nil {
		return err
	}
	g, all := errgroup.WithContext(ctx)
	g.SetLimit(2) // a start is work for the processor
	for _, n := range nodes[1:] {
		g.Go(func() error { return n.start(all) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return l.together(ctx)
}

// welcome describes the regions and makes a token for the other nodes.
func (l *Lab) welcome(ctx context.Context, first *Node, others int) error {
	c, err := first.API()
	if err != nil {
		return err
	}
	defer c.Close()
	for _, r := range l.plan.Regions {
		if p, ok := PlaceOf(r); ok {
			if _, err := c.SetRegion(ctx, r, api.SetRegion{Name: p.Name, Latitude: p.Lat, Longitude: p.Long}); err != nil {
				return fmt.Errorf("describe region %s: %w", r, err)
			}
		}
	}
	t, err := c.CreateJoinToken(ctx, api.CreateJoinToken{
		Name: "lab", Roles: []string{volant.RoleEdge, volant.RoleHost, volant.RoleControl}, Uses: others, TTL: "1h",
	})
	if err != nil {
		return fmt.Errorf("make a join token: %w", err)
	}
	return atomicfile.Write(l.file(tokenFile), []byte(t.Token+"\n"), 0o600)
}

const tokenFile = "join.token"

// together returns when every node knows all of them.
func (l *Lab) together(ctx context.Context) error {
	for _, n := range l.Nodes() {
		err := l.await(ctx, time.Minute, n.log(), nil, func(ctx context.Context) error {
			c, err := n.API()
			if err != nil {
				return err
			}
			defer c.Close()
			known, err := c.Nodes(ctx)
			if err != nil {
				return err
			}
			return l.whole(n, known)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// start starts the node's processes and returns when its API answers.
func (n *Node) start(ctx context.Context) error {
	ended, err := n.launch()
	if err != nil {
		return err
	}
	return n.ready(ctx, ended)
}

// launch starts the node's processes.
func (n *Node) launch() (ended <-chan struct{}, err error) {
	l, ns := n.lab, n.lab.plan.nodeNS(n.Name)
	text, err := l.serverConfig(n)
	if err != nil {
		return nil, err
	}
	config := l.file(n.Name + ".toml")
	if err := atomicfile.Write(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if l.plan.Engine == "fake" {
		if err := n.startBackend(); err != nil {
			return nil, err
		}
	}
	if err := os.Remove(filepath.Join(n.Data(), "api.addr")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return l.spawn(ns, n.log(), l.plan.Env, l.plan.Bin, "server", "--config", config, "--log-level", "debug")
}

// ready returns when the node's API answers and its proxy, if it has one, does what the node says.
func (n *Node) ready(ctx context.Context, ended <-chan struct{}) error {
	if err := n.lab.await(ctx, 90*time.Second, n.log(), ended, n.answers); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	return nil
}

// answers says why the node is not ready, or nil.
func (n *Node) answers(ctx context.Context) error {
	c, err := n.API()
	if err != nil {
		return err
	}
	defer c.Close()
	asked, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	known, err := c.Nodes(asked)
	if err != nil && !slices.Contains(n.lab.plan.roles(n.nodePlan), volant.RoleControl) {
		// It asks those with control, which may all be dead; what it does without them is its proxy's.
		p, perr := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(n.Data(), "run", "proxy.sock"))
		if perr == nil {
			return p.Close()
		}
	}
	for _, k := range known {
		if k.ID == string(n.ID()) && k.Proxy != "running" && k.Proxy != "" {
			return fmt.Errorf("the proxy: %s", k.Proxy)
		}
	}
	return err
}

// startBackend starts what answers for the machines of the fake engine.
func (n *Node) startBackend() error {
	ps, err := n.Processes()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(ps, func(p Process) bool { return p.role() == "backend" }) {
		return nil // it outlived the server, as machines do
	}
	_, err = n.lab.spawn(n.lab.plan.machineNS(n.Name), n.Name+".backend.log", nil, n.lab.plan.Bin, "lab", "backend", "--region", n.Region, "--node", n.Name)
	return err
}

// Kill ends a node as a power cut does: first nothing of it is heard any more, then all its processes are gone.
func (l *Lab) Kill(ctx context.Context, name string) error {
	n, err := l.Named(name)
	if err != nil {
		return err
	}
	return l.change(ctx, func(s *state) error {
		if !slices.Contains(s.Faults.Dead, name) {
			s.Faults.Dead = append(s.Faults.Dead, name)
		}
		if err := s.save(); err != nil {
			return err
		}
		if err := l.act(ctx, s); err != nil {
			return err
		}
		_, err := end(ctx, n.Processes)
		return err
	})
}

// Start starts a node that was killed, or whose server has ended. One that was killed gets a namespace made anew, as a
// server has nothing in its memory after a power cut.
func (l *Lab) Start(ctx context.Context, name string) error {
	n, err := l.Named(name)
	if err != nil {
		return err
	}
	var ended <-chan struct{}
	err = l.change(ctx, func(s *state) error {
		ps, err := n.Processes()
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(ps, func(p Process) bool { return p.isServer() }); i >= 0 {
			return volant.Errorf(volant.ErrExists, "the server of %s runs, as process %d", name, ps[i].PID)
		}
		s.Faults.Away = append(without(s.Faults.Away, name), name)
		if slices.Contains(s.Faults.Dead, name) {
			if err := l.reboot(ctx, n); err != nil {
				return err
			}
			s.Faults.Dead = without(s.Faults.Dead, name)
			if err := l.act(ctx, s); err != nil {
				return err
			}
		}
		if err := s.save(); err != nil {
			return err
		}
		ended, err = n.launch()
		return err
	})
	if err != nil {
		return err
	}
	if err := n.ready(ctx, ended); err != nil {
		return err
	}
	return l.change(ctx, func(s *state) error {
		s.Faults.Away = without(s.Faults.Away, name)
		return l.act(ctx, s)
	})
}

func without(names []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name })
}

func (p Process) isServer() bool { return p.role() == "server" }

// role is what a process of a node is: server, proxy, mesh, backend, or "" for machines and what users run.
func (p Process) role() string {
	switch {
	case len(p.args) < 3:
		return ""
	case slices.Contains([]string{"server", "proxy", "mesh"}, p.args[1]):
		return p.args[1]
	case p.args[1] == "lab" && p.args[2] == "backend":
		return "backend"
	}
	return ""
}

// KillOnly ends one process of a node by SIGKILL and leaves the others: server, proxy, mesh or backend.
func (l *Lab) KillOnly(ctx context.Context, name, role string) error {
	n, err := l.Named(name)
	if err != nil {
		return err
	}
	if !slices.Contains([]string{"server", "proxy", "mesh", "backend"}, role) {
		return volant.Invalidf("process %q: use server, proxy, mesh or backend", role)
	}
	ps, err := n.Processes()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(ps, func(p Process) bool { return p.role() == role })
	if i < 0 {
		return volant.Errorf(volant.ErrNotFound, "%s has no process %s", name, role).WithRemedy("see `volant lab status`")
	}
	_, err = end(ctx, func() ([]Process, error) {
		return processes(func(p Process) bool { return p.PID == ps[i].PID && p.space == ps[i].space })
	})
	return err
}

// reboot makes the node's namespace anew.
func (l *Lab) reboot(ctx context.Context, n *Node) error {
	p := &l.plan
	ns := p.nodeNS(n.Name)
	if _, err := end(ctx, n.Processes); err != nil {
		return err
	}
	// The namespace lives on without a name while the kernel still has connections in it whose peers were never told.
	gone := ip(ctx, p.routerNS(n.Region), []string{"link del " + n.Link}) // perhaps by an attempt that was broken off
	if err := delNS(ctx, ns); err != nil {
		return errors.Join(err, gone)
	}
	if p.fake() {
		if err := delNS(ctx, p.machineNS(n.Name)); err != nil {
			return err
		}
	}
	if err := l.addServer(ctx, n.nodePlan); err != nil {
		return err
	}
	if err := ip(ctx, p.routerNS(n.Region), p.linkIP(n.nodePlan)); err != nil {
		return err
	}
	if err := l.configServer(ctx, n.nodePlan); err != nil {
		return err
	}
	return settled(ctx, ns)
}
