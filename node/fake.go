package node

import (
	"context"
	"encoding/hex"
	"net"
	"net/netip"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/microvm/fake"
)

// fakeNet gives machines of the fake engine addresses of the process that answers for all of them: one address, or out
// of an IPv6 prefix one each, which ends in the machine's ID.
type fakeNet struct{ backend netip.Prefix }

func newFakeNet(backend string) (fakeNet, error) {
	if ip, err := netip.ParseAddr(backend); err == nil {
		return fakeNet{netip.PrefixFrom(ip, ip.BitLen())}, nil
	}
	p, err := netip.ParsePrefix(backend)
	if err != nil || !p.Addr().Is6() || p.Bits() > 64 {
		return fakeNet{}, volant.Invalidf("host.fake_backend %q: write the IP address of the process that answers for the machines, or an IPv6 prefix of at most 64 bits", backend)
	}
	return fakeNet{p.Masked()}, nil
}

func (n fakeNet) Attach(_ context.Context, id volant.MachineID, _ volant.OrgID) (host.Link, error) {
	ip := n.addr(id)
	return host.Link{Tap: "none", MAC: net.HardwareAddr{0x52, 0x54, 0, 0x77, 1, 2}, Net: guest.Net{Addr: netip.PrefixFrom(ip, ip.BitLen())}}, nil
}

// addr is where the machine is.
func (n fakeNet) addr(id volant.MachineID) netip.Addr {
	raw, err := hex.DecodeString(string(id))
	if n.backend.IsSingleIP() || err != nil || len(raw) != 7 {
		return n.backend.Addr()
	}
	a := n.backend.Addr().As16()
	copy(a[9:], raw)
	return netip.AddrFrom16(a)
}

func (fakeNet) Detach(context.Context, volant.MachineID) error { return nil }

func (fakeNet) Sweep(context.Context, func(volant.MachineID) bool) ([]string, error) { return nil, nil }

func newFakeEngine() *fake.Engine { return fake.New(fake.Config{}) }

// fakeCgroups is host's for machines without a process.
type fakeCgroups struct{}

func (fakeCgroups) Add(context.Context, volant.MachineID, int) error { return nil }

func (fakeCgroups) Limit(context.Context, volant.MachineID, host.Limits) error { return nil }

func (fakeCgroups) Pin(int, int) error { return nil }

func (fakeCgroups) Remove(context.Context, volant.MachineID) error { return nil }

func (fakeCgroups) Sweep(context.Context, func(volant.MachineID) bool) ([]string, error) {
	return nil, nil
}
