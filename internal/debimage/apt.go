package debimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/volant-edge/volant"
)

// deb is a package as apt's lists have it.
type deb struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	File    string `json:"file"` // name in the cache
	Size    int64  `json:"size"`
	SHA256  string `json:"sha256,omitempty"` // filled in after the download, which apt has verified
}

// leftOut serve maintainer scripts, which are not run, or administrators, of whom a machine has none.
var leftOut = regexp.MustCompile(`^(adduser|debconf|dpkg|init-system-helpers|iproute2|libbpf1|libcap2-bin|libelf1|lsb-base|` +
	`passwd|perl.*|lib.*-perl|libperl.*|mawk|libpam-(modules|modules-bin|runtime)|procps|runit-helper|sensible-utils|` +
	`sysvinit-utils|tar|ucf|usrmerge|gcc-.*-base|libtirpc-common|libaudit-common|libsemanage-common)$`)

// packages returns the files of the packages and of all they depend on, in order of their names. The
// list of an image is kept beside them, so that it stays the same until the cache is removed.
func (b Builder) packages(ctx context.Context, image string, names []string) ([]string, error) {
	list := filepath.Join(b.Cache, image+".packages.json")
	debs, err := readList(list)
	if err != nil || !contains(debs, names) {
		if debs, err = resolve(ctx, names); err != nil {
			return nil, err
		}
	}
	dir := filepath.Join(b.Cache, "debs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := b.fetch(ctx, dir, debs); err != nil {
		return nil, err
	}
	var files []string
	for i, d := range debs {
		file := filepath.Join(dir, d.File)
		sum, err := fileSum(file)
		if err != nil {
			return nil, err
		}
		if d.SHA256 != "" && d.SHA256 != sum {
			return nil, errors.Join(fmt.Errorf("%s in the cache is damaged", d.File), os.Remove(file))
		}
		debs[i].SHA256 = sum
		files = append(files, file)
	}
	return files, atomically(list, func(w io.Writer) error { return json.NewEncoder(w).Encode(debs) })
}

func readList(file string) ([]deb, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var debs []deb
	return debs, json.Unmarshal(raw, &debs)
}

func contains(debs []deb, names []string) bool {
	return !slices.ContainsFunc(names, func(n string) bool {
		return !slices.ContainsFunc(debs, func(d deb) bool { return d.Name == n })
	})
}

func fileSum(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // only read from
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

// resolve asks apt what would be installed on a system that has nothing.
func resolve(ctx context.Context, names []string) ([]deb, error) {
	dir, err := os.MkdirTemp("", "debimage-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a few empty files
	status := filepath.Join(dir, "status")
	if err := errors.Join(os.WriteFile(status, nil, 0o600), os.MkdirAll(filepath.Join(dir, "archives", "partial"), 0o700)); err != nil {
		return nil, err
	}
	args := []string{
		"-q", "-y", "--no-install-recommends", "--print-uris",
		"-o", "Dir::State::status=" + status, "-o", "Dir::State::extended_states=" + filepath.Join(dir, "states"),
		"-o", "Dir::Cache::archives=" + filepath.Join(dir, "archives"), "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=",
		"-o", "Debug::NoLocking=1", "-o", "APT::Architecture=amd64", "-o", "APT::Architectures=amd64", "install",
	}
	out, err := apt(ctx, "", append(args, names...)...)
	if err != nil {
		return nil, err
	}
	debs, err := parseURIs(out)
	if err != nil {
		return nil, err
	}
	if !contains(debs, names) {
		return nil, fmt.Errorf("apt-get found %d packages for %s, and not these", len(debs), strings.Join(names, ", "))
	}
	return debs, nil
}

// parseURIs reads lines of: 'URI' FILE SIZE HASH. A file's name is NAME_VERSION_ARCHITECTURE.deb.
func parseURIs(out []byte) ([]deb, error) {
	var debs []deb
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "'") {
			continue
		}
		f := strings.Fields(line)
		if len(f) < 3 || strings.Contains(f[1], "/") {
			return nil, fmt.Errorf("apt-get says %q", line)
		}
		part := strings.Split(f[1], "_")
		size, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil || len(part) != 3 {
			return nil, fmt.Errorf("apt-get says %q", line)
		}
		version, err := url.PathUnescape(part[1])
		if err != nil {
			return nil, fmt.Errorf("apt-get says %q: %w", line, err)
		}
		if !leftOut.MatchString(part[0]) {
			debs = append(debs, deb{Name: part[0], Version: version, File: f[1], Size: size})
		}
	}
	slices.SortFunc(debs, func(a, b deb) int { return strings.Compare(a.Name, b.Name) })
	return debs, nil
}

// fetch downloads what is not in the cache. Apt verifies it.
func (b Builder) fetch(ctx context.Context, dir string, debs []deb) error {
	args := []string{"-q", "-o", "APT::Sandbox::User=root", "download"}
	var missing []deb
	var size int64
	for _, d := range debs {
		if !exists(filepath.Join(dir, d.File)) {
			missing = append(missing, d)
			size += d.Size
			args = append(args, d.Name+"="+d.Version)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	b.Say("downloading %d Debian packages, %.1f MB, into %s:", len(missing), float64(size)/1e6, dir)
	for _, d := range missing {
		b.Say("  %s %s (%.2f MB)", d.Name, d.Version, float64(d.Size)/1e6)
	}
	temp, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp) //nolint:errcheck // empty if all went well
	if _, err := apt(ctx, temp, args...); err != nil {
		return err
	}
	for _, d := range missing {
		err := os.Rename(filepath.Join(temp, d.File), filepath.Join(dir, d.File))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("apt-get did not download %s", d.File)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// apt runs apt-get in a directory.
func apt(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return nil, volant.Errorf(volant.ErrUnavailable, "there is no apt-get").WithRemedy("build images on Debian, or copy the cache from there")
	case err != nil:
		return nil, volant.Errorf(volant.ErrUnavailable, "apt-get: %v: %s", err, strings.TrimSpace(errs.String())).
			WithRemedy("run `apt-get update`; without a network, copy the cache from a machine that has one")
	}
	return out, nil
}
