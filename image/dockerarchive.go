package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/volant-edge/volant"
)

// dockerImage is an entry of the manifest.json that `docker save` writes.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string // lowest first
}

// dockerArchive is an image in such an archive. It has no manifest of the kind that we keep, so one is made.
type dockerArchive struct {
	*archive
	names map[volant.Digest]string
	docs  map[volant.Digest][]byte
}

func (d *dockerArchive) open(name string) (io.ReadCloser, int64, error) {
	digest := volant.Digest("sha256:" + strings.TrimPrefix(name, "blobs/sha256/"))
	if raw, ok := d.docs[digest]; ok {
		return io.NopCloser(bytes.NewReader(raw)), int64(len(raw)), nil
	}
	return d.archive.open(d.names[digest])
}

// openDockerArchive opens FILE, FILE:TAG or FILE:NAME:TAG.
func openDockerArchive(ref, rest string) (*Source, error) {
	file, name := rest, ""
	for i := 0; i < len(rest); i++ {
		if rest[i] != ':' {
			continue
		}
		if _, err := os.Stat(rest); err == nil {
			break
		}
		if _, err := os.Stat(rest[:i]); err == nil {
			file, name = rest[:i], rest[i+1:]
			break
		}
	}
	files, err := openArchive(file)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	s, err := loadDockerArchive(files.(*archive), name)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, errors.Join(err, files.Close()))
	}
	s.Ref = ref
	return s, nil
}

func loadDockerArchive(a *archive, name string) (*Source, error) {
	raw, err := a.document("manifest.json")
	if errors.Is(err, fs.ErrNotExist) {
		cure := "check that `docker save` made it"
		if _, ok := a.files["index.json"]; ok {
			cure = "it is an OCI archive: write oci-archive: instead of docker-archive:"
		}
		return nil, volant.Invalidf("there is no manifest.json in it").WithRemedy("%s", cure)
	}
	if err != nil {
		return nil, err
	}
	var all []dockerImage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, volant.Invalidf("manifest.json: %v", err).WithRemedy("make the archive again")
	}
	img, err := pickDocker(all, name)
	if err != nil {
		return nil, err
	}
	d := &dockerArchive{archive: a, names: make(map[volant.Digest]string), docs: make(map[volant.Digest][]byte)}
	digest, err := d.manifest(img)
	if err != nil {
		return nil, err
	}
	s := &Source{files: d}
	m, err := readManifest(s.open, digest)
	if err != nil {
		return nil, err
	}
	s.Digest, s.Blobs = digest, m.Blobs
	return s, nil
}

// pickDocker chooses an image by a tag or by name and tag.
func pickDocker(all []dockerImage, name string) (dockerImage, error) {
	var fit []dockerImage
	var tags []string
	for _, img := range all {
		tags = append(tags, img.RepoTags...)
		if name == "" || slices.ContainsFunc(img.RepoTags, func(t string) bool {
			return t == name || t[strings.LastIndexByte(t, ':')+1:] == name || sameRef(t, name)
		}) {
			fit = append(fit, img)
		}
	}
	slices.Sort(tags)
	names := strings.Join(slices.Compact(tags), ", ")
	switch {
	case len(fit) == 1:
		return fit[0], nil
	case len(fit) > 1:
		return dockerImage{}, volant.Invalidf("there are %d images in it: %s", len(fit), names).WithRemedy("add :NAME:TAG to choose one")
	case len(all) == 0:
		return dockerImage{}, volant.Errorf(volant.ErrNotFound, "there is no image in it").WithRemedy("make the archive again")
	}
	return dockerImage{}, volant.Errorf(volant.ErrNotFound, "no image in it has the tag %q", name).WithRemedy("it has: %s", names)
}

func sameRef(a, b string) bool {
	x, err1 := ParseRef(a)
	y, err2 := ParseRef(b)
	return err1 == nil && err2 == nil && x == y
}

// manifest makes the manifest: config and layers are hashed, since the archive's names say nothing.
func (d *dockerArchive) manifest(img dockerImage) (volant.Digest, error) {
	if len(img.Layers) > maxLayers {
		return "", volant.Invalidf("the image has %d layers, at most %d work", len(img.Layers), maxLayers).WithRemedy("join some layers")
	}
	config, err := d.add(img.Config, types.DockerConfigJSON)
	if err != nil {
		return "", fmt.Errorf("config: %w", err)
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.DockerManifestSchema2, Config: config, Layers: []v1.Descriptor{}}
	for _, name := range img.Layers {
		l, err := d.add(name, types.DockerUncompressedLayer)
		if err != nil {
			return "", fmt.Errorf("layer: %w", err)
		}
		m.Layers = append(m.Layers, l)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	digest := DigestOf(raw)
	d.docs[digest] = raw
	return digest, nil
}

func (d *dockerArchive) add(name string, kind types.MediaType) (v1.Descriptor, error) {
	r, n, err := d.archive.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return v1.Descriptor{}, volant.Invalidf("%q is missing in the archive", name).WithRemedy("the copy is not complete: make it again")
	}
	if err != nil {
		return v1.Descriptor{}, err
	}
	head := make([]byte, 4)
	k, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return v1.Descriptor{}, err
	}
	if kind == types.DockerUncompressedLayer {
		switch {
		case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
			kind = types.DockerLayer
		case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
			kind = types.OCILayerZStd
		}
	}
	h := sha256.New()
	h.Write(head[:k])
	if _, err := io.Copy(h, r); err != nil {
		return v1.Descriptor{}, fmt.Errorf("read %s: %w", name, err)
	}
	got := sum(h)
	d.names[got] = name
	return v1.Descriptor{MediaType: kind, Size: n, Digest: v1.Hash{Algorithm: "sha256", Hex: got.Hex()}}, nil
}

// document reads a small file.
func (a *archive) document(name string) ([]byte, error) {
	r, n, err := a.open(name)
	if err != nil {
		return nil, err
	}
	if n > maxDocument {
		return nil, volant.Invalidf("%s has %s", name, size(n)).WithRemedy("check that it is the right file")
	}
	return io.ReadAll(r)
}
