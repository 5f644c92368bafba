package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	volant "github.com/volant-edge/volant"
)

// ClientDial connects to an address, host:port with an IP address, as the region's client i. Each client has an address
// of its own; clients are counted from 0 and begin anew after 254.
func (l *Lab) ClientDial(ctx context.Context, region string, i int, addr string) (net.Conn, error) {
	if err := l.CheckRegion(region); err != nil {
		return nil, err
	}
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, volant.Invalidf("%q: a client dials an IP address and a port", addr)
	}
	from := l.plan.client(region, i, to.Addr().Is6())
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	var c net.Conn
	err = inside(l.plan.clientNS(region), func() error {
		c, err = d.DialContext(ctx, "tcp", addr)
		return err
	})
	return c, err
}

// CheckRegion says why there is no such region, or nil.
func (l *Lab) CheckRegion(region string) error {
	if !slices.Contains(l.plan.Regions, region) {
		return l.plan.unknown(region)
	}
	return nil
}

// Client is the address of the region's client i.
func (l *Lab) Client(region string, i int, six bool) netip.Addr { return l.plan.client(region, i, six) }

// Inside runs fn in the namespace of a server, of its machines of the fake engine (its name and -m), or of a region's
// clients: sockets that fn makes and processes that it starts
// are there. Goroutines it starts are not.
func (l *Lab) Inside(place string, fn func() error) error {
	ns, err := l.plan.place(place)
	if err != nil {
		return err
	}
	return inside(ns, fn)
}

// Exec runs a command in the namespace of a server or of a region's clients and waits for its end. On a server, volant
// is the lab's, and speaks to that node.
func (l *Lab) Exec(ctx context.Context, place string, cmd *exec.Cmd) error {
	ns, err := l.plan.place(place)
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Environ(), l.env(place)...)
	if err := inside(ns, cmd.Start); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() }) //nolint:errcheck // Wait tells
	defer stop()
	return cmd.Wait()
}

// env makes `volant` on a server mean this lab's node.
func (l *Lab) env(place string) []string {
	if _, ok := l.plan.node(place); !ok {
		return nil
	}
	return []string{
		"VOLANT_DATA=" + l.file(place),
		"PATH=" + filepath.Dir(l.plan.Bin) + string(os.PathListSeparator) + os.Getenv("PATH"),
	}
}

// Become replaces this process by a command in the namespace of a server or of a region's clients. It returns only if
// that fails.
func (l *Lab) Become(place string, args []string) error {
	ns, err := l.plan.place(place)
	if err != nil {
		return err
	}
	for _, kv := range l.env(place) {
		for i := range kv {
			if kv[i] == '=' {
				if err := os.Setenv(kv[:i], kv[i+1:]); err != nil {
					return err
				}
				break
			}
		}
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return volant.Errorf(volant.ErrNotFound, "%v", err)
	}
	f, err := os.Open(filepath.Join(netns, ns))
	if err != nil {
		return volant.Errorf(volant.ErrNotFound, "namespace %s: %v", ns, err).WithRemedy("see `volant lab status`")
	}
	defer f.Close()        //nolint:errcheck // only read
	runtime.LockOSThread() // exec keeps this thread alone, in the namespace it is in
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace %s: %w", ns, err)
	}
	return unix.Exec(path, args, os.Environ())
}
