package netdump_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/vishvananda/netlink"

	"github.com/volant-edge/volant/internal/netdump"
)

func TestWhole(t *testing.T) {
	other := errors.New("not permitted")
	for _, tc := range []struct {
		name        string
		interrupted int // calls that are
		end         error
		want        error
		calls       int
	}{
		{"at once", 0, nil, nil, 1},
		{"after two that were interrupted", 2, nil, nil, 3},
		{"another error is not tried again", 1, other, other, 2},
		{"interrupted for ever", 1000, nil, netlink.ErrDumpInterrupted, 20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				got, err := netdump.Whole(func() (int, error) {
					if calls++; calls <= tc.interrupted {
						return 1, fmt.Errorf("list: %w", netlink.ErrDumpInterrupted)
					}
					return 7, tc.end
				})
				if !errors.Is(err, tc.want) || calls != tc.calls || err == nil && got != 7 {
					t.Errorf("got %d, %v after %d calls; want %v after %d", got, err, calls, tc.want, tc.calls)
				}
			})
		})
	}
}
