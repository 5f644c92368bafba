package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	volant "github.com/volant-edge/volant"
)

// netns is where ip keeps the names of namespaces.
const netns = "/run/netns"

// Check says what is missing to build a lab on this machine, or nil.
func Check() error {
	if os.Geteuid() != 0 {
		return volant.Errorf(volant.ErrForbidden, "a lab makes network namespaces, which only root may").WithRemedy("run this as root")
	}
	for tool, debian := range map[string]string{"ip": "iproute2", "nft": "nftables"} {
		if _, err := find(tool); err != nil {
			return volant.Errorf(volant.ErrPrecondition, "a lab needs the program %s", tool).WithRemedy("run: apt-get install --no-install-recommends %s", debian)
		}
	}
	for _, f := range []string{"/dev/net/tun", "/proc/self/ns/net"} {
		if _, err := os.Stat(f); err != nil {
			return volant.Errorf(volant.ErrPrecondition, "this machine has no network namespaces or no taps: %v", err).
				WithRemedy("use a kernel with CONFIG_NET_NS and CONFIG_TUN (modprobe tun); see `volant doctor`")
		}
	}
	return nil
}

// find looks for a tool also where a user's PATH may not.
func find(tool string) (string, error) {
	if path, err := exec.LookPath(tool); err == nil {
		return path, nil
	}
	return exec.LookPath(filepath.Join("/usr/sbin", tool))
}

// run gives ip its input and returns what went wrong in its own words.
func run(ctx context.Context, input string, args ...string) error {
	const tool = "ip"
	path, err := find(tool)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", tool, strings.Join(args, " "), err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// ip runs lines for ip in a namespace.
func ip(ctx context.Context, ns string, lines []string) error {
	return run(ctx, strings.Join(lines, "\n")+"\n", "-n", ns, "-batch", "-")
}

// nft makes the text the namespace's rules.
func nft(ctx context.Context, ns, text string) error {
	return run(ctx, text, "netns", "exec", ns, "nft", "-f", "-")
}

// addNS makes a namespace with its settings.
func addNS(ctx context.Context, ns string, settings map[string]string) error {
	if err := run(ctx, "", "netns", "add", ns); err != nil {
		return err
	}
	return inside(ns, func() error {
		for name, value := range settings {
			path := "/proc/sys/net/" + strings.ReplaceAll(name, ".", "/")
			if err := os.WriteFile(path, []byte(value), 0); err != nil {
				return fmt.Errorf("setting %s: %w", name, err)
			}
		}
		return nil
	})
}

// plain are settings for all namespaces: no address changes by itself, and no path is refused for its direction.
func plain() map[string]string {
	return map[string]string{
		"ipv6.conf.all.accept_dad": "0", "ipv6.conf.default.accept_dad": "0", "ipv6.conf.default.accept_ra": "0",
		"ipv4.conf.all.rp_filter": "0", "ipv4.conf.default.rp_filter": "0",
	}
}

func routing() map[string]string {
	s := plain()
	// by addresses and ports
	maps.Copy(s, map[string]string{
		"ipv4.conf.all.forwarding": "1", "ipv6.conf.all.forwarding": "1",
		"ipv4.fib_multipath_hash_policy": "1", "ipv6.fib_multipath_hash_policy": "1",
	})
	return s
}

// clienting lets a client bind each address of its ranges.
func clienting() map[string]string {
	s := plain()
	s["ipv4.ip_nonlocal_bind"], s["ipv6.ip_nonlocal_bind"] = "1", "1"
	s["ipv4.ip_local_port_range"] = "10000 65000"
	s["ipv4.tcp_tw_reuse"] = "1"
	return s
}

// namespaces lists those whose name begins so.
func namespaces(prefix string) ([]string, error) {
	entries, err := os.ReadDir(netns)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// delNS removes a namespace. Its links and rules go with it, once no process is in it.
func delNS(ctx context.Context, ns string) error { return run(ctx, "", "netns", "del", ns) }

// inside runs fn on a thread that is in the namespace. Sockets made by it stay there; goroutines it starts do not run there,
// processes do.
func inside(ns string, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			target, err := os.Open(filepath.Join(netns, ns))
			if err != nil {
				return volant.Errorf(volant.ErrNotFound, "namespace %s: %v", ns, err).WithRemedy("see `volant lab status`")
			}
			defer target.Close() //nolint:errcheck // only read
			home, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer home.Close() //nolint:errcheck // only read
			runtime.LockOSThread()
			if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
				runtime.UnlockOSThread()
				return fmt.Errorf("enter namespace %s: %w", ns, err)
			}
			err = fn()
			// A thread that cannot go home ends with this goroutine.
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			return err
		}()
	}()
	return <-done
}

// inode names a namespace as /proc does.
func inode(ns string) (string, error) {
	st, err := os.Stat(filepath.Join(netns, ns))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("net:[%d]", st.Sys().(*syscall.Stat_t).Ino), nil //nolint:forcetypeassert // it is Linux
}

// settled returns when the kernel has brought the namespace's interfaces up to IPv6, which it does up to a second later.
func settled(ctx context.Context, ns string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		var wait string
		err := inside(ns, func() error {
			ifs, err := net.Interfaces()
			for _, i := range ifs {
				addrs, aerr := i.Addrs()
				err = errors.Join(err, aerr)
				if i.Flags&net.FlagLoopback == 0 && !slices.ContainsFunc(addrs, linkLocal) {
					wait = i.Name
				}
			}
			return err
		})
		if err != nil || wait == "" {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("namespace %s: interface %s has no IPv6 yet: %w", ns, wait, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func linkLocal(a net.Addr) bool {
	n, ok := a.(*net.IPNet)
	return ok && n.IP.To4() == nil && n.IP.IsLinkLocalUnicast()
}
