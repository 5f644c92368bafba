package qemu

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// maxConsole is how much of what a guest or QEMU prints is kept: the first, as writes beyond it fail.
// A booting kernel prints little; a hostile guest cannot fill a disk.
const maxConsole = 64 << 10

// maxExitLog is how much of it an exit tells.
const maxExitLog = 4 << 10

// sink returns an empty file in memory that takes maxConsole bytes and then refuses.
func sink(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(maxConsole); err != nil {
		f.Close() //nolint:errcheck // nothing is in it
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		f.Close() //nolint:errcheck // nothing is in it
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	return f, nil
}

// tail returns the last of what was written to sinks, together at most maxExitLog bytes.
func tail(files ...*os.File) string {
	var all []byte
	for _, f := range files {
		if f == nil {
			continue
		}
		b := make([]byte, maxConsole)
		n, _ := f.ReadAt(b, 0) // what could be read is all there is
		b = bytes.TrimRight(b[:n], "\x00")
		share := maxExitLog / len(files)
		all = append(all, b[max(0, len(b)-share):]...)
	}
	return string(bytes.ToValidUTF8(bytes.ReplaceAll(all, []byte{0}, nil), []byte("?")))
}
