package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/volant-edge/volant"
)

const (
	platform = "linux/amd64" // of the guests
	// maxDocument bounds a manifest, index or config. Registries take manifests of 4 MiB at most.
	maxDocument = 4 << 20
	// maxLayers bounds an image's layers. Overlay file systems stop at 127 or 500.
	maxLayers = 512
	// maxManifests bounds the manifests that all indexes of a source name.
	maxManifests = 1000
	refName      = "org.opencontainers.image.ref.name"
)

// RunConfig is what an image says of how to run it.
type RunConfig struct {
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
	Env        []string          `json:"env,omitempty"` // KEY=value
	User       string            `json:"user,omitempty"`
	WorkingDir string            `json:"working_dir,omitempty"`
	StopSignal string            `json:"stop_signal,omitempty"`
	Exposed    []string          `json:"exposed,omitempty"` // such as "80/tcp"
	Labels     map[string]string `json:"labels,omitempty"`
}

// Manifest is an image in the store.
type Manifest struct {
	Digest volant.Digest
	Config RunConfig
	Layers []Blob // lowest first
	Blobs  []Blob // layers, config and, last, the manifest; each once

	diffIDs []volant.Digest // of the layers, uncompressed
}

// Size is the sum of the blobs' sizes.
func (m Manifest) Size() int64 {
	var n int64
	for _, b := range m.Blobs {
		n += b.Size
	}
	return n
}

type opener func(volant.Digest) (io.ReadCloser, int64, error)

// Manifest reads the image with that manifest digest and looks that all of its blobs are here.
func (s *Store) Manifest(d volant.Digest) (Manifest, error) {
	m, err := readManifest(s.Blob, d)
	if err != nil {
		return Manifest{}, fmt.Errorf("image %s: %w", string(d), err)
	}
	return m, nil
}

// readManifest reads and checks an image's manifest and config, and that its blobs are there.
func readManifest(open opener, d volant.Digest) (Manifest, error) {
	raw, err := readDocument(open, d)
	if err != nil {
		return Manifest{}, fmt.Errorf("manifest: %w", err)
	}
	m, config, err := parseManifest(d, raw)
	if err != nil {
		return Manifest{}, err
	}
	raw, err = readDocument(open, config)
	if err != nil {
		return Manifest{}, fmt.Errorf("config: %w", err)
	}
	if err := m.parseConfig(raw); err != nil {
		return Manifest{}, fmt.Errorf("config %s: %w", string(config), err)
	}
	for _, b := range m.Blobs {
		r, size, err := open(b.Digest)
		if err != nil {
			return Manifest{}, err
		}
		if err := r.Close(); err != nil {
			return Manifest{}, err
		}
		if size != b.Size {
			return Manifest{}, volant.Invalidf("blob %s has %d bytes, and the manifest says %d", string(b.Digest), size, b.Size).
				WithRemedy("the copy is damaged: make it again")
		}
	}
	return m, nil
}

func parseManifest(d volant.Digest, raw []byte) (m Manifest, config volant.Digest, err error) {
	p, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return Manifest{}, "", volant.Invalidf("manifest %s: %v", string(d), err).WithRemedy("build the image again")
	}
	switch {
	case p.MediaType.IsIndex():
		return Manifest{}, "", volant.Invalidf("%s is an index of several images", string(d)).
			WithRemedy("use the digest of the image for %s in it", platform)
	case p.SchemaVersion == 1:
		return Manifest{}, "", oldSchema()
	case p.SchemaVersion != 2 || p.MediaType != "" && !p.MediaType.IsImage():
		return Manifest{}, "", volant.Invalidf("manifest %s is of schema %d, type %q: no image of OCI or Docker",
			string(d), p.SchemaVersion, p.MediaType).WithRemedy("build the image again with a present-day tool")
	case len(p.Layers) > maxLayers:
		return Manifest{}, "", volant.Invalidf("the image has %d layers, at most %d work", len(p.Layers), maxLayers).
			WithRemedy("join some layers")
	}
	m.Digest = d
	for _, l := range p.Layers {
		if !l.MediaType.IsLayer() || strings.Contains(string(l.MediaType), "encrypted") {
			return Manifest{}, "", volant.Invalidf("layer %s is of the type %q", l.Digest, l.MediaType).
				WithRemedy("use an image with plain layers of tar, gzip or zstd")
		}
		b, err := asBlob(l)
		if err != nil {
			return Manifest{}, "", err
		}
		m.Layers = append(m.Layers, b)
	}
	c, err := asBlob(p.Config)
	if err != nil {
		return Manifest{}, "", err
	}
	for _, b := range append(append(slices.Clone(m.Layers), c), Blob{d, int64(len(raw))}) {
		if !slices.ContainsFunc(m.Blobs, func(x Blob) bool { return x.Digest == b.Digest }) {
			m.Blobs = append(m.Blobs, b)
		}
	}
	return m, c.Digest, nil
}

func asBlob(d v1.Descriptor) (Blob, error) {
	b := Blob{volant.Digest(d.Digest.String()), d.Size}
	if !b.Digest.Valid() || b.Size < 0 {
		return Blob{}, volant.Invalidf("the manifest names the blob %q of %d bytes", d.Digest, d.Size).
			WithRemedy("only sha256 digests are supported: build the image again")
	}
	return b, nil
}

// parseConfig takes what is needed from an image's config.
func (m *Manifest) parseConfig(raw []byte) error {
	c, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return volant.Invalidf("%v", err).WithRemedy("build the image again")
	}
	if got := c.OS + "/" + c.Architecture; got != platform {
		return wrongPlatform(got)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return volant.Invalidf("%d layers and %d diff_ids do not match", len(m.Layers), len(c.RootFS.DiffIDs)).
			WithRemedy("the image is damaged: build it again")
	}
	for _, id := range c.RootFS.DiffIDs {
		d := volant.Digest(id.String())
		if !d.Valid() {
			return volant.Invalidf("diff_id %q is no sha256 digest", id).WithRemedy("build the image again")
		}
		m.diffIDs = append(m.diffIDs, d)
	}
	m.Config = RunConfig{
		Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Env: c.Config.Env, User: c.Config.User,
		WorkingDir: c.Config.WorkingDir, StopSignal: c.Config.StopSignal, Labels: c.Config.Labels,
	}
	for port := range c.Config.ExposedPorts {
		m.Config.Exposed = append(m.Config.Exposed, port)
	}
	slices.Sort(m.Config.Exposed)
	return nil
}

func wrongPlatform(got string) error {
	return volant.Invalidf("the image is for %s, and machines are %s", got, platform).
		WithRemedy("build it with --platform %s", platform)
}

// readDocument reads a small blob and checks its digest.
func readDocument(open opener, d volant.Digest) ([]byte, error) {
	r, n, err := open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close() //nolint:errcheck // only read from
	if n > maxDocument {
		return nil, volant.Invalidf("blob %s of %s is no manifest or config", string(d), size(n)).WithRemedy("build the image again")
	}
	raw, err := io.ReadAll(io.LimitReader(r, maxDocument))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", string(d), err)
	}
	if DigestOf(raw) != d {
		return nil, volant.Invalidf("blob %s is damaged: its content has another digest", string(d)).
			WithRemedy("make the copy of the image again")
	}
	return raw, nil
}

// candidate is an image that a source's indexes name.
type candidate struct {
	digest   volant.Digest
	platform string
	variant  string
	tag      string
}

// load finds the source's image.
func (s *Source) load(tag string) error {
	raw, err := s.index()
	if err != nil {
		return err
	}
	var all []candidate
	read := func(d volant.Digest) ([]byte, error) { return readDocument(s.open, d) }
	if err := collect(read, raw, "", 0, &all); err != nil {
		return err
	}
	d, err := choose(all, tag)
	if err != nil {
		return err
	}
	m, err := readManifest(s.open, d)
	if err != nil {
		return err
	}
	s.Digest, s.Blobs = d, m.Blobs
	return nil
}

func (s *Source) index() ([]byte, error) {
	r, _, err := s.files.open("index.json")
	if errors.Is(err, fs.ErrNotExist) {
		cure := "check that it is an OCI image layout"
		if old, _, err := s.files.open("manifest.json"); err == nil {
			old.Close() //nolint:errcheck // only read from
			cure = "it is what `docker save` makes: write docker-archive: instead of oci-archive:"
		}
		return nil, volant.Invalidf("there is no index.json in it").WithRemedy("%s", cure)
	}
	if err != nil {
		return nil, err
	}
	defer r.Close() //nolint:errcheck // only read from
	raw, err := io.ReadAll(io.LimitReader(r, maxDocument))
	if err != nil {
		return nil, fmt.Errorf("read index.json: %w", err)
	}
	return raw, nil
}

// collect lists the images of an index and of the indexes in it, which read reads.
func collect(read func(volant.Digest) ([]byte, error), raw []byte, tag string, depth int, all *[]candidate) error {
	index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return volant.Invalidf("index: %v", err).WithRemedy("make the copy of the image again")
	}
	for _, desc := range index.Manifests {
		if len(*all) >= maxManifests || depth > 3 {
			return volant.Invalidf("the image's indexes are too deep or name more than %d images", maxManifests).
				WithRemedy("copy one image only")
		}
		b, err := asBlob(desc)
		if err != nil {
			return err
		}
		own := tag
		if own == "" {
			own = desc.Annotations[refName]
		}
		switch {
		case desc.MediaType.IsIndex():
			inner, err := read(b.Digest)
			if err != nil {
				return fmt.Errorf("index: %w", err)
			}
			if err := collect(read, inner, own, depth+1, all); err != nil {
				return err
			}
		case desc.MediaType.IsImage() || desc.MediaType == types.MediaType(""):
			c := candidate{digest: b.Digest, tag: own}
			if p := desc.Platform; p != nil {
				c.platform, c.variant = p.OS+"/"+p.Architecture, p.Variant
			}
			*all = append(*all, c)
		}
	}
	return nil
}

// choose picks the image for our platform. An image whose platform no index tells is judged by its
// config later.
func choose(all []candidate, tag string) (volant.Digest, error) {
	var fit []candidate
	var others, tags []string
	for _, c := range all {
		if c.platform == "unknown/unknown" { // a builder's attestation
			continue
		}
		if c.tag != "" {
			tags = append(tags, c.tag)
		}
		if tag != "" && c.tag != tag && c.tag[strings.LastIndexByte(c.tag, ':')+1:] != tag {
			continue
		}
		if c.platform != "" && c.platform != platform {
			others = append(others, c.platform)
			continue
		}
		if !slices.ContainsFunc(fit, func(f candidate) bool { return f.digest == c.digest }) {
			fit = append(fit, c)
		}
	}
	// The plain variant runs everywhere; v2 and v3 want newer processors.
	slices.SortStableFunc(fit, func(a, b candidate) int { return strings.Compare(a.variant, b.variant) })
	slices.Sort(tags)
	names := strings.Join(slices.Compact(tags), ", ")
	switch {
	case len(fit) == 1 || len(fit) > 1 && fit[0].variant != fit[1].variant:
		return fit[0].digest, nil
	case len(fit) > 1:
		return "", volant.Invalidf("there are %d images in it: %s", len(fit), names).WithRemedy("add :TAG to choose one")
	case len(others) > 0:
		slices.Sort(others)
		return "", wrongPlatform(strings.Join(slices.Compact(others), ", "))
	case tag != "" && len(tags) > 0:
		return "", volant.Errorf(volant.ErrNotFound, "no image in it has the tag %q", tag).WithRemedy("it has: %s", names)
	default:
		return "", volant.Errorf(volant.ErrNotFound, "there is no image in it").WithRemedy("make the copy of the image again")
	}
}

// DigestOf is the digest of content.
func DigestOf(b []byte) volant.Digest {
	sum := sha256.Sum256(b)
	return volant.Digest("sha256:" + hex.EncodeToString(sum[:]))
}
