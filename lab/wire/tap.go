package wire

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// openTap makes a tap in a namespace and returns its file.
func openTap(e End) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	ch := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		f, err := openTapHere(e)
		ch <- result{f, err}
	}()
	r := <-ch
	if r.err != nil {
		return nil, fmt.Errorf("tap %s in %s: %w", e.Interface, e.Namespace, r.err)
	}
	return r.f, nil
}

// openTapHere leaves the thread in the namespace.
func openTapHere(e End) (*os.File, error) {
	ns, err := unix.Open("/run/netns/"+e.Namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(ns) //nolint:errcheck // only read
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	if err := setUp(fd, e.Interface); err != nil {
		unix.Close(fd) //nolint:errcheck // it was of no use
		return nil, err
	}
	return os.NewFile(uintptr(fd), e.Interface), nil
}

func setUp(fd int, name string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return err
	}
	if err := setOffload(fd, true); err != nil {
		return err
	}
	return unix.SetNonblock(fd, true)
}

// offload says whether the kernel gives frames of many packets whole, or cuts them up before.
func offload(f *os.File, whole bool) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = setOffload(int(fd), whole) }); err != nil {
		return err
	}
	return serr
}

func setOffload(fd int, whole bool) error {
	if !whole {
		return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0)
	}
	const tcp = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp|unix.TUN_F_USO4|unix.TUN_F_USO6) == nil {
		return nil
	}
	return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tcp) // before Linux 6.2
}
