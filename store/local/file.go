package local

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// ErrDamaged says that the file cannot be used as it is.
var ErrDamaged = errors.New("copy is damaged")

var errChecksum error = volant.Errorf(volant.ErrUnavailable, "record fails its checksum")

var (
	bucketMeta    = []byte("meta")
	bucketRecords = []byte("records")
	keyFormat     = []byte("format")
	keyRevision   = []byte("revision")
)

// format is the version of the file's layout.
const format = "volant-copy-1"

// A record in the file: crc32c of all that follows and of the key, flags, created and modified
// revision of 16 bytes each, value.
const headSize = 4 + 1 + 16 + 16

const flagMissing = 1 // the store no longer has it

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func pack(e store.Entry, flags byte) []byte {
	b := make([]byte, 4, headSize+len(e.Value))
	b = append(b, flags)
	b = appendRevision(b, e.Created)
	b = appendRevision(b, e.Mod)
	b = append(b, e.Value...)
	binary.BigEndian.PutUint32(b, checksum(e.Key, b[4:]))
	return b
}

// unpack copies a record out of the file.
func unpack(key string, b []byte) (store.Entry, byte, error) {
	if len(b) < headSize || len(b) > headSize+store.MaxValue || binary.BigEndian.Uint32(b) != checksum(key, b[4:]) {
		return store.Entry{}, 0, fmt.Errorf("%s: %w", key, errChecksum)
	}
	return store.Entry{
		Key:     key,
		Created: readRev(b[5:]),
		Mod:     readRev(b[21:]),
		Value:   slices.Clone(b[headSize:]),
	}, b[4], nil
}

func checksum(key string, b []byte) uint32 {
	return crc32.Update(crc32.Checksum([]byte(key), castagnoli), castagnoli, b)
}

func appendRevision(b []byte, r store.Revision) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, r.Epoch), r.Rev)
}

func readRev(b []byte) store.Revision {
	return store.Revision{Epoch: binary.BigEndian.Uint64(b), Rev: binary.BigEndian.Uint64(b[8:])}
}

// openFile opens the file, made if missing, and checks that it is one of ours.
func openFile(path string, readOnly bool) (db *bbolt.DB, err error) {
	if !readOnly {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, err
		}
	}
	var file *os.File
	opts := &bbolt.Options{Timeout: time.Second, ReadOnly: readOnly, FreelistType: bbolt.FreelistMapType}
	opts.OpenFile = func(name string, flag int, perm os.FileMode) (*os.File, error) {
		file, err = os.OpenFile(name, flag, perm)
		return file, err
	}
	err = guard(func() error {
		db, err = bbolt.Open(path, 0o600, opts)
		return err
	})
	if errors.Is(err, ErrDamaged) && file != nil { // it panicked, and its mapping would keep the file's lock
		syscall.Flock(int(file.Fd()), syscall.LOCK_UN) //nolint:errcheck // given up
		file.Close()                                   //nolint:errcheck // given up
	}
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, volant.Errorf(volant.ErrUnavailable, "the copy %s is in use", path).WithRemedy("stop volant server on this node first")
	case errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission):
		return nil, err
	case err != nil:
		return nil, damage(path, err)
	}
	if err := guard(func() error { return checkFormat(db) }); err != nil {
		db.Close() //nolint:errcheck // the first error tells more
		return nil, damage(path, err)
	}
	return db, nil
}

func checkFormat(db *bbolt.DB) error {
	var found []byte
	if err := db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(bucketMeta); b != nil && tx.Bucket(bucketRecords) != nil {
			found = slices.Clone(b.Get(keyFormat))
		}
		return nil
	}); err != nil {
		return err
	}
	switch {
	case string(found) == format:
		return nil
	case found != nil:
		return fmt.Errorf("its format is %q, and this volant reads %q", found, format)
	case db.IsReadOnly():
		return errors.New("it is no copy of the intent")
	}
	return db.Update(func(tx *bbolt.Tx) error {
		if k, _ := tx.Cursor().First(); k != nil {
			return errors.New("it is no copy of the intent")
		}
		if _, err := tx.CreateBucket(bucketRecords); err != nil {
			return err
		}
		meta, err := tx.CreateBucket(bucketMeta)
		if err != nil {
			return err
		}
		if err := meta.Put(keyFormat, []byte(format)); err != nil {
			return err
		}
		return writeRevision(tx, store.Revision{})
	})
}

func damage(path string, err error) error {
	return fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
}

// The file's revision is packed as a record, for the checksum.
func writeRevision(tx *bbolt.Tx, r store.Revision) error {
	return tx.Bucket(bucketMeta).Put(keyRevision, pack(store.Entry{Key: string(keyRevision), Mod: r}, 0))
}

func readRevision(tx *bbolt.Tx) (store.Revision, error) {
	e, _, err := unpack(string(keyRevision), tx.Bucket(bucketMeta).Get(keyRevision))
	return e.Mod, err
}

// torn says whether one of the file's two heads is invalid. Then bbolt has gone back to the other: the
// state before the last write, which a power cut can bring about, or damage.
func torn(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // only read
	// A page's header of 16 bytes, then a head of 56 bytes and the FNV-1a of these.
	const header, size = 16, 56
	var b [header + size + 8]byte
	page := int64(os.Getpagesize())
	for _, at := range []int64{0, page} {
		if _, err := f.ReadAt(b[:], at); err != nil {
			return false, err
		}
		h := fnv.New64a()
		h.Write(b[header : header+size])
		if binary.NativeEndian.Uint64(b[header+size:]) != h.Sum64() {
			return true, nil
		}
	}
	return false, nil
}

// guard runs fn, which reads or writes the mapped file, and turns what a damaged page does to it
// into an error.
func guard(fn func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	return fn()
}
