package debimage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// file is a file of an image, as a definition or a package has it.
type file struct {
	Header tar.Header
	Body   []byte
}

// tree is what a layer has, by path without a slash in front.
type tree map[string]file

// unwanted are paths that no server needs to run.
var unwanted = regexp.MustCompile(`^usr/share/(man|locale|info|lintian|bash-completion|bug|doc-base|apport|gdb|zsh|initramfs-tools|i18n)/|` +
	`^usr/lib/x86_64-linux-gnu/(gconv|perl|audit)/|^usr/lib/(systemd|tmpfiles.d|sysusers.d|init|udev)/|` +
	`^etc/(init.d|default|logrotate.d|cron.*|ufw|insserv.*|update-motd.d|network|apparmor.d|init)/|^usr/(games|src|include)/`)

// unpack reads a package's files. Those of the old top-level directories go below usr, as in Debian's own images.
func unpack(ctx context.Context, deb string) (tree, error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("dpkg-deb %s: %w: %s", deb, err, strings.TrimSpace(errs.String()))
	}
	t := make(tree)
	for tr := tar.NewReader(bytes.NewReader(out)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("unpack %s: %w", deb, err)
		}
		name := merged(path.Clean(strings.TrimPrefix(h.Name, "./")))
		if name == "." || unwanted.MatchString(name) || unwanted.MatchString(name+"/") || isDoc(name, h) {
			continue
		}
		if h.Typeflag == tar.TypeLink {
			h.Linkname = merged(path.Clean(strings.TrimPrefix(h.Linkname, "./")))
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			return nil, fmt.Errorf("unpack %s: %w", deb, err)
		}
		t[name] = file{*h, body}
	}
}

func isDoc(name string, h *tar.Header) bool {
	return strings.HasPrefix(name, "usr/share/doc/") && h.Typeflag != tar.TypeDir && path.Base(name) != "copyright"
}

func merged(name string) string {
	top, _, _ := strings.Cut(name, "/")
	switch top {
	case "bin", "sbin", "lib", "lib64":
		return "usr/" + name
	}
	return name
}

// add puts the files of o into t. Directories that are there stay as they are; a file of two packages
// is a mistake in a definition.
func (t tree) add(o tree) error {
	for name, f := range o {
		old, ok := t[name]
		if ok && (f.Header.Typeflag != tar.TypeDir || old.Header.Typeflag != tar.TypeDir) {
			return fmt.Errorf("%s is in two packages", name)
		}
		if !ok {
			t[name] = f
		}
	}
	return nil
}

// tar writes the tree as a layer, sorted, so that directories come before what is in them.
func (t tree) tar() ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range t.order() {
		f := t[name]
		h := tar.Header{
			Typeflag: f.Header.Typeflag, Name: name, Linkname: f.Header.Linkname, Size: int64(len(f.Body)), Mode: f.Header.Mode,
			Uid: f.Header.Uid, Gid: f.Header.Gid, ModTime: f.Header.ModTime.Truncate(time.Second), Format: tar.FormatPAX,
		}
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(0, 0)
		}
		if err := w.WriteHeader(&h); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if _, err := w.Write(f.Body); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

// order is by name, with hard links last, after what they lead to.
func (t tree) order() []string {
	names := slices.Sorted(maps.Keys(t))
	slices.SortStableFunc(names, func(a, b string) int {
		return link(t[a]) - link(t[b])
	})
	return names
}

func link(f file) int {
	if f.Header.Typeflag == tar.TypeLink {
		return 1
	}
	return 0
}

func dir(mode int64, uid, gid int) file {
	return file{Header: tar.Header{Typeflag: tar.TypeDir, Mode: mode, Uid: uid, Gid: gid}}
}

func text(mode int64, body string) file {
	return file{Header: tar.Header{Typeflag: tar.TypeReg, Mode: mode}, Body: []byte(body)}
}

func symlink(to string) file {
	return file{Header: tar.Header{Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: to}}
}
