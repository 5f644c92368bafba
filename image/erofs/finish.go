package erofs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strings"
)

const (
	inodeSize  = 64
	slotSize   = 32
	direntSize = 12
	rootNumber = 1
	superAt    = 1024

	layoutPlain  = 0
	layoutInline = 2

	compatChecksum = 1
	compatMtime    = 2
)

// Finish writes the tree and the superblock. Label names the file system: equal trees with equal
// labels give equal images. It returns the image's size; the caller syncs and closes the file.
func (w *Writer) Finish(root *Inode, label [16]byte) (int64, error) {
	if root.Mode&TypeMask != TypeDir {
		return 0, errors.New("the root is no directory")
	}
	order, err := number(root)
	if err != nil {
		return 0, err
	}
	used := make(map[uint32]bool)
	for _, in := range order {
		if in.Mode&TypeMask == TypeRegular && in.Content.block != 0 {
			used[in.Content.block] = true
		}
		if err := w.outOfLine(in); err != nil {
			return 0, err
		}
	}
	meta, err := w.nextBlock(0)
	if err != nil {
		return 0, err
	}
	for _, in := range order {
		if err := w.inode(in, int64(meta)*blockSize); err != nil {
			return 0, err
		}
	}
	if err := w.pad(blockSize); err != nil {
		return 0, err
	}
	end, err := w.nextBlock(0)
	if err != nil {
		return 0, err
	}
	if err := w.flush(); err != nil {
		return 0, err
	}
	if err := w.punch(used); err != nil {
		return 0, err
	}
	_, err = w.f.WriteAt(superblock(meta, end, len(order), label), 0)
	return int64(end) * blockSize, err
}

// number sorts directories, counts links and gives each inode its slot, parents first.
func number(root *Inode) ([]*Inode, error) {
	var order []*Inode
	slot := int64(rootNumber)
	var place func(in, parent *Inode) error
	place = func(in, parent *Inode) error {
		if in.number != 0 { // a further hard link
			if in.Mode&TypeMask == TypeDir {
				return errors.New("a directory with two names")
			}
			in.links++
			return nil
		}
		size, err := measure(in)
		if err != nil {
			return err
		}
		slot = fit(slot, size, in.tail)
		in.number, in.links, in.parent = uint64(slot), 1, parent.number
		slot += (int64(size) + slotSize - 1) / slotSize
		order = append(order, in)
		if in.Mode&TypeMask != TypeDir {
			return nil
		}
		in.links = 2
		for i, e := range in.Entries {
			if i > 0 && in.Entries[i-1].Name == e.Name {
				return fmt.Errorf("the name %q twice in a directory", e.Name)
			}
			if err := place(e.Inode, in); err != nil {
				return err
			}
			if e.Inode.Mode&TypeMask == TypeDir {
				in.links++
			}
		}
		return nil
	}
	if err := place(root, &Inode{number: rootNumber}); err != nil {
		return nil, err
	}
	return order, nil
}

// fit moves a slot up until the tail of an inode of that size ends in the block it starts in.
func fit(slot int64, size, tail int) int64 {
	at := (slot*slotSize + int64(size-tail)) % blockSize
	if at+int64(tail) <= blockSize {
		return slot
	}
	return slot + (blockSize-at+slotSize-1)/slotSize
}

// measure sets an inode's tail and returns the bytes it takes in meta.
func measure(in *Inode) (int, error) {
	for _, a := range in.Attrs {
		if err := a.Check(); err != nil {
			return 0, err
		}
	}
	slices.SortFunc(in.Attrs, func(a, b Attr) int { return strings.Compare(a.Name, b.Name) })
	attrs := AttrsSize(in.Attrs)
	if attrs > MaxAttrs {
		return 0, fmt.Errorf("attributes of %d bytes, at most %d", attrs, MaxAttrs)
	}
	switch in.Mode & TypeMask {
	case TypeRegular:
		in.tail = len(in.Content.inline)
	case TypeSymlink:
		if len(in.Target) == 0 || len(in.Target) > MaxTarget {
			return 0, fmt.Errorf("a symlink's target of %d bytes", len(in.Target))
		}
		in.tail = inlineTail(len(in.Target))
	case TypeDir:
		for _, e := range in.Entries {
			if e.Name == "" || e.Name == "." || e.Name == ".." || len(e.Name) > MaxName || strings.ContainsAny(e.Name, "/\x00") {
				return 0, fmt.Errorf("the name %q cannot be in a directory", e.Name)
			}
		}
		slices.SortFunc(in.Entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
		in.tail = inlineTail(dirSize(in))
	}
	return inodeSize + attrs + in.tail, nil
}

// inlineTail is what of size bytes after the last full block goes beside the inode: nothing, if it
// could cross a block wherever the inode's slot is.
func inlineTail(size int) int {
	if tail := size % blockSize; tail <= blockSize-slotSize {
		return tail
	}
	return 0
}

// dirBlocks cuts a directory's sorted entries into blocks; full is the block's used bytes.
func dirBlocks(in *Inode, each func(entries []Entry, used int) error) error {
	entries := make([]Entry, 0, len(in.Entries)+2)
	entries = append(entries, Entry{Name: "."}, Entry{Name: ".."})
	entries = append(entries, in.Entries...)
	// Some names sort before the dot.
	slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	start, used := 0, 0
	for i, e := range entries {
		need := direntSize + len(e.Name)
		if used+need > blockSize {
			if err := each(entries[start:i], used); err != nil {
				return err
			}
			start, used = i, 0
		}
		used += need
	}
	return each(entries[start:], used)
}

func dirSize(in *Inode) int {
	size := 0
	// The function given returns nil only.
	_ = dirBlocks(in, func(_ []Entry, used int) error {
		size = (size + blockSize - 1) / blockSize * blockSize
		size += used
		return nil
	})
	return size
}

// dirBytes is a directory's data.
func dirBytes(in *Inode) []byte {
	out := make([]byte, 0, dirSize(in))
	// The function given returns nil only.
	_ = dirBlocks(in, func(entries []Entry, _ int) error {
		out = append(out, make([]byte, (blockSize-len(out)%blockSize)%blockSize)...)
		name := direntSize * len(entries)
		for _, e := range entries {
			number, kind := in.number, byte(2)
			switch {
			case e.Inode != nil:
				number, kind = e.Inode.number, e.Inode.fileType()
			case e.Name == "..":
				number = in.parent
			}
			out = binary.LittleEndian.AppendUint64(out, number)
			out = binary.LittleEndian.AppendUint16(out, uint16(name))
			out = append(out, kind, 0)
			name += len(e.Name)
		}
		for _, e := range entries {
			out = append(out, e.Name...)
		}
		return nil
	})
	return out
}

// body is what an inode that is no regular file holds.
func (i *Inode) body() []byte {
	switch i.Mode & TypeMask {
	case TypeDir:
		return dirBytes(i)
	case TypeSymlink:
		return []byte(i.Target)
	default:
		return nil
	}
}

// outOfLine writes the full blocks of a directory or symlink.
func (w *Writer) outOfLine(in *Inode) error {
	body := in.body()
	if body == nil || len(body) == in.tail {
		return nil
	}
	block, err := w.nextBlock(int64(len(body)))
	if err != nil {
		return err
	}
	in.block = block
	if err := w.write(body[:len(body)-in.tail]); err != nil {
		return err
	}
	return w.pad(blockSize)
}

// inode writes an inode, its attributes and its tail at its slot.
func (w *Writer) inode(in *Inode, meta int64) error {
	if err := w.zeros(int(meta + int64(in.number)*slotSize - w.Written())); err != nil {
		return err
	}
	size, data, tail := uint64(0), in.block, []byte(nil)
	switch in.Mode & TypeMask {
	case TypeRegular:
		size, data, tail = uint64(in.Content.size), in.Content.block, in.Content.inline
	case TypeDir, TypeSymlink:
		body := in.body()
		size, tail = uint64(len(body)), body[len(body)-in.tail:]
	default:
		data = in.Device
	}
	layout := uint16(layoutPlain)
	if in.tail > 0 {
		layout = layoutInline
	}
	count := 0
	if attrs := AttrsSize(in.Attrs); attrs > 0 {
		count = (attrs-12)/4 + 1
	}
	b := make([]byte, 0, inodeSize)
	le := binary.LittleEndian
	b = le.AppendUint16(b, 1|layout<<1) // 1: extended
	b = le.AppendUint16(b, uint16(count))
	b = le.AppendUint16(b, in.Mode)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, size)
	b = le.AppendUint32(b, data)
	b = le.AppendUint32(b, uint32(min(in.number, math.MaxUint32))) // for 32-bit stat only
	b = le.AppendUint32(b, in.UID)
	b = le.AppendUint32(b, in.GID)
	b = le.AppendUint64(b, uint64(in.Sec))
	b = le.AppendUint32(b, in.Nsec)
	b = le.AppendUint32(b, in.links)
	b = append(b, make([]byte, inodeSize-len(b))...)
	return errors.Join(w.write(b), w.write(attrBytes(in.Attrs)), w.write(tail))
}

func attrBytes(attrs []Attr) []byte {
	if len(attrs) == 0 {
		return nil
	}
	b := make([]byte, 12, AttrsSize(attrs)) // no name filter, none shared
	for _, a := range attrs {
		index, rest, _ := a.split()
		b = append(b, byte(len(rest)), index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(a.Value)))
		b = append(b, rest...)
		b = append(b, a.Value...)
		b = append(b, make([]byte, -len(b)&3)...)
	}
	return b
}

func superblock(meta, blocks uint32, inodes int, label [16]byte) []byte {
	b := make([]byte, blockSize)
	s, le := b[superAt:], binary.LittleEndian
	le.PutUint32(s[0:], 0xE0F5E1E2)
	le.PutUint32(s[8:], compatChecksum|compatMtime)
	s[12] = 12 // block size as a power of 2
	le.PutUint16(s[14:], rootNumber)
	le.PutUint64(s[16:], uint64(inodes))
	le.PutUint32(s[36:], blocks)
	le.PutUint32(s[40:], meta)
	copy(s[48:], label[:])
	// Linux keeps the register as it is; hash/crc32 inverts it at the end.
	le.PutUint32(s[4:], ^crc32.Checksum(s, crc32.MakeTable(crc32.Castagnoli)))
	return b
}
