package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/volant-edge/volant"
)

// parallel is how many blobs of an image are fetched at a time.
const parallel = 3

// Pull copies the image that ref names in a registry into the store, for the organization, and returns
// the digest of its manifest. Blobs that the organization has here already are not fetched. Progress,
// which may be nil, is called from several goroutines, one at a time.
func (s *Store) Pull(ctx context.Context, org volant.OrgID, ref string, r Remote, progress func(Progress)) (volant.Digest, error) {
	src, err := r.Open(ctx, ref)
	if err != nil {
		return "", err
	}
	defer src.Close() //nolint:errcheck // only read from
	if err := s.take(ctx, org, src, progress); err != nil {
		return "", fmt.Errorf("image %s: %w", ref, err)
	}
	if _, err := s.Manifest(src.Digest); err != nil {
		return "", err
	}
	return src.Digest, nil
}

// take copies a source's blobs, the manifest last: who finds it finds the rest too.
func (s *Store) take(ctx context.Context, org volant.OrgID, src *Source, progress func(Progress)) error {
	bar := &sharedMeter{Progress: Progress{Phase: "pull", Total: src.Size()}, tell: progress}
	var missing int64
	var fetch []Blob
	for _, b := range src.Blobs {
		if s.Owns(org, b.Digest) {
			bar.add(b.Size)
			continue
		}
		missing += b.Size
		fetch = append(fetch, b)
	}
	if missing > s.cfg.MaxBytes {
		return volant.Invalidf("it takes %s, and %s is the limit", size(missing), size(s.cfg.MaxBytes)).
			WithRemedy("make the image smaller; or the server's operator sets image.max_size_mb higher")
	}
	if err := s.room(missing); err != nil {
		return err
	}
	bar.report()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, b := range fetch {
		if b.Digest != src.Digest {
			g.Go(func() error { return s.takeBlob(gctx, org, src, b, bar) })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, b := range fetch {
		if b.Digest == src.Digest {
			return s.takeBlob(ctx, org, src, b, bar)
		}
	}
	return nil
}

func (s *Store) takeBlob(ctx context.Context, org volant.OrgID, src *Source, b Blob, bar *sharedMeter) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := src.Open(b.Digest)
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // only read from
	err = s.PutFor(ctx, org, b.Digest, &sharedReader{bar, r})
	var wrong *mismatch
	var known *volant.Error
	switch {
	case errors.As(err, &wrong):
		return wrongDigest("blob", b.Digest, wrong.got)
	case errors.As(err, &known):
		return known // it says which blob, if that matters
	}
	return err
}

// sharedMeter counts the bytes of several readers and reports them, each MiB or so.
type sharedMeter struct {
	mu sync.Mutex // guards what follows
	Progress
	tell func(Progress)
	told int64

	fresh int64 // bytes that came and were kept
}

func (m *sharedMeter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.Done += n
	if m.Done-m.told >= 1<<20 {
		m.reportLocked()
	}
}

// begin says how many bytes are to come, of which some may be here.
func (m *sharedMeter) begin(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.Done, m.Total = 0, n
	m.reportLocked()
}

// landed adds to the bytes that came to stay, and says how many did.
func (m *sharedMeter) landed(n int64) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fresh += n
	return m.fresh
}

func (m *sharedMeter) report() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reportLocked()
}

func (m *sharedMeter) reportLocked() {
	m.told = m.Done
	if m.tell != nil {
		m.tell(m.Progress)
	}
}

type sharedReader struct {
	m *sharedMeter
	r io.Reader
}

func (r *sharedReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.m.add(int64(n))
	return n, err
}
