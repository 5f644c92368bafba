package image

import (
	"bytes"
	"context"
	"io"
	"os"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/image/erofs"
)

// Merge writes plain layers to f, without a store around it, so that fuzzing is fast.
func Merge(f *os.File, cfg Config, layers ...[]byte) error {
	m := newMerger(erofs.NewWriter(f), cfg.withDefaults())
	for _, l := range layers {
		if err := m.apply(context.Background(), "sha256:fuzzed", &limitReader{bytes.NewReader(l), 1 << 22}); err != nil {
			return err
		}
	}
	_, _, err := m.finish([16]byte{})
	return err
}

// ParseImage reads a manifest, and a config for it, of any bytes.
func ParseImage(manifest, config []byte) (Manifest, error) {
	m, _, err := parseManifest("sha256:fuzzed", manifest)
	if err != nil {
		return Manifest{}, err
	}
	return m, m.parseConfig(config)
}

// OpenBytes is OpenSource of an archive's bytes.
func OpenBytes(b []byte) (*Source, error) {
	a, err := readArchive(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	a.Closer = io.NopCloser(nil)
	s := &Source{files: a}
	return s, s.load("")
}

// Choose picks among an index's images.
func Choose(index []byte, tag string) (volant.Digest, error) {
	var all []candidate
	nothing := func(d volant.Digest) ([]byte, error) {
		return readDocument((&Source{files: &archive{}}).open, d)
	}
	if err := collect(nothing, index, "", 0, &all); err != nil {
		return "", err
	}
	return choose(all, tag)
}
