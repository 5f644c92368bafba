package microvm

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// The files in a snapshot's directory, the same for every engine.
const (
	ManifestFile = "manifest.json" // the Snapshot; written last
	StateFile    = "state"         // device state; StateSum is its sha256
	MemoryFile   = "memory"        // the guest's memory, MemSize bytes, with holes
)

// maxManifest bounds a manifest; ours are below 1 KiB.
const maxManifest = 64 << 10

// ReadSnapshot returns the snapshot in dir as its manifest tells it. A directory without a whole
// manifest is ErrIncompatible: it was never finished, or is damaged.
func ReadSnapshot(dir string) (Snapshot, error) {
	f, err := os.Open(filepath.Join(dir, ManifestFile))
	if err != nil {
		return Snapshot{}, unfit("read manifest", err)
	}
	defer f.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return Snapshot{}, unfit("read manifest", err)
	}
	var s Snapshot
	if err := json.Unmarshal(b, &s); err != nil {
		return Snapshot{}, unfit("read manifest", err)
	}
	s.Dir = dir
	return s, nil
}

// WriteManifest makes s the manifest of its directory, whole or not at all, and syncs it.
func (s Snapshot) WriteManifest() error {
	b, err := json.MarshalIndent(s, "", "\t")
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	name := filepath.Join(s.Dir, ManifestFile)
	f, err := os.OpenFile(name+".part", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(name+".part", name)
	}
	if err == nil {
		err = syncDir(s.Dir)
	}
	if err != nil {
		return fmt.Errorf("write manifest: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // only a name
	return d.Sync()
}

// Check says why a VM of spec cannot be restored from s by the named engine in its build, or nil.
// KernelSum is what the spec's kernel and initrd are now. Its errors are ErrIncompatible.
func (s Snapshot) Check(engine, build, kernelSum string, spec Spec) error {
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"engine", s.Engine, engine},
		{"engine build", s.Build, build},
		{"kernel", s.KernelSum, kernelSum},
		{"vcpus", s.VCPUs, spec.VCPUs},
		{"memory_mib", s.MemoryMiB, spec.MemoryMiB},
		{"drives", s.Drives, len(spec.Drives)},
		{"nics", s.NICs, len(spec.NICs)},
	} {
		if c.got != c.want {
			return fmt.Errorf("%w: its %s is %v, not %v", ErrIncompatible, c.what, c.got, c.want)
		}
	}
	if !s.Template && s.VMID != spec.ID {
		return fmt.Errorf("%w: it is of machine %s, not %s", ErrIncompatible, s.VMID, spec.ID)
	}
	return nil
}

// CheckFiles says whether the state file is the one that was written and the memory file is there
// in its size; it does not read the memory. Its errors are ErrIncompatible.
func (s Snapshot) CheckFiles() error {
	sum, err := SumFile(filepath.Join(s.Dir, StateFile))
	if err != nil {
		return unfit("read state", err)
	}
	if sum != s.StateSum {
		return fmt.Errorf("%w: the state file was changed", ErrIncompatible)
	}
	fi, err := os.Stat(filepath.Join(s.Dir, MemoryFile))
	if err != nil {
		return unfit("read memory", err)
	}
	if !fi.Mode().IsRegular() || fi.Size() != s.MemSize {
		return fmt.Errorf("%w: the memory file has %d bytes, not %d", ErrIncompatible, fi.Size(), s.MemSize)
	}
	return nil
}

// SumFile returns the sha256 of a file in hex.
func SumFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // only read
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// unfit is ErrIncompatible with what was being done and the cause. A missing file is no accident of
// the moment but a snapshot that is gone or damaged, and so are the rest.
func unfit(doing string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = fmt.Errorf("%s: %w", filepath.Base(pe.Path), pe.Err)
	}
	return fmt.Errorf("%w: %s: %w", ErrIncompatible, doing, err)
}
