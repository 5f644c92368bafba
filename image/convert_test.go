package image_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/image/imagetest"
	"github.com/volant-edge/volant/internal/ociarchive"
)

func TestRefusedImages(t *testing.T) {
	small := image.Config{MaxBytes: 10_000, MaxEntries: 50}
	many := make([]imagetest.Entry, 51)
	for i := range many {
		many[i] = imagetest.File(fmt.Sprint(i), "")
	}
	tests := []struct {
		name    string
		entries []imagetest.Entry
		want    string
	}{
		{"a name with dots", []imagetest.Entry{imagetest.File("../etc/passwd", "")}, "climbs out"},
		{"dots in the middle", []imagetest.Entry{imagetest.File("a/../../etc/passwd", "")}, "climbs out"},
		{"an absolute name with dots", []imagetest.Entry{imagetest.File("/../x", "")}, "climbs out"},
		{"through a symlink", []imagetest.Entry{imagetest.Symlink("a", "../.."), imagetest.File("a/x", "")}, "climbs out"},
		{"a hard link outside", []imagetest.Entry{imagetest.Link("a", "../../etc/shadow")}, "climbs out"},
		{"a hard link through a symlink", []imagetest.Entry{imagetest.Symlink("a", "../.."), imagetest.Link("b", "a/etc/shadow")}, "climbs out"},
		{"a hard link to nothing", []imagetest.Entry{imagetest.Link("a", "b")}, "not there"},
		{"a hard link to a directory", []imagetest.Entry{imagetest.Dir("d"), imagetest.Link("a", "d")}, "directory"},
		{"a loop of symlinks", []imagetest.Entry{imagetest.Symlink("a", "b"), imagetest.Symlink("b", "a"), imagetest.File("a/x", "")}, "too many symlinks"},
		{"below a file", []imagetest.Entry{imagetest.File("a", ""), imagetest.File("a/x", "")}, "no directory"},
		{"a long name", []imagetest.Entry{imagetest.File(strings.Repeat("x", 256), "")}, "at most 255"},
		{"a long path", []imagetest.Entry{imagetest.File(strings.Repeat("x/", 2500), "")}, "at most 4096"},
		{"too many files", many, "more than 50 entries"},
		{"too large", []imagetest.Entry{imagetest.File("a", strings.Repeat("x", 10_001))}, "over the limit"},
		{"too large together", []imagetest.Entry{imagetest.File("a", strings.Repeat("x", 6000)), imagetest.File("b", strings.Repeat("x", 6000))}, "over the limit"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, dir := open(t, small)
			layer := packed(t, ociarchive.Gzip, tt.entries...)
			_, err := s.Rootfs(t.Context(), load(t, s, layer))
			refused(t, dir, err, tt.want, layer.DiffID.Hex[:0])
			if !strings.Contains(err.Error(), DigestOf(layer)) {
				t.Errorf("%v: does not name the layer %s", err, DigestOf(layer))
			}
		})
	}
}

func DigestOf(l ociarchive.Layer) string {
	files, _, err := ociarchive.Image{Layers: []ociarchive.Layer{l}}.Files()
	if err != nil {
		panic(err)
	}
	for name, b := range files {
		if string(b) == string(l.Blob) {
			return "sha256:" + filepath.Base(name)
		}
	}
	panic("the layer is not in its image")
}

// refused checks that err has a cause and a cure and that nothing half-made is left.
func refused(t *testing.T, dir string, err error, want ...string) {
	t.Helper()
	var e *volant.Error
	if !errors.As(err, &e) || e.Remedy == "" {
		t.Fatalf("error %v: not one for people with a cure", err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %v: want %q in it", err, w)
		}
	}
	for _, d := range []string{"tmp", "rootfs"} {
		left, err := os.ReadDir(filepath.Join(dir, d))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) > 0 {
			t.Errorf("left in %s: %v", d, left)
		}
	}
}

func TestDamagedLayers(t *testing.T) {
	good := imagetest.Layer(t, imagetest.File("a", strings.Repeat("x", 5000)))
	zipped, err := ociarchive.Gzip(good)
	if err != nil {
		t.Fatal(err)
	}
	cut := zipped
	cut.Blob = cut.Blob[:len(cut.Blob)-10]
	lying := zipped
	lying.DiffID = ociarchive.Plain([]byte("other")).DiffID
	short := ociarchive.Plain(good[:700])
	for name, tt := range map[string]struct {
		layer ociarchive.Layer
		want  string
	}{
		"gzip cut off":     {cut, "damaged"},
		"wrong diff_id":    {lying, "config says"},
		"tar cut off":      {short, "damaged"},
		"no tar":           {ociarchive.Plain([]byte(strings.Repeat("no tar file", 100))), "damaged"},
		"gzip, but no end": {ociarchive.Plain([]byte{0x1f, 0x8b}), "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := open(t, image.Config{})
			_, err := s.Rootfs(t.Context(), load(t, s, tt.layer))
			refused(t, dir, err, tt.want, DigestOf(tt.layer))
		})
	}
}

func TestLayerDamagedOnDiskIsRemoved(t *testing.T) {
	s, dir := open(t, image.Config{})
	layer := packed(t, ociarchive.Gzip, imagetest.File("a", strings.Repeat("x", 5000)))
	d := load(t, s, layer)
	name := DigestOf(layer)
	path := filepath.Join(dir, "blobs/sha256", strings.TrimPrefix(name, "sha256:"))
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	b := slices.Clone(layer.Blob)
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.Rootfs(t.Context(), d)
	refused(t, dir, err, "damaged on disk", name)
	if s.Has(volant.Digest(name)) {
		t.Error("the damaged blob is still here, so it would not be uploaded again")
	}
	_, err = s.Rootfs(t.Context(), d)
	refused(t, dir, err, "not here", name)
	if err := s.Put(t.Context(), volant.Digest(name), strings.NewReader(string(layer.Blob))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rootfs(t.Context(), d); err != nil {
		t.Errorf("after a new upload: %v", err)
	}
}

func TestConversionIsSharedAndOutlivesOneCaller(t *testing.T) {
	s, _ := open(t, image.Config{})
	d := load(t, s, plain(t, imagetest.File("a", strings.Repeat("x", 3<<20))))
	started, goOn := make(chan struct{}), make(chan struct{})
	first, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	go func() {
		told := false
		_, err := s.Convert(first, d, func(image.Progress) {
			if !told {
				told = true
				close(started)
				<-goOn
			}
		})
		errs <- err
	}()
	<-started
	second := make(chan error, 1)
	joined := make(chan struct{})
	go func() {
		close(joined)
		_, err := s.Convert(t.Context(), d, nil)
		second <- err
	}()
	<-joined
	close(goOn)
	if err := <-second; err != nil {
		t.Errorf("second caller: %v", err)
	}
	cancel()
	if err := <-errs; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("first caller: %v", err)
	}
}

func TestCancelledConversionLeavesNothing(t *testing.T) {
	s, dir := open(t, image.Config{})
	d := load(t, s, plain(t, imagetest.File("a", strings.Repeat("x", 8<<20))))
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Convert(ctx, d, func(image.Progress) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want Canceled", err)
	}
	for _, sub := range []string{"tmp", "rootfs"} {
		if left, _ := os.ReadDir(filepath.Join(dir, sub)); len(left) > 0 {
			t.Errorf("left in %s: %v", sub, left)
		}
	}
	if _, err := s.Rootfs(t.Context(), d); err != nil {
		t.Errorf("the next: %v", err)
	}
}

func TestProgress(t *testing.T) {
	s, _ := open(t, image.Config{})
	file, _ := imagetest.Archive(t, ociarchive.Image{Layers: []ociarchive.Layer{
		plain(t, imagetest.File("a", strings.Repeat("x", 5<<20))), plain(t, imagetest.File("b", "y")),
	}})
	var up, conv []image.Progress
	d, err := s.Import(t.Context(), "oci-archive:"+file, func(p image.Progress) { up = append(up, p) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Convert(t.Context(), d, func(p image.Progress) { conv = append(conv, p) }); err != nil {
		t.Fatal(err)
	}
	for name, ps := range map[string][]image.Progress{"upload": up, "convert": conv} {
		if len(ps) < 4 {
			t.Fatalf("%s: %d reports of 5 MiB, want 4 or more", name, len(ps))
		}
		for i, p := range ps {
			if p.Phase != name || i > 0 && p.Done < ps[i-1].Done || p.Done > p.Total {
				t.Errorf("%s: report %d is %+v after %+v", name, i, p, ps[max(i-1, 0)])
			}
		}
		if last := ps[len(ps)-1]; last.Done != last.Total {
			t.Errorf("%s ends at %d of %d", name, last.Done, last.Total)
		}
	}
}
