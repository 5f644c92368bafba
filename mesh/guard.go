package mesh

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
)

// guardTable is the name of the firewall table. It is one for all nodes in a network namespace, as its rules are.
const guardTable = "volant-mesh"

// linkPrefix starts the names of all mesh interfaces and of nothing else of ours: a tap has a hex digit second.
const linkPrefix = "vl"

// guard refuses packets that bear a mesh address and came or would go another way than through the mesh: services
// there know who calls by the address alone.
func guard() error {
	nft, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := nft.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv6, Name: guardTable})
	nft.FlushTable(t)
	accept := nftables.ChainPolicyAccept
	chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return nft.AddChain(&nftables.Chain{
			Name: name, Table: t, Hooknum: hook, Priority: nftables.ChainPriorityRef(-20), Type: nftables.ChainTypeFilter, Policy: &accept,
		})
	}
	in, fwd := chain("input", nftables.ChainHookInput), chain("forward", nftables.ChainHookForward)
	rule := func(c *nftables.Chain, parts ...[]expr.Any) {
		r := &nftables.Rule{Table: t, Chain: c}
		for _, p := range parts {
			r.Exprs = append(r.Exprs, p...)
		}
		r.Exprs = append(r.Exprs, &expr.Verdict{Kind: expr.VerdictDrop})
		nft.AddRule(r)
	}
	const source, dest = 8, 24 // in the IPv6 header
	for _, offset := range []uint32{source, dest} {
		rule(in, meshAt(offset), notFrom(linkPrefix), notFrom("lo\x00"))
		rule(fwd, meshAt(offset))
	}
	if err := nft.Flush(); err != nil {
		return volant.Errorf(volant.ErrPrecondition, "firewall of the mesh: %v", err).WithRemedy("run as root on a kernel with nf_tables (modprobe nf_tables)")
	}
	return nil
}

func meshAt(offset uint32) []expr.Any {
	p := volant.MeshPrefix
	a := p.Addr().As16()
	n := p.Bits() / 8
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(n)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a[:n]},
	}
}

// notFrom compares the first bytes of the interface's name.
func notFrom(prefix string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte(prefix)},
	}
}

// unguard removes the table, if it is there.
func unguard() (removed []string, err error) {
	nft, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	tables, err := nft.ListTablesOfFamily(unix.NFPROTO_IPV6)
	if err != nil {
		return nil, fmt.Errorf("list firewall tables: %w", err)
	}
	for _, t := range tables {
		if t.Name != guardTable {
			continue
		}
		nft.DelTable(t)
		if err := nft.Flush(); err != nil {
			return nil, fmt.Errorf("remove firewall table %s: %w", t.Name, err)
		}
		removed = append(removed, "firewall table ip6 "+guardTable)
	}
	return removed, nil
}
