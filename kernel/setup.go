package kernel

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/volant-edge/volant"
)

// metaPackage depends on the newest kernel for virtual machines.
const metaPackage = "linux-image-cloud-amd64"

// Bounds of what is taken out of a package.
const (
	maxVmlinuz = 128 << 20
	maxModule  = 16 << 20
)

// Setup unpacks a guest kernel into dir: of debFile or, if that is "", of the package that apt-get
// downloads. Nothing is installed. progress is told each step.
func Setup(ctx context.Context, dir, debFile string, progress func(string)) error {
	if progress == nil {
		progress = func(string) {}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("set up the guest kernel: %w", err)
	}
	if debFile == "" {
		tmp, err := os.MkdirTemp(dir, "download-")
		if err != nil {
			return fmt.Errorf("set up the guest kernel: %w", err)
		}
		defer func() { _ = os.RemoveAll(tmp) }() // a leftover is only untidy
		if debFile, err = download(ctx, tmp, progress); err != nil {
			return err
		}
	}
	progress("unpack " + filepath.Base(debFile))
	p, err := readPackage(ctx, debFile)
	if err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(debFile), err)
	}
	if err := p.write(dir, filepath.Base(debFile)); err != nil {
		return fmt.Errorf("set up the guest kernel: %w", err)
	}
	progress("guest kernel " + p.release + " is ready")
	return nil
}

// download fetches the newest kernel package into tmp.
func download(ctx context.Context, tmp string, progress func(string)) (string, error) {
	name, err := newest(ctx)
	if err != nil {
		return "", downloadError(err)
	}
	progress("download " + name)
	cmd := exec.CommandContext(ctx, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name)
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", downloadError(fmt.Errorf("apt-get download %s: %w: %s", name, err, lastLine(out)))
	}
	found, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(found) != 1 {
		return "", downloadError(fmt.Errorf("apt-get download %s left %d files", name, len(found)))
	}
	return found[0], nil
}

func downloadError(err error) error {
	return fmt.Errorf("download the guest kernel: %w", volant.Errorf(volant.ErrUnavailable, "%v", err).WithRemedy(
		"run `apt-get update` and try again, or fetch the package elsewhere (apt-get download linux-image-VERSION-cloud-amd64) "+
			"and give it: `volant setup kernel --file linux-image-….deb`"))
}

// newest asks apt which real package the meta package stands for.
func newest(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "show", "--no-all-versions", metaPackage).Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache show %s: %w", metaPackage, err)
	}
	return dependency(out)
}

// dependency finds the kernel in the record of the meta package.
func dependency(record []byte) (string, error) {
	for line := range strings.Lines(string(record)) {
		list, ok := strings.CutPrefix(line, "Depends:")
		if !ok {
			continue
		}
		for d := range strings.SplitSeq(list, ",") {
			if name, _, _ := strings.Cut(strings.TrimSpace(d), " "); strings.HasPrefix(name, "linux-image-") {
				return name, nil
			}
		}
	}
	return "", fmt.Errorf("apt knows no kernel for %s", metaPackage)
}

func lastLine(b []byte) string {
	b = bytes.TrimSpace(b)
	return string(b[bytes.LastIndexByte(b, '\n')+1:])
}

// pack is what is used of a package.
type pack struct {
	release string
	vmlinux []byte
	modules []module
	content map[string][]byte // of modules, by name
}

// readPackage reads a .deb by dpkg-deb, as a stream.
func readPackage(ctx context.Context, file string) (*pack, error) {
	if _, err := os.Stat(file); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	var msg bytes.Buffer
	cmd.Stderr = &msg
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	release, vmlinuz, mods, err := readTar(out)
	if err != nil {
		stop()
	}
	if werr := cmd.Wait(); werr != nil && (err == nil || msg.Len() > 0) {
		err = volant.Errorf(volant.ErrInvalid, "dpkg-deb: %v: %s", werr, lastLine(msg.Bytes())).
			WithRemedy("give a whole Debian package, linux-image-…-cloud-amd64_….deb")
	}
	if err != nil {
		return nil, err
	}
	p := &pack{release: release}
	if p.vmlinux, err = unpackKernel(vmlinuz); err != nil {
		return nil, fmt.Errorf("vmlinuz-%s: %w", release, err)
	}
	if p.modules, p.content, err = pickModules(mods); err != nil {
		return nil, fmt.Errorf("modules of %s: %w", release, err)
	}
	return p, nil
}

// readTar takes the kernel and those of its modules that might be needed.
func readTar(r io.Reader) (release string, vmlinuz []byte, mods map[string][]byte, err error) {
	mods = map[string][]byte{}
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", nil, nil, err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name := path.Clean("/" + h.Name)
		switch v, isKernel := strings.CutPrefix(name, "/boot/vmlinuz-"); {
		case isKernel:
			release = v
			if vmlinuz, err = readBounded(t, maxVmlinuz); err != nil {
				return "", nil, nil, fmt.Errorf("%s: %w", name, err)
			}
		case strings.Contains(name, "/lib/modules/") && isWanted(moduleName(name)):
			b, err := readBounded(t, maxModule)
			if err != nil {
				return "", nil, nil, fmt.Errorf("%s: %w", name, err)
			}
			mods[moduleName(name)] = b
		}
	}
	if vmlinuz == nil {
		return "", nil, nil, volant.Invalidf("the package holds no kernel").
			WithRemedy("%s is only a pointer; give the package it depends on, linux-image-VERSION-cloud-amd64", metaPackage)
	}
	// dpkg-deb would be killed while it writes the padding behind the archive's end.
	_, err = io.Copy(io.Discard, r)
	return release, vmlinuz, mods, err
}

func readBounded(r io.Reader, most int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = volant.Invalidf("larger than %d MiB", most>>20)
	}
	return b, err
}

// write puts all files into dir, the manifest last.
func (p *pack) write(dir, debName string) error {
	m := manifest{Release: p.release, Package: debName, Vmlinux: sha(p.vmlinux), Size: int64(len(p.vmlinux)), Modules: p.modules}
	if err := renameio.WriteFile(filepath.Join(dir, "vmlinux-"+m.Vmlinux), p.vmlinux, 0o644); err != nil {
		return err
	}
	for _, mod := range p.modules {
		if err := renameio.WriteFile(modulePath(dir, mod), p.content[mod.Name], 0o644); err != nil {
			return err
		}
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(dir, manifestName), append(b, '\n'), 0o644)
}
