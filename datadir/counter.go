package datadir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/atomicfile"
)

// The counters of a node.
const (
	// CounterEpoch is the node's boot epoch: Next is called at each start of the proxy without a
	// hand-over, before the first datagram.
	CounterEpoch = "epoch"
)

// Next adds one to the counter and returns the new value, which is on disk by then. The first is 1.
// Several processes may call it at once.
func (d *Dir) Next(name string) (n uint64, err error) {
	dir, err := d.Sub("count")
	if err != nil {
		return 0, err
	}
	if !plainName.MatchString(name) {
		return 0, volant.Invalidf("counter %q: use lower-case letters, digits, '-', '_' and '.'", name)
	}
	lock, err := os.OpenFile(dir+"/.lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, fmt.Errorf("counter %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return 0, fmt.Errorf("counter %s: lock: %w", name, err)
	}
	n, err = d.Counter(name)
	if err != nil {
		return 0, err
	}
	n++
	if err := atomicfile.WriteChecked(dir+"/"+name, strconv.AppendUint(nil, n, 10), 0o600); err != nil {
		return 0, fmt.Errorf("counter %s: %w", name, err)
	}
	return n, nil
}

// Counter returns the counter's value without changing it; 0 if it was never raised.
func (d *Dir) Counter(name string) (uint64, error) {
	path := d.Path("count", name)
	b, err := atomicfile.ReadChecked(path, maxSmallFile)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	var n uint64
	if err == nil {
		n, err = strconv.ParseUint(string(b), 10, 64)
	}
	if err != nil {
		return 0, volant.Errorf(volant.ErrInvalid, "counter %s cannot be read: %v", path, err).
			WithRemedy("put the file back from a backup; without it other nodes would take this one's news for old")
	}
	return n, nil
}

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSmallFile))
	return b, errors.Join(err, f.Close())
}
