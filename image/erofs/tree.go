package erofs

import (
	"fmt"
	"strings"
)

// The file types of a mode, as in stat(2).
const (
	TypeMask    = 0o170000
	TypeFIFO    = 0o010000
	TypeChar    = 0o020000
	TypeDir     = 0o040000
	TypeBlock   = 0o060000
	TypeRegular = 0o100000
	TypeSymlink = 0o120000
	TypeSocket  = 0o140000
)

// The bounds of a tree.
const (
	MaxName   = 255  // bytes of one name, as in Linux
	MaxTarget = 4095 // bytes of a symlink's target, as in Linux
	// MaxAttrs bounds the attributes of one inode: their size is written in 16 bits, in units of 4 bytes.
	MaxAttrs = 4 * (1<<16 - 2)
)

// Inode is a file of any kind. Several entries may refer to one: hard links.
type Inode struct {
	Mode     uint16 // type and permissions, as in stat(2)
	UID, GID uint32
	Sec      int64 // time of modification
	Nsec     uint32
	Attrs    []Attr  // extended attributes; no name twice
	Target   string  // of a symlink
	Content  Content // of a regular file, from Writer.Data
	Entries  []Entry // of a directory, in any order, without "." and ".."
	Device   uint32  // of a device, as Linux's new_encode_dev has it

	links  uint32
	number uint64 // slot after the start of meta
	parent uint64 // a directory's parent's number
	tail   int    // bytes of the inline tail
	block  uint32 // of a directory's or long symlink's full blocks
}

// Entry is a name in a directory.
type Entry struct {
	Name  string
	Inode *Inode
}

// Attr is an extended attribute.
type Attr struct {
	Name  string // with its prefix, as in "security.capability"
	Value []byte
}

// attrPrefixes are those an image can hold, with their numbers. The two of POSIX ACLs are whole names.
var attrPrefixes = []struct {
	prefix string
	index  byte
}{
	{"system.posix_acl_access", 2},
	{"system.posix_acl_default", 3},
	{"user.", 1},
	{"trusted.", 4},
	{"security.", 6},
}

// Check says why an attribute cannot be held by EROFS, or nil.
func (a Attr) Check() error {
	_, rest, ok := a.split()
	switch {
	case !ok:
		return fmt.Errorf("attribute %q: its namespace is none of user, trusted, security and POSIX ACLs", a.Name)
	case len(rest) > 255 || len(a.Value) > 1<<16-1:
		return fmt.Errorf("attribute %q: name of %d and value of %d bytes are too long", a.Name, len(a.Name), len(a.Value))
	}
	return nil
}

func (a Attr) split() (index byte, rest string, ok bool) {
	for _, p := range attrPrefixes {
		rest, found := strings.CutPrefix(a.Name, p.prefix)
		if whole := !strings.HasSuffix(p.prefix, "."); found && whole == (rest == "") {
			return p.index, rest, true
		}
	}
	return 0, "", false
}

// AttrsSize is the room that attributes take in an inode: 0 for none, else a header of 12 bytes and,
// for each, 4 bytes, the name's rest and the value, filled up to 4.
func AttrsSize(attrs []Attr) int {
	if len(attrs) == 0 {
		return 0
	}
	n := 12
	for _, a := range attrs {
		_, rest, _ := a.split()
		n += (4 + len(rest) + len(a.Value) + 3) &^ 3
	}
	return n
}

// fileType is the type in a directory entry.
func (i *Inode) fileType() byte {
	switch i.Mode & TypeMask {
	case TypeRegular:
		return 1
	case TypeDir:
		return 2
	case TypeChar:
		return 3
	case TypeBlock:
		return 4
	case TypeFIFO:
		return 5
	case TypeSocket:
		return 6
	case TypeSymlink:
		return 7
	default:
		return 0
	}
}
