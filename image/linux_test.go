package image_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/image/imagetest"
	"github.com/volant-edge/volant/volanttest/need"
)

// mount lets this machine's Linux read a root disk.
func mount(t *testing.T, kind, path string) string {
	t.Helper()
	need.Root(t)
	at := t.TempDir()
	if out, err := exec.Command("mount", "-t", kind, "-o", "ro,loop", path, at).CombinedOutput(); err != nil {
		need.Unmet(t, "root", fmt.Sprintf("mount of %s: %v: %s", kind, err, bytes.TrimSpace(out)))
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return at
}

// linuxTree describes a mounted tree as tree does.
func linuxTree(t *testing.T, root string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %06o %d:%d links=%d", name, st.Mode, st.Uid, st.Gid, st.Nlink)
		switch {
		case info.Mode().IsRegular():
			body, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", short(body))
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + to
		}
		line += linuxAttrs(t, path)
		if got := st.Mtim.Sec; got != imagetest.When.Unix() && got != 0 {
			line += fmt.Sprintf(" at %d.%d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func linuxAttrs(t *testing.T, path string) string {
	t.Helper()
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	list := strings.Split(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00")
	slices.Sort(list)
	var line strings.Builder
	for _, name := range list {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Fatalf("%s: %s: %v", path, name, err)
		}
		fmt.Fprintf(&line, " %s=%q", name, value[:n])
	}
	return line.String()
}

func TestLinuxReadsTheRootDisk(t *testing.T) {
	need.Root(t)
	s, _ := open(t, image.Config{})
	r, err := s.Rootfs(t.Context(), load(t, s, torture(t)...))
	if err != nil {
		t.Fatal(err)
	}
	at := mount(t, "erofs", r.Path)
	want, err := os.ReadFile(filepath.Join("testdata", "torture.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), strings.Join(linuxTree(t, at), "\n")+"\n"); diff != "" {
		t.Errorf("tree as Linux sees it (-want +got):\n%s", diff)
	}
}

// TestLinuxReadsAnyShape has directories, links and attributes of many sizes, so that tails and
// blocks fall on all kinds of borders.
func TestLinuxReadsAnyShape(t *testing.T) {
	need.Root(t)
	s, _ := open(t, image.Config{})
	var entries []imagetest.Entry
	for i := range 230 {
		dir := fmt.Sprintf("d%03d/", i)
		for j := range i % 40 {
			entries = append(entries, imagetest.File(fmt.Sprintf("%s%s%02d", dir, strings.Repeat("y", i%241), j), strings.Repeat("z", i*j)))
		}
		entries = append(entries, imagetest.Symlink(dir+"link", strings.Repeat("s", 1+i*17)))
		entries = append(entries, with(imagetest.File(dir+"attrs", strings.Repeat("a", i*7)), attrs("user.a", strings.Repeat("v", i*60), "trusted.b", "w")))
	}
	r, err := s.Rootfs(t.Context(), load(t, s, plain(t, entries...)))
	if err != nil {
		t.Fatal(err)
	}
	check(t, r.Path)
	if diff := cmp.Diff(tree(t, r.Path), linuxTree(t, mount(t, "erofs", r.Path))); diff != "" {
		t.Errorf("tree (-reader of Go +Linux):\n%s", diff)
	}
}

func TestLinuxMountsTheScratchDisk(t *testing.T) {
	need.Root(t)
	s, dir := open(t, image.Config{})
	path := filepath.Join(dir, "scratch-of-a-machine")
	if err := s.Scratch(t.Context(), path, 64); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadDir(mount(t, "ext4", path))
	if err != nil || len(got) != 1 || got[0].Name() != "lost+found" {
		t.Errorf("%v, %v; want an empty file system", got, err)
	}
}
