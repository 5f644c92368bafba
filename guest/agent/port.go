package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant/guest"
)

const (
	portName  = "ctl"
	portWait  = 30 * time.Second // for the port to appear
	hostCheck = 10 * time.Second // a second look for a host, should its coming be missed
)

// port is the virtio-serial port to the host.
type port struct {
	f        *os.File
	attached bool // a host was there at the last Read
}

// openPort finds the port by its name. The kernel learns the name from the host a moment after the
// driver is there.
func openPort() (*port, error) {
	for end := time.Now().Add(portWait); ; time.Sleep(time.Millisecond) {
		if dev := findPort("/sys/class/virtio-ports"); dev != "" {
			f, err := os.OpenFile("/dev/"+dev, os.O_RDWR|unix.O_NONBLOCK, 0)
			if err != nil {
				return nil, err
			}
			return &port{f: f}, nil
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("no virtio-serial port has the name %q", portName)
		}
	}
}

func findPort(class string) string {
	names, _ := filepath.Glob(class + "/*/name") // the pattern is good
	for _, n := range names {
		if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == portName {
			return filepath.Base(filepath.Dir(n))
		}
	}
	return ""
}

// Read implements io.Reader. A port without a host is at its end all the time; that is told once, by
// guest.ErrDetached, and then Read waits for a host.
func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := p.f.Read(b)
		switch {
		case n > 0:
			p.attached = true
			return n, nil
		case !errors.Is(err, io.EOF):
			return 0, err
		case p.attached:
			p.attached = false
			return 0, guest.ErrDetached
		}
		if err := p.waitHost(); err != nil {
			return 0, err
		}
	}
}

// waitHost returns when a host is connected. The runtime's poller sees each change of the port once,
// so between two of them this sleeps.
func (p *port) waitHost() error {
	raw, err := p.f.SyscallConn()
	if err != nil {
		return err
	}
	for {
		if err := p.f.SetReadDeadline(time.Now().Add(hostCheck)); err != nil {
			return err
		}
		err := raw.Read(hasHost)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		return errors.Join(err, p.f.SetReadDeadline(time.Time{}))
	}
}

func hasHost(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	if errors.Is(err, syscall.EINTR) {
		return false // and the deadline looks again
	}
	return err != nil || n == 0 || fds[0].Revents&unix.POLLHUP == 0
}

// Write implements io.Writer. Without a host it waits for one.
func (p *port) Write(b []byte) (int, error) { return p.f.Write(b) }

// Close implements io.Closer.
func (p *port) Close() error { return p.f.Close() }
