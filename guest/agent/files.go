package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant/guest"
)

// etcFiles are the texts of etcNames.
func etcFiles(c guest.Config) map[string]string {
	files := map[string]string{"hostname": c.Hostname + "\n", "hosts": hosts(c)}
	if len(c.Net.DNS) > 0 {
		files["resolv.conf"] = resolvConf(c.Net.DNS)
	}
	return files
}

func hosts(c guest.Config) string {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	addr := "127.0.1.1"
	if c.Net.Addr.IsValid() {
		addr = c.Net.Addr.Addr().String()
	}
	if c.Hostname != "" {
		fmt.Fprintf(&b, "%s\t%s\n", addr, c.Hostname)
		if c.Net.Addr6.IsValid() {
			fmt.Fprintf(&b, "%s\t%s\n", c.Net.Addr6.Addr(), c.Hostname)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Hosts)) {
		fmt.Fprintf(&b, "%s\t%s\n", c.Hosts[name], name)
	}
	return b.String()
}

func resolvConf(dns []netip.Addr) string {
	var b strings.Builder
	for _, a := range dns {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	return b.String()
}

// bindEtc writes the files and puts them over those of the image, by bind mounts: its disk does not
// change.
func bindEtc(open map[string]*os.File, text map[string]string) error {
	if err := makeDir("/etc", 0o755); err != nil {
		return err
	}
	for name, f := range open {
		target := "/etc/" + name
		if text[name] == "" {
			continue
		}
		if _, err := f.WriteString(text[name]); err != nil {
			return err
		}
		st, err := os.Lstat(target)
		if err == nil && !st.Mode().IsRegular() { // a link into nowhere, most often
			if err := os.RemoveAll(target); err != nil {
				return err
			}
		}
		if err != nil || !st.Mode().IsRegular() {
			t, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o644)
			if err != nil {
				return err
			}
			_ = t.Close() // an empty file
		}
		err = unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), target, "", unix.MS_BIND, "")
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("bind %s: %w", target, err)
		}
	}
	return nil
}

// putFile writes a file below top, root's, as a whole: a program sees the old one or the new one. Links of the
// image are followed, as its programs would.
func putFile(top string, f guest.File) error {
	path := filepath.Join(top, f.Path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return guest.Errorf(guest.KindInvalid, "file %s: %v", f.Path, err)
	}
	if to, err := filepath.EvalSymlinks(path); err == nil {
		path = to
	}
	t, err := os.CreateTemp(filepath.Dir(path), ".volant-")
	if err != nil {
		return guest.Errorf(guest.KindInvalid, "file %s: %v", f.Path, err)
	}
	_, err = t.Write(f.Data)
	err = errors.Join(err, t.Chmod(fs.FileMode(f.Mode)&fs.ModePerm), t.Close())
	if err == nil {
		err = os.Rename(t.Name(), path)
	}
	if err != nil {
		_ = os.Remove(t.Name()) // what it failed with is told
		return guest.Errorf(guest.KindInvalid, "file %s: %v", f.Path, err)
	}
	return nil
}

// lookPath finds a program as a shell in the image would: name itself if it has a slash, else in
// PATH. What it returns is absolute.
func lookPath(name, path, dir string) (string, error) {
	if name == "" {
		return "", guest.Errorf(guest.KindInvalid, "no command is given")
	}
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, executable(name)
	}
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		if f := filepath.Join(d, name); executable(f) == nil {
			return f, nil
		}
	}
	return "", guest.Errorf(guest.KindNotFound, "the image has no program %q in PATH=%s", name, path)
}

func executable(file string) error {
	st, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return guest.Errorf(guest.KindNotFound, "the image has no file %s", file)
	case err != nil:
		return err
	case st.IsDir() || st.Mode()&0o111 == 0:
		return guest.Errorf(guest.KindInvalid, "%s in the image is not a program", file)
	}
	return nil
}
