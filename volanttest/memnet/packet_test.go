package memnet_test

import (
	"errors"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant/volanttest/memnet"
)

func TestDatagramsTakeTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Network
		a, b := netip.MustParseAddrPort("[fd00::1]:1"), netip.MustParseAddrPort("[fd00::2]:2")
		from, err := n.ListenPacket(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		to, err := n.ListenPacket(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		delays := [][]time.Duration{{2 * time.Second}, {time.Second, 3 * time.Second}, {}}
		n.SetWeather(func(netip.AddrPort, netip.AddrPort, int) []time.Duration {
			d := delays[0]
			delays = delays[1:]
			return d
		})
		begun := time.Now()
		for _, text := range []string{"one", "two", "lost"} {
			if _, err := from.WriteTo([]byte(text), to.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 10)
		for i, want := range []string{"two", "one", "two"} {
			size, src, err := to.ReadFrom(buf)
			if err != nil || string(buf[:size]) != want || src.String() != a.String() || time.Since(begun) != time.Duration(i+1)*time.Second {
				t.Errorf("%q from %v after %v, %v; want %q", buf[:size], src, time.Since(begun), err, want)
			}
		}
		if err := to.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := to.ReadFrom(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after the deadline: %v", err)
		}
		from.Close()
		to.Close()
	})
}
