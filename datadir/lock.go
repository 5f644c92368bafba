package datadir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

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
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
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

func (d *Dir) held(name string, f *os.File) error {
	who, remedy := "another process", "stop it first, or use another data directory with --data"
	b, err := io.ReadAll(io.LimitReader(f, maxSmallFile))
	if pid, perr := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && perr == nil && pid > 0 {
		who = fmt.Sprintf("process %d", pid)
		remedy = fmt.Sprintf("stop it first (kill %d, or systemctl stop volant), or use another data directory with --data", pid)
	}
	return volant.Errorf(volant.ErrPrecondition, "data directory %s is in use: %s runs as its %s", d.root, who, name).
		WithRemedy("%s", remedy)
}

// Close gives the lock back. The file stays, since removing it would let two processes hold "the" lock.
func (l *Lock) Close() error { return l.f.Close() }
