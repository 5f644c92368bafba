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
	"regexp"
	"time"

	"github.com/volant-edge/volant"
)

// AnyOrg stands for all organizations: it sees every blob, and what it puts has no owner until Grant.
const AnyOrg volant.OrgID = "*"

var plainOrg = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// orgDir is the directory of an organization's marks. A mark is an empty file with a blob's name: the
// organization has shown that it has the blob's content, so it may know that the blob is here.
func (s *Store) orgDir(org volant.OrgID) string { return s.path("orgs", MarkOf(org)) }

// MarkOf is the name of an organization's directory of marks, by which stores tell each other of it.
func MarkOf(org volant.OrgID) string {
	if plainOrg.MatchString(string(org)) {
		return string(org)
	}
	sum := sha256.Sum256([]byte(org))
	return "_" + hex.EncodeToString(sum[:])
}

// Owns says whether the organization has shown that it has the blob, and the blob is here; like Has it
// spares the blob.
func (s *Store) Owns(org volant.OrgID, d volant.Digest) bool {
	if org == AnyOrg {
		return s.Has(d)
	}
	if !d.Valid() {
		return false
	}
	now := time.Now()
	return os.Chtimes(s.orgDir(org)+"/"+d.Hex(), now, now) == nil && s.Has(d) // Prune spares what was asked for
}

// PutFor is Put for an organization. Content that is here already, but not known to be the
// organization's, is read to its end all the same: a digest alone gives nobody a blob.
func (s *Store) PutFor(ctx context.Context, org volant.OrgID, d volant.Digest, r io.Reader) error {
	switch {
	case !d.Valid():
		return volant.Invalidf("%s", d)
	case s.Owns(org, d):
		return nil
	case !s.Has(d):
		if err := s.Put(ctx, d, r); err != nil {
			return err
		}
	default:
		h := sha256.New()
		n, err := io.Copy(h, io.LimitReader(&ctxReader{ctx, r}, s.cfg.MaxBytes+1))
		if err != nil {
			return fmt.Errorf("put blob %s: after %d bytes: %w", string(d), n, err)
		}
		if got := sum(h); got != d {
			return notTheBlob(d, got, n)
		}
	}
	return s.own(org, d)
}

func notTheBlob(want, got volant.Digest, n int64) error {
	return &mismatch{got, volant.Invalidf("blob %s: the %d bytes received are %s", string(want), n, string(got)).
		WithRemedy("upload it again; if that fails too, the image is damaged: build it again")}
}

// mismatch is the error of content that has another digest.
type mismatch struct {
	got volant.Digest
	error
}

func (m *mismatch) Unwrap() error { return m.error }

func (s *Store) own(org volant.OrgID, ds ...volant.Digest) error {
	if org == AnyOrg {
		return nil
	}
	return s.ownBy(s.orgDir(org), ds...)
}

// ownBy makes marks in an organization's directory of them.
func (s *Store) ownBy(dir string, ds ...volant.Digest) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return s.diskFull(fmt.Errorf("note who has a blob: %w", err))
	}
	now := time.Now()
	for _, d := range ds {
		if os.Chtimes(dir+"/"+d.Hex(), now, now) == nil {
			continue
		}
		f, err := os.OpenFile(dir+"/"+d.Hex(), os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return s.diskFull(fmt.Errorf("note who has a blob: %w", err))
		}
	}
	return nil
}

// Grant makes an image, with all of its blobs, the organization's as well.
func (s *Store) Grant(org volant.OrgID, d volant.Digest) error {
	if s.Owns(org, d) {
		return nil
	}
	if !s.Has(d) {
		return volant.Errorf(volant.ErrNotFound, "image %s is not here", d).WithRemedy("upload it")
	}
	all := map[volant.Digest]bool{d: true}
	s.keepBlobs(d, all, 0)
	for b := range all {
		if !s.Has(b) {
			continue // of another platform, and never pushed
		}
		if err := s.own(org, b); err != nil {
			return err
		}
	}
	return nil
}

// disown removes all marks of a blob that is about to go.
func (s *Store) disown(d volant.Digest) error {
	orgs, err := os.ReadDir(s.path("orgs"))
	if err != nil {
		return err
	}
	for _, o := range orgs {
		if err := os.Remove(s.path("orgs", o.Name(), d.Hex())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// OrgBytes is the size of all blobs that an organization has here.
func (s *Store) OrgBytes(org volant.OrgID) (int64, error) {
	marks, err := os.ReadDir(s.orgDir(org))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("images of %s: %w", org, err)
	}
	var n int64
	for _, m := range marks {
		if st, err := os.Stat(s.path("blobs/sha256", m.Name())); err == nil {
			n += st.Size()
		}
	}
	return n, nil
}
