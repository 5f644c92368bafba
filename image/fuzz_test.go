package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/image/imagetest"
	"github.com/volant-edge/volant/internal/ociarchive"
)

// FuzzLayers merges two layers of any bytes: they are refused, or make a root disk that can be read.
func FuzzLayers(f *testing.F) {
	low := imagetest.Layer(f, imagetest.Dir("d/"), imagetest.File("d/f", "x"), imagetest.Link("l", "d/f"), imagetest.Symlink("s", "d"))
	high := imagetest.Layer(f, imagetest.File("d/.wh..wh..opq", ""), imagetest.File(".wh.l", ""), imagetest.File("s/f", "y"))
	f.Add(low, high)
	f.Add(high, low)
	f.Add([]byte("no tar"), []byte{})
	path := filepath.Join(f.TempDir(), "disk")
	f.Fuzz(func(t *testing.T, low, high []byte) {
		disk, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		if err := image.Merge(disk, image.Config{MaxBytes: 1 << 20, MaxEntries: 1000}, low, high); err != nil {
			return
		}
		tree(t, path)
	})
}

// FuzzManifest gives any bytes as manifest and config.
func FuzzManifest(f *testing.F) {
	good, d := files(f, "", "", "x")
	for _, b := range good {
		if bytes.Contains(b, []byte("diff_ids")) {
			f.Add(good["blobs/sha256/"+d.Hex()], b)
			f.Add(good["index.json"], b)
		}
	}
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		m, err := image.ParseImage(manifest, config)
		if err != nil {
			var e *volant.Error
			if !errors.As(err, &e) {
				t.Errorf("error %v is not for people", err)
			}
			return
		}
		for _, b := range m.Blobs[:len(m.Blobs)-1] {
			if !b.Digest.Valid() || b.Size < 0 {
				t.Errorf("blob %+v", b)
			}
		}
	})
}

func FuzzArchive(f *testing.F) {
	good, _ := files(f, "", "tag", "x")
	var b bytes.Buffer
	if err := ociarchive.Tar(&b, good); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("no tar"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		src, err := image.OpenBytes(raw)
		if err != nil {
			return
		}
		if !src.Digest.Valid() || len(src.Blobs) < 2 {
			t.Errorf("source %+v", src)
		}
	})
}

func FuzzIndex(f *testing.F) {
	for _, arch := range []string{"amd64", "arm64"} {
		good, _ := files(f, arch, "tag", "x")
		f.Add(good["index.json"], "tag")
		f.Add(good["index.json"], "")
	}
	f.Fuzz(func(t *testing.T, index []byte, tag string) {
		if d, err := image.Choose(index, tag); err == nil && !d.Valid() {
			t.Errorf("digest %q", string(d))
		}
	})
}

// liar is a node that answers anything.
type liar struct {
	held []image.Held
	body []byte
}

func (l liar) Have(context.Context, []volant.Digest) ([]image.Holding, error) {
	return []image.Holding{{Node: "00000001", Blobs: slices.Clone(l.held)}, {Node: "00000002", Blobs: slices.Clone(l.held)}}, nil
}

func (l liar) Open(_ context.Context, _ volant.NodeID, _ volant.Digest, off, n int64) (io.ReadCloser, error) {
	b := l.body[min(off, int64(len(l.body))):]
	return io.NopCloser(bytes.NewReader(b[:min(n, int64(len(b)))])), nil
}

func FuzzPeers(f *testing.F) {
	body := []byte("a blob")
	d := digest(body)
	for _, s := range []string{
		fmt.Sprintf(`[{"digest":%q,"size":6,"orgs":["acme","../x"]}]`, string(d)),
		fmt.Sprintf(`[{"digest":%q,"size":7},{"digest":%q,"size":6}]`, string(d), string(d)),
		fmt.Sprintf(`[{"digest":%q,"size":-1}]`, string(d)), `[{"digest":"sha256:../x","size":1}]`, `[{}]`,
	} {
		f.Add([]byte(s), body)
		f.Add([]byte(s), []byte("others"))
	}
	f.Fuzz(func(t *testing.T, answer, sent []byte) {
		var held []image.Held
		if json.Unmarshal(answer, &held) != nil {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			s, _ := open(t, image.Config{Peers: liar{held, sent}, Piece: 4, MaxBytes: 1 << 10})
			for _, get := range []func() error{
				func() error { return s.Bring(t.Context(), d) }, func() error { return s.Complete(t.Context(), d, nil) },
			} {
				if err := get(); err == nil && !bytes.Equal(sent, body) {
					t.Errorf("%q came as %q", sent, body)
				}
			}
			if s.Has(d) && !bytes.Equal(sent, body) {
				t.Errorf("%q is kept as %q", sent, body)
			}
		})
	})
}
