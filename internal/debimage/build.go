package debimage

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/ociarchive"
)

// definition says what an image is made of.
type definition struct {
	packages []string // beside those of the base
	program  string   // package path of a program of our own, below the module
	users    []user   // beside root and nobody
	files    tree     // what packages' scripts would make, and configuration
	config   v1.Config
}

// user is a line in /etc/passwd, and a group of the same name and number.
type user struct {
	name string
	id   int
	home string
}

// base is in each image that has Debian packages: a C library and a shell with small tools.
var base = []string{"base-files", "busybox", "libc6"}

// tools are the names under which busybox is there.
const tools = `[ ash awk basename cat chmod chown cp cut date dd df dirname dmesg du echo env expr false find free grep
gunzip gzip head hostname id ifconfig ip kill less ln ls md5sum mkdir more mount mv nc netstat nslookup ping pidof
printf ps pwd readlink realpath rm rmdir sed seq sh sha256sum sleep sort stat sync tail tar tee test top touch tr
true umount uname uniq uptime vi wc wget which xargs yes`

// skeleton are the files of every image.
func skeleton(users []user) tree {
	var passwd, group strings.Builder
	passwd.WriteString("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n")
	group.WriteString("root:x:0:\ntty:x:5:\nshadow:x:42:\nnogroup:x:65534:\n")
	shadow := "root:*:19700:0:99999:7:::\n"
	for _, u := range users {
		fmt.Fprintf(&passwd, "%s:x:%d:%d::%s:/usr/sbin/nologin\n", u.name, u.id, u.id, u.home)
		fmt.Fprintf(&group, "%s:x:%d:\n", u.name, u.id)
	}
	t := tree{
		"etc/passwd": text(0o644, passwd.String()), "etc/group": text(0o644, group.String()), "etc/shadow": text(0o600, shadow),
		"etc/nsswitch.conf": text(0o644, "passwd: files\ngroup: files\nhosts: files dns\n"),
		"tmp":               dir(0o1777, 0, 0), "run": dir(0o755, 0, 0), "root": dir(0o700, 0, 0), "var": dir(0o755, 0, 0),
		"var/log": dir(0o755, 0, 0), "var/lib": dir(0o755, 0, 0), "var/cache": dir(0o755, 0, 0), "var/tmp": dir(0o1777, 0, 0),
		"proc": dir(0o555, 0, 0), "sys": dir(0o555, 0, 0), "dev": dir(0o755, 0, 0), "etc": dir(0o755, 0, 0),
		"usr": dir(0o755, 0, 0), "usr/bin": dir(0o755, 0, 0),
	}
	return t
}

// shell is the part of the skeleton that Debian packages need.
func shell() tree {
	t := tree{
		"bin": symlink("usr/bin"), "sbin": symlink("usr/sbin"), "lib": symlink("usr/lib"), "lib64": symlink("usr/lib64"),
	}
	for name := range strings.FieldsSeq(tools) {
		t["usr/bin/"+name] = symlink("busybox")
	}
	return t
}

// all are the files that are in the definition, for the last layer.
func (d definition) all() tree {
	t := skeleton(d.users)
	maps.Copy(t, d.files)
	return t
}

// build puts an image together: the base, the packages and the definition's files, each in a layer.
func (d definition) build(ctx context.Context, p parts) (ociarchive.Image, error) {
	img := ociarchive.Image{Config: d.config}
	var layers []tree
	if len(p.debs) > 0 {
		low, high, err := d.unpackAll(ctx, p)
		if err != nil {
			return img, err
		}
		layers = append(layers, low, high)
	}
	top := d.all()
	for name, body := range p.extra {
		top[name] = file{Header: tar.Header{Typeflag: tar.TypeReg, Mode: 0o755}, Body: body}
	}
	for _, t := range append(layers, top) {
		stream, err := t.tar()
		if err != nil {
			return img, err
		}
		l, err := ociarchive.Gzip(stream)
		if err != nil {
			return img, err
		}
		img.Layers = append(img.Layers, l)
	}
	return img, nil
}

// unpackAll unpacks the packages that are needed: low are those of the base, high the others.
func (d definition) unpackAll(ctx context.Context, p parts) (low, high tree, err error) {
	var all []pkg
	for _, deb := range p.debs {
		name, _, _ := strings.Cut(filepath.Base(deb), "_")
		files, err := unpack(ctx, deb)
		if err != nil {
			return nil, nil, err
		}
		one, err := examine(name, files)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, one)
	}
	wanted := maps.Clone(p.wanted)
	for _, name := range base {
		wanted[name] = true
	}
	kept, err := prune(all, wanted)
	if err != nil {
		return nil, nil, err
	}
	low, high = shell(), make(tree)
	for _, one := range kept {
		t := high
		if slices.Contains(base, one.name) {
			t = low
		}
		if err := t.add(one.files); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", one.name, err)
		}
	}
	return low, high, nil
}

// compile builds a static program of this module.
func compile(ctx context.Context, program string) ([]byte, error) {
	temp, err := os.MkdirTemp("", "debimage-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp) //nolint:errcheck // one file
	out := filepath.Join(temp, "program")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out,
		"github.com/volant-edge/volant/"+program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	if msg, err := cmd.CombinedOutput(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return nil, volant.Errorf(volant.ErrUnavailable, "there is no go").WithRemedy("install Go to build %s", program)
		}
		return nil, fmt.Errorf("go build %s: %w: %s", program, err, strings.TrimSpace(string(msg)))
	}
	return os.ReadFile(out)
}
