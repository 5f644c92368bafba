package agent

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setClock sets the wall clock: a restored VM has that of its snapshot.
func setClock(now time.Time) error {
	if now.IsZero() {
		return nil
	}
	ts := unix.NsecToTimespec(now.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}

const (
	rndAddEntropy = 0x40085203
	rndReseed     = 0x5207
	maxEntropy    = 4096
)

// addEntropy makes the kernel's random numbers differ from those of other VMs that were restored
// from the same snapshot.
func addEntropy(seed []byte) error {
	if len(seed) == 0 {
		return nil
	}
	seed = seed[:min(len(seed), maxEntropy)]
	f, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	defer func() { _ = f.Close() }()                                // nothing is buffered
	b := binary.NativeEndian.AppendUint32(nil, uint32(len(seed)*8)) // bits
	b = binary.NativeEndian.AppendUint32(b, uint32(len(seed)))
	b = append(b, seed...)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndAddEntropy, uintptr(unsafe.Pointer(&b[0]))); e != 0 {
		return fmt.Errorf("add entropy: %w", e)
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndReseed, 0); e != 0 {
		return fmt.Errorf("reseed the random numbers: %w", e)
	}
	return nil
}
