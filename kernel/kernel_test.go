package kernel

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pierrec/lz4/v4"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/volanttest/need"
)

// fakeVmlinux is an ELF file of one note, with or without the PVH entry.
func fakeVmlinux(pvh bool) []byte {
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	le := binary.LittleEndian
	h := le.AppendUint16(nil, 2) // executable
	h = le.AppendUint16(h, 62)   // x86-64
	h = le.AppendUint32(h, 1)
	h = le.AppendUint64(h, 0)
	h = le.AppendUint64(h, 64) // program headers
	h = le.AppendUint64(h, 0)
	h = le.AppendUint32(h, 0)
	for _, v := range []uint16{64, 56, 1, 64, 0, 0} {
		h = le.AppendUint16(h, v)
	}
	note := le.AppendUint32(nil, 4)
	note = le.AppendUint32(note, 4)
	typ := uint32(1)
	if pvh {
		typ = 18
	}
	note = le.AppendUint32(note, typ)
	note = append(note, "Xen\x00\x00\x00\x00\x01"...)
	h = le.AppendUint32(h, 4) // PT_NOTE
	h = le.AppendUint32(h, 4)
	for _, v := range []uint64{120, 0, 0, uint64(len(note)), uint64(len(note)), 4} {
		h = le.AppendUint64(h, v)
	}
	b.Write(h)
	b.Write(note)
	b.WriteString(strings.Repeat("kernel ", 5000))
	return b.Bytes()
}

// bzImage wraps a payload by the boot protocol.
func bzImage(payload []byte, size int) []byte {
	payload = binary.LittleEndian.AppendUint32(payload, uint32(size))
	b := make([]byte, 1024, 1024+len(payload))
	b[0x1f1] = 1
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(b[0x24c:], uint32(len(payload)))
	return append(b, payload...)
}

func lz4Legacy(t testing.TB, b []byte) []byte {
	t.Helper()
	out := []byte{0x02, 0x21, 0x4c, 0x18}
	for len(b) > 0 {
		part := b[:min(len(b), 10_000)]
		buf := make([]byte, lz4.CompressBlockBound(len(part)))
		n, err := lz4.CompressBlock(part, buf, nil)
		if err != nil {
			t.Fatal(err)
		}
		out = binary.LittleEndian.AppendUint32(out, uint32(n))
		out, b = append(out, buf[:n]...), b[len(part):]
	}
	return out
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestUnpackKernel(t *testing.T) {
	want := fakeVmlinux(true)
	for name, b := range map[string][]byte{
		"ELF": want, "LZ4": bzImage(lz4Legacy(t, want), len(want)), "gzip": bzImage(gzipped(t, want), len(want)),
	} {
		if got, err := unpackKernel(b); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %d bytes, %v, want %d", name, len(got), err, len(want))
		}
	}
	lz := lz4Legacy(t, want)
	for text, b := range map[string][]byte{
		"no PVH entry":             fakeVmlinux(false),
		"not a Linux kernel image": []byte("MZ"),
		"cut short":                bzImage(lz, len(want))[:1200],
		"damaged":                  bzImage(lz, len(want)-100),
		"way that is not known":    bzImage([]byte("\xfd7zXZ...."), 100),
		"larger than is taken":     bzImage(lz, 1<<30),
	} {
		if _, err := unpackKernel(b); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want an error with %q", err, text)
		}
	}
}

func FuzzUnpackKernel(f *testing.F) {
	elf := fakeVmlinux(true)
	f.Add(elf)
	f.Add(bzImage(lz4Legacy(f, elf), len(elf)))
	f.Add(bzImage(gzipped(f, elf), len(elf)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 0x254 {
			b[len(b)-1], b[len(b)-2] = 0, 0 // sizes of up to 64 KiB: the bound is tested elsewhere
		}
		_, _ = unpackKernel(b) // any answer but a panic
	})
}

func FuzzDependencies(f *testing.F) {
	f.Add(fakeVmlinux(true))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = dependencies(b)
		if s := stripSignature(b); !bytes.HasPrefix(b, s) {
			t.Error("stripSignature made other bytes")
		}
	})
}

func TestStripSignature(t *testing.T) {
	sig := append([]byte("SIGNATURE"), 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9)
	signed := append(append([]byte("MODULE"), sig...), signatureMagic...)
	if got := string(stripSignature(signed)); got != "MODULE" {
		t.Errorf("got %q, want MODULE", got)
	}
	if got := string(stripSignature([]byte("MODULE"))); got != "MODULE" {
		t.Errorf("unsigned: got %q", got)
	}
}

func TestDependency(t *testing.T) {
	got, err := dependency([]byte("Package: linux-image-cloud-amd64\nVersion: 6.1\nDepends: foo, linux-image-6.1.0-57-cloud-amd64 (= 6.1.192-3)\n"))
	if want := "linux-image-6.1.0-57-cloud-amd64"; got != want || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if _, err := dependency([]byte("Package: x\n")); err == nil {
		t.Error("no kernel: want an error")
	}
}

// installed puts a kernel of two modules into a new directory.
func installed(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	p := &pack{
		release: "6.1.0-1-cloud-amd64", vmlinux: fakeVmlinux(true),
		modules: []module{{Name: "virtio_mmio", Sum: sha([]byte("one"))}, {Name: "overlay", Sum: sha([]byte("two!"))}},
		content: map[string][]byte{"virtio_mmio": []byte("one"), "overlay": []byte("two!")},
	}
	if err := p.write(dir, "linux.deb"); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestLoad(t *testing.T) {
	dir := installed(t)
	k, err := LoadInit(dir, []byte("init's bytes"))
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(k.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"dev 040755", "m 040755", "proc 040755", "sys 040755", "dev/console 020600", "dev/null 020666", "init 100755 init's bytes",
		"m/000-virtio_mmio.ko 100644 one", "m/001-overlay.ko 100644 two!", "TRAILER!!! 000000",
	}
	if got := listCPIO(t, image); !cmp.Equal(got, want) {
		t.Errorf("initrd: %s", cmp.Diff(want, got))
	}
	again, err := LoadInit(dir, []byte("init's bytes"))
	if err != nil || again != k {
		t.Errorf("loaded again: got %+v, %v, want %+v", again, err, k)
	}
	other, err := LoadInit(dir, []byte("another init"))
	if err != nil || other.Sum == k.Sum || other.Initrd == k.Initrd {
		t.Errorf("with another init: got %+v, %v, want another sum", other, err)
	}
}

func TestLoadErrors(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"nothing there":    func(dir string) error { return os.Remove(filepath.Join(dir, manifestName)) },
		"bad manifest":     func(dir string) error { return os.WriteFile(filepath.Join(dir, manifestName), []byte("{"), 0o644) },
		"kernel cut short": func(dir string) error { return os.Truncate(filepath.Join(dir, "vmlinux-"+sha(fakeVmlinux(true))), 5) },
		"module flipped": func(dir string) error {
			return os.WriteFile(modulePath(dir, module{Name: "overlay", Sum: sha([]byte("two!"))}), []byte("tow!"), 0o644)
		},
	} {
		dir := installed(t)
		if err := spoil(dir); err != nil {
			t.Fatal(err)
		}
		_, err := LoadInit(dir, nil)
		if !errors.Is(err, volant.ErrPrecondition) || !strings.Contains(err.Error(), "volant setup kernel --file") {
			t.Errorf("%s: got %v, want kind precondition with its cure", name, err)
		}
	}
}

// listCPIO reads an archive of the format newc: name, mode and content of each entry.
func listCPIO(t *testing.T, b []byte) []string {
	t.Helper()
	field := func(i int) int {
		n := 0
		for _, c := range b[6+8*i : 14+8*i] {
			n = n*16 + strings.IndexByte("0123456789abcdef", c)
		}
		return n
	}
	var out []string
	for len(b) > 0 {
		if string(b[:6]) != "070701" {
			t.Fatalf("no header at %q", b[:min(20, len(b))])
		}
		nameLen, size := field(11), field(6)
		mode := field(1)
		name := string(b[110 : 110+nameLen-1])
		start := (110 + nameLen + 3) &^ 3
		line := fmt.Sprintf("%s %06o", name, mode)
		if size > 0 {
			line += " " + string(b[start:start+size])
		}
		out = append(out, line)
		b = b[(start+size+3)&^3:]
	}
	return out
}

// fakeModule is an ELF file with a section .modinfo, signed.
func fakeModule(depends string) []byte {
	le := binary.LittleEndian
	info := "license=GPL\x00depends=" + depends + "\x00name=x\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	b = le.AppendUint16(b, 1)  // relocatable
	b = le.AppendUint16(b, 62) // x86-64
	b = le.AppendUint32(b, 1)
	b = append(b, make([]byte, 16)...)
	b = le.AppendUint64(b, uint64(64+len(info)+len(names))) // section headers
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 0, 0, 64, 3, 2} {
		b = le.AppendUint16(b, v)
	}
	b = append(append(b, info...), names...)
	section := func(name, typ uint32, at, size int) {
		b = le.AppendUint32(b, name)
		b = le.AppendUint32(b, typ)
		b = append(b, make([]byte, 16)...)
		b = le.AppendUint64(b, uint64(at))
		b = le.AppendUint64(b, uint64(size))
		b = append(b, make([]byte, 24)...)
	}
	section(0, 0, 0, 0)
	section(1, 1, 64, len(info))
	section(10, 3, 64+len(info), len(names))
	b = append(b, make([]byte, 8)...)
	b = le.AppendUint32(b, 0)
	b = append(b, 0, 0, 0, 0)
	return append(b, signatureMagic...)
}

func TestPickModules(t *testing.T) {
	found := map[string][]byte{
		"virtio_ring": fakeModule(""), "virtio": fakeModule("virtio_ring"), "virtio_mmio": fakeModule("virtio,virtio_ring"),
		"virtio_console": fakeModule("virtio,virtio_ring"), "virtio_blk": fakeModule("virtio"), "virtio_net": fakeModule("net-failover"),
		"net_failover": fakeModule("failover"), "failover": fakeModule(""), "erofs": fakeModule("libcrc32c"), "libcrc32c": fakeModule(""),
		"overlay": fakeModule(""),
	}
	mods, content, err := pickModules(found)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range mods {
		got = append(got, m.Name)
		if bytes.Contains(content[m.Name], []byte(signatureMagic)) || sha(content[m.Name]) != m.Sum {
			t.Errorf("%s: signed, or of another sum", m.Name)
		}
	}
	want := []string{
		"virtio_ring", "virtio", "virtio_mmio", "virtio_console", "virtio_blk", "failover", "net_failover", "virtio_net",
		"libcrc32c", "erofs", "overlay",
	}
	if !cmp.Equal(got, want) {
		t.Errorf("order: %s", cmp.Diff(want, got))
	}

	for text, spoil := range map[string]func(spoilt map[string][]byte){
		"holds no module virtio_mmio": func(spoilt map[string][]byte) { delete(spoilt, "virtio_mmio") },
		"not an uncompressed module":  func(spoilt map[string][]byte) { spoilt["overlay"] = []byte("\xfd7zXZ") },
	} {
		spoilt := maps.Clone(found)
		spoil(spoilt)
		if _, _, err := pickModules(spoilt); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want an error with %q", err, text)
		}
	}
	found["virtio_ring"] = fakeModule("virtio") // a circle must not go round for ever
	if mods, _, err := pickModules(found); err == nil && len(mods) > len(found) {
		t.Errorf("a circle gave %d modules of %d", len(mods), len(found))
	}
}

// makeDeb makes a package of the given files.
func makeDeb(t *testing.T, files map[string][]byte) string {
	t.Helper()
	need.Tool(t, "machine", "dpkg-deb")
	dir := t.TempDir()
	files["DEBIAN/control"] = []byte("Package: x\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@example.org>\nDescription: x\n")
	for name, b := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	deb := filepath.Join(t.TempDir(), "linux.deb")
	if out, err := exec.Command("dpkg-deb", "-Znone", "--build", dir, deb).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
	return deb
}

func TestSetup(t *testing.T) {
	elf := fakeVmlinux(true)
	const mods = "lib/modules/6.1.0-9-cloud-amd64/kernel/"
	deb := makeDeb(t, map[string][]byte{
		"boot/vmlinuz-6.1.0-9-cloud-amd64": bzImage(lz4Legacy(t, elf), len(elf)), mods + "drivers/virtio/virtio_mmio.ko": fakeModule("virtio"),
		mods + "drivers/virtio/virtio.ko": fakeModule(""), mods + "sound/noise.ko": []byte("junk"),
	})
	dir := filepath.Join(t.TempDir(), "kernel")
	var steps []string
	if err := Setup(t.Context(), dir, deb, func(s string) { steps = append(steps, s) }); err != nil {
		t.Fatal(err)
	}
	if want := []string{"unpack linux.deb", "guest kernel 6.1.0-9-cloud-amd64 is ready"}; !cmp.Equal(steps, want) {
		t.Errorf("progress: %s", cmp.Diff(want, steps))
	}
	k, err := LoadInit(dir, []byte("init"))
	if err != nil || k.Release != "6.1.0-9-cloud-amd64" {
		t.Fatalf("Load: got %+v, %v", k, err)
	}
	if got, err := os.ReadFile(k.Vmlinux); err != nil || !bytes.Equal(got, elf) {
		t.Errorf("vmlinux: got %d bytes, %v, want %d", len(got), err, len(elf))
	}
}

func TestSetupErrors(t *testing.T) {
	dir := t.TempDir()
	meta := makeDeb(t, map[string][]byte{"usr/share/doc/x": []byte("x")})
	junk := filepath.Join(dir, "junk.deb")
	if err := os.WriteFile(junk, []byte("junk"), 0o644); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(meta)
	if err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(dir, "cut.deb")
	if err := os.WriteFile(cut, whole[:len(whole)-2000], 0o644); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{
		meta: "is only a pointer", junk: "give a whole Debian package", cut: "dpkg-deb", filepath.Join(dir, "none.deb"): "no such file",
	} {
		if err := Setup(t.Context(), dir, file, nil); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: got %v, want an error with %q", filepath.Base(file), err, text)
		}
	}
	if left, err := filepath.Glob(dir + "/[vmk]*"); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Without apt's lists, or without a network, the error must say what else to do.
func TestSetupWithoutApt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	dir := t.TempDir()
	err := Setup(t.Context(), dir, "", nil)
	if !errors.Is(err, volant.ErrUnavailable) || !strings.Contains(err.Error(), "volant setup kernel --file") {
		t.Errorf("got %v, want kind unavailable and the cure", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
