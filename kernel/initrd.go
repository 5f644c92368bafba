package kernel

import (
	"bytes"
	"fmt"
	"os"
)

// buildInitrd makes the archive: the same bytes for the same init and modules.
func buildInitrd(dir string, m manifest, init []byte) ([]byte, error) {
	a := &archive{}
	for _, d := range []string{"dev", "m", "proc", "sys"} {
		a.add(entry{name: d, mode: 0o040755})
	}
	a.add(entry{name: "dev/console", mode: 0o020600, major: 5, minor: 1})
	a.add(entry{name: "dev/null", mode: 0o020666, major: 1, minor: 3}) // Go programs do not start without
	a.add(entry{name: "init", mode: 0o100755, data: init})
	for i, mod := range m.Modules {
		b, err := os.ReadFile(modulePath(dir, mod))
		if err != nil || sha(b) != mod.Sum {
			return nil, missing(dir, "the kernel module %s is missing or damaged", mod.Name)
		}
		a.add(entry{name: fmt.Sprintf("m/%03d-%s.ko", i, mod.Name), mode: 0o100644, data: b})
	}
	a.add(entry{name: "TRAILER!!!"})
	return a.buf.Bytes(), nil
}

// archive is a cpio of the format newc.
type archive struct {
	buf bytes.Buffer
	ino int
}

type entry struct {
	name         string
	mode         uint32
	major, minor int // of a device
	data         []byte
}

func (a *archive) add(e entry) {
	a.ino++
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", a.ino, e.mode, 0, 0, 1, 0,
		len(e.data), 0, 0, e.major, e.minor, len(e.name)+1, 0)
	a.buf.WriteString(e.name)
	a.buf.WriteByte(0)
	a.pad()
	a.buf.Write(e.data)
	a.pad()
}

func (a *archive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}
