package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/volant-edge/volant"
)

// Has says whether the blob is here. A blob that was asked for is spared by GC for the grace time,
// so that an upload which leaves it out can end.
func (s *Store) Has(d volant.Digest) bool {
	if !d.Valid() {
		return false
	}
	s.sweep.RLock()
	defer s.sweep.RUnlock()
	now := time.Now()
	return os.Chtimes(s.blobPath(d), now, now) == nil
}

// Blob opens a blob for reading, with its size; another node or a check asks for it.
func (s *Store) Blob(d volant.Digest) (io.ReadCloser, int64, error) {
	if !d.Valid() {
		return nil, 0, volant.Invalidf("%s", d)
	}
	f, err := os.Open(s.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, volant.Errorf(volant.ErrNotFound, "blob %s is not here", string(d)).WithRemedy("upload it")
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open blob %s: %w", string(d), err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, st.Size(), nil
}

// Put stores what r gives as the blob d, if it is that blob. A blob that is here already is not read.
func (s *Store) Put(ctx context.Context, d volant.Digest, r io.Reader) error {
	if !d.Valid() {
		return volant.Invalidf("%s", d)
	}
	if s.Has(d) {
		return nil
	}
	if err := s.room(0); err != nil {
		return fmt.Errorf("put blob %s: %w", string(d), err)
	}
	f, remove, err := s.temp("blob-")
	if err != nil {
		return fmt.Errorf("put blob %s: %w", string(d), err)
	}
	defer remove()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(&roomReader{s: s, r: &ctxReader{ctx, r}}, s.cfg.MaxBytes+1))
	switch got := volant.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil))); {
	case err != nil:
		return fmt.Errorf("put blob %s: after %d bytes: %w", string(d), n, s.diskFull(err))
	case n > s.cfg.MaxBytes:
		return volant.Invalidf("blob %s is larger than %s", string(d), size(s.cfg.MaxBytes)).WithRemedy("make the image smaller")
	case got != d:
		return notTheBlob(d, got, n)
	}
	if err := publish(f, s.blobPath(d), 0o400); err != nil {
		return fmt.Errorf("put blob %s: %w", string(d), s.diskFull(err))
	}
	s.log.Debug("blob stored", "digest", string(d), "bytes", n)
	return nil
}

// ctxReader ends with its context.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

// roomReader looks every now and then that the disk has more than the reserve, which other parts of the
// server need: blobs come without their size.
type roomReader struct {
	s    *Store
	r    io.Reader
	seen int64
}

const lookEvery = 16 << 20

func (c *roomReader) Read(b []byte) (int, error) {
	if c.seen >= lookEvery {
		c.seen = 0
		if err := c.s.room(0); err != nil {
			return 0, err
		}
	}
	n, err := c.r.Read(b)
	c.seen += int64(n)
	return n, err
}
