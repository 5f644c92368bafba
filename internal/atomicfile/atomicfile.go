// Package atomicfile replaces files so that a reader, and a machine that lost power, sees the old
// content or the new one and never a part of either.
//
// # Invariants
//
//   - When Write returns nil, file and name are on disk (file and directory fsynced).
//   - A reader of a checked file gets exactly what was written, or ErrDamaged.
//   - A temporary file that a crash left behind starts with ".tmp-"; the next Write of the same
//     name in the directory removes it, or Sweep.
package atomicfile

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// ErrDamaged is returned for a checked file whose content is not what was written.
var ErrDamaged = errors.New("the file is damaged: its checksum does not match")

// magic heads a checked file, followed by the SHA-256 of the content in hex and a line feed.
const magic = "volant-checked-1 sha256:"

const headLen = len(magic) + 2*sha256.Size + 1

// Write replaces the file at path by data, with exactly the permissions perm.
func Write(path string, data []byte, perm os.FileMode) error {
	dir, name := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	sweep(dir, tmp+name+"-")
	return write(dir, name, data, perm)
}

const tmp = ".tmp-"

func write(dir, name string, data []byte, perm os.FileMode) (err error) {
	f, err := os.CreateTemp(dir, tmp+name+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreClosed(f.Close()), ignoreGone(os.Remove(f.Name())))
		}
	}()
	if err = f.Chmod(perm); err != nil {
		return err
	}
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	return SyncDir(dir)
}

// WriteAmong is WriteChecked in a directory of many files, which it does not look through: its owner has
// done Sweep at the start.
func WriteAmong(path string, data []byte, perm os.FileMode) error {
	dir, name := filepath.Split(path)
	return write(filepath.Clean(dir), name, Seal(data), perm)
}

// Sweep removes all temporary files that a crash left behind in dir. Nobody may write there.
func Sweep(dir string) { sweep(dir, tmp) }

// sweep removes temporary files that a crash left behind. It is best effort: what stays is only litter.
// Two writers of one name at the same time are not supported, and the loser fails its rename.
func sweep(dir, prefix string) {
	old, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
	if err != nil {
		return
	}
	for _, f := range old {
		os.Remove(f) //nolint:errcheck // litter may stay
	}
}

// SyncDir makes the names in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// WriteChecked is Write with a checksum that ReadChecked verifies.
func WriteChecked(path string, data []byte, perm os.FileMode) error {
	return Write(path, Seal(data), perm)
}

// Seal returns data headed by its checksum.
func Seal(data []byte) []byte {
	sum := sha256.Sum256(data)
	out := make([]byte, 0, headLen+len(data))
	out = append(out, magic...)
	out = hex.AppendEncode(out, sum[:])
	out = append(out, '\n')
	return append(out, data...)
}

// Unseal returns the data in b, or ErrDamaged.
func Unseal(b []byte) ([]byte, error) {
	if len(b) < headLen || !bytes.HasPrefix(b, []byte(magic)) || b[headLen-1] != '\n' {
		return nil, ErrDamaged
	}
	data := b[headLen:]
	sum := sha256.Sum256(data)
	if string(hex.AppendEncode(nil, sum[:])) != string(b[len(magic):headLen-1]) {
		return nil, ErrDamaged
	}
	return data, nil
}

// ReadChecked reads a file of WriteChecked, at most limit bytes of content. Errors name the path;
// os.ErrNotExist and ErrDamaged are found by errors.Is.
func ReadChecked(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(io.LimitReader(f, limit+int64(headLen)+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit+int64(headLen) {
		return nil, fmt.Errorf("%s: larger than %d bytes: %w", path, limit, ErrDamaged)
	}
	data, err := Unseal(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
