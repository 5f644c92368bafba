package hostnet

import (
	"bufio"
	"net/netip"
	"strings"

	"github.com/volant-edge/volant"
)

// For tests of what needs no kernel.
var (
	LocalPrefixes = localPrefixes
	Outermost     = outermost
)

// ParseResolvers reads the text of a resolv.conf.
func ParseResolvers(text string) []netip.Addr {
	return parseResolvers(bufio.NewScanner(strings.NewReader(text)))
}

// Addresses is the memory of which machine has which address.
type Addresses struct{ *state }

// LoadAddresses reads the memory of a pool.
func LoadAddresses(file string, pool netip.Prefix) (Addresses, error) {
	s, err := loadState(file, size(pool))
	return Addresses{s}, err
}

// Take returns the machine's index.
func (a Addresses) Take(id volant.MachineID) (uint16, error) { return a.take(id) }

// Release gives it back.
func (a Addresses) Release(id volant.MachineID) error { return a.release(id) }
