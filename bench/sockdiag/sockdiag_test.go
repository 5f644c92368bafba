package sockdiag_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/volant-edge/volant/bench/sockdiag"
)

func TestBetweenSeesWhatIsOpenToTheNetworkAndNothingElse(t *testing.T) {
	to := netip.MustParsePrefix("127.99.4.0/24")
	open := func(addr string) net.Conn {
		t.Helper()
		l, err := net.Listen("tcp4", addr+":0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	in := open("127.99.4.7")
	open("127.99.5.7")
	check := func(want int) {
		t.Helper()
		got, err := sockdiag.Between(to)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != want {
			t.Fatalf("%d connections, want %d: %v", len(got), want, got)
		}
		if want == 1 && (got[0].Local.String() != in.LocalAddr().String() || got[0].Remote.String() != in.RemoteAddr().String()) {
			t.Errorf("%v, want %v to %v", got[0], in.LocalAddr(), in.RemoteAddr())
		}
	}
	check(1)
	if err := in.(*net.TCPConn).SetLinger(0); err != nil { // a reset leaves no state behind
		t.Fatal(err)
	}
	in.Close()
	check(0)
}
