package addrpool_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/addrpool"
)

func TestNext(t *testing.T) {
	upTo := func(s string) func(netip.Addr) bool { // all addresses up to s are used
		a := netip.MustParseAddr(s)
		return func(b netip.Addr) bool { return b.Compare(a) <= 0 }
	}
	none := func(netip.Addr) bool { return false }
	for _, c := range []struct {
		name, pool string
		used       func(netip.Addr) bool
		want       string // "" is none
	}{
		{"the network's address is skipped", "127.77.0.0/16", none, "127.77.0.1"},
		{"addresses that end in .255 and .0 are skipped", "127.77.0.0/16", upTo("127.77.0.254"), "127.77.1.1"},
		{"a gap is filled", "127.77.0.0/16", func(a netip.Addr) bool { return a.String() != "127.77.3.9" }, "127.77.3.9"},
		{"the last usable one", "127.77.0.0/16", upTo("127.77.255.253"), "127.77.255.254"},
		{"none is left", "127.77.0.0/16", upTo("127.77.255.254"), ""},
		{"a pool written with host bits", "127.77.9.9/16", none, "127.77.0.1"},
		{"a small pool loses its ends", "198.51.100.4/30", none, "198.51.100.5"},
		{"a small pool's end", "198.51.100.4/30", upTo("198.51.100.6"), ""},
		{"both of a /31", "198.51.100.4/31", none, "198.51.100.4"},
		{"a single address", "198.51.100.0/32", none, "198.51.100.0"},
		{"IPv6 skips the router's anycast address", "fd77::/64", none, "fd77::1"},
		{"IPv6 has no .255", "fd77::/64", upTo("fd77::fe"), "fd77::ff"},
		{"IPv6 ends", "fd77::/126", upTo("fd77::3"), ""},
		{"the end of all addresses", "255.255.255.252/30", upTo("255.255.255.254"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := addrpool.Next(netip.MustParsePrefix(c.pool), c.used)
			if c.want == "" {
				if !errors.Is(err, volant.ErrNoCapacity) || !strings.Contains(err.Error(), "release addresses") {
					t.Errorf("got %v, %v; want no capacity and a remedy", got, err)
				}
				return
			}
			if err != nil || got.String() != c.want {
				t.Errorf("got %v, %v; want %s", got, err, c.want)
			}
		})
	}
}

func TestNextEndsWhenEverythingIsUsed(t *testing.T) {
	all := func(netip.Addr) bool { return true }
	if _, err := addrpool.Next(netip.MustParsePrefix("fd77::/64"), all); !errors.Is(err, volant.ErrNoCapacity) {
		t.Errorf("error is %v, want no capacity", err)
	}
	if _, err := addrpool.Next(netip.Prefix{}, all); !errors.Is(err, volant.ErrInvalid) {
		t.Errorf("error is %v, want invalid", err)
	}
}

func TestLast(t *testing.T) {
	for pool, want := range map[string]string{"127.77.0.0/16": "127.77.255.255", "10.0.0.7/32": "10.0.0.7", "fd77::/64": "fd77::ffff:ffff:ffff:ffff", "0.0.0.0/0": "255.255.255.255"} {
		if got := addrpool.Last(netip.MustParsePrefix(pool)).String(); got != want {
			t.Errorf("Last(%s) = %s, want %s", pool, got, want)
		}
	}
}
