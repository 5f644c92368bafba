package node

import (
	"context"
	"net"
	"net/netip"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/microvm/fake"
)

// fakeNet gives every machine of the fake engine one address, of the process that answers for all of them.
type fakeNet struct{ addr netip.Addr }

func newFakeNet(backend string) (fakeNet, error) {
	ip, err := netip.ParseAddr(backend)
	if err != nil {
		return fakeNet{}, volant.Invalidf("host.fake_backend %q: write the IP address of the process that answers for the machines", backend)
	}
	return fakeNet{ip}, nil
}

func (n fakeNet) Attach(context.Context, volant.MachineID, volant.OrgID) (host.Link, error) {
	return host.Link{Tap: "none", MAC: net.HardwareAddr{0x52, 0x54, 0, 0x77, 1, 2}, Net: guest.Net{Addr: netip.PrefixFrom(n.addr, n.addr.BitLen())}}, nil
}

func (fakeNet) Detach(context.Context, volant.MachineID) error { return nil }

func (fakeNet) Sweep(context.Context, func(volant.MachineID) bool) ([]string, error) { return nil, nil }

func newFakeEngine() *fake.Engine { return fake.New(fake.Config{}) }
