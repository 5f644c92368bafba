package microvm

import (
	volant "github.com/volant-edge/volant"
)

// Bounds of a spec. A microvm machine has 24 transports; a drive and a NIC take one each, the link
// and the entropy source two.
const (
	maxID     = 64
	maxVCPUs  = 64
	minMemory = 96 // MiB; a stock kernel with our init does not come up below
	maxMemory = 1 << 20
	maxDrives = 8
	maxNICs   = 8
)

// Check says what is wrong with the spec, or nil. It does not look at files.
func (s Spec) Check() error {
	if err := CheckID(s.ID); err != nil {
		return err
	}
	for _, b := range []struct {
		what           string
		got, low, high int
	}{
		{"vcpus", s.VCPUs, 1, maxVCPUs},
		{"memory_mib", s.MemoryMiB, minMemory, maxMemory},
		{"drives", len(s.Drives), 0, maxDrives},
		{"nics", len(s.NICs), 0, maxNICs},
	} {
		if b.got < b.low || b.got > b.high {
			return volant.Invalidf("vm %s: %s is %d", s.ID, b.what, b.got).
				WithRemedy("use %d to %d", b.low, b.high)
		}
	}
	for i, d := range s.Drives {
		if d.Path == "" {
			return volant.Invalidf("vm %s: drive %d has no path", s.ID, i)
		}
	}
	for i, n := range s.NICs {
		if n.Tap == "" || len(n.MAC) != 6 {
			return volant.Invalidf("vm %s: link %d needs a tap and a MAC of 6 bytes", s.ID, i)
		}
	}
	return nil
}

// CheckID says what is wrong with a VM's ID, or nil. IDs name directories.
func CheckID(id string) error {
	if id == "" || len(id) > maxID {
		return volant.Invalidf("vm id %q: use 1 to %d characters", id, maxID)
	}
	for _, c := range []byte(id) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return volant.Invalidf("vm id %q: use letters, digits, '-' and '_'", id)
		}
	}
	return nil
}
