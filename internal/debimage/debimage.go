package debimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/ociarchive"
)

// generation changes when equal packages and definitions give another image than before.
const generation = "1"

// Builder builds images.
type Builder struct {
	// Cache is the directory of packages and images; "" is volant/debimage in the user's cache directory.
	Cache string
	// Say is told in a line what is downloaded and built; nil is silent.
	Say func(format string, args ...any)
}

// Names are the images there are, sorted.
func Names() []string { return slices.Sorted(maps.Keys(definitions())) }

// Image returns the archive of an image in the cache, which it builds first if need be, and the
// digest of its manifest. The file is complete and never changes.
func (b Builder) Image(ctx context.Context, name string) (file string, digest volant.Digest, err error) {
	d, ok := definitions()[name]
	if !ok {
		return "", "", volant.Errorf(volant.ErrNotFound, "no image %q", name).
			WithRemedy("there are: %s", strings.Join(Names(), ", "))
	}
	if b, err = b.ready(); err != nil {
		return "", "", fmt.Errorf("image %s: %w", name, err)
	}
	file, digest, err = b.image(ctx, name, d)
	if err != nil {
		return "", "", fmt.Errorf("image %s: %w", name, err)
	}
	return file, digest, nil
}

func (b Builder) ready() (Builder, error) {
	if b.Say == nil {
		b.Say = func(string, ...any) {}
	}
	if b.Cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return b, err
		}
		b.Cache = filepath.Join(dir, "volant", "debimage")
	}
	return b, os.MkdirAll(b.Cache, 0o755)
}

// parts are what an image is made of.
type parts struct {
	debs   []string          // files of packages
	wanted map[string]bool   // names of those that are in for themselves, not for a library
	extra  map[string][]byte // further files that are built, by path
}

func (b Builder) image(ctx context.Context, name string, d definition) (string, volant.Digest, error) {
	p, err := b.parts(ctx, name, d)
	if err != nil {
		return "", "", err
	}
	key, err := p.key(d)
	if err != nil {
		return "", "", err
	}
	file := filepath.Join(b.Cache, name+"-"+key[:16]+".tar")
	if raw, err := os.ReadFile(file + ".digest"); err == nil {
		if _, err := os.Stat(file); err == nil {
			return file, volant.Digest(strings.TrimSpace(string(raw))), nil
		}
	}
	img, err := d.build(ctx, p)
	if err != nil {
		return "", "", err
	}
	img.Tag = name
	digest, err := b.write(img, file)
	if err != nil {
		return "", "", err
	}
	b.Say("built %s: %s", name, describe(img))
	return file, digest, nil
}

func describe(img ociarchive.Image) string {
	var sizes []string
	for _, l := range img.Layers {
		sizes = append(sizes, fmt.Sprintf("%.1f MB", float64(len(l.Blob))/1e6))
	}
	return "layers of " + strings.Join(sizes, ", ") + " packed"
}

// write writes an archive and its digest, each complete or not at all.
func (b Builder) write(img ociarchive.Image, file string) (volant.Digest, error) {
	var h v1.Hash
	err := atomically(file, func(w io.Writer) (err error) {
		h, err = img.Write(w)
		return err
	})
	if err != nil {
		return "", err
	}
	err = atomically(file+".digest", func(w io.Writer) error {
		_, err := fmt.Fprintln(w, h)
		return err
	})
	return volant.Digest(h.String()), err
}

// atomically writes a file that appears when it is complete.
func atomically(file string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone already if all went well
	if err := errors.Join(write(f), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// parts gets what an image is made of, from the cache or by building and downloading it.
func (b Builder) parts(ctx context.Context, name string, d definition) (parts, error) {
	p := parts{wanted: make(map[string]bool), extra: make(map[string][]byte)}
	if d.program != "" {
		bin, err := compile(ctx, d.program)
		if err != nil {
			return parts{}, err
		}
		p.extra["usr/bin/"+filepath.Base(d.program)] = bin
	}
	for _, pkg := range d.packages {
		p.wanted[pkg] = true
	}
	if len(d.packages) == 0 {
		return p, nil
	}
	var err error
	p.debs, err = b.packages(ctx, name, slices.Concat(base, d.packages))
	return p, err
}

// key names what the image will be: a digest of all that goes into it.
func (p parts) key(d definition) (string, error) {
	h := sha256.New()
	raw, err := json.Marshal(struct {
		Generation string
		Config     v1.Config
		Files      tree
		Extra      map[string][]byte
	}{generation, d.config, d.all(), p.extra})
	if err != nil {
		return "", err
	}
	h.Write(raw)
	for _, deb := range p.debs {
		fmt.Fprintln(h, filepath.Base(deb))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
