package sixpn_test

import (
	"testing"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/sixpn"
)

func TestAddr(t *testing.T) {
	got, err := sixpn.Addr(volant.OrgPersonal, "0badcafe", 0x12345678)
	if err != nil {
		t.Fatal(err)
	}
	if want := "fdaa:4a0a:339b:bad:cafe:1234:5678:2"; got.String() != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if n := sixpn.Network(volant.OrgPersonal); !n.Contains(got) || n.Bits() != 48 {
		t.Errorf("network %v does not hold %v", n, got)
	}
	if n := sixpn.Network("other"); n.Contains(got) {
		t.Errorf("network %v of another organization holds %v", n, got)
	}
	if !sixpn.Prefix().Contains(got) {
		t.Errorf("%v is outside of %v", got, sixpn.Prefix())
	}
	for _, bad := range []volant.NodeID{"", "0badcaf", "0badcafe0", "node0001"} {
		if a, err := sixpn.Addr(volant.OrgPersonal, bad, 1); err == nil {
			t.Errorf("node %q gave %v", bad, a)
		}
	}
}
