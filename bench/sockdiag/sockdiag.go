// Package sockdiag asks the kernel which TCP connections this machine has to a network.
//
// # Invariants
//
//   - What Between returns was open at one moment: a dump is not atomic, so a connection that ends and one
//     that begins during it may both be in it, but one that is in two dumps was open between them.
//
// # Sources
//
// sock_diag(7); struct inet_diag_req_v2, inet_diag_msg and inet_diag_bc_op of linux/inet_diag.h.
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is one connection from here to Remote.
type Conn struct {
	Local, Remote netip.AddrPort
	Cookie        uint64 // the kernel's name for the socket
}

const (
	diagByFamily = 20 // SOCK_DIAG_BY_FAMILY
	bytecode     = 1  // INET_DIAG_REQ_BYTECODE
	destination  = 8  // INET_DIAG_BC_D_COND
	requestSize  = 56 // of inet_diag_req_v2
	headerSize   = 16 // of nlmsghdr
	messageSize  = 72 // of inet_diag_msg
)

// open are the states of a connection whose other side may still count it: established, SYN sent, both
// FIN-WAITs and CLOSE-WAIT.
const open = 1<<1 | 1<<2 | 1<<4 | 1<<5 | 1<<8

// Between returns the connections to an IPv4 network that were open at one moment between two dumps.
func Between(to netip.Prefix) ([]Conn, error) {
	before, err := dump(to)
	if err != nil {
		return nil, err
	}
	after, err := dump(to)
	if err != nil {
		return nil, err
	}
	had := map[uint64]bool{}
	for _, c := range before {
		had[c.Cookie] = true
	}
	var both []Conn
	for _, c := range after {
		if had[c.Cookie] {
			both = append(both, c)
		}
	}
	return both, nil
}

// dump lists the connections to an IPv4 network.
func dump(to netip.Prefix) ([]Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // only read
	wait := unix.NsecToTimeval(int64(10 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	if err := unix.Sendto(fd, request(to), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("sock_diag: %w", err)
	}
	var out []Conn
	buf := make([]byte, 256<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sock_diag: %w", err)
		}
		more, err := parse(buf[:n], &out)
		if err != nil || !more {
			return out, err
		}
	}
}

// request asks for a dump of the connections to a network, which the kernel filters.
func request(to netip.Prefix) []byte {
	ne := binary.NativeEndian
	cond := binary.BigEndian
	const filter = 4 + 8 + 4 // operation, condition, address
	b := make([]byte, headerSize+requestSize+4+filter)
	ne.PutUint32(b[0:], uint32(len(b)))
	ne.PutUint16(b[4:], diagByFamily)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	r := b[headerSize:]
	r[0], r[1] = unix.AF_INET, unix.IPPROTO_TCP
	ne.PutUint32(r[4:], open)
	a := r[requestSize:]
	ne.PutUint16(a[0:], 4+filter)
	ne.PutUint16(a[2:], bytecode)
	op := a[4:]
	op[0], op[1] = destination, filter // on match: on to the end, which accepts
	ne.PutUint16(op[2:], filter+4)     // else: beyond the end, which refuses
	op[4], op[5] = unix.AF_INET, byte(to.Bits())
	ne.PutUint32(op[8:], ^uint32(0)) // any port
	addr := to.Masked().Addr().As4()
	cond.PutUint32(op[12:], cond.Uint32(addr[:]))
	return b
}

// parse adds the connections of a datagram; more says that another follows.
func parse(b []byte, out *[]Conn) (more bool, err error) {
	ne := binary.NativeEndian
	for len(b) >= headerSize {
		size := int(ne.Uint32(b))
		if size < headerSize || size > len(b) {
			return false, errors.New("sock_diag: a message is cut short")
		}
		body := b[headerSize:size]
		switch kind := ne.Uint16(b[4:]); {
		case kind == unix.NLMSG_DONE:
			return false, nil
		case kind == unix.NLMSG_ERROR && len(body) >= 4:
			return false, fmt.Errorf("sock_diag: %w", unix.Errno(-int32(ne.Uint32(body)))) //nolint:gosec // a negative errno
		case kind == diagByFamily && len(body) >= messageSize:
			*out = append(*out, Conn{
				Local:  netip.AddrPortFrom(netip.AddrFrom4([4]byte(body[8:12])), binary.BigEndian.Uint16(body[4:])),
				Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte(body[24:28])), binary.BigEndian.Uint16(body[6:])),
				Cookie: ne.Uint64(body[44:52]),
			})
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return true, nil
}
