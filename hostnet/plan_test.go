package hostnet_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/hostnet"
	"github.com/volant-edge/volant/internal/atomicfile"
)

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	for want, change := range map[string]func(*hostnet.Config){
		"node ID":       func(c *hostnet.Config) { c.Node = "v*" },
		"/16 to /29":    func(c *hostnet.Config) { c.Pool4 = netip.MustParsePrefix("10.0.0.0/8") },
		"use an IPv4":   func(c *hostnet.Config) { c.Pool4 = netip.MustParsePrefix("fd00::/112") },
		"overlaps":      func(c *hostnet.Config) { c.Pool4 = netip.MustParsePrefix("127.77.4.0/24") },
		"1280 to 65535": func(c *hostnet.Config) { c.MTU = 576 },
	} {
		cfg := config()
		change(&cfg)
		_, err := hostnet.New(cfg)
		if !errors.Is(err, volant.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want one that says %q", err, want)
		}
	}
}

func TestLocalPrefixes(t *testing.T) {
	pools := prefixes("127.77.0.0/16", "fd77::/64", "198.51.100.0/24")
	for _, c := range []struct{ name, addrs, want string }{
		{"nothing for the loopback network", "127.77.0.1 127.77.0.2", ""},
		{"a pool as a whole, once", "fd77::1 fd77::2 198.51.100.9", "198.51.100.0/24 fd77::/64"},
		{"an address outside of the pools alone", "203.0.113.4 2001:db8::4 203.0.113.4", "203.0.113.4/32 2001:db8::4/128"},
	} {
		var addrs []netip.Addr
		for a := range strings.FieldsSeq(c.addrs) {
			addrs = append(addrs, netip.MustParseAddr(a))
		}
		got := strings.Trim(fmt.Sprint(hostnet.LocalPrefixes(addrs, pools)), "[]")
		if got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestOutermost(t *testing.T) {
	got := hostnet.Outermost(prefixes("10.1.0.0/16", "10.0.0.0/8", "192.168.0.0/16", "10.0.0.0/8", "192.168.0.5/16", "fc00::/7", "fdaa::/16"))
	want := prefixes("10.0.0.0/8", "192.168.0.0/16", "fc00::/7")
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestParseResolvers(t *testing.T) {
	got := hostnet.ParseResolvers("# by hand\nsearch example.com\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver\nnameserver 2001:db8::53\nnameserver 192.0.2.54\nnameserver 192.0.2.55\n")
	if want := "[192.0.2.53 2001:db8::53 192.0.2.54]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func machine(i int) volant.MachineID { return volant.MachineID(fmt.Sprintf("%014x", i)) }

func TestAddressesAreGivenInTurnAndKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "addresses")
	pool := netip.MustParsePrefix("10.0.0.0/29") // 2 to 6: five machines
	s, err := hostnet.LoadAddresses(file, pool)
	if err != nil {
		t.Fatal(err)
	}
	take := func(s hostnet.Addresses, i int) uint16 {
		t.Helper()
		idx, err := s.Take(machine(i))
		if err != nil {
			t.Fatal(err)
		}
		return idx
	}
	var got []uint16
	for i := range 4 {
		got = append(got, take(s, i))
	}
	if err := s.Release(machine(0)); err != nil {
		t.Fatal(err)
	}
	got = append(got, take(s, 4), take(s, 5), take(s, 3))
	if diff := cmp.Diff([]uint16{2, 3, 4, 5, 6, 2, 5}, got); diff != "" {
		t.Errorf("indexes (-want +got):\n%s", diff)
	}
	if _, err := s.Take(machine(6)); !errors.Is(err, volant.ErrNoCapacity) {
		t.Errorf("error of a full pool is %v, want no capacity", err)
	}
	again, err := hostnet.LoadAddresses(file, pool)
	if err != nil {
		t.Fatal(err)
	}
	if got := take(again, 3); got != 5 {
		t.Errorf("after a restart the machine has index %d, want 5", got)
	}
}

func TestDamagedAddressesAreNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "addresses")
	if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := hostnet.LoadAddresses(file, netip.MustParsePrefix("172.27.0.0/16"))
	if !errors.Is(err, volant.ErrInvalid) || !strings.Contains(err.Error(), "move "+file+" away") {
		t.Errorf("error is %v, want one with its cure", err)
	}
}

func FuzzAddresses(f *testing.F) {
	f.Add([]byte(`{"next":3,"machines":{"11111111111111":2}}`))
	f.Add([]byte(`{"next":65535,"machines":{"11111111111111":2,"22222222222222":2,"x":0,"33333333333333":65535}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		file := filepath.Join(t.TempDir(), "addresses")
		if err := atomicfile.WriteChecked(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := hostnet.LoadAddresses(file, netip.MustParsePrefix("10.0.0.0/27"))
		if err != nil {
			return
		}
		seen := map[uint16]bool{}
		for i := range 40 {
			idx, err := s.Take(machine(i))
			if err != nil {
				break
			}
			if idx < 2 || idx > 30 || seen[idx] {
				t.Fatalf("index %d is out of the pool or given twice", idx)
			}
			seen[idx] = true
		}
	})
}
