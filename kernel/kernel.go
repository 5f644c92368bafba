// Package kernel makes what a microVM boots: the kernel of a Debian package, unpacked once, and an
// initrd of our init and the modules it needs.
//
//	linux-image-…-cloud-amd64.deb ─► Setup ─► DIR/{vmlinux-SUM, module-NAME-SUM.ko, kernel.json}
//	                                 Load  ─► DIR/initrd-SUM.cpio (made when init or modules are new)
//
// # Invariants
//
//   - Nothing is installed: the package is only read.
//   - Files bear the sum of their content and appear whole; kernel.json is written last.
//   - The initrd is the same for every machine: names, secrets and addresses travel in the channel.
//
// # Sources
//
// The boot protocol is Documentation/x86/boot.rst, the archive format newc of
// Documentation/driver-api/early-userspace/buffer-format.rst, both in the kernel's tree.
package kernel

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest/initbin"
)

// Kernel is what an engine boots.
type Kernel struct {
	Vmlinux string // ELF with a PVH entry
	Initrd  string // newc, not compressed
	Sum     string // of both
	Release string // "6.1.0-57-cloud-amd64"
}

// manifest is kernel.json.
type manifest struct {
	Release string   `json:"release"`
	Package string   `json:"package"` // file name of the .deb
	Vmlinux string   `json:"vmlinux"` // sha256
	Size    int64    `json:"size"`    // of vmlinux
	Modules []module `json:"modules"` // in load order
}

type module struct {
	Name string `json:"name"`
	Sum  string `json:"sum"`
}

const manifestName = "kernel.json"

// Load returns the kernel that Setup put into dir, with the initrd of this binary's init.
func Load(dir string) (Kernel, error) {
	init, err := initbin.Bytes()
	if err != nil {
		return Kernel{}, err
	}
	return LoadInit(dir, init)
}

// LoadInit is Load with another init.
func LoadInit(dir string, init []byte) (Kernel, error) {
	m, err := readManifest(dir)
	if err != nil {
		return Kernel{}, err
	}
	k := Kernel{Vmlinux: filepath.Join(dir, "vmlinux-"+m.Vmlinux), Release: m.Release}
	if fi, err := os.Stat(k.Vmlinux); err != nil || fi.Size() != m.Size {
		return Kernel{}, missing(dir, "the guest kernel's file vmlinux-%s is missing or cut short", m.Vmlinux[:12])
	}
	image, err := buildInitrd(dir, m, init)
	if err != nil {
		return Kernel{}, fmt.Errorf("make the initrd: %w", err)
	}
	sum := sha(image)
	k.Initrd = filepath.Join(dir, "initrd-"+sum+".cpio")
	if fi, err := os.Stat(k.Initrd); err != nil || fi.Size() != int64(len(image)) {
		if err := renameio.WriteFile(k.Initrd, image, 0o644); err != nil {
			return Kernel{}, fmt.Errorf("write the initrd: %w", err)
		}
	}
	k.Sum = sha([]byte(m.Vmlinux + " " + sum))
	return k, nil
}

func readManifest(dir string) (manifest, error) {
	var m manifest
	b, err := os.ReadFile(filepath.Join(dir, manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return m, missing(dir, "there is no guest kernel")
	}
	if err != nil {
		return m, fmt.Errorf("read the guest kernel's manifest: %w", err)
	}
	if err := json.Unmarshal(b, &m); err != nil || len(m.Vmlinux) != sha256.Size*2 {
		return m, missing(dir, "the guest kernel's manifest is damaged")
	}
	return m, nil
}

func missing(dir, format string, args ...any) error {
	return fmt.Errorf("guest kernel in %s: %w", dir, volant.Errorf(volant.ErrPrecondition, format, args...).
		WithRemedy("run `volant setup kernel` (without a network: `volant setup kernel --file linux-image-….deb`)"))
}

func sha(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func modulePath(dir string, m module) string {
	return filepath.Join(dir, "module-"+m.Name+"-"+m.Sum[:16]+".ko")
}
