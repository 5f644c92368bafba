package hostnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/atomicfile"
)

// gatewayIndex is the gateway's place in the pool; machines come after it.
const gatewayIndex = 1

// maxStateFile bounds the file: 65,533 machines of some 30 bytes.
const maxStateFile = 4 << 20

// state remembers which machine has which index in the pool. Indexes are given in turn, so that an
// address rests before it is given again.
type state struct {
	file string
	size int // of the pool
	data stateData
	used map[uint16]bool
	bad  map[uint16]bool // found to be somebody else's, in this run
}

type stateData struct {
	Next     uint16                      `json:"next"`
	Machines map[volant.MachineID]uint16 `json:"machines"`
}

func loadState(file string, size int) (*state, error) {
	s := &state{file: file, size: size, used: map[uint16]bool{}, bad: map[uint16]bool{}}
	s.data.Machines = map[volant.MachineID]uint16{}
	if file == "" {
		return s, nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, err
	}
	b, err := atomicfile.ReadChecked(file, maxStateFile)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, volant.Errorf(volant.ErrInvalid, "machines' addresses cannot be read: %v", err).
			WithRemedy("move %s away: running machines keep their addresses, suspended ones boot anew if theirs changes", file)
	}
	return s, s.decode(b)
}

func (s *state) decode(b []byte) error {
	var d stateData
	if err := json.Unmarshal(b, &d); err != nil {
		return fmt.Errorf("machines' addresses in %s: %w", s.file, err)
	}
	s.data.Next = d.Next
	for id, idx := range d.Machines {
		if id.Valid() && s.inPool(idx) && !s.used[idx] {
			s.data.Machines[id] = idx
			s.used[idx] = true
		}
	}
	return nil
}

func (s *state) inPool(idx uint16) bool { return idx > gatewayIndex && int(idx) < s.size-1 }

// take returns the machine's index, a new one if it has none. A new one is on disk when it returns.
func (s *state) take(id volant.MachineID) (uint16, error) {
	if idx, ok := s.data.Machines[id]; ok {
		return idx, nil
	}
	idx := s.data.Next
	for range s.size {
		if s.inPool(idx) && !s.used[idx] && !s.bad[idx] {
			s.set(id, idx)
			s.data.Next = idx + 1
			if err := s.save(); err != nil {
				s.drop(id)
				return 0, err
			}
			return idx, nil
		}
		if idx++; int(idx) >= s.size-1 {
			idx = gatewayIndex + 1
		}
	}
	return 0, volant.Errorf(volant.ErrNoCapacity, "all %d machine addresses of this node are taken", s.size-3).
		WithRemedy("destroy machines that nobody needs, or give the node a larger pool")
}

func (s *state) set(id volant.MachineID, idx uint16) {
	s.data.Machines[id] = idx
	s.used[idx] = true
}

func (s *state) drop(id volant.MachineID) {
	if idx, ok := s.data.Machines[id]; ok {
		delete(s.data.Machines, id)
		delete(s.used, idx)
	}
}

// adopt notes what an existing tap says, where the file does not know better. It is saved by the next change.
func (s *state) adopt(id volant.MachineID, idx uint16) bool {
	if have, ok := s.data.Machines[id]; ok {
		return have == idx
	}
	if !id.Valid() || !s.inPool(idx) || s.used[idx] {
		return false
	}
	s.set(id, idx)
	return true
}

// avoid gives the machine's index up, because somebody else uses its address.
func (s *state) avoid(id volant.MachineID) {
	s.bad[s.data.Machines[id]] = true
	s.drop(id)
}

func (s *state) release(id volant.MachineID) error {
	if _, ok := s.data.Machines[id]; !ok {
		return nil
	}
	s.drop(id)
	return s.save()
}

func (s *state) index(id volant.MachineID) (uint16, bool) {
	idx, ok := s.data.Machines[id]
	return idx, ok
}

func (s *state) all() map[volant.MachineID]uint16 { return maps.Clone(s.data.Machines) }

func (s *state) save() error {
	if s.file == "" {
		return nil
	}
	b, err := json.Marshal(s.data)
	if err != nil {
		return err
	}
	if err := atomicfile.WriteChecked(s.file, b, 0o600); err != nil {
		return fmt.Errorf("write machines' addresses: %w", err)
	}
	return nil
}

// at returns address number idx of the prefix.
func at(p netip.Prefix, idx uint16) netip.Addr {
	b := p.Addr().As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n += uint32(idx)
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// size is the number of addresses in an IPv4 prefix of /16 or smaller.
func size(p netip.Prefix) int { return 1 << (32 - p.Bits()) }
