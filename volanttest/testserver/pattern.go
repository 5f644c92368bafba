package testserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// Stream is an endless sequence of bytes that both sides of a test know. It is made of 8-byte words,
// so that a byte lost, doubled or out of place is seen at once.
type Stream struct {
	seed, word uint64
	left       [8]byte
	n          int // unread bytes at the end of left
}

// Pattern returns the sequence of a seed, from its start.
func Pattern(seed uint64) *Stream { return &Stream{seed: seed} }

// next is the next byte. The mixing is that of splitmix64.
func (s *Stream) next() byte {
	if s.n == 0 {
		s.word++
		z := s.seed + s.word*0x9e3779b97f4a7c15
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(s.left[:], z^z>>31)
		s.n = 8
	}
	b := s.left[8-s.n]
	s.n--
	return b
}

// Read fills b with the bytes that follow. It never fails.
func (s *Stream) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = s.next()
	}
	return len(b), nil
}

// Matches says whether b are the bytes that follow.
func (s *Stream) Matches(b []byte) bool {
	for _, x := range b {
		if x != s.next() {
			return false
		}
	}
	return true
}

// ErrBytes is returned for bytes that are not the ones sent.
var ErrBytes = errors.New("wrong bytes")

// Ask sends a command and returns the one-line answer, without its first word.
func Ask(c net.Conn, command string) (string, error) {
	if _, err := fmt.Fprintln(c, command); err != nil {
		return "", err
	}
	var line []byte
	for b := make([]byte, 1); ; { // byte by byte: nothing of what follows is taken
		if _, err := c.Read(b); err != nil {
			return "", fmt.Errorf("answer to %q: %w", command, err)
		}
		if b[0] == '\n' {
			break
		}
		if line = append(line, b[0]); len(line) > maxLine {
			return "", fmt.Errorf("answer to %q: too long", command)
		}
	}
	var word, rest string
	for i, x := range line {
		if x == ' ' {
			word, rest = string(line[:i]), string(line[i+1:])
			break
		}
	}
	if word == "error" {
		return "", errors.New(rest)
	}
	return rest, nil
}

// Echo is an open connection in echo mode, and where its two sequences are.
type Echo struct {
	c          net.Conn
	out, in    *Stream
	sent, seen int64
}

// StartEcho puts a fresh connection into echo mode.
func StartEcho(c net.Conn, seed uint64) (*Echo, error) {
	seed &= 1<<63 - 1
	_, err := fmt.Fprintf(c, "echo %d\n", seed)
	return &Echo{c: c, out: Pattern(seed), in: Pattern(seed)}, err
}

// Exchange sends n bytes, at most 64 KiB, and checks that the same n come back.
func (e *Echo) Exchange(n int) error {
	b := make([]byte, min(n, 64<<10))
	e.out.Read(b) //nolint:errcheck // never fails
	k, err := e.c.Write(b)
	e.sent += int64(k)
	if err != nil {
		return fmt.Errorf("echo: after %d bytes sent: %w", e.sent, err)
	}
	k, err = io.ReadFull(e.c, b)
	if !e.in.Matches(b[:k]) {
		return fmt.Errorf("echo: within %d bytes after %d: %w", k, e.seen, ErrBytes)
	}
	e.seen += int64(k)
	if err != nil {
		return fmt.Errorf("echo: %d bytes of %d came back: %w", e.seen, e.sent, err)
	}
	return nil
}

// Leave ends our half of a connection in echo mode and waits for the other's end.
func Leave(c net.Conn) error {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok {
		return errors.New("leave: the connection has no half to end")
	}
	if err := half.CloseWrite(); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	n, err := io.Copy(io.Discard, c)
	if err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	if n > 0 {
		return fmt.Errorf("leave: %d bytes that nobody asked for: %w", n, ErrBytes)
	}
	return nil
}
