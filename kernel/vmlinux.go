package kernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"github.com/volant-edge/volant"
)

const (
	maxVmlinux = 512 << 20
	lz4Block   = 8 << 20 // a legacy frame's blocks hold at most that
)

// unpackKernel returns the ELF file inside a bzImage, or b if it is one already.
func unpackKernel(b []byte) ([]byte, error) {
	out := b
	if !bytes.HasPrefix(b, []byte(elf.ELFMAG)) {
		payload, err := bzImagePayload(b)
		if err != nil {
			return nil, err
		}
		if out, err = decompress(payload); err != nil {
			return nil, err
		}
	}
	return out, checkPVH(out)
}

// bzImagePayload finds the compressed kernel by the header of the boot protocol.
func bzImagePayload(b []byte) ([]byte, error) {
	if len(b) < 0x250 || string(b[0x202:0x206]) != "HdrS" {
		return nil, volant.Invalidf("not a Linux kernel image")
	}
	if v := binary.LittleEndian.Uint16(b[0x206:]); v < 0x208 {
		return nil, volant.Invalidf("boot protocol %#x is too old", v)
	}
	setup := int64(b[0x1f1])
	if setup == 0 {
		setup = 4
	}
	start := (setup+1)*512 + int64(binary.LittleEndian.Uint32(b[0x248:]))
	n := int64(binary.LittleEndian.Uint32(b[0x24c:]))
	if start+n > int64(len(b)) {
		return nil, volant.Invalidf("the kernel image is cut short")
	}
	return b[start : start+n], nil
}

// decompress unpacks a payload, whose last four bytes are the size of the result.
func decompress(p []byte) ([]byte, error) {
	if len(p) < 8 {
		return nil, volant.Invalidf("the kernel image is cut short")
	}
	size := int64(binary.LittleEndian.Uint32(p[len(p)-4:]))
	if size > maxVmlinux {
		return nil, volant.Invalidf("a kernel of %d MiB is larger than is taken", size>>20)
	}
	var r io.Reader
	switch {
	case bytes.HasPrefix(p, []byte{0x02, 0x21, 0x4c, 0x18}):
		return decompressLZ4(p[4:len(p)-4], int(size))
	case bytes.HasPrefix(p, []byte{0x1f, 0x8b}):
		g, err := gzip.NewReader(bytes.NewReader(p))
		if err != nil {
			return nil, err
		}
		r = g
	case bytes.HasPrefix(p, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(bytes.NewReader(p[:len(p)-4]), zstd.WithDecoderMaxMemory(maxVmlinux))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z
	default:
		return nil, volant.Invalidf("the kernel is compressed in a way that is not known: %x", p[:4]).
			WithRemedy("give a cloud kernel of Debian 12")
	}
	out := make([]byte, size)
	if _, err := io.ReadFull(r, out); err != nil {
		return nil, volant.Invalidf("the kernel image is damaged: %v", err)
	}
	return out, nil
}

// decompressLZ4 reads the blocks of a legacy frame until size bytes are there.
func decompressLZ4(p []byte, size int) ([]byte, error) {
	out := make([]byte, 0, size)
	buf := make([]byte, lz4Block)
	for len(out) < size {
		if len(p) < 4 {
			return nil, volant.Invalidf("the kernel image is cut short")
		}
		n := int64(binary.LittleEndian.Uint32(p))
		if p = p[4:]; n > int64(len(p)) {
			return nil, volant.Invalidf("the kernel image is cut short")
		}
		got, err := lz4.UncompressBlock(p[:n], buf)
		if err != nil || got == 0 || got > size-len(out) {
			return nil, volant.Invalidf("the kernel image is damaged")
		}
		out, p = append(out, buf[:got]...), p[n:]
	}
	return out, nil
}

// checkPVH finds the note with the entry point that microVM engines start at.
func checkPVH(vmlinux []byte) error {
	const pvhEntry = 18
	f, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return volant.Invalidf("the kernel is no ELF file: %v", err)
	}
	if f.Machine != elf.EM_X86_64 {
		return volant.Invalidf("the kernel is for %v", f.Machine).WithRemedy("give one for amd64")
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes, err := io.ReadAll(p.Open())
		if err != nil {
			return volant.Invalidf("the kernel's notes: %v", err)
		}
		if hasNote(notes, "Xen\x00", pvhEntry) {
			return nil
		}
	}
	return volant.Invalidf("the kernel has no PVH entry").WithRemedy("give a cloud kernel of Debian 12")
}

func hasNote(b []byte, name string, typ uint32) bool {
	align := func(n uint32) uint64 { return (uint64(n) + 3) &^ 3 }
	for len(b) >= 12 {
		nameLen, descLen := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
		t := binary.LittleEndian.Uint32(b[8:])
		b = b[12:]
		if align(nameLen)+align(descLen) > uint64(len(b)) {
			return false
		}
		if t == typ && string(b[:nameLen]) == name {
			return true
		}
		b = b[align(nameLen)+align(descLen):]
	}
	return false
}
