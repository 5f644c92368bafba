package guest

import (
	"path"
	"strings"
)

// MaxFile bounds a file that is put into a guest: as base64 in its message it stays below maxRequest.
const MaxFile = 512 << 10

const maxPath = 4095 // PATH_MAX without its zero byte

// File is written into a guest before its app starts. Its owner is root.
type File struct {
	Path string `json:"path"` // absolute
	Mode uint32 `json:"mode"` // permission bits
	Data []byte `json:"data"`
}

// Check says what is wrong with a file, or nil. The guest asks it too.
func (f *File) Check() error {
	p := f.Path
	switch {
	case len(p) > maxPath || strings.ContainsRune(p, 0):
		return Errorf(KindInvalid, "the path of a file has %d bytes, or a zero byte: at most %d without one are taken", len(p), maxPath)
	case !path.IsAbs(p) || path.Clean(p) != p || p == "/":
		return Errorf(KindInvalid, "the path of a file is %q: it must be absolute, without %q, and name a file", p, "..")
	case f.Mode&^0o777 != 0:
		return Errorf(KindInvalid, "the mode of file %s is %#o: use permission bits alone, at most 0777", p, f.Mode)
	case len(f.Data) > MaxFile:
		return Errorf(KindInvalid, "file %s has %d bytes: at most %d are taken", p, len(f.Data), MaxFile)
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if p == dir || strings.HasPrefix(p, dir+"/") {
			return Errorf(KindInvalid, "file %s: %s is the kernel's", p, dir)
		}
	}
	return nil
}
