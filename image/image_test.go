package image_test

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	goerofs "github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/image/imagetest"
	"github.com/volant-edge/volant/internal/ociarchive"
)

func open(t *testing.T, cfg image.Config) (*image.Store, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := image.Open(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func plain(t *testing.T, entries ...imagetest.Entry) ociarchive.Layer {
	t.Helper()
	return ociarchive.Plain(imagetest.Layer(t, entries...))
}

func packed(t *testing.T, pack func([]byte) (ociarchive.Layer, error), entries ...imagetest.Entry) ociarchive.Layer {
	t.Helper()
	l, err := pack(imagetest.Layer(t, entries...))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// load imports an image of these layers.
func load(t *testing.T, s *image.Store, layers ...ociarchive.Layer) volant.Digest {
	t.Helper()
	file, want := imagetest.Archive(t, ociarchive.Image{Layers: layers})
	got, err := s.Import(t.Context(), "oci-archive:"+file, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Fatalf("Import() = %s, want %s", string(got), string(want))
	}
	return got
}

// tree reads an EROFS file and describes each file in a line.
func tree(t testing.TB, path string) []string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := goerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	err = fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*goerofs.Stat)
		var line strings.Builder
		fmt.Fprintf(&line, "%s %06o %d:%d links=%d", name, mode(t, f, st.Ino), st.UID, st.GID, st.Nlink)
		switch {
		case info.Mode().IsRegular():
			body, err := fs.ReadFile(fsys, name)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			fmt.Fprintf(&line, " %q", short(body))
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := fs.ReadLink(fsys, name)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			line.WriteString(" -> " + to)
		}
		for _, k := range slices.Sorted(maps.Keys(st.Xattrs)) {
			fmt.Fprintf(&line, " %s=%q", k, st.Xattrs[k])
		}
		if got := st.Mtime; got != uint64(imagetest.When.Unix()) && got != 0 {
			fmt.Fprintf(&line, " at %d.%d", st.Mtime, st.MtimeNs)
		}
		lines = append(lines, line.String())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// mode reads an inode's mode as it is on disk: the reader leaves setuid and the like out.
func mode(t testing.TB, f *os.File, ino int64) uint16 {
	t.Helper()
	var b [4]byte
	if _, err := f.ReadAt(b[:], 1024+40); err != nil {
		t.Fatal(err)
	}
	at := int64(binary.LittleEndian.Uint32(b[:]))*4096 + ino*32 + 4
	if _, err := f.ReadAt(b[:2], at); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint16(b[:2])
}

func short(b []byte) string {
	if len(b) <= 40 {
		return string(b)
	}
	return fmt.Sprintf("%s… (%d)", b[:16], len(b))
}

// check lets the tools of erofs-utils read the image, where they are installed.
func check(t *testing.T, path string) {
	t.Helper()
	if _, err := exec.LookPath("fsck.erofs"); err != nil {
		return
	}
	if out, err := exec.Command("fsck.erofs", "--extract", path).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}

func with(e imagetest.Entry, change func(*tar.Header)) imagetest.Entry {
	change(&e.Header)
	return e
}

func attrs(kv ...string) func(*tar.Header) {
	return func(h *tar.Header) {
		h.PAXRecords = make(map[string]string)
		for i := 0; i < len(kv); i += 2 {
			h.PAXRecords["SCHILY.xattr."+kv[i]] = kv[i+1]
		}
	}
}

const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// torture has all that makes merging of layers hard.
func torture(t *testing.T) []ociarchive.Layer {
	big := strings.Repeat("0123456789abcdef", 1000)
	long := strings.Repeat("n", 255)
	lower := plain(t,
		with(imagetest.Dir("./"), func(h *tar.Header) { h.Mode = 0o751; h.Uid = 3 }),
		imagetest.Dir("bin/"), imagetest.Dir("etc/"),
		imagetest.File("etc/gone", "removed by the layer above"),
		imagetest.File("etc/kept", "kept"),
		imagetest.File("etc/replaced", "old"),
		with(imagetest.File("bin/su", "setuid"), func(h *tar.Header) { h.Mode = 0o4755 }),
		with(imagetest.File("bin/ping", big), attrs("security.capability", capability, "user.mime", "x")),
		imagetest.Link("bin/ping6", "bin/ping"),
		imagetest.Symlink("sbin", "bin"), imagetest.Symlink("run", "/var/run"),
		imagetest.Dir("opaque/"), imagetest.File("opaque/old", "hidden"), imagetest.Dir("opaque/sub/"),
		imagetest.File("opaque/sub/old", "hidden"),
		imagetest.Dir("tree/"), imagetest.File("tree/a/b/c", "whited out with its directory"),
		imagetest.Dir("todir"), imagetest.File("tofile/x", "a directory that becomes a file"),
		with(imagetest.File("odd", "owner"), func(h *tar.Header) { h.Uid = 4_000_000_000; h.Gid = 65536 }),
		imagetest.Entry{Header: tar.Header{Name: "dev/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		imagetest.Entry{Header: tar.Header{Name: "dev/log", Typeflag: tar.TypeFifo}},
	)
	middle := packed(t, ociarchive.Gzip,
		imagetest.File("etc/.wh.gone", ""),
		imagetest.File("etc/replaced", "new"),
		imagetest.Link("etc/ping-of-lower", "bin/ping"),
		imagetest.File("bin/ping", "another ping, while the links keep the first"),
		imagetest.File("opaque/new", "of the layer with the mark, before it"),
		imagetest.File("opaque/sub/new", "deeper"),
		imagetest.File("opaque/.wh..wh..opq", ""),
		imagetest.File("opaque/later", "of the layer with the mark, after it"),
		imagetest.File(".wh.tree", ""), imagetest.File("tree/again", "made anew in the same layer"),
		imagetest.File("tofile", "a file"), imagetest.File(".wh..wh.plnk", ""),
		imagetest.File("sbin/through", "a symlink is followed"),
		imagetest.File("run/pid", "an absolute one too"),
		imagetest.File("/absolute", "from the root"),
		with(imagetest.Dir("etc/"), func(h *tar.Header) { h.Mode = 0o1777 }),
	)
	upper := packed(t, ociarchive.Zstd,
		imagetest.File(long+"/"+long, "long names"),
		imagetest.Symlink("far", strings.Repeat("d/", 2000)+"end"),
		with(imagetest.File("overlay", "o"), attrs("trusted.overlay.opaque", "y", "user.kept", strings.Repeat("v", 5000), "system.other", "z")),
		imagetest.File("empty", ""), imagetest.File("block", strings.Repeat("b", 4096)),
		imagetest.File("a-name\xff", "not UTF-8"), imagetest.File("-before-the-dot", ""), imagetest.File(".hidden", ""),
		imagetest.File(".wh.nothing-to-remove", ""),
	)
	return []ociarchive.Layer{lower, middle, upper}
}

func TestTorture(t *testing.T) {
	s, _ := open(t, image.Config{})
	r, err := s.Rootfs(t.Context(), load(t, s, torture(t)...))
	if err != nil {
		t.Fatal(err)
	}
	check(t, r.Path)
	got := strings.Join(tree(t, r.Path), "\n") + "\n"
	golden := filepath.Join("testdata", "torture.txt")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("tree (-want +got):\n%s", diff)
	}
	wantNotes := []string{
		"left out attributes of overlayfs: overlay",
		"left out attributes that the root disk cannot hold: overlay",
		"left out device nodes: dev/null",
	}
	if diff := cmp.Diff(wantNotes, r.Notes); diff != "" {
		t.Errorf("notes (-want +got):\n%s", diff)
	}
}

func TestRootDiskIsTheSameEverywhere(t *testing.T) {
	var bytes [2][]byte
	for i := range bytes {
		s, _ := open(t, image.Config{})
		r, err := s.Rootfs(t.Context(), load(t, s, torture(t)...))
		if err != nil {
			t.Fatal(err)
		}
		if bytes[i], err = os.ReadFile(r.Path); err != nil {
			t.Fatal(err)
		}
	}
	if string(bytes[0]) != string(bytes[1]) {
		t.Error("two conversions of one image differ")
	}
}

func TestBigDirectory(t *testing.T) {
	s, _ := open(t, image.Config{})
	var entries []imagetest.Entry
	for i := range 5000 {
		entries = append(entries, imagetest.File(fmt.Sprintf("many/%s-%04d", strings.Repeat("x", i%200), i), "."))
	}
	r, err := s.Rootfs(t.Context(), load(t, s, plain(t, entries...)))
	if err != nil {
		t.Fatal(err)
	}
	check(t, r.Path)
	if got := len(tree(t, r.Path)); got != 5002 {
		t.Errorf("%d files, want 5002", got)
	}
	// Each name is found by the reader's search, as Linux would.
	f, err := os.Open(r.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fsys, err := goerofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := fs.Stat(fsys, e.Name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRootfsOfTheImageSaysHowToRunIt(t *testing.T) {
	s, _ := open(t, image.Config{})
	file, _ := imagetest.Archive(t, ociarchive.Image{
		Layers: []ociarchive.Layer{plain(t, imagetest.File("app", "x"))},
		Config: v1.Config{
			Entrypoint: []string{"/app"}, Cmd: []string{"-v"}, Env: []string{"A=b"}, User: "u:g", WorkingDir: "/w", StopSignal: "SIGQUIT",
			ExposedPorts: map[string]struct{}{"80/tcp": {}, "443/tcp": {}}, Labels: map[string]string{"l": "m"},
		},
	})
	d, err := s.Import(t.Context(), "oci-archive:"+file, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := image.RunConfig{
		Entrypoint: []string{"/app"}, Cmd: []string{"-v"}, Env: []string{"A=b"}, User: "u:g", WorkingDir: "/w", StopSignal: "SIGQUIT",
		Exposed: []string{"443/tcp", "80/tcp"}, Labels: map[string]string{"l": "m"},
	}
	for range 2 { // converted, and as it was stored
		r, err := s.Rootfs(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, r.Config); diff != "" || r.Type != "erofs" || r.Digest != d {
			t.Errorf("Rootfs() = %+v; config (-want +got):\n%s", r, diff)
		}
	}
}

func TestHiddenContentTakesNoDisk(t *testing.T) {
	s, _ := open(t, image.Config{})
	d := load(t, s, plain(t, imagetest.File("a", strings.Repeat("x", 4<<20)), imagetest.File("b", strings.Repeat("y", 1<<20))),
		plain(t, imagetest.File(".wh.a", "")))
	r, err := s.Rootfs(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	u, err := s.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if u.RootfsBytes > 2<<20 {
		t.Errorf("root disk takes %d bytes of the disk for 1 MiB of visible content", u.RootfsBytes)
	}
	check(t, r.Path)
}

func TestOpenRemovesWhatIsHalfMade(t *testing.T) {
	_, dir := open(t, image.Config{})
	if err := os.WriteFile(filepath.Join(dir, "tmp", "rootfs-1"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := image.Open(dir, image.Config{}); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestSparseFilesKeepTheirHoles(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("tar is not installed")
	}
	dir := t.TempDir()
	want := make([]byte, 1<<20)
	copy(want[300_000:], "data between two holes")
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(want[300_000:300_022], 300_000); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(1<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "posix"} {
		stream, err := exec.Command("tar", "--sparse", "--format="+format, "-C", dir, "-c", "sparse").Output()
		if err != nil {
			t.Skip("tar does not know sparse files")
		}
		s, _ := open(t, image.Config{})
		r, err := s.Rootfs(t.Context(), load(t, s, ociarchive.Plain(stream)))
		if err != nil {
			t.Fatal(err)
		}
		disk, err := os.Open(r.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		fsys, err := goerofs.Open(disk)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := fs.ReadFile(fsys, "sparse"); err != nil || string(got) != string(want) {
			t.Errorf("%s: %d bytes that differ, or %v", format, len(got), err)
		}
	}
}
