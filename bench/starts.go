package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/bench/bareqemu"
	"github.com/volant-edge/volant/bench/stat"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/kernel"
	"github.com/volant-edge/volant/volanttest/live"
)

const barePeer = "bare QEMU script"

// bare makes a runner of the script with the kernel, image and arguments that the platform uses.
func (b *bench) bare(ctx context.Context, name string, port int, fn func(*bareqemu.Runner) error) error {
	return temp(func(dir string) (err error) {
		k, err := kernel.Load(filepath.Join(b.build, "kernel"))
		if err != nil {
			return err
		}
		store, err := image.Open(filepath.Join(dir, "images"), image.Config{})
		if err != nil {
			return err
		}
		digest, err := store.Import(ctx, b.archive(name), nil)
		if err != nil {
			return err
		}
		root, err := store.Rootfs(ctx, digest)
		if err != nil {
			return err
		}
		scratch := filepath.Join(dir, "scratch.img")
		if err := store.Scratch(ctx, scratch, 8192); err != nil {
			return err
		}
		env := map[string]string{}
		for _, kv := range root.Config.Env {
			key, value, _ := strings.Cut(kv, "=")
			env[key] = value
		}
		work := filepath.Join(dir, "bare")
		if err := os.Mkdir(work, 0o700); err != nil {
			return err
		}
		r, err := bareqemu.New(ctx, bareqemu.Config{
			Dir: work, ShmDir: "/dev/shm", Vmlinux: k.Vmlinux, Initrd: k.Initrd, RootFS: root.Path, Scratch: scratch,
			Args: append(root.Config.Entrypoint, root.Config.Cmd...), Env: env,
			User: root.Config.User, WorkDir: root.Config.WorkingDir, Port: port, Say: request,
			Tap:     fmt.Sprintf("bare%d", os.Getpid()%100_000),
			Gateway: netip.MustParseAddr("172.30.254.1"), Guest: netip.MustParseAddr("172.30.254.2"),
			MAC: net.HardwareAddr{0x52, 0x54, 0, 0x77, 1, 2},
		})
		defer func() { err = errors.Join(err, r.Close()) }()
		if err != nil {
			return err
		}
		return fn(r)
	})
}

// pairs takes n samples of ours and of the script's in turn.
func pairs(ctx context.Context, n int, ours, bare func(context.Context) (time.Duration, error)) (us, them []float64, err error) {
	var a, b []time.Duration
	for i := -1; i < n; i++ { // the first warms up
		x, err := ours(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("sample %d: %w", i+1, err)
		}
		y, err := bare(ctx)
		if err != nil {
			return nil, nil, fmt.Errorf("sample %d of the script: %w", i+1, err)
		}
		if i >= 0 {
			a, b = append(a, x), append(b, y)
		}
	}
	return stat.Millis(a), stat.Millis(b), nil
}

func firstTemplate(ctx context.Context, b *bench) ([]Row, error) {
	return firsts(ctx, b, "first_start_template", b.size(30, 3), 900, "",
		func(r *bareqemu.Runner) func(context.Context) (time.Duration, error) { return r.Template })
}

func firstCold(ctx context.Context, b *bench) ([]Row, error) {
	return firsts(ctx, b, "first_start_cold", b.size(30, 3), 2800, "no_templates = true",
		func(r *bareqemu.Runner) func(context.Context) (time.Duration, error) { return r.Cold })
}

// firsts measures first starts of nginx: there is no machine, and a connection comes.
func firsts(ctx context.Context, b *bench, name string, n int, reach float64, host string,
	script func(*bareqemu.Runner) func(context.Context) (time.Duration, error),
) ([]Row, error) {
	var us, them []float64
	err := b.server(ctx, func(s *live.Server) error {
		ip, err := s.Deploy(ctx, "first", b.archive("nginx"), config("first", 80, "", "min = 0\nmax = 1"))
		if err != nil {
			return err
		}
		if host == "" {
			if err := templateReady(ctx, s); err != nil {
				return err
			}
		}
		return b.bare(ctx, "nginx", 80, func(r *bareqemu.Runner) (err error) {
			us, them, err = pairs(ctx, n, func(ctx context.Context) (time.Duration, error) {
				took, err := ask(ctx, net.JoinHostPort(ip, "80"), request)
				return took, errors.Join(err, destroyAll(ctx, s, "first"))
			}, script(r))
			return err
		})
	}, func(o *live.Options) { o.Host = host })
	if err != nil {
		return nil, err
	}
	ratios := stat.Ratios(us, them)
	return []Row{
		Row{
			Name: name, Value: stat.Median(us), Unit: "ms", Peer: barePeer, PeerValue: stat.Median(them), Spread: stat.Spread(us, "%.0f"),
			Note: "no machine, then a connection to nginx: to its first byte, p50",
		}.atMost(reach),
		Row{
			Name: name + "_ratio", Value: stat.Median(ratios), Unit: "x", Peer: barePeer, PeerValue: 1, Spread: stat.Spread(ratios, "%.2f"),
		}.atMost(1.25),
	}, nil
}

// destroyAll destroys an app's machines and waits until nothing of them is left.
func destroyAll(ctx context.Context, s *live.Server, app string) error {
	ms, err := s.API.Machines(ctx, app)
	if err != nil {
		return err
	}
	for _, m := range ms {
		if err := s.API.DestroyMachine(ctx, app, m.ID, true); err != nil {
			return err
		}
	}
	for _, m := range ms {
		for range 1000 {
			if len(processesOf(s, m.ID)) == 0 {
				break
			}
			if err := pause(ctx, 5*time.Millisecond); err != nil {
				return err
			}
		}
	}
	return until(ctx, s, app, "all machines are destroyed", func(ms []api.Machine) bool {
		for _, m := range ms {
			if m.State != "destroyed" {
				return false
			}
		}
		return true
	})
}

// processesOf are the processes that bear a machine.
func processesOf(s *live.Server, id string) []string {
	var out []string
	for _, p := range live.Processes(s.Dir) {
		if strings.Contains(p, id) {
			out = append(out, p)
		}
	}
	return out
}

// wakes measures wakes of a suspended nginx.
func wakes(ctx context.Context, b *bench) ([]Row, error) {
	var us, them []float64
	err := b.server(ctx, func(s *live.Server) error {
		ip, err := s.Deploy(ctx, "wake", b.archive("nginx"), config("wake", 80, "", "min = 0\nmax = 1"))
		if err != nil {
			return err
		}
		addr := net.JoinHostPort(ip, "80")
		if _, err := ask(ctx, addr, request); err != nil {
			return err
		}
		if err := suspend(ctx, s, "wake"); err != nil {
			return err
		}
		return b.bare(ctx, "nginx", 80, func(r *bareqemu.Runner) (err error) {
			us, them, err = pairs(ctx, b.size(100, 5), func(ctx context.Context) (time.Duration, error) {
				took, err := ask(ctx, addr, request)
				return took, errors.Join(err, suspend(ctx, s, "wake"))
			}, r.Wake)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	ratios := stat.Ratios(us, them)
	return []Row{
		Row{
			Name: "wake_p50", Value: stat.Median(us), Unit: "ms", Peer: barePeer, PeerValue: stat.Median(them), Spread: stat.Spread(us, "%.0f"),
			Note: "a connection to a suspended nginx: to its first byte",
		}.atMost(250),
		Row{
			Name: "wake_p99", Value: stat.Quantile(us, 0.99), Unit: "ms", Peer: barePeer, PeerValue: stat.Quantile(them, 0.99),
			Spread: fmt.Sprintf("max %.0f", stat.Quantile(us, 1)),
		}.atMost(600),
		Row{
			Name: "wake_ratio", Value: stat.Median(ratios), Unit: "x", Peer: barePeer, PeerValue: 1, Spread: stat.Spread(ratios, "%.2f"),
		}.atMost(1.25),
	}, nil
}
