package node

import (
	"errors"
	"os"
	"strings"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/internal/atomicfile"
)

// KernelDir returns where a server with the data directory looks for the guests' kernel. It makes the
// data directory if there is none, so that what is put there does not make it look like somebody else's.
func KernelDir(data string) (string, error) {
	dir, err := datadir.Attach(data)
	if errors.Is(err, volant.ErrNotFound) {
		if dir, err = datadir.Open(data); err == nil {
			defer func() { _ = dir.Close() }() // only the lock
		}
	}
	if err != nil {
		return "", err
	}
	return dir.Sub("kernel")
}

// shmFile holds, in the data directory, the configured place of machines' memory, for Cleanup, which
// has no configuration.
const shmFile = "shm-dir"

func keepShm(dir *datadir.Dir, base string) error {
	return atomicfile.Write(dir.Path(shmFile), []byte(base+"\n"), 0o644)
}

func keptShm(dir *datadir.Dir) string {
	b, err := os.ReadFile(dir.Path(shmFile))
	if base := strings.TrimSpace(string(b)); err == nil && base != "" {
		return base
	}
	return "/dev/shm"
}
