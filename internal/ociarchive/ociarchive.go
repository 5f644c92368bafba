// Package ociarchive writes OCI images as tar files, for what we build ourselves: the demo's images
// and those of tests. Equal images give equal files.
//
// Reading, with distrust, is package image's work.
package ociarchive

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Layer is a layer as it lies in an image.
type Layer struct {
	Blob   []byte // as stored
	DiffID v1.Hash
	Type   types.MediaType
}

// Image is what to write.
type Image struct {
	Config       v1.Config
	Layers       []Layer // lowest first
	Architecture string  // "" means amd64
	Tag          string  // may be empty
}

// Plain makes a layer of a tar stream, uncompressed.
func Plain(stream []byte) Layer {
	return Layer{Blob: stream, DiffID: hash(stream), Type: types.OCIUncompressedLayer}
}

// Gzip makes a layer of a tar stream.
func Gzip(stream []byte) (Layer, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.DefaultCompression)
	if err != nil {
		return Layer{}, err
	}
	if _, err := z.Write(stream); err != nil {
		return Layer{}, err
	}
	if err := z.Close(); err != nil {
		return Layer{}, err
	}
	return Layer{Blob: b.Bytes(), DiffID: hash(stream), Type: types.OCILayer}, nil
}

// Zstd makes a layer of a tar stream.
func Zstd(stream []byte) (Layer, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return Layer{}, err
	}
	return Layer{Blob: z.EncodeAll(stream, nil), DiffID: hash(stream), Type: types.OCILayerZStd}, z.Close()
}

func hash(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// Files are the image's files by name: index.json, oci-layout and the blobs.
func (i Image) Files() (files map[string][]byte, manifest v1.Hash, err error) {
	files = map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	put := func(b []byte, t types.MediaType) v1.Descriptor {
		h := hash(b)
		files["blobs/sha256/"+h.Hex] = b
		return v1.Descriptor{MediaType: t, Digest: h, Size: int64(len(b))}
	}
	arch := i.Architecture
	if arch == "" {
		arch = "amd64"
	}
	config := v1.ConfigFile{OS: "linux", Architecture: arch, Config: i.Config, RootFS: v1.RootFS{Type: "layers"}}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{}}
	for _, l := range i.Layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.DiffID)
		m.Layers = append(m.Layers, put(l.Blob, l.Type))
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, v1.Hash{}, err
	}
	m.Config = put(raw, types.OCIConfigJSON)
	if raw, err = json.Marshal(m); err != nil {
		return nil, v1.Hash{}, err
	}
	d := put(raw, types.OCIManifestSchema1)
	if i.Tag != "" {
		d.Annotations = map[string]string{"org.opencontainers.image.ref.name": i.Tag}
	}
	d.Platform = &v1.Platform{OS: "linux", Architecture: arch}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{d}}
	if files["index.json"], err = json.Marshal(index); err != nil {
		return nil, v1.Hash{}, err
	}
	return files, d.Digest, nil
}

// Write writes the image as an archive and returns its manifest's digest.
func (i Image) Write(w io.Writer) (v1.Hash, error) {
	files, digest, err := i.Files()
	if err != nil {
		return v1.Hash{}, err
	}
	return digest, Tar(w, files)
}

// Tar writes files as a tar file, sorted by name.
func Tar(w io.Writer, files map[string][]byte) error {
	tw := tar.NewWriter(w)
	for _, name := range sorted(files) {
		h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		if _, err := tw.Write(files[name]); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return tw.Close()
}

func sorted(files map[string][]byte) []string { return slices.Sorted(maps.Keys(files)) }
