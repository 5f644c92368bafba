package datadir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/atomicfile"
)

// Format is the version of the layout that this binary writes.
const Format = 1

// maxSocketPath is what fits into a socket address (sun_path, with its final zero byte).
const maxSocketPath = 107

// maxSmallFile bounds what is read of FORMAT, node-id, locks and counters.
const maxSmallFile = 256

// Dir is a node's data directory.
type Dir struct {
	root string
	node volant.NodeID
	lock *Lock // of the server; nil in a Dir of Attach
}

// migration brings a directory from format to-1 to format to. It must be repeatable.
type migration struct {
	to  int
	run func(root string) error
}

// migrations lists what is needed since the first format.
func migrations() []migration { return nil }

// Open makes or opens the directory for the server process: it takes the lock "server", migrates an
// older format, and refuses a newer one and a directory that is not Volant's.
func Open(root string) (*Dir, error) { return open(root, Format, migrations()) }

func open(root string, format int, ms []migration) (*Dir, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := checkOurs(root); err != nil {
		return nil, err
	}
	d := &Dir{root: root}
	d.lock, err = d.Lock("server")
	if err != nil {
		return nil, err
	}
	if err := d.prepare(format, ms); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Attach opens a directory that a server has made, without its lock: for the proxy process, for
// client commands and for tools.
func Attach(root string) (*Dir, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	have, err := readFormat(root)
	if err != nil {
		return nil, err
	}
	if have == 0 {
		return nil, volant.Errorf(volant.ErrNotFound, "%s is no data directory of Volant", root).
			WithRemedy("start `volant server` first, or name the right directory with --data")
	}
	if have > Format {
		return nil, tooNew(root, have, Format)
	}
	d := &Dir{root: root}
	return d, d.readNode()
}

// Close gives the lock back.
func (d *Dir) Close() error {
	if d.lock == nil {
		return nil
	}
	return d.lock.Close()
}

// Root is the directory's absolute path.
func (d *Dir) Root() string { return d.root }

// Node is the node's ID.
func (d *Dir) Node() volant.NodeID { return d.node }

// Path joins elements to the directory's path.
func (d *Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{d.root}, elem...)...)
}

// openSubs are the sub-directories that other users may pass through, since VMM processes which
// are not root open files below them. All others are for root alone.
var openSubs = regexp.MustCompile(`^(vm|images|kernel)$`)

var plainName = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,63}$`)

// Sub makes the sub-directory name and returns its path. Its mode is 0711 for vm, images and
// kernel and 0700 for all others, also where it existed with another one.
func (d *Dir) Sub(name string) (string, error) {
	if !plainName.MatchString(name) {
		return "", volant.Invalidf("sub-directory %q of the data directory: use lower-case letters, digits, '-', '_' and '.'", name)
	}
	mode := os.FileMode(0o700)
	if openSubs.MatchString(name) {
		mode = 0o711
	}
	path := d.Path(name)
	if err := os.MkdirAll(path, mode); err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	return path, nil
}

// Socket returns the path of a unix socket in the sub-directory run, which it makes.
func (d *Dir) Socket(name string) (string, error) {
	run, err := d.Sub("run")
	if err != nil {
		return "", err
	}
	path := filepath.Join(run, name)
	if len(path) > maxSocketPath {
		return "", volant.Invalidf("socket path %s has %d bytes; the kernel takes %d", path, len(path), maxSocketPath).
			WithRemedy("use a data directory with a shorter path")
	}
	return path, nil
}

// prepare makes or migrates the layout; the lock is held.
func (d *Dir) prepare(format int, ms []migration) error {
	have, err := readFormat(d.root)
	if err != nil {
		return err
	}
	if have > format {
		return tooNew(d.root, have, format)
	}
	for _, m := range ms {
		if have == 0 || m.to <= have {
			continue // a fresh directory starts in the newest format
		}
		if err := m.run(d.root); err != nil {
			return fmt.Errorf("data directory %s: migrate to format %d: %w", d.root, m.to, err)
		}
		if err := d.writeFormat(m.to); err != nil {
			return err
		}
	}
	if have > 0 {
		if err := d.readNode(); err != nil {
			return err
		}
	} else if err := d.makeNode(); err != nil {
		return err
	}
	if have == format {
		return nil
	}
	return d.writeFormat(format) // last, so that a directory with FORMAT is whole
}

func (d *Dir) writeFormat(v int) error {
	if err := atomicfile.Write(d.Path("FORMAT"), fmt.Appendf(nil, "%d\n", v), 0o644); err != nil {
		return fmt.Errorf("data directory: write FORMAT: %w", err)
	}
	return nil
}

func (d *Dir) makeNode() error {
	d.node = volant.NewNodeID()
	if err := atomicfile.WriteChecked(d.Path("node-id"), []byte(d.node), 0o644); err != nil {
		return fmt.Errorf("data directory: write node-id: %w", err)
	}
	return nil
}

var nodeID = regexp.MustCompile(`^[0-9a-f]{8}$`)

func (d *Dir) readNode() error {
	b, err := atomicfile.ReadChecked(d.Path("node-id"), maxSmallFile)
	if err != nil || !nodeID.Match(b) {
		return volant.Errorf(volant.ErrInvalid, "the node's ID in %s cannot be read: %v", d.Path("node-id"), err).
			WithRemedy("put the file back from a backup; its ID is in the names of `ip link` and `nft list tables` that start with v and volant_")
	}
	d.node = volant.NodeID(b)
	return nil
}

// checkOurs refuses a directory that holds files but no FORMAT.
func checkOurs(root string) error {
	have, err := readFormat(root)
	if err != nil || have > 0 {
		return err
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	for _, e := range entries {
		switch n := e.Name(); {
		case n == "lock", n == "node-id", n == "lost+found", strings.HasPrefix(n, ".tmp-"):
		default:
			return volant.Errorf(volant.ErrInvalid, "%s is not a data directory of Volant: it holds %s and has no FORMAT file", root, n).
				WithRemedy("name an empty or new directory with --data")
		}
	}
	return nil
}

// readFormat returns the directory's format, 0 if it has none.
func readFormat(root string) (int, error) {
	path := filepath.Join(root, "FORMAT")
	b, err := readSmall(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("data directory: %w", err)
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || v < 1 {
		return 0, volant.Errorf(volant.ErrInvalid, "%s holds %q, which is no format of Volant", path, b).
			WithRemedy("name a data directory of Volant with --data, or put the file back from a backup")
	}
	return v, nil
}

func tooNew(root string, have, format int) error {
	return volant.Errorf(volant.ErrPrecondition, "data directory %s has format %d, written by a newer Volant; this one reads up to %d", root, have, format).
		WithRemedy("run the newer volant again; a data directory never goes back to an older format")
}
