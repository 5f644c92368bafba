package proxy

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the fast road. All are on non-blocking descriptors, so they skip the scheduler's
// book-keeping for calls that may block.

const errAgain = syscall.EAGAIN

// sysRead reads; 0 bytes without an error is the end.
func sysRead(fd int32, b []byte) (int, syscall.Errno) {
	for {
		n, _, e := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if e != syscall.EINTR {
			return int(n), e
		}
	}
}

// sysSend writes without SIGPIPE.
func sysSend(fd int32, b []byte) (int, syscall.Errno) {
	for {
		n, _, e := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
			syscall.MSG_NOSIGNAL, 0, 0)
		if e != syscall.EINTR {
			return int(n), e
		}
	}
}

// sysPeek says how many bytes wait, at most 1.
func sysPeek(fd int32) (int, syscall.Errno) {
	var b [1]byte
	n, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), 1,
		syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
	return int(n), e
}

// sysPeekAt reads into b and leaves it in the socket.
func sysPeekAt(fd int32, b []byte) (int, syscall.Errno) {
	n, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
		syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
	return int(n), e
}

func sysSplice(from, to int32, n int) (int, syscall.Errno) {
	for {
		m, _, e := syscall.RawSyscall6(syscall.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n),
			unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if e != syscall.EINTR {
			return int(m), e
		}
	}
}

func sysClose(fd int32) {
	syscall.RawSyscall(syscall.SYS_CLOSE, uintptr(fd), 0, 0) //nolint:errcheck // the descriptor is gone whatever it says
}

// sysShutdown sends FIN.
func sysShutdown(fd int32) {
	syscall.RawSyscall(syscall.SYS_SHUTDOWN, uintptr(fd), syscall.SHUT_WR, 0) //nolint:errcheck // a connection that cannot is gone, which its reader sees
}

// sysReset closes with RST.
func sysReset(fd int32) {
	l := unix.Linger{Onoff: 1}
	unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &l) //nolint:errcheck // then it is closed with FIN
	sysClose(fd)
}

func sysEpollWait(epfd uintptr, events []unix.EpollEvent) int {
	n, _, e := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, epfd, uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if e != 0 {
		return 0
	}
	return int(n)
}

func sysEpollCtl(epfd int, op int, fd int32, events uint32, gen uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: fd, Pad: int32(gen)}
	_, _, e := syscall.RawSyscall6(syscall.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// sysAccept accepts one connection, non-blocking.
func sysAccept(fd int32) (int32, netip.AddrPort, syscall.Errno) {
	var sa unix.RawSockaddrAny
	size := uint32(unsafe.Sizeof(sa))
	n, _, e := syscall.RawSyscall6(syscall.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)),
		syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0, 0)
	if e != 0 {
		return -1, netip.AddrPort{}, e
	}
	return int32(n), fromSockaddr(&sa), 0
}

func fromSockaddr(sa *unix.RawSockaddrAny) netip.AddrPort {
	switch sa.Addr.Family {
	case unix.AF_INET:
		s := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), networkOrder(s.Port))
	case unix.AF_INET6:
		s := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr).Unmap(), networkOrder(s.Port))
	}
	return netip.AddrPort{}
}

// networkOrder turns a port to or from the order of the wire.
func networkOrder(p uint16) uint16 {
	return binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, p))
}

// sysConnect begins to connect a new non-blocking socket. The error is EINPROGRESS in most cases.
func sysConnect(to netip.AddrPort) (int32, syscall.Errno) {
	family := uintptr(unix.AF_INET)
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	n, _, e := syscall.RawSyscall(syscall.SYS_SOCKET, family, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if e != 0 {
		return -1, e
	}
	fd := int32(n)
	if family == unix.AF_INET6 {
		sa := unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: networkOrder(to.Port()), Addr: to.Addr().As16()}
		_, _, e = syscall.RawSyscall(syscall.SYS_CONNECT, n, uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
	} else {
		sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Port: networkOrder(to.Port()), Addr: to.Addr().As4()}
		_, _, e = syscall.RawSyscall(syscall.SYS_CONNECT, n, uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
	}
	if e != 0 && e != syscall.EINPROGRESS {
		sysClose(fd)
		return -1, e
	}
	return fd, e
}

// sysNoDelay turns Nagle's algorithm off: a proxy must not hold back what an app has sent.
func sysNoDelay(fd int32) {
	on := int32(1)
	//nolint:errcheck // then it is only slower
	syscall.RawSyscall6(syscall.SYS_SETSOCKOPT, uintptr(fd), syscall.IPPROTO_TCP, syscall.TCP_NODELAY, uintptr(unsafe.Pointer(&on)), 4, 0)
}

// sysUrgentInline makes urgent bytes part of the stream. It is called when the first is announced.
func sysUrgentInline(fd int32) {
	on := int32(1)
	//nolint:errcheck // a connection that cannot is gone, which its reader sees
	syscall.RawSyscall6(syscall.SYS_SETSOCKOPT, uintptr(fd), syscall.SOL_SOCKET, syscall.SO_OOBINLINE, uintptr(unsafe.Pointer(&on)), 4, 0)
}

// sysError is a socket's pending error.
func sysError(fd int32) error {
	n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if n != 0 {
		return syscall.Errno(n)
	}
	return nil
}

// sysConnected says whether a socket's handshake is over.
func sysConnected(fd int32) bool {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.State == unix.BPF_TCP_ESTABLISHED
}

// sysAbandon gives a connect up. It returns false if the handshake was over: then FIN was sent, and the other
// end has to close too. The kernel decides that in one step: a socket that still waits for its SYN-ACK is
// disconnected by shutdown(2), and never becomes a connection of the other end.
func sysAbandon(fd int32) bool {
	sysShutdown(fd)
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.State == unix.BPF_TCP_CLOSE
}

// sysUnsent is how many bytes the other end has not acknowledged.
func sysUnsent(fd int32) int {
	n, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// sysKeepAlive finds dead peers.
func sysKeepAlive(fd int32, k *net.KeepAliveConfig) error {
	return errors.Join(
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(k.Idle.Seconds())),
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(k.Interval.Seconds())),
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPCNT, k.Count),
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1),
	)
}

// backlog of listening sockets; the kernel lowers it to net.core.somaxconn.
const backlog = 4096

// sysListen opens a listening socket on an address which need not be on a link yet. Options that accepted
// sockets inherit are set here once.
func sysListen(addr netip.AddrPort, mesh bool) (fd int, err error) {
	family := unix.AF_INET
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr4(addr.Addr())}
	if addr.Addr().Is6() {
		family = unix.AF_INET6
		sa = &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, err
	}
	err = listenOptions(fd, family == unix.AF_INET6)
	if err == nil && family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil && mesh {
		sysFastAccept(int32(fd))
		err = sysKeepAlive(int32(fd), &meshKeepAlive)
	} else if err == nil {
		err = sysKeepAlive(int32(fd), &keepAlive)
	}
	if err == nil {
		sysNoDelay(int32(fd))
		err = unix.Bind(fd, sa)
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func addr4(a netip.Addr) [4]byte {
	if a.Is4() {
		return a.As4()
	}
	return [4]byte{}
}

// sysReach begins to connect a new non-blocking socket from one address to another, with the first bytes in the SYN
// where that can be; n says how many of them were taken.
func sysReach(from netip.Addr, to netip.AddrPort, b []byte) (fd int32, n int, e syscall.Errno) {
	family := uintptr(unix.AF_INET)
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	s, _, e := syscall.RawSyscall(syscall.SYS_SOCKET, family, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if e != 0 {
		return -1, 0, e
	}
	fd = int32(s)
	unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1) //nolint:errcheck // as in sysFastConnect
	unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)     //nolint:errcheck // then ports run out sooner
	sysNoDelay(fd)
	if from.IsValid() {
		sa, size := toSockaddr(netip.AddrPortFrom(from, 0))
		if _, _, e = syscall.RawSyscall(syscall.SYS_BIND, s, uintptr(unsafe.Pointer(&sa)), size); e != 0 {
			sysClose(fd)
			return -1, 0, e
		}
	}
	sa, size := toSockaddr(to)
	m, _, e := syscall.RawSyscall6(syscall.SYS_SENDTO, s, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
		syscall.MSG_NOSIGNAL|unix.MSG_FASTOPEN, uintptr(unsafe.Pointer(&sa)), size)
	if e == 0 {
		return fd, int(m), 0
	}
	if e == syscall.EOPNOTSUPP { // switched off for this kernel
		_, _, e = syscall.RawSyscall(syscall.SYS_CONNECT, s, uintptr(unsafe.Pointer(&sa)), size)
	}
	if e != 0 && e != syscall.EINPROGRESS {
		sysClose(fd)
		return -1, 0, e
	}
	return fd, 0, 0
}

func toSockaddr(to netip.AddrPort) (sa unix.RawSockaddrInet6, size uintptr) {
	if to.Addr().Is6() {
		return unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: networkOrder(to.Port()), Addr: to.Addr().As16()}, unix.SizeofSockaddrInet6
	}
	*(*unix.RawSockaddrInet4)(unsafe.Pointer(&sa)) = unix.RawSockaddrInet4{
		Family: unix.AF_INET, Port: networkOrder(to.Port()), Addr: to.Addr().As4(),
	}
	return sa, unix.SizeofSockaddrInet4
}

// sysFastConnect lets the first bytes ride in the SYN (RFC 7413) once the socket is connected. Between nodes of the
// mesh no cookie is needed: WireGuard has seen to who it is.
func sysFastConnect(fd int32) {
	unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1) //nolint:errcheck // then a cookie is fetched first
	unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)   //nolint:errcheck // then it takes a round trip more
}

// sysFastAccept lets clients' first bytes come in the SYN of a listening socket.
func sysFastAccept(fd int32) {
	unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1) //nolint:errcheck // as in sysFastConnect
	unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN, backlog)     //nolint:errcheck // the same
}
