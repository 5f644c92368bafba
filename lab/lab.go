package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/kernel"
	"github.com/volant-edge/volant/lab/wire"
)

// Lab is a planet on this machine. Its methods may be called from several goroutines, and beside `volant lab`.
type Lab struct {
	plan plan
}

// Up builds a lab and starts its nodes. What was built when it fails stays, for a look; Down takes it away.
func Up(ctx context.Context, c Config) (*Lab, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := Check(); err != nil {
		return nil, err
	}
	if err := c.settle(); err != nil {
		return nil, err
	}
	l := &Lab{plan: newPlan(c)}
	if err := l.plan.check(); err != nil {
		return nil, err
	}
	if err := l.claim(); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, c.Dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s := &state{Config: c}
	if err := s.save(); err != nil {
		return nil, err
	}
	if err := l.build(ctx, s); err != nil {
		return nil, fmt.Errorf("build the lab: %w", err)
	}
	if !c.Bare {
		if err := l.startAll(ctx); err != nil {
			return nil, fmt.Errorf("start the lab's nodes: %w", err)
		}
	}
	s.Ready = true
	return l, s.save()
}

// settle finds out what the machine decides.
func (c *Config) settle() (err error) {
	if c.Bin == "" {
		if c.Bin, err = os.Executable(); err != nil {
			return err
		}
	}
	for _, p := range []*string{&c.Bin, &c.Kernel, &c.Dir} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	if len(c.Dir) > 60 {
		return volant.Invalidf("directory %s: sockets below it would have paths too long for the kernel", c.Dir).WithRemedy("use a shorter one")
	}
	if c.Engine != "auto" || c.Bare {
		return nil
	}
	c.Engine = "fake"
	if _, err := kernel.Load(c.Kernel); err == nil {
		if _, err := find("qemu-system-x86_64"); err == nil {
			c.Engine = "qemu"
		}
	}
	return nil
}

// claim makes the lab's directory, unless it or its name is taken.
func (l *Lab) claim() error {
	c := l.plan.Config
	if _, err := os.Stat(filepath.Join(c.Dir, stateFile)); err == nil {
		return volant.Errorf(volant.ErrExists, "the lab %s is there already, in %s", c.Name, c.Dir).
			WithRemedy("take it down with `volant lab down`, or build another with --name and --dir")
	}
	left, err := namespaces(l.plan.prefix())
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return volant.Errorf(volant.ErrExists, "namespaces of a lab %s are there (%s)", c.Name, left[0]).
			WithRemedy("take it down with `volant lab down --name %s`, or build another with --name", c.Name)
	}
	if entries, err := os.ReadDir(c.Dir); err == nil && slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() != "lock" }) {
		return volant.Errorf(volant.ErrExists, "%s is not empty", c.Dir).WithRemedy("name a new or empty directory with --dir")
	}
	return os.MkdirAll(c.Dir, 0o711)
}

// Open finds a lab that was built before, whole or not.
func Open(dir string) (*Lab, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s, err := loadState(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, none(dir)
	}
	if err != nil {
		return nil, err
	}
	s.Config.Dir = dir
	return &Lab{plan: newPlan(s.Config)}, nil
}

// Config is what the lab was built by, with its defaults filled in.
func (l *Lab) Config() Config { return l.plan.Config }

func (l *Lab) file(name string) string { return filepath.Join(l.plan.Dir, name) }

// build makes the network.
func (l *Lab) build(ctx context.Context, s *state) error {
	p := &l.plan
	if err := os.MkdirAll(netns, 0o755); err != nil {
		return err
	}
	for _, r := range p.Regions {
		if err := addNS(ctx, p.routerNS(r), routing()); err != nil {
			return err
		}
		if err := addNS(ctx, p.clientNS(r), clienting()); err != nil {
			return err
		}
	}
	for _, n := range p.Nodes {
		if err := l.addServer(ctx, n); err != nil {
			return err
		}
	}
	for _, r := range p.Regions {
		if err := ip(ctx, p.routerNS(r), p.regionIP(r)); err != nil {
			return err
		}
		if err := ip(ctx, p.clientNS(r), p.clientIP(r)); err != nil {
			return err
		}
	}
	for _, n := range p.Nodes {
		if err := l.configServer(ctx, n); err != nil {
			return err
		}
	}
	if err := l.plugWires(ctx, s); err != nil {
		return err
	}
	for _, ns := range p.namespaces() {
		if err := settled(ctx, ns); err != nil {
			return err
		}
	}
	return l.act(ctx, s)
}

// addServer makes a server's namespaces.
func (l *Lab) addServer(ctx context.Context, n nodePlan) error {
	p := &l.plan
	if err := addNS(ctx, p.nodeNS(n.Name), plain()); err != nil || !p.fake() {
		return err
	}
	return addNS(ctx, p.machineNS(n.Name), plain())
}

// configServer gives a server that is plugged in its addresses.
func (l *Lab) configServer(ctx context.Context, n nodePlan) error {
	p := &l.plan
	if err := ip(ctx, p.nodeNS(n.Name), p.nodeIP(n)); err != nil || !p.fake() {
		return err
	}
	if err := ip(ctx, p.nodeNS(n.Name), p.machinesIP(n.Name)); err != nil {
		return err
	}
	return ip(ctx, p.machineNS(n.Name), machineIP())
}

// plugWires starts the process of the wires and gives their ends addresses.
func (l *Lab) plugWires(ctx context.Context, s *state) error {
	p := &l.plan
	if len(p.wires()) == 0 {
		return nil
	}
	if err := l.startWires(ctx, s); err != nil {
		return err
	}
	for _, r := range p.Regions {
		if err := ip(ctx, p.routerNS(r), p.wireIP(r)); err != nil {
			return err
		}
	}
	for _, r := range p.Regions {
		if err := settled(ctx, p.routerNS(r)); err != nil {
			return err
		}
	}
	return nil
}

// act makes the network what was done to it: wires, rules and routes.
func (l *Lab) act(ctx context.Context, s *state) error {
	p := newPlan(s.Config)
	g, ctx := errgroup.WithContext(ctx)
	if len(p.wires()) > 0 {
		g.Go(func() error { return l.setWires(ctx, s) })
	}
	for _, r := range p.Regions {
		g.Go(func() error {
			if err := nft(ctx, p.routerNS(r), p.firewall(r, s.Faults)); err != nil {
				return err
			}
			return ip(ctx, p.routerNS(r), p.anycastIP(r, s.Faults))
		})
	}
	return g.Wait()
}

// change does something to the lab and keeps it on record.
func (l *Lab) change(ctx context.Context, do func(*state) error) error {
	unlock, err := lock(ctx, l.plan.Dir)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := loadState(l.plan.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return none(l.plan.Dir)
	}
	if err != nil {
		return err
	}
	if err := do(s); err != nil {
		return err
	}
	return s.save()
}

// Cut keeps two regions or servers from each other, in both directions and in silence; with b empty, a from everything.
func (l *Lab) Cut(ctx context.Context, a, b string) error {
	c := Cut{a, b}
	if err := l.plan.checkCut(c); err != nil {
		return err
	}
	return l.change(ctx, func(s *state) error {
		if !slices.ContainsFunc(s.Faults.Cuts, c.same) {
			s.Faults.Cuts = append(s.Faults.Cuts, c)
		}
		return l.act(ctx, s)
	})
}

// Heal takes a cut back, or all with both names empty. It also starts the process of the wires if that was lost.
func (l *Lab) Heal(ctx context.Context, a, b string) error {
	c := Cut{a, b}
	return l.change(ctx, func(s *state) error {
		switch i := slices.IndexFunc(s.Faults.Cuts, c.same); {
		case a == "":
			s.Faults.Cuts = nil
		case i < 0:
			return volant.Errorf(volant.ErrNotFound, "%s is not cut", c).WithRemedy("see `volant lab status`")
		default:
			s.Faults.Cuts = slices.Delete(s.Faults.Cuts, i, i+1)
		}
		ps, err := wireProcesses(l.plan.Dir)
		if err != nil {
			return err
		}
		if len(ps) == 0 {
			if err := l.plugWires(ctx, s); err != nil {
				return err
			}
		}
		return l.act(ctx, s)
	})
}

// Delay makes the wire between two regions take so long, one way.
func (l *Lab) Delay(ctx context.Context, a, b string, d time.Duration) error {
	w, err := l.plan.checkWire(a, b)
	if err != nil {
		return err
	}
	if d < 0 || d > maxDelay {
		return volant.Invalidf("a delay of %s: use 0 to %s", d, maxDelay)
	}
	return l.change(ctx, func(s *state) error {
		s.Config.Delays[w] = d
		return l.act(ctx, s)
	})
}

// Loss makes the wire between two regions lose that share of its packets, in each direction.
func (l *Lab) Loss(ctx context.Context, a, b string, share float64) error {
	w, err := l.plan.checkWire(a, b)
	if err != nil {
		return err
	}
	if !(share >= 0 && share <= 1) {
		return volant.Invalidf("a loss of %g: use 0%% to 100%%", 100*share)
	}
	return l.change(ctx, func(s *state) error {
		if s.Faults.Loss == nil {
			s.Faults.Loss = map[string]float64{}
		}
		s.Faults.Loss[w] = share
		return l.act(ctx, s)
	})
}

func (l *Lab) setWires(ctx context.Context, s *state) error {
	if err := l.writeWires(s); err != nil {
		return err
	}
	_, err := wire.Apply(ctx, l.file(wireSocket))
	if err != nil {
		return volant.Errorf(volant.ErrUnavailable, "%v", err).WithRemedy("start it again with `volant lab heal`")
	}
	return nil
}
