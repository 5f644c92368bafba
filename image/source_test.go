package image_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/image/imagetest"
	"github.com/volant-edge/volant/internal/ociarchive"
)

// files are those of an image with one small layer.
func files(t testing.TB, arch, tag, body string) (map[string][]byte, volant.Digest) {
	t.Helper()
	layer := ociarchive.Plain(imagetest.Layer(t, imagetest.File("a", body)))
	f, h, err := ociarchive.Image{Layers: []ociarchive.Layer{layer}, Architecture: arch, Tag: tag}.Files()
	if err != nil {
		t.Fatal(err)
	}
	return f, volant.Digest(h.String())
}

// join puts several images into one layout, with an index of each one's manifests.
func join(t testing.TB, images ...map[string][]byte) map[string][]byte {
	t.Helper()
	all := make(map[string][]byte)
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for _, f := range images {
		one, err := v1.ParseIndexManifest(bytes.NewReader(f["index.json"]))
		if err != nil {
			t.Fatal(err)
		}
		maps.Copy(all, f)
		index.Manifests = append(index.Manifests, one.Manifests...)
	}
	all["index.json"] = marshal(t, index)
	return all
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func archive(t testing.TB, f map[string][]byte) string {
	t.Helper()
	var b bytes.Buffer
	if err := ociarchive.Tar(&b, f); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func directory(t testing.TB, f map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range f {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// nested wraps an image's index into another, as copies of multi-platform images have it.
func nested(t testing.TB, f map[string][]byte, tag string) map[string][]byte {
	t.Helper()
	inner := f["index.json"]
	outer := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	d, _, err := v1.SHA256(bytes.NewReader(inner))
	if err != nil {
		t.Fatal(err)
	}
	outer.Manifests = []v1.Descriptor{{
		MediaType: types.OCIImageIndex, Digest: d, Size: int64(len(inner)),
		Annotations: map[string]string{"org.opencontainers.image.ref.name": tag},
	}}
	f = maps.Clone(f)
	f["blobs/sha256/"+d.Hex] = inner
	f["index.json"] = marshal(t, outer)
	return f
}

func TestSource(t *testing.T) {
	plain, plainDigest := files(t, "", "", "x")
	one, oneDigest := files(t, "", "one", "1")
	two, twoDigest := files(t, "", "registry.example/app:two", "2")
	arm, _ := files(t, "arm64", "", "arm")
	for name, tt := range map[string]struct {
		files map[string][]byte
		tag   string
		want  volant.Digest
	}{
		"one image":             {plain, "", plainDigest},
		"one image with a tag":  {one, "", oneDigest},
		"the tag of one":        {join(t, one, two), ":one", oneDigest},
		"the end of a name":     {join(t, one, two), ":two", twoDigest},
		"ours of two platforms": {join(t, arm, plain), "", plainDigest},
		"an index in the index": {nested(t, join(t, arm, plain), "multi"), ":multi", plainDigest},
		"two names of one":      {join(t, one, one), "", oneDigest},
	} {
		for kind, ref := range map[string]string{"archive": "oci-archive:" + archive(t, tt.files), "directory": "oci:" + directory(t, tt.files)} {
			t.Run(name+" in "+kind, func(t *testing.T) {
				src, err := image.OpenSource(ref + tt.tag)
				if err != nil {
					t.Fatal(err)
				}
				defer src.Close()
				if src.Digest != tt.want {
					t.Errorf("digest %s, want %s", string(src.Digest), string(tt.want))
				}
				if n := len(src.Blobs); n != 3 || src.Blobs[n-1].Digest != tt.want {
					t.Errorf("blobs %+v: want layer, config and, last, the manifest", src.Blobs)
				}
				err = src.Each(nil, func(b image.Blob, r io.Reader) error {
					got, err := io.ReadAll(r)
					if want := tt.files["blobs/sha256/"+b.Digest.Hex()]; !bytes.Equal(got, want) {
						t.Errorf("blob %s has %d bytes, want %d", b.Digest, len(got), len(want))
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestRefusedSources(t *testing.T) {
	good, digest := files(t, "", "", "x")
	without := func(drop string) map[string][]byte {
		f := maps.Clone(good)
		for name := range f {
			if strings.HasPrefix(name, drop) {
				delete(f, name)
			}
		}
		return f
	}
	with := func(name, body string) map[string][]byte {
		f := maps.Clone(good)
		f[name] = []byte(body)
		return f
	}
	arm, _ := files(t, "arm64", "", "x")
	one, _ := files(t, "", "one", "1")
	two, _ := files(t, "", "two", "2")
	var config string
	for name, b := range good {
		if bytes.Contains(b, []byte("diff_ids")) {
			config = name
		}
	}
	hidden := maps.Clone(arm) // a platform that only the config tells
	hidden["index.json"] = bytes.ReplaceAll(arm["index.json"], []byte(`"platform"`), []byte(`"unknown"`))

	for name, tt := range map[string]struct {
		files map[string][]byte
		tag   string
		want  []string
	}{
		"wrong architecture":               {arm, "", []string{"linux/arm64", "--platform linux/amd64"}},
		"wrong architecture in the config": {hidden, "", []string{"linux/arm64", "--platform linux/amd64"}},
		"several images":                   {join(t, one, two), "", []string{"one, two", "add :TAG"}},
		"no such tag":                      {join(t, one, two), ":three", []string{"three", "one, two"}},
		"no blobs":                         {without("blobs"), "", []string{string(digest), "missing"}},
		"no config":                        {without(config), "", []string{"config", "missing"}},
		"a damaged manifest":               {with("blobs/sha256/"+digest.Hex(), "{}"), "", []string{string(digest), "damaged"}},
		"no index":                         {without("index"), "", []string{"index.json"}},
		"an old docker archive":            {map[string][]byte{"manifest.json": []byte("[]")}, "", []string{"docker save", "docker-archive:"}},
		"an index that is none":            {with("index.json", "["), "", []string{"index"}},
		"an empty index":                   {with("index.json", `{"schemaVersion":2,"manifests":[]}`), "", []string{"no image"}},
		"a strange digest":                 {with("index.json", `{"schemaVersion":2,"manifests":[{"digest":"sha512:`+strings.Repeat("a", 128)+`"}]}`), "", []string{"sha256"}},
	} {
		for kind, ref := range map[string]string{"archive": "oci-archive:" + archive(t, tt.files), "directory": "oci:" + directory(t, tt.files)} {
			t.Run(name+" in "+kind, func(t *testing.T) {
				_, err := image.OpenSource(ref + tt.tag)
				forPeople(t, err, tt.want...)
			})
		}
	}
}

func forPeople(t *testing.T, err error, want ...string) {
	t.Helper()
	var e *volant.Error
	if !errors.As(err, &e) || e.Remedy == "" {
		t.Fatalf("error %v: not one for people with a cure", err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q: want %q in it", err, w)
		}
	}
}

func TestRefusedReferences(t *testing.T) {
	good, _ := files(t, "", "", "x")
	path := archive(t, good)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) string {
		p := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{
		"nginx":                                  "does not say what it is",
		"docker.io/library/nginx:1":              "no known source",
		"oci-archive:":                           "does not say what it is",
		"oci-archive:/nowhere.tar":               "does not exist",
		"oci:/nowhere":                           "does not exist",
		"oci:" + path:                            "no directory",
		"oci-archive:" + write(z.Bytes()):        "gunzip",
		"oci-archive:" + write(raw[:len(raw)/2]): "",
		"oci-archive:" + write([]byte("text")):   "no tar file",
		"oci-archive:" + write(nil):              "is empty",
	} {
		_, err := image.OpenSource(ref)
		forPeople(t, err, want)
	}
}

func TestDirectoryCannotLeadElsewhere(t *testing.T) {
	good, digest := files(t, "", "", "x")
	dir := directory(t, good)
	blob := filepath.Join(dir, "blobs/sha256", digest.Hex())
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.Rename(blob, outside); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, blob); err != nil {
		t.Fatal(err)
	}
	if _, err := image.OpenSource("oci:" + dir); err == nil {
		t.Error("a symlink out of the directory was followed")
	}
}
