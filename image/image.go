package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
)

// Config says how large images may be. Its zero value works.
type Config struct {
	MaxBytes   int64         // uncompressed bytes of all layers; 0 means 8 GiB
	MaxEntries int           // entries of all layers; 0 means 500,000
	Grace      time.Duration // how long GC spares what nobody refers to yet; 0 means 1 hour
	Log        *slog.Logger  // nil discards

	Peers   Peers         // nil: there are no other nodes
	Streams int           // that other nodes are read by at a time; 0 means 8
	Piece   int64         // bytes of a blob that are kept or fetched again as one; 0 means 4 MiB
	Stall   time.Duration // how long a node may be silent while it sends; 0 means 5 s
	Within  time.Duration // for all of an image; 0 means 1 hour
	// Origin gets an image from where it came from first; errors.ErrUnsupported if that is not known.
	Origin func(ctx context.Context, d volant.Digest, progress func(Progress)) error
}

func (c Config) withDefaults() Config {
	if c.MaxBytes == 0 {
		c.MaxBytes = 8 << 30
	}
	if c.MaxEntries == 0 {
		c.MaxEntries = 500_000
	}
	if c.Grace == 0 {
		c.Grace = time.Hour
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Streams, c.Piece = cmp.Or(c.Streams, 8), cmp.Or(c.Piece, 4<<20)
	c.Stall, c.Within = cmp.Or(c.Stall, 5*time.Second), cmp.Or(c.Within, time.Hour)
	return c
}

// Progress says how far a long work has come. It is given to the caller's function, which must be quick.
type Progress struct {
	Phase string        // "upload", "import", "pull" or "convert"
	Blob  volant.Digest // the blob that is worked on
	Done  int64         // bytes done, of all blobs
	Total int64         // bytes to do
}

// Store keeps blobs and root disks below one directory. Its methods may be called from several
// goroutines; one process has a directory open at a time.
type Store struct {
	dir string
	cfg Config
	log *slog.Logger

	mu       sync.Mutex // guards flights and fetching
	flights  map[volant.Digest]*flight
	fetching map[volant.Digest]chan struct{} // blobs that come from other nodes; closed when that has ended

	streams chan struct{} // one in it for each stream from another node

	scratch sync.Mutex   // one template is made at a time
	sweep   sync.RWMutex // held to write while GC looks at a file and removes it
}

// Open opens the store in dir, makes its directories and removes what an earlier process left half-made.
func Open(dir string, cfg Config) (*Store, error) {
	s := &Store{
		dir: dir, cfg: cfg.withDefaults(), flights: make(map[volant.Digest]*flight), fetching: make(map[volant.Digest]chan struct{}),
	}
	s.log, s.streams = s.cfg.Log, make(chan struct{}, s.cfg.Streams)
	if err := os.RemoveAll(s.path("tmp")); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	for _, d := range []string{"blobs/sha256", "orgs", "parts", "rootfs", "scratch", "tmp"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	return s, nil
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *Store) blobPath(d volant.Digest) string { return s.path("blobs/sha256", d.Hex()) }

// temp makes a file in tmp; the function it returns removes it, if it is still there.
func (s *Store) temp(pattern string) (*os.File, func(), error) {
	f, err := os.CreateTemp(s.path("tmp"), pattern)
	if err != nil {
		return nil, nil, s.diskFull(err)
	}
	return f, func() {
		f.Close() //nolint:errcheck // closed twice after success; else the error at hand matters more
		if err := os.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("temporary file not removed", "file", f.Name(), "err", err)
		}
	}, nil
}

// publish syncs f, closes it and gives it its final name.
func publish(f *os.File, path string, mode os.FileMode) error {
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// reserve is what stays free on the disk: other parts of the server need it to live.
const reserve = 64 << 20

// room says whether n more bytes fit on the disk.
func (s *Store) room(n int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return fmt.Errorf("free space of %s: %w", s.dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; n > free-reserve {
		return volant.Errorf(volant.ErrNoCapacity, "no disk space: %s needs %s more, and %s are free",
			s.dir, size(n+reserve), size(free)).WithRemedy("free some space or remove images that no app uses")
	}
	return nil
}

// diskFull makes an error for people of a full disk; others it returns as they are.
func (s *Store) diskFull(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) && !errors.Is(err, unix.EFBIG) {
		return err
	}
	return volant.Errorf(volant.ErrNoCapacity, "no disk space in %s: %v", s.dir, err).
		WithRemedy("free some space or remove images that no app uses")
}

// size is a number of bytes as people write it.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	default:
		return fmt.Sprintf("%d bytes", n)
	}
}
