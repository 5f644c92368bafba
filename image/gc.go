package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/volant-edge/volant"
)

// Usage is what the store takes of the disk.
type Usage struct {
	Blobs, Rootfs          int
	BlobBytes, RootfsBytes int64
}

// Freed is what GC removed.
type Freed struct {
	Files int
	Bytes int64
}

// stored is a file of the store.
type stored struct {
	path   string
	digest volant.Digest // of the blob, or of a root disk's manifest
	blob   bool
	size   int64 // on disk
	used   time.Time
}

// Usage adds up the store's files.
func (s *Store) Usage() (Usage, error) {
	files, err := s.list()
	if err != nil {
		return Usage{}, fmt.Errorf("image store's usage: %w", err)
	}
	var u Usage
	for _, f := range files {
		if f.blob {
			u.Blobs++
			u.BlobBytes += f.size
		} else {
			u.Rootfs++
			u.RootfsBytes += f.size
		}
	}
	return u, nil
}

// GC removes the root disks of images that keep does not name and the blobs of no image that it
// names, least recently used first. Keep is asked with digests of manifests, and must name each image
// of a release that may be started and of a machine that exists, asleep ones too. What is younger than
// the grace time, or is being converted, stays.
func (s *Store) GC(ctx context.Context, keep func(volant.Digest) bool) (Freed, error) {
	files, err := s.list()
	if err != nil {
		return Freed{}, fmt.Errorf("collect unused images: %w", err)
	}
	if err := s.sweepParts(); err != nil {
		return Freed{}, fmt.Errorf("collect unused images: %w", err)
	}
	kept := s.kept(files, keep)
	slices.SortFunc(files, func(a, b stored) int { return a.used.Compare(b.used) })
	var freed Freed
	for _, f := range files {
		if ctx.Err() != nil {
			return freed, fmt.Errorf("collect unused images: %w", ctx.Err())
		}
		if kept[f.digest] {
			continue
		}
		removed, err := s.remove(f)
		if err != nil {
			return freed, fmt.Errorf("collect unused images: %w", err)
		}
		if removed {
			freed.Files++
			freed.Bytes += f.size
			s.log.Info("unused image file removed", "file", f.path, "bytes", f.size)
		}
	}
	return freed, nil
}

// kept are the manifests to keep and all their blobs.
func (s *Store) kept(files []stored, keep func(volant.Digest) bool) map[volant.Digest]bool {
	kept := make(map[volant.Digest]bool)
	s.mu.Lock()
	for d := range s.flights {
		kept[d] = true
	}
	s.mu.Unlock()
	for _, f := range files {
		if !kept[f.digest] && keep(f.digest) {
			kept[f.digest] = true
		}
	}
	for d := range maps.Clone(kept) {
		s.keepBlobs(d, kept, 0)
	}
	return kept
}

// keepBlobs adds the blobs of a manifest, or of the manifests of an index.
func (s *Store) keepBlobs(d volant.Digest, kept map[volant.Digest]bool, depth int) {
	raw, err := readDocument(s.Blob, d)
	if err != nil {
		return // not here: nothing more to keep for it
	}
	if index, err := v1.ParseIndexManifest(bytes.NewReader(raw)); err == nil && depth < 4 && len(index.Manifests) <= maxManifests {
		for _, m := range index.Manifests {
			child := volant.Digest(m.Digest.String())
			kept[child] = true
			s.keepBlobs(child, kept, depth+1)
		}
	}
	m, config, err := parseManifest(d, raw)
	if err != nil {
		return
	}
	kept[config] = true
	for _, b := range m.Blobs {
		kept[b.Digest] = true
	}
}

// remove removes a file that was not used for the grace time, with a root disk's record first.
func (s *Store) remove(f stored) (bool, error) {
	s.sweep.Lock()
	defer s.sweep.Unlock()
	st, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && time.Since(st.ModTime()) < s.cfg.Grace {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if f.blob {
		if err := s.disown(f.digest); err != nil {
			return false, err
		}
	} else {
		if err := os.Remove(f.path + ".json"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return true, os.Remove(f.path)
}

func (s *Store) list() ([]stored, error) {
	var files []stored
	for _, dir := range []string{"blobs/sha256", "rootfs"} {
		entries, err := os.ReadDir(s.path(dir))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			hex, _, _ := strings.Cut(e.Name(), "-")
			f := stored{path: filepath.Join(s.path(dir), e.Name()), digest: volant.Digest("sha256:" + hex), blob: dir != "rootfs"}
			if strings.HasSuffix(f.path, ".json") {
				continue
			}
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			f.used, f.size = info.ModTime(), onDisk(info)
			files = append(files, f)
		}
	}
	return files, nil
}

// onDisk is what a file takes of the disk, which for one with holes is less than its size.
func onDisk(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}
