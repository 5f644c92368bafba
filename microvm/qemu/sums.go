package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"

	"github.com/volant-edge/volant/microvm"
)

// sums remembers the sums of kernels and initrds, which are large, by what the file system says of
// them. It is kept in a file, so that the first wake after a restart does not read a kernel.
type sums struct {
	file string

	mu   sync.Mutex
	read bool              // guarded by mu
	by   map[string]string // guarded by mu
}

// maxSums bounds what is remembered.
const maxSums = 64

// of returns the sum of the spec's kernel and initrd.
func (s *sums) of(spec microvm.Spec) (string, error) {
	if spec.KernelSum != "" {
		return spec.KernelSum, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kernel, err := s.oneLocked(spec.Kernel)
	if err != nil {
		return "", fmt.Errorf("kernel: %w", err)
	}
	initrd, err := s.oneLocked(spec.Initrd)
	if err != nil {
		return "", fmt.Errorf("initrd: %w", err)
	}
	return digest(kernel, initrd), nil
}

func (s *sums) oneLocked(path string) (string, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	key := fmt.Sprintf("%s %d %d", path, fi.Size(), fi.ModTime().UnixNano())
	if !s.read {
		s.read = true
		s.by = map[string]string{}
		if b, err := os.ReadFile(s.file); err == nil && json.Unmarshal(b, &s.by) != nil {
			s.by = map[string]string{} // a damaged file costs a hash
		}
	}
	if sum := s.by[key]; sum != "" {
		return sum, nil
	}
	sum, err := microvm.SumFile(path)
	if err != nil {
		return "", err
	}
	if len(s.by) >= maxSums {
		clear(s.by)
	}
	s.by[key] = sum
	b, err := json.Marshal(s.by)
	if err != nil {
		return "", err
	}
	return sum, os.WriteFile(s.file, b, 0o600)
}
