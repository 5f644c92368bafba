package erofs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	goerofs "github.com/erofs/go-erofs"

	"github.com/volant-edge/volant/image/erofs"
)

func create(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func dir(entries ...erofs.Entry) *erofs.Inode {
	return &erofs.Inode{Mode: erofs.TypeDir | 0o755, Entries: entries}
}

func TestEmptyFileSystem(t *testing.T) {
	f := create(t)
	label := [16]byte{1, 2, 3}
	n, err := erofs.NewWriter(f).Finish(dir(), label)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil || int64(len(b)) != n || n != 8192 {
		t.Fatalf("file of %d bytes, Finish() = %d, %v; want 8192", len(b), n, err)
	}
	super := b[1024:4096]
	if got := binary.LittleEndian.Uint32(super); got != 0xE0F5E1E2 {
		t.Errorf("magic %x", got)
	}
	if !bytes.Equal(super[48:64], label[:]) {
		t.Errorf("label %x, want %x", super[48:64], label)
	}
	sum := binary.LittleEndian.Uint32(super[4:])
	clear(super[4:8])
	if want := ^crc32.Checksum(super, crc32.MakeTable(crc32.Castagnoli)); sum != want {
		t.Errorf("checksum %x, want %x", sum, want)
	}
	if _, err := goerofs.Open(f); err != nil {
		t.Error(err)
	}
}

func TestDataStopsWithItsReaderAndContext(t *testing.T) {
	for _, size := range []int64{100, 5000} { // inline, and in blocks
		w := erofs.NewWriter(create(t))
		if _, err := w.Data(t.Context(), strings.NewReader("short"), size); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Data() of %d bytes from 5: %v", size, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := erofs.NewWriter(create(t))
	if _, err := w.Data(ctx, bytes.NewReader(make([]byte, 5000)), 5000); !errors.Is(err, context.Canceled) {
		t.Errorf("Data() after the end: %v", err)
	}
	if _, err := w.Data(t.Context(), nil, -1); err == nil {
		t.Error("Data() of -1 bytes")
	}
}

func TestFinishRefusesWhatLinuxWould(t *testing.T) {
	file := &erofs.Inode{Mode: erofs.TypeRegular}
	twice := dir()
	many := make([]erofs.Attr, 5)
	for i := range many {
		many[i] = erofs.Attr{Name: "user." + string(rune('a'+i)), Value: make([]byte, 65000)}
	}
	for name, root := range map[string]*erofs.Inode{
		"a root that is a file":          file,
		"a name with a slash":            dir(erofs.Entry{Name: "a/b", Inode: file}),
		"a name with a zero":             dir(erofs.Entry{Name: "a\x00", Inode: file}),
		"the name dot":                   dir(erofs.Entry{Name: ".", Inode: file}),
		"the name dot dot":               dir(erofs.Entry{Name: "..", Inode: file}),
		"no name":                        dir(erofs.Entry{Name: "", Inode: file}),
		"a long name":                    dir(erofs.Entry{Name: strings.Repeat("x", 256), Inode: file}),
		"a name twice":                   dir(erofs.Entry{Name: "a", Inode: file}, erofs.Entry{Name: "a", Inode: file}),
		"a directory with two names":     dir(erofs.Entry{Name: "a", Inode: twice}, erofs.Entry{Name: "b", Inode: twice}),
		"a symlink to nothing":           dir(erofs.Entry{Name: "a", Inode: &erofs.Inode{Mode: erofs.TypeSymlink}}),
		"an attribute without namespace": dir(erofs.Entry{Name: "a", Inode: &erofs.Inode{Mode: erofs.TypeRegular, Attrs: []erofs.Attr{{Name: "x"}}}}),
		"too many attributes":            dir(erofs.Entry{Name: "a", Inode: &erofs.Inode{Mode: erofs.TypeRegular, Attrs: many}}),
	} {
		if _, err := erofs.NewWriter(create(t)).Finish(root, [16]byte{}); err == nil {
			t.Errorf("Finish() took %s", name)
		}
	}
}

func TestAttrNamespaces(t *testing.T) {
	for name, want := range map[string]bool{
		"user.a": true, "trusted.a": true, "security.capability": true, "system.posix_acl_access": true, "system.posix_acl_default": true,
		"system.posix_acl_access2": false, "system.nfs4_acl": false, "a": false, "": false, "user": false,
		"user." + strings.Repeat("x", 256): false,
	} {
		if err := (erofs.Attr{Name: name}).Check(); (err == nil) != want {
			t.Errorf("attribute %q: %v", name, err)
		}
	}
}
