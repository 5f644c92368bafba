package main

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// The load is clients and app in one epoll loop, so that one core drives any of the proxies.

const (
	requestSize  = 128
	responseSize = 1024
	clientsOpen  = 64 // connections at once
	bulkOpen     = 4
	fileSize     = 1 << 20
)

// app is the machine's app: it answers each request and closes after its client.
type app struct {
	addr netip.AddrPort
	fd   int
	file int // what bulk sends, in memory: pages go out without a copy, so that the load costs little
}

func newApp() (*app, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, 4096); err != nil {
		return nil, err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return nil, err
	}
	port := sa.(*unix.SockaddrInet4).Port
	file, err := unix.MemfdCreate("bulk", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if _, err := unix.Write(file, make([]byte, fileSize)); err != nil {
		return nil, err
	}
	return &app{addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port)), fd: fd, file: file}, nil
}

// kind of a descriptor in the load's loop.
type kind uint8

const (
	none kind = iota
	listener
	client
	server
)

// load runs one epoll loop.
type load struct {
	front  netip.AddrPort
	app    *app
	ep     int
	kinds  []kind
	left   []int // bytes a client still expects
	buf    []byte
	bulk   bool
	open   int
	closed int // clients that had their whole answer
	moved  float64
	over   bool
}

func loadConns(a *app, front netip.AddrPort, length time.Duration) (float64, error) {
	l := &load{front: front, app: a, buf: make([]byte, 4096)}
	err := l.run(clientsOpen, length)
	return float64(l.closed), err
}

func loadBulk(a *app, front netip.AddrPort, length time.Duration) (float64, error) {
	l := &load{front: front, app: a, buf: make([]byte, 256<<10), bulk: true}
	err := l.run(bulkOpen, length)
	return l.moved, err
}

func (l *load) run(open int, length time.Duration) (err error) {
	if l.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(l.ep) //nolint:errcheck // a bench
	if err := l.watch(l.app.fd, listener, unix.EPOLLIN); err != nil {
		return err
	}
	for range open {
		if err := l.connect(); err != nil {
			return err
		}
	}
	end := time.Now().Add(length)
	quiet := 0
	events := make([]unix.EpollEvent, 256)
	for l.open > 0 {
		n, err := unix.EpollWait(l.ep, events, 1000)
		if err != nil && err != unix.EINTR {
			return err
		}
		if quiet++; n > 0 {
			quiet = 0
		}
		if quiet > 5 {
			return fmt.Errorf("%d connections hang", l.open)
		}
		for i := range max(n, 0) {
			if err := l.event(int(events[i].Fd), events[i].Events); err != nil {
				return err
			}
		}
		if !l.over && time.Now().After(end) {
			l.over = true
			if l.bulk {
				return l.closeAll()
			}
		}
	}
	return l.closeAll()
}

func (l *load) closeAll() error {
	for fd, k := range l.kinds {
		switch k {
		case client:
			// Reset, so that nothing of this round goes on in the next.
			if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
				return err
			}
			l.close(fd)
		case server:
			l.close(fd)
		default:
		}
	}
	time.Sleep(30 * time.Millisecond)
	for { // connections of this round that the app has not taken
		fd, _, err := unix.Accept4(l.app.fd, 0)
		if err != nil {
			return nil //nolint:nilerr // there are no more
		}
		unix.Close(fd) //nolint:errcheck // a bench
	}
}

func (l *load) watch(fd int, k kind, events uint32) error {
	for fd >= len(l.kinds) {
		l.kinds, l.left = append(l.kinds, none), append(l.left, 0)
	}
	l.kinds[fd] = k
	return unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

func (l *load) close(fd int) {
	l.kinds[fd] = none
	unix.Close(fd) //nolint:errcheck // a bench
}

func (l *load) connect() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(l.front.Port()), Addr: l.front.Addr().As4()})
	if err != nil && err != unix.EINPROGRESS {
		return fmt.Errorf("connect: %w", err)
	}
	l.open++
	if err := l.watch(fd, client, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLET); err != nil {
		return err
	}
	l.left[fd] = -1 // the request is to be sent
	return nil
}

func (l *load) event(fd int, ev uint32) error {
	switch l.kinds[fd] {
	case listener:
		return l.accept()
	case client:
		return l.client(fd, ev)
	case server:
		l.server(fd)
	default:
	}
	return nil
}

func (l *load) accept() error {
	for {
		fd, _, err := unix.Accept4(l.app.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err == unix.EAGAIN {
			return nil
		}
		if err != nil {
			return err
		}
		events := uint32(unix.EPOLLIN | unix.EPOLLET)
		if l.bulk {
			events |= unix.EPOLLOUT
		}
		if err := l.watch(fd, server, events); err != nil {
			return err
		}
	}
}

func (l *load) client(fd int, ev uint32) error {
	if ev&unix.EPOLLERR != 0 {
		n, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR) // for the message
		return fmt.Errorf("client: %w", unix.Errno(n))
	}
	if l.left[fd] < 0 && ev&unix.EPOLLOUT != 0 {
		l.left[fd] = responseSize
		if _, err := unix.Write(fd, l.buf[:requestSize]); err != nil {
			return err
		}
	}
	flags := 0
	if l.bulk {
		flags = unix.MSG_TRUNC // thrown away in the kernel
	}
	for ev&unix.EPOLLIN != 0 {
		n, _, err := unix.Recvfrom(fd, l.buf, flags)
		if err == unix.EAGAIN {
			return nil
		}
		if err != nil || n == 0 {
			return fmt.Errorf("client read %d: %w", n, err)
		}
		l.moved += float64(n)
		if l.bulk {
			continue
		}
		if l.left[fd] -= n; l.left[fd] > 0 {
			return nil
		}
		l.close(fd)
		l.open--
		l.closed++
		if !l.over {
			return l.connect()
		}
		return nil
	}
	return nil
}

func (l *load) server(fd int) {
	for {
		n, err := unix.Read(fd, l.buf)
		if err == unix.EAGAIN {
			break
		}
		if err != nil || n == 0 {
			l.close(fd)
			return
		}
		if !l.bulk {
			unix.Write(fd, l.buf[:responseSize]) //nolint:errcheck // the client counts
			return
		}
		l.left[fd] = 1
	}
	for l.bulk && l.left[fd] == 1 {
		offset := int64(0)
		if _, err := unix.Sendfile(fd, l.app.file, &offset, fileSize); err != nil {
			return
		}
	}
}
