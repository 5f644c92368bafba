package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/atomicfile"
)

// state is what a lab's directory keeps of it, in lab.json.
type state struct {
	Config Config `json:"config"`
	Faults faults `json:"faults"`
	Ready  bool   `json:"ready"` // it was built to its end
}

const stateFile = "lab.json"

func loadState(dir string) (*state, error) {
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, err
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s of %s: %w", stateFile, dir, err)
	}
	return &s, nil
}

func (s *state) save() error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(s.Config.Dir, stateFile), append(b, '\n'), 0o644)
}

// lock keeps other commands from changing the lab at the same time.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil //nolint:errcheck // the lock goes with it
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock the lab: %w", err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(volant.Errorf(volant.ErrUnavailable, "another command changes the lab in %s", dir).WithRemedy("try again when it has ended"), f.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// none says that there is no lab.
func none(dir string) error {
	return volant.Errorf(volant.ErrNotFound, "there is no lab in %s", dir).
		WithRemedy("build one with `volant lab up --regions dfw,ord,ams`, or name another with --name or --dir")
}
