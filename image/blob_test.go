package image_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/image/imagetest"
	"github.com/volant-edge/volant/internal/ociarchive"
	"github.com/volant-edge/volant/volanttest/need"
)

func digest(b []byte) volant.Digest {
	sum := sha256.Sum256(b)
	return volant.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

func TestPutIsForTheRightBytesOnly(t *testing.T) {
	s, dir := open(t, image.Config{MaxBytes: 1000})
	body := []byte("content")
	for name, tt := range map[string]struct {
		digest volant.Digest
		r      io.Reader
		want   string
	}{
		"other bytes":    {digest(body), strings.NewReader("contend"), "received are"},
		"fewer bytes":    {digest(body), strings.NewReader("conten"), "received are"},
		"too many bytes": {digest(make([]byte, 1001)), bytes.NewReader(make([]byte, 1001)), "larger than"},
		"no digest":      {"sha256:../../x", bytes.NewReader(body), "invalid digest"},
	} {
		err := s.Put(t.Context(), tt.digest, tt.r)
		if !errors.Is(err, volant.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	broken := errors.New("broken")
	if err := s.Put(t.Context(), digest(body), iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("Put() = %v, want the reader's error", err)
	}
	if s.Has(digest(body)) {
		t.Error("the blob is here")
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestConcurrentPutsOfOneBlob(t *testing.T) {
	s, _ := open(t, image.Config{})
	body := bytes.Repeat([]byte("x"), 1<<20)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if err := s.Put(t.Context(), digest(body), bytes.NewReader(body)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	r, n, err := s.Blob(digest(body))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || n != int64(len(body)) || !bytes.Equal(got, body) {
		t.Errorf("%d bytes of %d, %v", len(got), n, err)
	}
}

func TestPutOfAKnownBlobReadsNothing(t *testing.T) {
	s, _ := open(t, image.Config{})
	if err := s.Put(t.Context(), digest(nil), bytes.NewReader(nil)); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), digest(nil), iotest.ErrReader(errors.New("was read"))); err != nil {
		t.Error(err)
	}
}

func TestGCKeepsWhatIsUsedOrYoung(t *testing.T) {
	s, dir := open(t, image.Config{})
	shared := plain(t, imagetest.File("shared", "x"))
	used := load(t, s, shared, plain(t, imagetest.File("u", "")))
	unused := load(t, s, shared, plain(t, imagetest.File("n", "")))
	for _, d := range []volant.Digest{used, unused} {
		if _, err := s.Rootfs(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	keep := func(d volant.Digest) bool { return d == used }
	if freed, err := s.GC(t.Context(), keep); err != nil || freed.Files != 0 {
		t.Errorf("GC() of young files = %+v, %v", freed, err)
	}
	age(t, dir)
	if !s.Has(unused) {
		t.Fatal("gone")
	}
	// It was asked for, so it is young again; its layer, config and root disk are not.
	if freed, err := s.GC(t.Context(), keep); err != nil || freed.Files != 3 {
		t.Errorf("GC() = %+v, %v; want the unused image's own layer, config and root disk", freed, err)
	}
	age(t, dir)
	if freed, err := s.GC(t.Context(), keep); err != nil || freed.Files != 1 {
		t.Errorf("GC() = %+v, %v; want the unused manifest", freed, err)
	}
	if _, err := s.Rootfs(t.Context(), used); err != nil {
		t.Errorf("the used image: %v", err)
	}
	if _, err := s.Manifest(used); err != nil {
		t.Errorf("the used image: %v", err)
	}
	u, err := s.Usage()
	if err != nil || u.Blobs != 4 || u.Rootfs != 1 {
		t.Errorf("Usage() = %+v, %v", u, err)
	}
	age(t, dir)
	if freed, err := s.GC(t.Context(), func(volant.Digest) bool { return false }); err != nil || freed.Files != 5 {
		t.Errorf("GC() of all = %+v, %v", freed, err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "rootfs")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// age makes all files old.
func age(t *testing.T, dir string) {
	t.Helper()
	old := time.Now().Add(-48 * time.Hour)
	for _, pattern := range []string{"blobs/sha256/*", "rootfs/*"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", pattern, files, err)
		}
		for _, f := range files {
			if err := os.Chtimes(f, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestScratchIsSparseAndTheSame(t *testing.T) {
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		if _, err := os.Stat("/usr/sbin/mkfs.ext4"); err != nil {
			t.Skip("mkfs.ext4 is not installed")
		}
	}
	s, dir := open(t, image.Config{})
	var got [2][]byte
	for i := range got {
		path := filepath.Join(dir, "disk")
		if err := os.WriteFile(path, []byte("what was there before"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Scratch(t.Context(), path, 64); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got[i] = b
	}
	if len(got[0]) != 64<<20 || !bytes.Equal(got[0], got[1]) {
		t.Errorf("scratch disks of %d and %d bytes differ or are not of 64 MiB", len(got[0]), len(got[1]))
	}
	if out, err := exec.Command("du", "-k", filepath.Join(dir, "disk")).Output(); err != nil || len(strings.Fields(string(out))[0]) > 4 {
		t.Errorf("on disk: %s KiB, %v; want less than 10,000", out, err)
	}
	if err := s.Scratch(t.Context(), filepath.Join(dir, "disk"), 1); !errors.Is(err, volant.ErrInvalid) {
		t.Errorf("scratch disk of 1 MB: %v", err)
	}
	if err := s.Scratch(t.Context(), filepath.Join(dir, "no", "disk"), 64); err == nil {
		t.Error("a scratch disk in no directory")
	}
}

func TestFullDisk(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=90m", "tmpfs", dir).CombinedOutput(); err != nil {
		need.Unmet(t, "root", "mount of tmpfs: "+string(out))
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	s, err := image.Open(dir, image.Config{})
	if err != nil {
		t.Fatal(err)
	}
	// little packed, 100 MiB unpacked: it is found out while it is written.
	big := packed(t, ociarchive.Zstd, imagetest.File("big", strings.Repeat("zeros", 20<<20)))
	_, err = s.Rootfs(t.Context(), load(t, s, big))
	refused(t, dir, err, "no disk space", DigestOf(big))
	if !errors.Is(err, volant.ErrNoCapacity) {
		t.Errorf("error %v is not of the kind ErrNoCapacity", err)
	}
	// 40 MiB of upload do not fit beside what stays free: it is found out before.
	file, _ := imagetest.Archive(t, ociarchive.Image{Layers: []ociarchive.Layer{plain(t, imagetest.File("a", strings.Repeat("x", 40<<20)))}})
	_, err = s.Import(t.Context(), "oci-archive:"+file, nil)
	refused(t, dir, err, "no disk space")
}
