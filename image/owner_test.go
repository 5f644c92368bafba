package image_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/image/imagetest"
)

func TestBlobsBelongToThoseWhoShowThem(t *testing.T) {
	s, _ := open(t, image.Config{})
	body, d := []byte("a blob"), digest([]byte("a blob"))
	put := func(org volant.OrgID, b []byte) error { return s.PutFor(t.Context(), org, d, bytes.NewReader(b)) }
	if err := put("acme", body); err != nil {
		t.Fatal(err)
	}
	if !s.Owns("acme", d) || s.Owns("evil", d) || !s.Owns(image.AnyOrg, d) {
		t.Error("the blob is not acme's alone")
	}
	if err := put("evil", []byte("not it")); err == nil || s.Owns("evil", d) {
		t.Errorf("a digest without the content: %v, owned %v", err, s.Owns("evil", d))
	}
	if err := put("evil", body); err != nil || !s.Owns("evil", d) {
		t.Errorf("the content: %v, owned %v", err, s.Owns("evil", d))
	}
	for _, odd := range []volant.OrgID{"", "../acme", "acme/../x", "ACME", "acme\x00"} {
		if s.Owns(odd, d) {
			t.Errorf("organization %q has it", odd)
		}
		if err := put(odd, body); err != nil || !s.Owns(odd, d) {
			t.Errorf("organization %q: %v", odd, err)
		}
	}
	if n, err := s.OrgBytes("acme"); err != nil || n != int64(len(body)) {
		t.Errorf("acme has %d bytes, %v; want %d", n, err, len(body))
	}
	if s.Owns("acme", "sha256:../x") {
		t.Error("a digest that is none")
	}
}

// grow makes all files of the store two days old.
func grow(t *testing.T, dir string) {
	t.Helper()
	old := time.Now().Add(-48 * time.Hour)
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chtimes(path, old, old)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestPruneTakesWhatNothingNames(t *testing.T) {
	s, dir := open(t, image.Config{})
	used := load(t, s, plain(t, imagetest.File("u", "")))
	unused := load(t, s, plain(t, imagetest.File("n", "")))
	for _, d := range []volant.Digest{used, unused} {
		for _, org := range []volant.OrgID{"acme", "other"} {
			if err := s.Grant(org, d); err != nil {
				t.Fatal(err)
			}
		}
	}
	keep := func(d volant.Digest) bool { return d == used }
	if err := s.Prune("acme", keep); err != nil || !s.Owns("acme", unused) {
		t.Errorf("pruned what is young (%v)", err)
	}
	grow(t, dir)
	if err := s.Prune("acme", keep); err != nil {
		t.Fatal(err)
	}
	if s.Owns("acme", unused) || !s.Owns("acme", used) || !s.Owns("other", unused) {
		t.Errorf("acme has the unused one %v, the used one %v, the other organization %v; want false, true, true",
			s.Owns("acme", unused), s.Owns("acme", used), s.Owns("other", unused))
	}
	m, err := s.Manifest(used)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range m.Blobs {
		if !s.Owns("acme", b.Digest) {
			t.Errorf("blob %s of the used image is not acme's any more", b.Digest)
		}
	}
	if err := s.Prune("never-seen", keep); err != nil {
		t.Error(err)
	}
	// What GC removes is nobody's, should it come back.
	grow(t, dir)
	if _, err := s.GC(t.Context(), func(volant.Digest) bool { return false }); err != nil {
		t.Fatal(err)
	}
	marks, err := filepath.Glob(filepath.Join(dir, "orgs", "*", "*"))
	if err != nil || len(marks) > 0 {
		t.Errorf("marks left: %v, %v", marks, err)
	}
}

func TestGCKeepsThePlatformsOfAnIndex(t *testing.T) {
	s, dir := open(t, image.Config{})
	d := load(t, s, plain(t, imagetest.File("x", "")))
	raw := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` +
		string(d) + `","size":1,"platform":{"os":"linux","architecture":"amd64"}}]}`)
	index := digest(raw)
	if err := s.Put(t.Context(), index, bytes.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	grow(t, dir)
	if freed, err := s.GC(t.Context(), func(d volant.Digest) bool { return d == index }); err != nil || freed.Files != 0 {
		t.Errorf("GC() = %+v, %v; want nothing freed", freed, err)
	}
	if got, err := s.ForPlatform(index); err != nil || got != d {
		t.Errorf("ForPlatform() = %v, %v; want %v", got, err, d)
	}
}

func TestUploadsInPieces(t *testing.T) {
	s, dir := open(t, image.Config{MaxBytes: 100})
	u, err := s.Begin()
	if err != nil {
		t.Fatal(err)
	}
	for _, piece := range []string{"one ", "", "two"} {
		if err := u.Append(t.Context(), bytes.NewReader([]byte(piece))); err != nil {
			t.Fatal(err)
		}
	}
	if err := u.Commit("acme", digest([]byte("one two"))); err != nil || !s.Owns("acme", digest([]byte("one two"))) {
		t.Errorf("commit: %v", err)
	}
	if u, err = s.Begin(); err != nil {
		t.Fatal(err)
	}
	if err := u.Append(t.Context(), bytes.NewReader(make([]byte, 101))); err == nil {
		t.Error("more than the store takes was taken")
	}
	u.Cancel()
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
