package datadir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
)

// Lock is held until Close or the end of the process.
type Lock struct{ f *os.File }

// Lock takes the lock of that name, or says which process has it. Children do not inherit it.
func (d *Dir) Lock(name string) (*Lock, error) {
	dir, err := d.Sub("lock")
	if err != nil {
		return nil, err
	}
	path := dir + "/" + name
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := take(f); err != nil {
		busy := errors.Is(err, unix.EWOULDBLOCK)
		if busy {
			err = d.held(name, f)
		} else {
			err = fmt.Errorf("lock %s: %w", path, err)
		}
		return nil, errors.Join(err, f.Close())
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(fmt.Errorf("lock: %w", err), f.Close())
	}
	if _, err := f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("lock: %w", err), f.Close())
	}
	return &Lock{f}, nil
}

// lingering bounds how long a lock is waited for whose process is gone.
const lingering = 5 * time.Second

// take locks the file. A process that was killed while it started another leaves the lock to that one until it
// runs its program: for that moment it is waited.
func take(f *os.File) error {
	for deadline := time.Now().Add(lingering); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
		if pid, ok := holder(f); !ok || !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			return err
		}
	}
}

// holder reads which process the file names.
func holder(f *os.File) (pid int, ok bool) {
	b := make([]byte, maxSmallFile)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, false
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(b[:n])))
	return pid, err == nil && pid > 0
}

func (d *Dir) held(name string, f *os.File) error {
	who, remedy := "another process", "stop it first, or use another data directory with --data"
	if pid, ok := holder(f); ok {
		who = fmt.Sprintf("process %d", pid)
		remedy = fmt.Sprintf("stop it first (kill %d, or systemctl stop volant), or use another data directory with --data", pid)
	}
	return volant.Errorf(volant.ErrPrecondition, "data directory %s is in use: %s runs as its %s", d.root, who, name).
		WithRemedy("%s", remedy)
}

// Close gives the lock back. The file stays, since removing it would let two processes hold "the" lock.
func (l *Lock) Close() error { return l.f.Close() }
