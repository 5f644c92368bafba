package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	page  = 4096
	chunk = 256 << 10 // of a copy: fits a core's cache
)

var zeroPage [page]byte

// extents calls fn for each part of f that holds data, holes left out.
func extents(f *os.File, size int64, fn func(from, to int64) error) error {
	for at := int64(0); at < size; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			return nil // no data behind at
		case err != nil:
			return fmt.Errorf("seek data: %w", err)
		}
		to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("seek hole: %w", err)
		}
		if err := fn(from, min(to, size)); err != nil {
			return err
		}
		at = to
	}
	return nil
}

// unpack copies a sparse memory file into an empty one of the same size. The kernel moves the pages.
func unpack(ctx context.Context, dst, src *os.File, size int64) error {
	return extents(src, size, func(from, to int64) error {
		if _, err := unix.Seek(int(dst.Fd()), from, io.SeekStart); err != nil {
			return err
		}
		for from < to {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := unix.Sendfile(int(dst.Fd()), int(src.Fd()), &from, int(min(to-from, 8<<20)))
			if err != nil {
				return fmt.Errorf("copy memory: %w", err)
			}
			if n == 0 {
				return fmt.Errorf("copy memory: %w", io.ErrUnexpectedEOF)
			}
		}
		return nil
	})
}

// pack copies a memory file into an empty one, leaving out what is zero, and returns the sum of what
// it copied. Most of a guest's memory was touched once, as zeroes, by its boot.
func pack(ctx context.Context, dst, src *os.File, size int64) (string, error) {
	if err := dst.Truncate(size); err != nil {
		return "", err
	}
	s := startSummer()
	err := extents(src, size, func(from, to int64) error {
		for ; from < to; from += chunk {
			if err := ctx.Err(); err != nil {
				return err
			}
			b := (<-s.free)[:min(chunk, to-from)]
			if _, err := src.ReadAt(b, from); err != nil {
				return fmt.Errorf("copy memory: %w", err)
			}
			err := runs(b, func(i, j int) error {
				_, err := dst.WriteAt(b[i:j], from+int64(i))
				return err
			})
			if err != nil {
				return fmt.Errorf("copy memory: %w", err)
			}
			s.full <- piece{from, b}
		}
		return nil
	})
	return s.end(), err
}

// piece is part of a memory file, at its place.
type piece struct {
	at int64
	b  []byte
}

// summer sums pieces beside the one who copies them, which takes as long.
type summer struct {
	free chan []byte // buffers
	full chan piece
	sum  chan string
}

func startSummer() *summer {
	const buffers = 4
	s := &summer{free: make(chan []byte, buffers), full: make(chan piece, buffers), sum: make(chan string, 1)}
	for range buffers {
		s.free <- make([]byte, chunk)
	}
	go s.run()
	return s
}

func (s *summer) run() {
	h := sha256.New()
	for p := range s.full {
		//nolint:errcheck // a hash's Write never fails
		runs(p.b, func(i, j int) error { sum(h, p.at+int64(i), p.b[i:j]); return nil })
		s.free <- p.b[:chunk]
	}
	s.sum <- hex.EncodeToString(h.Sum(nil))
}

// end returns the sum of all pieces and ends the summer.
func (s *summer) end() string {
	close(s.full)
	return <-s.sum
}

// sumMemory returns the sum that pack gave for a memory file.
func sumMemory(ctx context.Context, f *os.File, size int64) (string, error) {
	h := sha256.New()
	buf := make([]byte, chunk)
	err := extents(f, size, func(from, to int64) error {
		for ; from < to; from += chunk {
			if err := ctx.Err(); err != nil {
				return err
			}
			b := buf[:min(chunk, to-from)]
			if _, err := f.ReadAt(b, from); err != nil {
				return err
			}
			err := runs(b, func(i, j int) error { sum(h, from+int64(i), b[i:j]); return nil })
			if err != nil {
				return err
			}
		}
		return nil
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

// sum adds pages that are not zero, each with its place, so that neither holes nor chunks matter.
func sum(h hash.Hash, at int64, b []byte) {
	for ; len(b) > 0; at += page {
		p := b[:min(page, len(b))]
		b = b[len(p):]
		var place [8]byte
		binary.LittleEndian.PutUint64(place[:], uint64(at))
		h.Write(place[:])
		h.Write(p)
	}
}

// runs calls fn for each run of pages in b that are not zero.
func runs(b []byte, fn func(from, to int) error) error {
	start := -1
	for i := 0; i < len(b); i += page {
		p := b[i:min(i+page, len(b))]
		zero := bytes.Equal(p, zeroPage[:len(p)])
		if zero && start >= 0 {
			if err := fn(start, i); err != nil {
				return err
			}
			start = -1
		}
		if !zero && start < 0 {
			start = i
		}
	}
	if start < 0 {
		return nil
	}
	return fn(start, len(b))
}
