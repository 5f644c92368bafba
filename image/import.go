package image

import (
	"context"
	"fmt"
	"io"

	"github.com/volant-edge/volant"
)

// Import copies the image that ref names into the store: see OpenSource. Progress may be nil.
func (s *Store) Import(ctx context.Context, ref string, progress func(Progress)) (volant.Digest, error) {
	src, err := OpenSource(ref)
	if err != nil {
		return "", err
	}
	defer src.Close() //nolint:errcheck // only read from
	var missing int64
	for _, b := range src.Blobs {
		if !s.Has(b.Digest) {
			missing += b.Size
		}
	}
	if err := s.room(missing); err != nil {
		return "", fmt.Errorf("import %s: %w", ref, err)
	}
	err = src.Each(progress, func(b Blob, r io.Reader) error { return s.Put(ctx, b.Digest, r) })
	if err != nil {
		return "", fmt.Errorf("import %s: %w", ref, err)
	}
	if _, err := s.Manifest(src.Digest); err != nil {
		return "", fmt.Errorf("import %s: %w", ref, err)
	}
	return src.Digest, nil
}

// Each calls put with each blob in order, the manifest last, and tells progress, which may be nil,
// how much was read. Put need not read a blob that it has.
func (s *Source) Each(progress func(Progress), put func(b Blob, r io.Reader) error) error {
	m := meter{Progress: Progress{Phase: "upload", Total: s.Size()}, tell: progress}
	for _, b := range s.Blobs {
		before := m.Done
		m.Blob = b.Digest
		r, err := s.Open(b.Digest)
		if err != nil {
			return err
		}
		err = put(b, m.reader(r))
		if closed := r.Close(); err == nil {
			err = closed
		}
		if err != nil {
			return err
		}
		m.Done = before + b.Size
		m.report()
	}
	return nil
}

// meter counts bytes and reports them, each MiB or so.
type meter struct {
	Progress
	tell func(Progress)
	told int64
}

func (m *meter) reader(r io.Reader) io.Reader { return &meterReader{m, r} }

func (m *meter) report() {
	m.told = m.Done
	if m.tell != nil {
		m.tell(m.Progress)
	}
}

type meterReader struct {
	m *meter
	r io.Reader
}

func (m *meterReader) Read(b []byte) (int, error) {
	n, err := m.r.Read(b)
	m.m.Done += int64(n)
	if m.m.Done-m.m.told >= 1<<20 {
		m.m.report()
	}
	return n, err
}
