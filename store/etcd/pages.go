package etcd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
)

// checkDatabase reads a bbolt file and returns an error for a damaged one. bbolt itself maps the file
// and reads it on goroutines of its own, where damage ends the process. All pages are read where deep is
// set or the file is small; otherwise only the heads, and whether the file is as long as they say.
func checkDatabase(path string, deep bool) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // there is none yet
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	w := walker{file: f}
	if err := w.head(); err != nil {
		return err
	}
	if need := w.end * w.size; uint64(info.Size()) < need {
		return fmt.Errorf("the database has %d bytes of %d", info.Size(), need)
	}
	if !deep && info.Size() > smallDatabase {
		return nil
	}
	w.seen = make([]bool, w.end)
	return w.walk(w.root, 0)
}

// smallDatabase is read whole at every start: it takes less than a tenth of a second.
const smallDatabase = 64 << 20

// The layout of bbolt's files, in the machine's byte order.
const (
	pageHead   = 16 // id 8, flags 2, count 2, overflow 4
	elemSize   = 16
	metaSize   = 64 // magic 4, version 4, page size 4, flags 4, root 8+8, freelist 8, end 8, txid 8, checksum 8
	metaMagic  = 0xED0CDAED
	isBranch   = 1
	isLeaf     = 2
	isBucket   = 1
	maxDepth   = 64
	maxPages   = 1 << 36
	maxPage    = 1 << 16
	bucketHead = 16 // root 8, sequence 8
)

var order = binary.NativeEndian

// walker reads a bbolt file page by page.
type walker struct {
	file *os.File
	size uint64 // of a page
	end  uint64 // the first page not in use
	root uint64
	seen []bool
}

// head reads the two heads and takes the newer valid one.
func (w *walker) head() error {
	var txid uint64
	for _, size := range []int64{0, 4096, 8192, 16384, 32768, 65536} { // the second is at the page size
		b := make([]byte, pageHead+metaSize)
		if _, err := w.file.ReadAt(b, size); err != nil {
			break
		}
		m := b[pageHead:]
		sum := fnv.New64a()
		sum.Write(m[:metaSize-8])
		if order.Uint32(m) != metaMagic || order.Uint64(m[56:]) != sum.Sum64() {
			continue
		}
		if tx := order.Uint64(m[48:]); w.size == 0 || tx > txid {
			txid, w.size, w.root, w.end = tx, uint64(order.Uint32(m[8:])), order.Uint64(m[16:]), order.Uint64(m[40:])
		}
	}
	if w.size < 512 || w.size > maxPage || w.end > maxPages {
		return errors.New("the database has no valid head")
	}
	return nil
}

// walk reads a page and all below it.
func (w *walker) walk(id uint64, depth int) error {
	if id < 2 || id >= w.end || depth > maxDepth {
		return fmt.Errorf("the database refers to page %d of %d", id, w.end)
	}
	if w.seen[id] {
		return fmt.Errorf("the database refers to page %d twice", id)
	}
	b := make([]byte, w.size)
	if _, err := w.file.ReadAt(b, int64(id*w.size)); err != nil {
		return err
	}
	over := uint64(order.Uint32(b[12:]))
	if order.Uint64(b) != id || id+over >= w.end {
		return fmt.Errorf("page %d of the database is damaged", id)
	}
	for i := range over + 1 {
		if w.seen[id+i] {
			return fmt.Errorf("the database refers to page %d twice", id+i)
		}
		w.seen[id+i] = true
	}
	if over > 0 {
		b = make([]byte, (over+1)*w.size)
		if _, err := w.file.ReadAt(b, int64(id*w.size)); err != nil {
			return err
		}
	}
	if err := w.elements(b, depth); err != nil {
		return fmt.Errorf("page %d of the database: %w", id, err)
	}
	return nil
}

var errElement = errors.New("an element lies outside of its page")

// elements reads the elements of a page, which may stand inside of a bucket's value.
func (w *walker) elements(b []byte, depth int) error {
	flags, count := order.Uint16(b[8:]), int(order.Uint16(b[10:]))
	if flags != isBranch && flags != isLeaf || depth > maxDepth {
		return fmt.Errorf("it has the flags %#x", flags)
	}
	if pageHead+count*elemSize > len(b) {
		return errElement
	}
	for i := range count {
		at := pageHead + i*elemSize
		e := b[at:]
		if flags == isBranch {
			if uint64(at)+uint64(order.Uint32(e))+uint64(order.Uint32(e[4:])) > uint64(len(b)) {
				return errElement
			}
			if err := w.walk(order.Uint64(e[8:]), depth+1); err != nil {
				return err
			}
			continue
		}
		from := uint64(at) + uint64(order.Uint32(e[4:])) + uint64(order.Uint32(e[8:]))
		to := from + uint64(order.Uint32(e[12:]))
		if to > uint64(len(b)) {
			return errElement
		}
		if order.Uint32(e)&isBucket == 0 {
			continue
		}
		v := b[from:to]
		if len(v) < bucketHead {
			return errElement
		}
		if root := order.Uint64(v); root != 0 {
			if err := w.walk(root, depth+1); err != nil {
				return err
			}
			continue
		}
		if v = v[bucketHead:]; len(v) < pageHead {
			return errElement
		}
		if err := w.elements(v, depth+1); err != nil {
			return err
		}
	}
	return nil
}
