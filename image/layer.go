package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/volant-edge/volant"
)

// maxWindow bounds the memory that a layer of zstd may ask for; `zstd --ultra -22` asks for 128 MiB.
const maxWindow = 128 << 20

// errTooLong is what a layer's reader returns past the limit.
var errTooLong = errors.New("over the limit")

// layer merges one layer, and checks that it is what manifest and config say.
func (s *Store) layer(ctx context.Context, m *merger, l Blob, diffID volant.Digest, bar *meter) error {
	f, _, err := s.Blob(l.Digest)
	if err != nil {
		return fmt.Errorf("layer: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read from
	err = s.unpack(ctx, m, l.Digest, bar.reader(&ctxReader{ctx, f}), diffID)
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	// The content was not right, or could not be used: is it what it was when it was stored?
	if same, rest := s.verify(l.Digest); rest != nil {
		return errors.Join(err, rest)
	} else if same {
		return err
	}
	if err := os.Remove(s.blobPath(l.Digest)); err != nil {
		s.log.Warn("damaged blob not removed", "digest", string(l.Digest), "err", err)
	}
	return volant.Invalidf("layer %s was damaged on disk, and is removed", string(l.Digest)).
		WithRemedy("deploy again, which uploads it again; then check the disk")
}

// verify says whether a blob has the content that its name says.
func (s *Store) verify(d volant.Digest) (bool, error) {
	f, _, err := s.Blob(d)
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // only read from
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return false, fmt.Errorf("read blob %s: %w", string(d), err)
	}
	return sum(h) == d, nil
}

func sum(h hash.Hash) volant.Digest { return volant.Digest("sha256:" + hex.EncodeToString(h.Sum(nil))) }

// unpack merges a layer's tar stream and checks the digest of all of it.
func (s *Store) unpack(ctx context.Context, m *merger, name volant.Digest, raw io.Reader, diffID volant.Digest) error {
	plain, done, err := decompress(raw)
	if err != nil {
		return damaged(name, err)
	}
	defer done()
	unpacked := sha256.New()
	// A tar stream has a header of 512 bytes and more for each entry, beside what the files have.
	limit := s.cfg.MaxBytes + s.cfg.MaxBytes/4 + 1<<20
	early := readAhead(&limitReader{plain, limit})
	defer early.Close()
	stream := io.TeeReader(early, unpacked)
	err = m.apply(ctx, name, stream)
	if err == nil {
		_, err = io.Copy(io.Discard, stream) // a tar stream may have zeros after its end
	}
	var known *volant.Error
	var file *fs.PathError // the host's disk, not the image
	switch {
	case errors.Is(err, errTooLong):
		return volant.Invalidf("layer %s takes the image over the limit of %s", string(name), size(s.cfg.MaxBytes)).
			WithRemedy("make the image smaller")
	case errors.As(err, &known):
		return err
	case errors.As(err, &file):
		return fmt.Errorf("layer %s: %w", string(name), s.diskFull(err))
	case err != nil:
		return damaged(name, err)
	}
	if got := sum(unpacked); got != diffID {
		return volant.Invalidf("layer %s unpacks to %s, and the image's config says %s", string(name), string(got), string(diffID)).
			WithRemedy("the image is damaged: build it again")
	}
	return nil
}

func damaged(name volant.Digest, err error) error {
	return volant.Invalidf("layer %s is damaged: %v", string(name), err).WithRemedy("build the image again")
}

// decompress looks at a stream's first bytes, since media types lie, and unpacks gzip and zstd.
func decompress(r io.Reader) (io.Reader, func(), error) {
	b := bufio.NewReaderSize(r, 256<<10)
	head, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, nil, err
		}
		return z, func() {}, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	default:
		return b, func() {}, nil
	}
}

type limitReader struct {
	r    io.Reader
	left int64
}

func (l *limitReader) Read(b []byte) (int, error) {
	if l.left <= 0 {
		return 0, errTooLong
	}
	n, err := l.r.Read(b[:min(int64(len(b)), l.left)])
	l.left -= int64(n)
	return n, err
}
