package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/volant-edge/volant"
)

// Blob is one blob of an image.
type Blob struct {
	Digest volant.Digest `json:"digest"`
	Size   int64         `json:"size"`
}

// Source is an image outside the store, for reading.
type Source struct {
	Digest volant.Digest // of the manifest for linux/amd64
	Blobs  []Blob        // layers, config and, last, the manifest; each once
	Ref    string        // as it was asked for

	files layout
}

// layout reads the files of an OCI image layout.
type layout interface {
	open(name string) (io.ReadCloser, int64, error) // fs.ErrNotExist if it is not there
	Close() error
}

// OpenSource opens "oci-archive:FILE", "oci:DIR" or "docker-archive:FILE", each with ":TAG" after it to
// choose one of several images. It reads the manifest and looks that each blob is there with the right size.
func OpenSource(ref string) (*Source, error) {
	kind, rest, ok := strings.Cut(ref, ":")
	if !ok || rest == "" {
		return nil, volant.Invalidf("image %q does not say what it is", ref).WithRemedy("write %s", fileForms)
	}
	var open func(string) (layout, error)
	switch kind {
	case "docker-archive":
		return openDockerArchive(ref, rest)
	case "oci-archive":
		open = openArchive
	case "oci":
		open = openDir
	default:
		return nil, volant.Invalidf("image %q: %q is no known source", ref, kind).WithRemedy("write %s", fileForms)
	}
	name, tag := splitTag(rest)
	files, err := open(name)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	s := &Source{Ref: ref, files: files}
	if err := s.load(tag); err != nil {
		files.Close() //nolint:errcheck // only read from
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return s, nil
}

const fileForms = "docker-archive:FILE, oci-archive:FILE or oci:DIR"

// splitTag takes a tag off the end of a path, unless the path as a whole exists.
func splitTag(s string) (name, tag string) {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 || strings.ContainsRune(s[i:], '/') {
		return s, ""
	}
	if _, err := os.Stat(s); err == nil {
		return s, ""
	}
	return s[:i], s[i+1:]
}

// Open opens one of the source's blobs.
func (s *Source) Open(d volant.Digest) (io.ReadCloser, error) {
	r, _, err := s.open(d)
	return r, err
}

// Size is the sum of the blobs' sizes.
func (s *Source) Size() int64 {
	var n int64
	for _, b := range s.Blobs {
		n += b.Size
	}
	return n
}

// Exposed are the ports the image says its program listens on, such as "80/tcp"; none where it cannot be read.
func (s *Source) Exposed() []string {
	m, err := readManifest(s.open, s.Digest)
	if err != nil {
		return nil
	}
	return m.Config.Exposed
}

// Close closes the file or directory.
func (s *Source) Close() error { return s.files.Close() }

func (s *Source) open(d volant.Digest) (io.ReadCloser, int64, error) {
	if !d.Valid() {
		return nil, 0, volant.Invalidf("%s", d).WithRemedy("only sha256 digests are supported")
	}
	r, n, err := s.files.open("blobs/sha256/" + d.Hex())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, volant.Errorf(volant.ErrNotFound, "blob %s is missing in the image", string(d)).
			WithRemedy("the copy is not complete: make it again")
	}
	return r, n, err
}

// openDir opens an image layout in a directory.
func openDir(dir string) (layout, error) {
	if st, err := os.Stat(dir); err != nil {
		return nil, notThere(dir, err)
	} else if !st.IsDir() {
		return nil, volant.Invalidf("%s is no directory", dir).WithRemedy("for a file write oci-archive:%s", dir)
	}
	root, err := os.OpenRoot(dir) // no symlink in it leads elsewhere
	if err != nil {
		return nil, err
	}
	return dirLayout{root}, nil
}

func notThere(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return volant.Errorf(volant.ErrNotFound, "%s does not exist", name).WithRemedy("check the path")
	}
	return err
}

type dirLayout struct{ *os.Root }

func (d dirLayout) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = volant.Invalidf("%s is no regular file", name)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, st.Size(), nil
}

// maxArchiveEntries bounds an archive's files. An image has a blob per layer, and at most 127 layers in practice.
const maxArchiveEntries = 10_000

// openArchive opens an image layout in a tar file. Blobs are read where they lie in it.
func openArchive(name string) (layout, error) {
	if st, err := os.Stat(name); err == nil && st.IsDir() {
		return nil, volant.Invalidf("%s is a directory", name).WithRemedy("for a directory write oci:%s", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, notThere(name, err)
	}
	a, err := readArchive(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	a.Closer = f
	return a, nil
}

type archive struct {
	io.Closer
	at    io.ReaderAt
	files map[string]span
	links map[string]string // of names that are links, to what
}

type span struct{ off, size int64 }

// readArchive notes where the files of a tar file lie.
func readArchive(f interface {
	io.ReadSeeker
	io.ReaderAt
},
) (*archive, error) {
	var head [6]byte
	if n, err := f.ReadAt(head[:], 0); errors.Is(err, io.EOF) && n == 0 {
		return nil, volant.Invalidf("the archive is empty").WithRemedy("check that it is the right file")
	} else if err != nil && n == 0 {
		return nil, volant.Invalidf("the archive cannot be read: %v", err).WithRemedy("check that it is the right file")
	}
	for magic, cure := range map[string]string{"\x1f\x8b": "gunzip", "\x28\xb5\x2f\xfd": "unzstd", "\xfd7zXZ\x00": "unxz"} {
		if bytes.HasPrefix(head[:], []byte(magic)) {
			return nil, volant.Invalidf("the archive is compressed").WithRemedy("unpack it with %s first", cure)
		}
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	a := &archive{at: f, files: make(map[string]span), links: make(map[string]string)}
	tr := tar.NewReader(f)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return nil, volant.Invalidf("the archive is damaged or no tar file: %v", err).WithRemedy("make it again")
		}
		if n == maxArchiveEntries {
			return nil, volant.Invalidf("the archive has more than %d entries", maxArchiveEntries).
				WithRemedy("check that it is an OCI archive")
		}
		// The reader of a tar file takes whole blocks and nothing ahead, so the content starts here.
		off, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		switch h.Typeflag {
		case tar.TypeReg:
		case tar.TypeSymlink: // an old `docker save` has them between layers
			a.links[path.Clean(h.Name)] = path.Join(path.Dir(h.Name), h.Linkname)
			continue
		case tar.TypeLink:
			a.links[path.Clean(h.Name)] = path.Clean(h.Linkname)
			continue
		default:
			continue
		}
		if h.Size > end-off {
			return nil, volant.Invalidf("the archive ends within %s", h.Name).WithRemedy("the copy is not complete: make it again")
		}
		a.files[path.Clean(h.Name)] = span{off, h.Size}
	}
}

func (a *archive) open(name string) (io.ReadCloser, int64, error) {
	s, ok := a.files[name]
	for n := 0; !ok && n < 4 && a.links[name] != ""; n++ {
		name = a.links[name]
		s, ok = a.files[name]
	}
	if !ok {
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(a.at, s.off, s.size)), s.size, nil
}
