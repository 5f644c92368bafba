package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/volant-edge/volant"
)

// needed are the modules our init asks for, in the order it needs them; what they depend on goes before.
var needed = []string{"virtio_mmio", "virtio_console", "virtio_blk", "virtio_net", "erofs", "overlay"}

// wanted are all that may be needed, with dependencies: kernels differ in which are built in.
var wanted = append(slices.Clone(needed),
	"virtio", "virtio_ring", "failover", "net_failover", "libcrc32c", "crc32c_generic", "lz4_decompress", "lzma_decompress", "netfs", "dns_resolver")

func isWanted(name string) bool { return slices.Contains(wanted, name) }

// moduleName is the kernel's name of a module's file, "" if it is none.
func moduleName(file string) string {
	base := path.Base(file)
	for _, suffix := range []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if n, ok := strings.CutSuffix(base, suffix); ok {
			return strings.ReplaceAll(n, "-", "_")
		}
	}
	return ""
}

// pickModules orders the modules so that each comes after what it depends on. One that is not
// there is taken for built in, except those which Debian's cloud kernel has as modules always.
func pickModules(found map[string][]byte) ([]module, map[string][]byte, error) {
	var order []module
	content := map[string][]byte{}
	var add func(name string) error
	add = func(name string) error {
		raw, ok := found[name]
		if _, done := content[name]; !ok || done {
			return nil
		}
		deps, err := dependencies(raw)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		content[name] = stripSignature(raw) // also keeps a circle from going round
		for _, d := range deps {
			if err := add(d); err != nil {
				return err
			}
		}
		order = append(order, module{Name: name, Sum: sha(content[name])})
		return nil
	}
	for _, n := range needed {
		if err := add(n); err != nil {
			return nil, nil, err
		}
	}
	if _, ok := content["virtio_mmio"]; !ok {
		return nil, nil, volant.Invalidf("the package holds no module virtio_mmio").
			WithRemedy("give a cloud kernel of Debian 12, linux-image-VERSION-cloud-amd64")
	}
	return order, content, nil
}

// dependencies reads the names in a module's section .modinfo.
func dependencies(ko []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return nil, volant.Invalidf("not an uncompressed module: %v", err).
			WithRemedy("give a kernel of Debian 12, whose modules are not compressed")
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, volant.Invalidf("no section .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for kv := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(kv, []byte("depends=")); ok && len(list) > 0 {
			return strings.Split(strings.ReplaceAll(string(list), "-", "_"), ","), nil
		}
	}
	return nil, nil
}

const signatureMagic = "~Module signature appended~\n"

// stripSignature cuts off a module's signature, whose check costs each boot a millisecond and which
// a kernel without enforcement does not need.
func stripSignature(ko []byte) []byte {
	const header = 12 // ends with the signature's length
	body, ok := bytes.CutSuffix(ko, []byte(signatureMagic))
	if !ok || len(body) < header {
		return ko
	}
	n := int64(binary.BigEndian.Uint32(body[len(body)-4:]))
	if n > int64(len(body)-header) {
		return ko
	}
	return body[:int64(len(body)-header)-n]
}
