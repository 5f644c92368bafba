package image_test

import (
	"archive/tar"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/image/imagetest"
)

// FuzzMergeModel compares the merging of layers with a simple model of the specification: a layer's
// whiteouts act on the layers below it, and then its entries are put on top.
func FuzzMergeModel(f *testing.F) {
	f.Add([]byte{0, 1, 40, 80, 7, 255, 120, 161, 202, 9, 255, 44, 90, 131})
	f.Add([]byte("the quick brown fox jumps over the lazy dog, again and again and again"))
	disk := filepath.Join(f.TempDir(), "disk")
	f.Fuzz(func(t *testing.T, program []byte) {
		layers := entriesOf(program)
		want := make(map[string]string)
		var streams [][]byte
		for _, l := range layers {
			model(want, l)
			streams = append(streams, imagetest.Layer(t, l...))
		}
		file, err := os.Create(disk)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if err := image.Merge(file, image.Config{}, streams...); err != nil {
			return // such as an entry below a file
		}
		got := make(map[string]string)
		for _, line := range tree(t, disk) {
			f := strings.Fields(line)
			if f[0] == "." {
				continue
			}
			got[f[0]] = "dir"
			if strings.HasPrefix(f[1], "1") {
				got[f[0]] = strings.Trim(f[len(f)-1], `"`)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("layers %v\n(-model +merged):\n%s", layers, diff)
		}
	})
}

// entriesOf makes layers out of bytes: 255 starts the next one, another byte is an entry.
func entriesOf(program []byte) [][]imagetest.Entry {
	names := []string{"a", "b", "c"}
	layers := [][]imagetest.Entry{nil}
	for i, b := range program[:min(len(program), 200)] {
		if b == 255 {
			layers = append(layers, nil)
			continue
		}
		dir := ""
		for d := int(b) / 4 % 4; d > 0; d-- {
			dir = path.Join(dir, names[(int(b)/16+d)%3])
		}
		name := path.Join(dir, names[int(b)/64%3])
		e := imagetest.File(name, fmt.Sprint("body", i))
		switch b % 4 {
		case 1:
			e = imagetest.Dir(name)
		case 2:
			e = imagetest.File(path.Join(dir, ".wh."+path.Base(name)), "")
		case 3:
			e = imagetest.File(path.Join(dir, ".wh..wh..opq"), "")
		}
		layers[len(layers)-1] = append(layers[len(layers)-1], e)
	}
	return layers
}

// model puts a layer on top of tree, which has "dir" or a file's body by path.
func model(tree map[string]string, layer []imagetest.Entry) {
	remove := func(below string) {
		maps.DeleteFunc(tree, func(p, _ string) bool { return strings.HasPrefix(p, below) || below == "" })
	}
	for _, e := range layer {
		dir, base := path.Split(e.Name)
		if base == ".wh..wh..opq" {
			remove(dir)
		} else if name, ok := strings.CutPrefix(base, ".wh."); ok {
			delete(tree, dir+name)
			remove(dir + name + "/")
		}
	}
	for _, e := range layer {
		dir, base := path.Split(e.Name)
		if strings.HasPrefix(base, ".wh.") {
			continue
		}
		for d := path.Clean(dir); d != "."; d = path.Dir(d) {
			tree[d] = "dir"
		}
		if e.Typeflag == tar.TypeDir && tree[e.Name] == "dir" {
			continue
		}
		remove(e.Name + "/")
		tree[e.Name] = e.Body
		if e.Typeflag == tar.TypeDir {
			tree[e.Name] = "dir"
		}
	}
}

func TestModelKnowsItsLayers(t *testing.T) {
	tree := make(map[string]string)
	model(tree, []imagetest.Entry{imagetest.File("a/b", "1"), imagetest.File("c", "2")})
	model(tree, []imagetest.Entry{imagetest.File(".wh.a", ""), imagetest.Dir("c")})
	if got := slices.Collect(maps.Keys(tree)); len(got) != 1 || tree["c"] != "dir" {
		t.Errorf("tree %v", tree)
	}
}
