// Package imagetest builds small OCI images for tests.
package imagetest

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/ociarchive"
)

// Entry is an entry of a layer: the header, and what a regular file holds.
type Entry struct {
	tar.Header
	Body string
}

// When is the time of entries that have none.
var When = time.Unix(1_700_000_000, 0)

// Layer returns a tar stream of the entries. A header without a type is a regular file's, or a
// directory's if the name ends in a slash; modes are 0644 and 0755 if not given.
func Layer(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		h.Format = tar.FormatPAX
		h.Size = int64(len(e.Body))
		dir := h.Typeflag == tar.TypeDir || h.Typeflag == 0 && h.Name != "" && h.Name[len(h.Name)-1] == '/'
		switch {
		case dir:
			h.Typeflag = tar.TypeDir
			if h.Mode == 0 {
				h.Mode = 0o755
			}
		case h.Typeflag == 0:
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.ModTime.IsZero() {
			h.ModTime = When
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("write header of %q: %v", h.Name, err)
		}
		if _, err := w.Write([]byte(e.Body)); err != nil {
			t.Fatalf("write %q: %v", h.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// File is an entry of a regular file.
func File(name, body string) Entry { return Entry{tar.Header{Name: name}, body} }

// Dir is an entry of a directory.
func Dir(name string) Entry { return Entry{tar.Header{Name: name, Typeflag: tar.TypeDir}, ""} }

// Link is an entry of a hard link.
func Link(name, to string) Entry {
	return Entry{tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink}, ""}
}

// Symlink is an entry of a symlink.
func Symlink(name, to string) Entry {
	return Entry{tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}, ""}
}

// Archive writes an image into a file of the test's own and returns the file and the manifest's digest.
func Archive(t testing.TB, img ociarchive.Image) (file string, digest volant.Digest) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	h, err := img.Write(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return file, volant.Digest(h.String())
}
