package backhaul

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/netip"
	"time"

	volant "github.com/volant-edge/volant"
)

// Version of the protocol. Another is answered by OtherVersion.
const Version = 1

// Sizes of frames.
const (
	RequestHead = 86
	groupMost   = 63
	regionMost  = 8
	RequestMost = RequestHead + groupMost + regionMost
	AnswerLen   = 32
	// EarlyMost bounds the client's bytes that go with a request, so that both fit into one packet of the mesh.
	EarlyMost = 1200 - RequestMost
)

// WaitMost bounds how long a request may ask to wait.
const WaitMost = 10 * time.Minute

// Errors of parsing. Nothing can be said to who sent a malformed frame.
var (
	ErrVersion   = errors.New("the frame is of another version of the backhaul")
	ErrMalformed = errors.New("the frame is malformed")
)

// App is an app's ID as the wire has it.
type App [8]byte

// AppOf is an app's ID for the wire; false for one that is not of the form of NewAppID.
func AppOf(id volant.AppID) (a App, ok bool) {
	return a, len(id) == 4+2*len(a) && id[:4] == "app_" && unhex(a[:], string(id[4:]))
}

// ID is the app's ID.
func (a App) ID() volant.AppID { return volant.AppID("app_" + hex.EncodeToString(a[:])) }

// Machine is a machine's ID as the wire has it; its zero value is any machine.
type Machine [7]byte

// MachineOf is a machine's ID for the wire, or any machine for an empty one; false for one that is not of the
// form of NewMachineID.
func MachineOf(id volant.MachineID) (m Machine, ok bool) {
	return m, id == "" || len(id) == 2*len(m) && unhex(m[:], string(id)) && m != Machine{}
}

// ID is the machine's ID, empty for any machine.
func (m Machine) ID() volant.MachineID {
	if m == (Machine{}) {
		return ""
	}
	return volant.MachineID(hex.EncodeToString(m[:]))
}

// unhex reads lower-case hex without allocating.
func unhex(dst []byte, s string) bool {
	for i := range dst {
		hi, lo := digit(s[2*i]), digit(s[2*i+1])
		if hi > 15 || lo > 15 {
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

func digit(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}

// Name is a short text that needs no memory of its own, so that it can be part of a map's key.
type Name struct {
	n uint8
	b [groupMost]byte
}

// NameOf is a text as a Name; false if it is over 63 bytes.
func NameOf[T ~string](s T) (n Name, ok bool) {
	if len(s) > groupMost {
		return n, false
	}
	n.n = uint8(len(s))
	copy(n.b[:], s)
	return n, true
}

func (n Name) String() string { return string(n.b[:n.n]) }

func (n *Name) bytes() []byte { return n.b[:n.n] }

func (n *Name) parse(b []byte) {
	n.n = uint8(copy(n.b[:], b))
}

// Request is what an edge asks of a host: a connection to a machine of one group of an app.
type Request struct {
	EdgeEpoch uint64 // boot epoch of the edge's proxy
	// Stream numbers the edge's requests to this host; a frame that is sent again on another connection has the
	// same one.
	Stream    uint64
	HostEpoch uint64 // boot epoch of the host's proxy that is meant; 0 for any
	App       App
	Group     Name
	Machine   Machine // this one, or any of the host's
	Port      uint16  // inside the machine
	// Wait is for how long to wait for a slot, in whole milliseconds; 0: say Busy at once.
	Wait   time.Duration
	Quiet  bool           // it waits, but wakes nothing: its client has not spoken
	Retry  bool           // another host has said Busy
	Region Name           // where the client entered; at most 8 bytes
	Client netip.AddrPort // the zero Addr for one without an address
	Local  netip.AddrPort // what the client connected to
}

// Flags of a request.
const (
	flagQuiet = 1 << iota
	flagRetry
	flagsAll = flagQuiet | flagRetry
)

// AppendRequest appends the frame of r to dst.
func AppendRequest(dst []byte, r *Request) []byte {
	var flags byte
	if r.Quiet {
		flags |= flagQuiet
	}
	if r.Retry {
		flags |= flagRetry
	}
	region := r.Region.bytes()
	region = region[:min(len(region), regionMost)]
	dst = append(dst, Version, flags, r.Group.n, uint8(len(region)))
	dst = binary.BigEndian.AppendUint64(dst, r.EdgeEpoch)
	dst = binary.BigEndian.AppendUint64(dst, r.Stream)
	dst = binary.BigEndian.AppendUint64(dst, r.HostEpoch)
	dst = append(dst, r.App[:]...)
	dst = append(dst, r.Machine[:]...)
	dst = append(dst, 0)
	dst = binary.BigEndian.AppendUint16(dst, r.Port)
	dst = binary.BigEndian.AppendUint32(dst, uint32(min(max(r.Wait, 0), WaitMost).Milliseconds()))
	dst = appendAddr(dst, r.Client)
	dst = appendAddr(dst, r.Local)
	dst = append(dst, r.Group.bytes()...)
	return append(dst, region...)
}

// ParseRequest reads the frame at the beginning of b into r and says how long it is: 0 means that b is not all of it.
func ParseRequest(b []byte, r *Request) (n int, err error) {
	if len(b) > 0 && b[0] != Version {
		return 0, ErrVersion
	}
	if len(b) < RequestHead {
		return 0, nil
	}
	group, region := int(b[2]), int(b[3])
	wait := binary.BigEndian.Uint32(b[46:])
	if b[1]&^flagsAll != 0 || group > groupMost || region > regionMost || b[43] != 0 || wait > uint32(WaitMost.Milliseconds()) {
		return 0, ErrMalformed
	}
	n = RequestHead + group + region
	if len(b) < n {
		return 0, nil
	}
	*r = Request{
		EdgeEpoch: binary.BigEndian.Uint64(b[4:]), Stream: binary.BigEndian.Uint64(b[12:]), HostEpoch: binary.BigEndian.Uint64(b[20:]),
		App: App(b[28:36]), Machine: Machine(b[36:43]), Port: binary.BigEndian.Uint16(b[44:]),
		Wait: time.Duration(wait) * time.Millisecond, Quiet: b[1]&flagQuiet != 0, Retry: b[1]&flagRetry != 0,
		Client: parseAddr(b[50:]), Local: parseAddr(b[68:]),
	}
	r.Group.parse(b[RequestHead : RequestHead+group])
	r.Region.parse(b[RequestHead+group : n])
	return n, nil
}

// appendAddr appends an address in 18 bytes: IPv4 as in IPv6, none as zeros.
func appendAddr(dst []byte, ap netip.AddrPort) []byte {
	var a [16]byte
	if ap.Addr().IsValid() {
		a = ap.Addr().As16()
	}
	dst = append(dst, a[:]...)
	return binary.BigEndian.AppendUint16(dst, ap.Port())
}

func parseAddr(b []byte) netip.AddrPort {
	port := binary.BigEndian.Uint16(b[16:])
	a := [16]byte(b[:16])
	if a == ([16]byte{}) {
		return netip.AddrPortFrom(netip.Addr{}, port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(a).Unmap(), port)
}

// RequestLen is the length of a frame of which the first RequestHead bytes are there.
func RequestLen(head []byte) (int, error) {
	switch {
	case len(head) > 0 && head[0] != Version:
		return 0, ErrVersion
	case len(head) < RequestHead || head[2] > groupMost || head[3] > regionMost:
		return 0, ErrMalformed
	}
	return RequestHead + int(head[2]) + int(head[3]), nil
}
