// Package netdump reads the kernel's lists of links, addresses and routes whole.
//
// The kernel tells a list in pieces, and marks it as interrupted when something of it changed meanwhile (NLM_F_DUMP_INTR,
// netlink(7)): then entries may be missing. On a busy server that is nothing unusual.
package netdump

import (
	"errors"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	tries = 20
	pause = 2 * time.Millisecond // grows with each
)

// Whole calls list until the kernel was not interrupted. It gives up after some hundred milliseconds, with the error.
func Whole[T any](list func() (T, error)) (out T, err error) {
	for n := range tries {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
		time.Sleep(time.Duration(n) * pause)
	}
	return out, err
}
