package erofs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

const (
	blockSize = 4096
	// inlineMax is the largest content kept beside its inode; a larger one starts a block of its own.
	inlineMax = 2048
	// inlineBudget bounds the memory of inline contents, as they are written last. After it is used
	// up all contents start a block of their own.
	inlineBudget = 64 << 20
	chunk        = 1 << 20 // bytes per write
)

// Content is what a regular file holds: inline bytes or blocks of the image.
type Content struct {
	size   int64
	block  uint32 // first block, if not inline
	inline []byte
}

// Size is the content's length in bytes.
func (c Content) Size() int64 { return c.size }

// Writer makes one file system. It is used by one goroutine, and not again after an error.
type Writer struct {
	f       *os.File
	buf     []byte // not yet written
	off     int64  // where buf starts
	inlined int64
	placed  []extent // contents with blocks, in order
}

type extent struct {
	block  uint32
	blocks uint32
}

// NewWriter writes to f, which is empty.
func NewWriter(f *os.File) *Writer {
	// Block 0 is written by Finish, when all is known.
	return &Writer{f: f, buf: make([]byte, 0, chunk), off: blockSize}
}

// Data copies size bytes of r into the image. A shorter r is io.ErrUnexpectedEOF.
func (w *Writer) Data(ctx context.Context, r io.Reader, size int64) (Content, error) {
	switch {
	case size < 0:
		return Content{}, fmt.Errorf("content of %d bytes", size)
	case size == 0:
		return Content{}, nil
	case size <= inlineMax && w.inlined+size <= inlineBudget:
		b := make([]byte, size)
		if _, err := io.ReadFull(r, b); err != nil {
			return Content{}, noEOF(err)
		}
		w.inlined += size
		return Content{size: size, inline: b}, nil
	}
	block, err := w.nextBlock(size)
	if err != nil {
		return Content{}, err
	}
	if err := w.copy(ctx, r, size); err != nil {
		return Content{}, err
	}
	if err := w.pad(blockSize); err != nil {
		return Content{}, err
	}
	w.placed = append(w.placed, extent{block, uint32(blocksOf(size))})
	return Content{size: size, block: block}, nil
}

// Written is how many bytes the image has so far.
func (w *Writer) Written() int64 { return w.off + int64(len(w.buf)) }

// nextBlock is the number of the block that follows, if size bytes can still be addressed.
func (w *Writer) nextBlock(size int64) (uint32, error) {
	n := w.Written() / blockSize
	if n+blocksOf(size) > math.MaxUint32 {
		return 0, errors.New("the image has more than 2^32 blocks")
	}
	return uint32(n), nil
}

func blocksOf(size int64) int64 { return (size + blockSize - 1) / blockSize }

func (w *Writer) copy(ctx context.Context, r io.Reader, n int64) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return err
			}
		}
		have := len(w.buf)
		part := int(min(n, int64(cap(w.buf)-have)))
		got, err := io.ReadFull(r, w.buf[have:have+part])
		w.buf = w.buf[:have+got]
		if err != nil {
			return noEOF(err)
		}
		n -= int64(part)
	}
	return nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (w *Writer) write(b []byte) error {
	for len(b) > 0 {
		if len(w.buf) == cap(w.buf) {
			if err := w.flush(); err != nil {
				return err
			}
		}
		n := min(len(b), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, b[:n]...)
		b = b[n:]
	}
	return nil
}

// pad writes zeros up to a multiple of n, at most a block.
func (w *Writer) pad(n int64) error {
	return w.zeros(int((n - w.Written()%n) % n))
}

func (w *Writer) zeros(n int) error {
	var zero [blockSize]byte
	for n > 0 {
		part := min(n, blockSize)
		if err := w.write(zero[:part]); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

func (w *Writer) flush() error {
	if _, err := w.f.WriteAt(w.buf, w.off); err != nil {
		return err
	}
	w.off += int64(len(w.buf))
	w.buf = w.buf[:0]
	return nil
}

// punch gives the blocks that no inode uses back to the disk.
func (w *Writer) punch(used map[uint32]bool) error {
	for _, e := range w.placed {
		if used[e.block] {
			continue
		}
		err := unix.Fallocate(int(w.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
			int64(e.block)*blockSize, int64(e.blocks)*blockSize)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil // the dead blocks stay: they cost disk and harm nothing
		}
		if err != nil {
			return fmt.Errorf("punch a hole: %w", err)
		}
	}
	return nil
}
