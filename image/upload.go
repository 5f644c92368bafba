package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/volant-edge/volant"
)

// Upload is a blob that comes in pieces, whose digest is told at the end. It has one user at a time.
type Upload struct {
	s      *Store
	file   *os.File
	remove func()
	sum    hash.Hash
	n      int64
}

// Begin starts an upload. It must be committed or cancelled.
func (s *Store) Begin() (*Upload, error) {
	if err := s.room(0); err != nil {
		return nil, fmt.Errorf("begin an upload: %w", err)
	}
	f, remove, err := s.temp("upload-")
	if err != nil {
		return nil, fmt.Errorf("begin an upload: %w", err)
	}
	return &Upload{s: s, file: f, remove: remove, sum: sha256.New()}, nil
}

// Size is how much there is.
func (u *Upload) Size() int64 { return u.n }

// Append adds what r gives. After an error the upload has what came until then.
func (u *Upload) Append(ctx context.Context, r io.Reader) error {
	left := u.s.cfg.MaxBytes - u.n
	n, err := io.Copy(io.MultiWriter(u.file, u.sum), io.LimitReader(&roomReader{s: u.s, r: &ctxReader{ctx, r}}, left+1))
	u.n += n
	switch {
	case err != nil:
		return fmt.Errorf("upload: after %d bytes: %w", u.n, u.s.diskFull(err))
	case n > left:
		return volant.Invalidf("the blob is larger than %s", size(u.s.cfg.MaxBytes)).WithRemedy("make the image smaller")
	}
	return nil
}

// Commit makes the upload the blob d of the organization, if it is that blob.
func (u *Upload) Commit(org volant.OrgID, d volant.Digest) error {
	defer u.remove()
	if got := sum(u.sum); got != d {
		return notTheBlob(d, got, u.n)
	}
	if !u.s.Has(d) {
		if err := publish(u.file, u.s.blobPath(d), 0o400); err != nil {
			return fmt.Errorf("put blob %s: %w", string(d), u.s.diskFull(err))
		}
	}
	return u.s.own(org, d)
}

// Cancel removes what came.
func (u *Upload) Cancel() { u.remove() }

// Document reads a manifest, index or config.
func (s *Store) Document(d volant.Digest) ([]byte, error) { return readDocument(s.Blob, d) }

// ForPlatform is the digest of the image for our platform: d itself, or if d is an index one in it.
func (s *Store) ForPlatform(d volant.Digest) (volant.Digest, error) {
	raw, err := s.Document(d)
	if err != nil {
		return "", err
	}
	if !MediaType(raw, "").IsIndex() {
		return d, nil
	}
	var all []candidate
	if err := collect(s.Document, raw, "", 0, &all); err != nil {
		return "", err
	}
	return choose(all, "")
}

// Parts are the blobs that a manifest or index of any kind names itself, with their sizes.
func Parts(raw []byte) ([]Blob, error) {
	var m struct {
		Config    *v1.Descriptor  `json:"config"`
		Layers    []v1.Descriptor `json:"layers"`
		Manifests []v1.Descriptor `json:"manifests"`
	}
	if err := decode(raw, &m); err != nil {
		return nil, err
	}
	all := append(m.Layers, m.Manifests...) //nolint:gocritic // both are ours
	if m.Config != nil {
		all = append(all, *m.Config)
	}
	if len(all) > maxManifests {
		return nil, volant.Invalidf("the manifest names %d blobs, at most %d work", len(all), maxManifests).WithRemedy("push fewer at a time")
	}
	var out []Blob
	for _, d := range all {
		b, err := asBlob(d)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, nil
}

// Prune takes from an organization what it has no more use for: all blobs but those of the images that
// keep names, and of those which came within the grace time. The blobs themselves GC removes.
func (s *Store) Prune(org volant.OrgID, keep func(volant.Digest) bool) error {
	marks, err := os.ReadDir(s.orgDir(org))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("prune images of %s: %w", org, err)
	}
	kept := make(map[volant.Digest]bool)
	for _, m := range marks {
		if d := volant.Digest("sha256:" + m.Name()); keep(d) {
			kept[d] = true
			s.keepBlobs(d, kept, 0)
		}
	}
	for _, m := range marks {
		info, err := m.Info()
		if err != nil || kept[volant.Digest("sha256:"+m.Name())] || time.Since(info.ModTime()) < s.cfg.Grace {
			continue
		}
		if err := os.Remove(s.orgDir(org) + "/" + m.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("prune images of %s: %w", org, err)
		}
	}
	return nil
}

func decode(raw []byte, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		return volant.Invalidf("the manifest is not valid: %v", err).WithRemedy("build the image again")
	}
	return nil
}
